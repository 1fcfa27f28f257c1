//! One sparse xfs with project quota in an image, for hosts whose kernel has quota and whose root
//! file system has not. All snapshots, the store too, lie in it.
//!
//! ```text
//!  ROOT/pool.img   the image, a hole but for what was written
//!  ROOT/pool/      where it is mounted: the root of the snapshots
//! ```
//!
//! It stays mounted when the daemon ends, since containers do.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use snapshot_core::{Error, Result};
use sys::{LoopAccess, LoopCache, LoopDevice, LoopOptions, filesystem};

use super::{
    Fs, Kind, Prjquota, ProjectRange, directories,
    filesystem_maker::{self, XFS_BYTES_MIN, XFS_PREALLOCATION},
    mounted,
};

/// How the pool is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolOptions {
    /// Its size; it grows to that at a start, and never shrinks. Nine tenths of what is free on
    /// the host's disk when it is first made, without it.
    pub bytes: Option<u64>,
}

/// The mounted pool of a root.
#[derive(Debug)]
pub struct Pool {
    image: PathBuf,
    place: PathBuf,
}

impl Pool {
    /// Makes the pool if there is none, and mounts it if it is not mounted.
    ///
    /// # Errors
    /// [`Error::Precondition`] with what is missing; [`Error::Exhausted`] without room.
    pub fn open(root: &Path, options: PoolOptions) -> Result<Self> {
        let this = Self {
            image: root.join("pool.img"),
            place: root.join("pool"),
        };
        directories::make_one(&this.place, 0o700)?;
        let wanted = options.bytes;
        if let Some(bytes) = wanted.filter(|bytes| *bytes < XFS_BYTES_MIN) {
            return Err(Error::Invalid(format!(
                "a pool of {bytes} bytes is too small: xfs needs {XFS_BYTES_MIN}"
            )));
        }
        if !this.image.exists() {
            this.make(root, wanted)?;
        }
        if !this.is_mounted(root)? {
            this.mount()?;
        }
        if let Some(bytes) = wanted.filter(|bytes| this.bytes().is_ok_and(|now| now < *bytes)) {
            this.grow(bytes)?;
        }
        Ok(this)
    }

    /// The root of the snapshots in it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.place
    }

    /// The quota in it.
    ///
    /// # Errors
    /// [`Error::Precondition`] when the kernel has no quota for xfs.
    pub fn backend(&self, projects: ProjectRange) -> Result<Prjquota> {
        Prjquota::open_as(Kind::Pool, &self.place, projects)
    }

    /// Its size.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn bytes(&self) -> Result<u64> {
        let about = fs::metadata(&self.image);
        Ok(about.map_err(Error::io("look at", &self.image))?.len())
    }

    /// Makes it larger while it is in use, whatever of that was done already.
    ///
    /// # Errors
    /// [`Error::Invalid`] for less than it has: xfs does not shrink.
    pub fn grow(&self, bytes: u64) -> Result<()> {
        let failed = |action| Error::io(action, &self.image);
        let now = self.bytes()?;
        if bytes < now {
            return Err(Error::Invalid(format!(
                "the pool cannot be made smaller, from {now} bytes to {bytes}: xfs does not shrink"
            )));
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.image)
            .map_err(failed("open"))?;
        file.set_len(bytes).map_err(failed("grow"))?;
        let device = self.device(&file)?.ok_or_else(|| {
            let image = self.image.display();
            Error::Unavailable(format!("no loop device shows {image}; was it taken apart?"))
        })?;
        device
            .take_file_size()
            .map_err(failed("grow the device of"))?;
        let open = directories::open(&self.place)?;
        filesystem::grow_xfs(&open, bytes).map_err(failed("grow the file system in"))
    }

    /// Unmounts it; what is in use goes with its last user. Its contents stay in the image.
    ///
    /// # Errors
    /// Those of umount(2).
    pub fn close(self) -> Result<()> {
        let failed = |error| Error::io("unmount", &self.place)(std::io::Error::other(error));
        mounts::unmount_tree(&self.place).map_err(failed)
    }

    fn make(&self, root: &Path, wanted: Option<u64>) -> Result<()> {
        let bytes = match wanted {
            Some(bytes) => bytes,
            None => most_of_what_is_free(root)?,
        };
        let building = root.join("pool.img.new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options
            .open(&building)
            .map_err(Error::io("make", &building))?;
        file.set_len(bytes).map_err(Error::io("size", &building))?;
        filesystem_maker::make(Fs::Xfs, &building, None)?;
        file.sync_all().map_err(Error::io("sync", &building))?;
        fs::rename(&building, &self.image).map_err(Error::io("rename", &building))
    }

    fn is_mounted(&self, root: &Path) -> Result<bool> {
        let device = |path: &Path| {
            let about = fs::metadata(path);
            about
                .map(|about| about.dev())
                .map_err(Error::io("look at", path))
        };
        Ok(device(&self.place)? != device(root)?)
    }

    fn mount(&self) -> Result<()> {
        let file = File::open(&self.image).map_err(Error::io("open", &self.image))?;
        let device = match self.device(&file)? {
            Some(device) => device,
            None => {
                let options = LoopOptions {
                    access: LoopAccess::ReadWrite,
                    cache: LoopCache::Single,
                    block_bytes: 4096,
                };
                LoopDevice::attach_with(&self.image, &options)
                    .map_err(Error::io("make a loop device of", &self.image))?
            }
        };
        let words = ["prjquota", "discard", XFS_PREALLOCATION].map(str::to_owned);
        match mounted::apply(&self.place, Fs::Xfs.name(), device.path(), &words) {
            Err(Error::Io { source, .. }) if is_unsupported(&source) => {
                Err(Error::Precondition(format!(
                    "xfs with project quota cannot be mounted ({source}): this kernel has no \
                     quota for xfs (CONFIG_XFS_QUOTA), or does not know what its mkfs.xfs makes"
                )))
            }
            other => other,
        }
    }

    fn device(&self, file: &File) -> Result<Option<LoopDevice>> {
        LoopDevice::of_file(file).map_err(Error::io("look for the device of", &self.image))
    }
}

/// What kernels say to `prjquota` without quota, and to xfs without xfs.
fn is_unsupported(error: &std::io::Error) -> bool {
    let known = [nix::libc::EINVAL, nix::libc::ENODEV];
    error
        .raw_os_error()
        .is_some_and(|errno| known.contains(&errno))
}

fn most_of_what_is_free(root: &Path) -> Result<u64> {
    let about = nix::sys::statvfs::statvfs(root)
        .map_err(|errno| Error::io("measure", root)(errno.into()))?;
    let free = about.blocks_available() * about.fragment_size();
    let most = (free / 10 * 9) & !((1 << 20) - 1);
    if most < XFS_BYTES_MIN {
        return Err(Error::Exhausted(format!(
            "{free} bytes are free on {}: too few for a pool of xfs, which needs {XFS_BYTES_MIN}",
            root.display()
        )));
    }
    Ok(most)
}
