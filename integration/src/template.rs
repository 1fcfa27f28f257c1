//! Roots of containerd with images already imported, made once per machine and copied in milliseconds.
//!
//! Unpacked layers are bound read-only, blobs are hard links. The databases are copied with the
//! namespace renamed: its name has the same length and the same place in the sort order as the
//! one it replaces, and bolt keeps no checksum over its keys. That spares an import of seconds for
//! every instance, and leaves each with a namespace (and so cgroups) of its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::{
    cache,
    config::Config,
    containerd::{Containerd, Place},
    ctr::Ctr,
    images::Image,
    sweep,
    tag::{Directories, Tag},
    versions::Installed,
};

/// Changed when templates are made differently.
const RECIPE: u32 = 1;

/// Fills `root` with the images of `config`, in the namespace `tag`.
pub(crate) fn copy(installed: &Installed, config: &Config, tag: &Tag, root: &Path) -> Result<()> {
    let template = prepared(installed, &config.images)?;
    copy_tree(&template.join("root"), root, tag)
}

fn prepared(installed: &Installed, images: &[Image]) -> Result<PathBuf> {
    let mut keys: Vec<String> = images.iter().map(|image| image.key()).collect();
    keys.sort();
    keys.dedup();
    let name = format!("root-{RECIPE}-{}-{}", installed.version, keys.join("-"));
    cache::entry(&name, |into| {
        let tag = Tag::fresh()?;
        let mut directories = Directories::claim(&tag)?;
        into.clone_into(&mut directories.data);
        let namespace = Tag::of_templates().to_string();
        let config = Config::with_images(&[]);
        let place = Place {
            tag,
            namespace,
            directories,
        };
        let containerd = Containerd::start_in(installed, &config, place)?;
        for image in images {
            Ctr::of(&containerd).import(&image.archive()?)?;
        }
        containerd.finish()?;
        for directory in ["work", "temp"] {
            sweep::remove(&into.join(directory))?;
        }
        Ok(())
    })
}

fn copy_tree(from: &Path, to: &Path, tag: &Tag) -> Result<()> {
    // A root in memory is there already.
    if !to.exists() {
        fs::create_dir(to).with_context(|| format!("making {}", to.display()))?;
    }
    let mode = fs::metadata(from)?.permissions().mode();
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    if is_unpacked_layer(from) {
        return bind_read_only(from, to);
    }
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target, tag)?;
        } else if source
            .extension()
            .is_some_and(|extension| extension == "db")
        {
            copy_database(&source, &target, tag)?;
        } else if kind.is_file() && fs::hard_link(&source, &target).is_err() {
            // Another file system.
            fs::copy(&source, &target)
                .with_context(|| format!("copying to {}", target.display()))?;
        }
    }
    Ok(())
}

/// `.../snapshots/NUMBER/fs`.
fn is_unpacked_layer(path: &Path) -> bool {
    let mut names = path.iter().rev();
    names.next().is_some_and(|name| name == "fs")
        && names.nth(1).is_some_and(|name| name == "snapshots")
}

fn bind_read_only(from: &Path, to: &Path) -> Result<()> {
    let nothing = None::<&str>;
    let bind = |flags| mount(Some(from), to, nothing, flags, nothing);
    bind(MsFlags::MS_BIND)
        .and_then(|()| bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY))
        .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

fn copy_database(from: &Path, to: &Path, tag: &Tag) -> Result<()> {
    let mut bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let template = Tag::of_templates();
    ensure!(
        template.as_str().len() == tag.as_str().len(),
        "{tag} is not as long as {template}"
    );
    replace(
        &mut bytes,
        template.as_str().as_bytes(),
        tag.as_str().as_bytes(),
    );
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))
}

/// Overwrites each occurrence by something of the same length.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..]
        .windows(old.len())
        .position(|window| window == old)
    {
        at += found;
        bytes[at..at + old.len()].copy_from_slice(new);
        at += old.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_is_replaced_and_nothing_else() {
        let mut bytes = *b"..pp-old!pp-oldpp-ol";
        replace(&mut bytes, b"pp-old", b"pp-new");
        assert_eq!(&bytes, b"..pp-new!pp-newpp-ol");
    }

    #[test]
    fn unpacked_layers_are_told_from_other_directories() {
        for (path, expected) in [
            (
                "/r/io.containerd.snapshotter.v1.overlayfs/snapshots/12/fs",
                true,
            ),
            (
                "/r/io.containerd.snapshotter.v1.overlayfs/snapshots/12/work",
                false,
            ),
            ("/r/io.containerd.content.v1.content/fs", false),
        ] {
            assert_eq!(is_unpacked_layer(Path::new(path)), expected, "{path}");
        }
    }
}
