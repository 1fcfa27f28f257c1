//! How files of ours get into a container: written below `/run`, or bound over those of the image.
//! Runs inside the container's root.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::error::{Error, Result, host};
use crate::procfs::Proc;
use crate::rootfs::remount_readonly;

use super::OWN;

/// A copy of the stub that belongs to the container: not the host's file, which somebody with
/// the right to remount could write.
pub(super) fn copy_stub(proc: &Proc) -> Result<()> {
    let stub = format!("{OWN}/init");
    proc.make_working_directory()?;
    let copied = fs::copy("self/exe", &stub);
    copied.map_err(host(|| format!("copy the stub to {stub}")))?;
    set_mode(&stub, 0o755)
}

/// Binds a file or directory over another one.
pub(super) fn bind(source: &str, target: &Path) -> Result<()> {
    let step = || format!("bind {source} on {}", target.display());
    let none: Option<&str> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).map_err(host(step))
}

/// The same, read-only.
pub(super) fn cover(source: &str, target: &Path) -> Result<()> {
    bind(source, target)?;
    let step = || format!("make {} read-only", target.display());
    remount_readonly(&target.to_string_lossy()).map_err(host(step))
}

/// Makes a directory and those above it, mode 755.
pub(super) fn make_directory(path: &str) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(host(|| format!("mkdir {path}")))
}

/// Writes a file with this mode.
pub(super) fn write(path: &str, content: &[u8], mode: u32) -> Result<()> {
    fs::write(path, content).map_err(host(|| format!("write {path}")))?;
    set_mode(path, mode)
}

fn set_mode(path: &str, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(host(|| format!("chmod {path}")))
}

/// Makes a symbolic link; one that is there stays.
pub(super) fn link(target: impl AsRef<Path>, path: &str) -> Result<()> {
    match symlink(target, path) {
        // Asked for twice.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| Error::Host {
            step: format!("link {path}"),
            source,
        }),
    }
}
