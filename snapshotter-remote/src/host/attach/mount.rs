//! EROFS of a metadata image and the blobs that are its devices, at a directory. It mounts what it is given.

use std::{
    ffi::{CStr, CString},
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::statfs::{FsType, statfs};
use snapshot_core::{Error, Result};
use sys::{FsContext, LoopAccess, LoopCache, LoopDevice, LoopOptions, mount_api};

/// `EROFS_SUPER_MAGIC_V1` of linux/magic.h.
const EROFS: FsType = FsType(0xE0F5_E1E2);

/// What fsconfig(2) takes of a word.
const WORD_BYTES_MAX: usize = 255;

/// `MOUNT_ATTR_RDONLY`.
const READ_ONLY: u32 = 1;

/// What the kernel gets the files of a disk by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Carrier {
    /// As they are (Linux 6.12).
    Files,
    /// Each as a loop device (Linux 5.16 for disks of several devices).
    Loops,
}

impl Carrier {
    /// Both.
    pub(in crate::host) const ALL: [Self; 2] = [Self::Files, Self::Loops];
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "EROFS from files",
            Self::Loops => "EROFS from loop devices",
        })
    }
}

/// Whether a disk is mounted there.
pub(in crate::host) fn is_mounted(target: &Path) -> Result<bool> {
    let about = statfs(target).map_err(|errno| Error::io("look at", target)(errno.into()))?;
    Ok(about.filesystem_type() == EROFS)
}

/// Whether the kernel may keep in memory what it reads of the files of blobs, beside what it keeps of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Memory {
    /// It may.
    Twice,
    /// No: each read of the disk is one of the files, and fails when that does.
    Once,
}

/// Mounts metadata and blobs, read-only. `opened` is told the number of the device before anybody sees it.
pub(in crate::host) fn mount(
    (carrier, memory): (Carrier, Memory),
    (metadata, blobs): (&Path, &[File]),
    target: &Path,
    opened: impl FnOnce(u64) -> Result<()>,
) -> Result<()> {
    let failed = || Error::io("mount a disk at", target);
    let made = match carrier {
        Carrier::Files => files(memory, metadata, blobs),
        Carrier::Loops => loops(memory, metadata, blobs),
    };
    let mount = File::from(made.map_err(failed())?);
    opened(mount.metadata().map_err(failed())?.dev())?;
    let moved = File::open(target).and_then(|target| mount_api::move_mount(mount, target));
    moved.map_err(failed())
}

fn files(memory: Memory, metadata: &Path, blobs: &[File]) -> io::Result<OwnedFd> {
    // Paths of descriptors are short and mean what was opened.
    let opened = File::open(metadata)?;
    let blobs: Vec<PathBuf> = blobs.iter().map(path_of).collect();
    let flags = match memory {
        Memory::Twice => &[][..],
        Memory::Once => &[c"directio"],
    };
    if metadata.as_os_str().len() > WORD_BYTES_MAX {
        return make(&path_of(&opened), &blobs, flags);
    }
    // The table of mounts then says which disk it is.
    make(metadata, &blobs, flags)
}

fn loops(memory: Memory, metadata: &Path, blobs: &[File]) -> io::Result<OwnedFd> {
    let metadata = LoopDevice::attach(metadata, LoopAccess::ReadOnly)?;
    let devices = blobs.iter().map(|blob| loop_of(memory, &path_of(blob)));
    // They go with the mount, which has them open when this ends.
    let devices: Vec<LoopDevice> = devices.collect::<io::Result<_>>()?;
    let paths: Vec<PathBuf> = devices.iter().map(|one| one.path().to_owned()).collect();
    make(metadata.path(), &paths, &[])
}

fn loop_of(memory: Memory, file: &Path) -> io::Result<LoopDevice> {
    if memory == Memory::Twice {
        return LoopDevice::attach(file, LoopAccess::ReadOnly);
    }
    if scans_partitions() {
        let why =
            "loop.max_part is not 0: the kernel would look for partitions in what the daemon gives";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let device = LoopDevice::attach_with(
        file,
        &LoopOptions {
            access: LoopAccess::ReadOnly,
            cache: LoopCache::Single,
            block_bytes: 512,
        },
    )?;
    if device.cache()? == LoopCache::Single {
        return Ok(device);
    }
    let why = "the kernel reads its file by way of its memory";
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// Whether the kernel reads each new loop device before it says that it is there: this process would wait for itself.
fn scans_partitions() -> bool {
    let most = fs::read_to_string("/sys/module/loop/parameters/max_part");
    most.is_ok_and(|most| most.trim() != "0")
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn make(source: &Path, devices: &[PathBuf], flags: &[&CStr]) -> io::Result<OwnedFd> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let context = FsContext::open(c"erofs")?;
    // Else the kernel would open block devices for writing.
    context.set_flag(c"ro")?;
    for flag in flags {
        context.set_flag(flag)?;
    }
    context.set(c"source", &text(source)?)?;
    for device in devices {
        context.set(c"device", &text(device)?)?;
    }
    context.mount(READ_ONLY)
}
