//! A container's root file system: the host's disk, read-only, below a layer in the guest's memory.

use std::fs;
use std::path::{Path, PathBuf};

use guest::call::Disk;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::disks::device;
use crate::error::{Error, Result};

/// A container's folder and the mounts in it, in the order in which they were made. Dropped, all is
/// gone.
#[derive(Debug)]
pub(crate) struct Rootfs {
    folder: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Rootfs {
    /// Makes the folder, and `rootfs` in it of that disk.
    pub(crate) fn mount(folder: &Path, disk: &Disk) -> Result<Self> {
        let device = device(disk)?;
        fs::create_dir_all(folder).map_err(Error::on("create", folder))?;
        let mut this = Self {
            folder: folder.to_owned(),
            mounted: Vec::new(),
        };
        let [lower, memory, root] = ["lower", "memory", "rootfs"].map(|name| folder.join(name));
        let from = device.to_string_lossy();
        this.add(&lower, (&from, "erofs"), MsFlags::MS_RDONLY, "")?;
        this.add(&memory, ("tmpfs", "tmpfs"), MsFlags::empty(), "mode=0755")?;
        let [upper, work] = ["upper", "work"].map(|name| memory.join(name));
        for path in [&upper, &work] {
            fs::create_dir(path).map_err(Error::on("create", path))?;
        }
        copy_attributes(&lower, &upper)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        this.add(&root, ("overlay", "overlay"), MsFlags::empty(), &options)?;
        Ok(this)
    }

    fn add(
        &mut self,
        at: &Path,
        (source, kind): (&str, &str),
        flags: MsFlags,
        options: &str,
    ) -> Result<()> {
        fs::create_dir(at).map_err(Error::on("create", at))?;
        mount(Some(source), at, Some(kind), flags, Some(options))
            .map_err(Error::on(&format!("mount {kind} of {source} on"), at))?;
        self.mounted.push(at.to_owned());
        Ok(())
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        for path in self.mounted.drain(..).rev() {
            // What still uses it keeps it until its end; the name is free.
            let _gone = umount2(&path, MntFlags::MNT_DETACH);
        }
        // It is in memory, and nobody looks for it any more.
        let _left = fs::remove_dir_all(&self.folder);
    }
}

/// The root directory of an overlay is its upper one: owner and mode are the image's.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let metadata = fs::metadata(from).map_err(Error::on("stat", from))?;
    chown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(Error::on("chown", to))?;
    fs::set_permissions(to, metadata.permissions()).map_err(Error::on("chmod", to))
}
