//! A container's root file system: the host's disk, read-only, below a layer in the guest's memory.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use guest::call::{DIRECTORIES, Directory, Disk, VOLUMES, VOLUMES_TAG, volume_folder, volume_path};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::disks::device;
use crate::error::{Error, Result};

/// Where directories are that containers share.
const SHARED: &str = "/run/shared";

/// A container's folder and the mounts in it, in the order in which they were made. Dropped, all is
/// gone.
#[derive(Debug)]
pub(crate) struct Rootfs {
    folder: PathBuf,
    mounted: Vec<PathBuf>,
    /// File systems of the host's volumes, which the kernel mounts when they are looked at.
    volumes: Vec<PathBuf>,
}

impl Rootfs {
    /// Makes the folder, and `rootfs` in it of that disk.
    pub(crate) fn mount(folder: &Path, disk: Disk) -> Result<Self> {
        let device = device(disk)?;
        fs::create_dir_all(folder).map_err(Error::on("create", folder))?;
        let mut this = Self {
            folder: folder.to_owned(),
            mounted: Vec::new(),
            volumes: Vec::new(),
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

    /// Mounts directories that config.json binds.
    pub(crate) fn add_directories(&mut self, directories: &[Directory]) -> Result<()> {
        let folder = self.folder.join(DIRECTORIES);
        fs::create_dir(&folder).map_err(Error::on("create", &folder))?;
        for (number, directory) in directories.iter().enumerate() {
            let at = folder.join(number.to_string());
            match directory {
                Directory::Disk(disk) => {
                    let device = device(*disk)?;
                    let from = device.to_string_lossy();
                    self.add(&at, (&from, "erofs"), MsFlags::MS_RDONLY, "")?;
                }
                Directory::Memory {
                    name,
                    mode,
                    uid,
                    gid,
                } => {
                    let shared = shared(name, *mode, (*uid, *gid))?;
                    let from = shared.to_string_lossy();
                    self.add(&at, (&from, "none"), MsFlags::MS_BIND, "")?;
                }
            }
        }
        Ok(())
    }

    /// Looks at volumes that config.json binds.
    pub(crate) fn add_volumes(&mut self, names: &[String]) -> Result<()> {
        if !names.is_empty() {
            mount_volumes()?;
        }
        for name in names {
            check_name(name)?;
            self.volumes.push(PathBuf::from(volume_folder(name)));
            let path = PathBuf::from(volume_path(name));
            fs::File::open(&path).map_err(Error::on("open", &path))?;
        }
        Ok(())
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
        for path in &self.volumes {
            // One that was not looked at is none; what still uses it keeps it until its end.
            let _none = umount2(path, MntFlags::MNT_DETACH);
        }
        let mut is_free = true;
        for path in self.mounted.drain(..).rev() {
            // What still uses it keeps it until its end; the name is free.
            is_free &= umount2(&path, MntFlags::MNT_DETACH).is_ok();
        }
        // Else what is below may be others' as well.
        if is_free {
            // It is in memory, and nobody looks for it any more.
            let _left = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Mounts what the host shares, if it is not there.
fn mount_volumes() -> Result<()> {
    static IS_MOUNTED: Mutex<bool> = Mutex::new(false);
    let mut is_mounted = IS_MOUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_mounted {
        let (source, path) = (Some(VOLUMES_TAG), Path::new(VOLUMES));
        fs::create_dir_all(path).map_err(Error::on("create", path))?;
        let nothing = None::<&str>;
        mount(source, path, Some("virtiofs"), MsFlags::empty(), nothing)
            .map_err(Error::on("mount virtiofs on", path))?;
        *is_mounted = true;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        let why = format!("{name:?} is no name of a directory");
        return Err(Error::Invalid(why));
    }
    Ok(())
}

/// The directory of that name that containers share, made if it is not there.
fn shared(name: &str, mode: u32, owner: (u32, u32)) -> Result<PathBuf> {
    check_name(name)?;
    let path = Path::new(SHARED).join(name);
    fs::create_dir_all(SHARED).map_err(Error::on("create", Path::new(SHARED)))?;
    match fs::create_dir(&path) {
        Ok(()) => {
            let (uid, gid) = owner;
            chown(&path, Some(uid), Some(gid)).map_err(Error::on("chown", &path))?;
            let mode = fs::Permissions::from_mode(mode & 0o7777);
            fs::set_permissions(&path, mode).map_err(Error::on("chmod", &path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::on("create", &path)(error)),
    }
    Ok(path)
}

/// The root directory of an overlay is its upper one: owner and mode are the image's.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let metadata = fs::metadata(from).map_err(Error::on("stat", from))?;
    chown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(Error::on("chown", to))?;
    fs::set_permissions(to, metadata.permissions()).map_err(Error::on("chmod", to))
}
