//! A sparse image for each limited snapshot, by a loop device: works on any kernel, is escaped from
//! by nobody, and costs a mount. Snapshots without a limit are plain directories.
//!
//! ```text
//!  ID/rw.img   the image, a hole but for what was written
//!  ID/rw/      where it is mounted, with fs/ and work/ in it
//!  ID/fs/      the layer, when it was committed
//!  ID/growing  while the image grows
//! ```

use std::{
    cmp::Ordering,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::libc;
use snapshot_core::{Error, Result, SnapshotId, Usage};
use sys::{LoopAccess, LoopCache, LoopDevice, LoopOptions, filesystem};

use super::{
    Abilities, Audit, Backend, Charge, Closed, Counting, Fs, Full, Held, Kept, Kind, Left, Record,
    Report, Resize, Support, directories, disk_usage,
    filesystem_maker::{XFS_BYTES_MIN, XFS_PREALLOCATION},
    growth, image_size, lost_writes, mounted,
    separate::{self, image},
    template::{Templates, Wanted},
};
use crate::limit::{Limit, Mode};

/// Smaller file systems have no room for anything.
const BYTES_MIN: u64 = 4 << 20;

/// How images are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// Which file system. When it is `None`, ext4 if this process may grow it or xfs cannot do what
    /// was asked, else xfs.
    pub fs: Option<Fs>,
    /// Bytes that must be free on the host's disk for another image to be made.
    pub reserve_bytes: u64,
}

impl Default for ImageOptions {
    /// 1 GiB must be free.
    fn default() -> Self {
        Self {
            fs: None,
            reserve_bytes: 1 << 30,
        }
    }
}

/// Images in the directories of a root.
#[derive(Debug)]
pub struct Image {
    root: PathBuf,
    options: ImageOptions,
    templates: Templates,
    grows_ext4: bool,
}

impl Image {
    /// Of a root on any file system.
    #[must_use]
    pub fn new(root: &Path, options: ImageOptions) -> Self {
        // Without procfs, what can be done without capabilities is done.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            root: root.to_owned(),
            options,
            templates: Templates::new(root),
            grows_ext4: may_grow_ext4(&status),
        }
    }

    /// What image a limit needs; none for one that does not limit.
    fn wanted(&self, limit: &Limit) -> Result<Option<Wanted>> {
        separate::check(limit, "an image")?;
        if limit.mode != Mode::Hard {
            return Ok(None);
        }
        let refuse = |why: String| Err(Error::Invalid(why));
        let Some(bytes) = limit.bytes else {
            return refuse(
                "an image has a size: a limit on inodes needs one on bytes too".to_owned(),
            );
        };
        let count = bytes.bytes().get();
        if count < BYTES_MIN {
            return refuse(format!(
                "a file system in {bytes} bytes has no room for anything: at least {BYTES_MIN} \
                 are taken"
            ));
        }
        image_size::check(count)?;
        let fs = match (self.options.fs, limit.inodes) {
            (Some(Fs::Xfs), Some(_)) => {
                return refuse("xfs in an image cannot limit inodes; ext4 can".to_owned());
            }
            (Some(Fs::Xfs), None) if count < XFS_BYTES_MIN => {
                return refuse(format!("xfs needs {XFS_BYTES_MIN} bytes; ext4 needs less"));
            }
            (Some(fs), _) => fs,
            (None, Some(_)) => Fs::Ext4,
            // It is made and mounted several times faster, and takes less.
            (None, None) if self.grows_ext4 => Fs::Ext4,
            (None, None) if count >= XFS_BYTES_MIN && Fs::Xfs.maker().is_some() => Fs::Xfs,
            (None, None) => Fs::Ext4,
        };
        Ok(Some(Wanted {
            fs,
            bytes,
            inodes: limit.inodes,
        }))
    }

    /// An image is a promise that the host's disk may not keep; at least one that is nearly full
    /// makes no more of them.
    fn check_reserve(&self) -> Result<()> {
        let about = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|errno| Error::io("measure", &self.root)(errno.into()))?;
        let free = about.blocks_available() * about.fragment_size();
        let reserve = self.options.reserve_bytes;
        if free >= reserve {
            return Ok(());
        }
        Err(Error::Exhausted(format!(
            "{free} bytes are free on {}, and {reserve} must be for another image",
            self.root.display()
        )))
    }

    /// The device of an image that was there before. When one shows it already, that is used: two
    /// would destroy it.
    fn device(path: &Path) -> Result<LoopDevice> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let found =
            LoopDevice::of_file(&file).map_err(Error::io("look for the device of", path))?;
        found.map_or_else(|| attach(path), Ok)
    }

    fn mount(directory: &Path, fs: Fs, device: &LoopDevice) -> Result<()> {
        // The tables are holes in the image, and zeroing them would fill it.
        const EXT4: [&str; 3] = ["noinit_itable", "discard", "errors=remount-ro"];
        let mount = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            mounted::mount(directory, fs.name(), device.path(), &words)
        };
        match fs {
            // All copies of a template have the same UUID.
            Fs::Xfs => mount(&["nouuid", "discard", XFS_PREALLOCATION]),
            // Without the last, contents of files that cannot be written are lost without a trace
            // while all else goes on.
            Fs::Ext4 => match mount(&[&EXT4[..], &["data_err=abort"]].concat()) {
                // In less than 8 MiB it has no journal, which that needs.
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                    mount(&EXT4)
                }
                other => other,
            },
        }
    }

    /// Whether it was not mounted until now.
    fn mount_again(held: &Held<'_>, fs: Fs) -> Result<bool> {
        if mounted::is_mounted(held.directory)? {
            return Ok(false);
        }
        let path = image(held.directory);
        if !path.exists() && held.directory.join("fs").exists() {
            return Err(separate::interrupted(held));
        }
        Self::mount(held.directory, fs, &Self::device(&path)?)?;
        // A crash of the host may have lost them.
        directories::make(&mounted::place(held.directory))?;
        Ok(true)
    }

    /// The image of a mounted snapshot, and its device.
    fn open(path: &Path) -> Result<(File, LoopDevice)> {
        let mut options = File::options();
        options.read(true).write(true);
        let file = options.open(path).map_err(Error::io("open", path))?;
        let device = LoopDevice::of_file(&file)
            .map_err(Error::io("look for the device of", path))?
            .ok_or_else(|| {
                let path = path.display();
                Error::Unavailable(format!("no loop device shows {path}; was it taken apart?"))
            })?;
        Ok((file, device))
    }

    /// Brings an image and the limit together that an interrupted growth has left apart: one that
    /// is smaller grows, of one that is larger goes what its file system has not taken yet.
    fn fit(&self, held: &Held<'_>, fs: Fs, wanted: u64) -> Result<Fitted> {
        let path = image(held.directory);
        let now = match fs::metadata(&path) {
            Ok(about) => about.len(),
            // The layer of an interrupted commit is complete.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fitted::AsItWas),
            Err(error) => return Err(Error::io("look at", path)(error)),
        };
        match now.cmp(&wanted) {
            Ordering::Equal if !growth::is_unfinished(held.directory) => Ok(Fitted::AsItWas),
            Ordering::Equal | Ordering::Less => {
                self.attach(held)?;
                Self::grow(held, fs, wanted)?;
                growth::end(held.directory)?;
                Ok(Fitted::Corrected)
            }
            Ordering::Greater => {
                Self::mount_again(held, fs)?;
                let (file, device) = Self::open(&path)?;
                let place = mounted::place(held.directory);
                let taken = image_size::of_file_system(fs, &place, device.path())?;
                image_size::set_length(&file, &path, wanted.max(taken))?;
                device
                    .take_file_size()
                    .map_err(Error::io("size", device.path()))?;
                Ok(match taken <= wanted {
                    true => Fitted::Corrected,
                    false => Fitted::Larger(taken),
                })
            }
        }
    }

    /// Makes the image, its device and its file system larger, whatever of that was done already.
    fn grow(held: &Held<'_>, fs: Fs, bytes: u64) -> Result<()> {
        let path = image(held.directory);
        let (file, device) = Self::open(&path)?;
        let before = file.metadata().map_err(Error::io("look at", &path))?.len();
        let bytes = bytes.max(before);
        let size = |bytes| {
            image_size::set_length(&file, &path, bytes)?;
            device
                .take_file_size()
                .map_err(Error::io("size", device.path()))
        };
        size(bytes)?;
        let open = directories::open(&mounted::place(held.directory))?;
        let grown = match fs {
            Fs::Ext4 => filesystem::grow_ext4(&open, bytes),
            Fs::Xfs => filesystem::grow_xfs(&open, bytes),
        };
        let Err(error) = grown else { return Ok(()) };
        // It may have done a part of it.
        let place = mounted::place(held.directory);
        let taken = image_size::of_file_system(fs, &place, device.path())?;
        size(before.max(taken))?;
        let may_not = fs == Fs::Ext4 && error.raw_os_error() == Some(libc::EPERM);
        if may_not && bytes == before {
            return Ok(());
        }
        if may_not {
            return Err(cannot_grow(held));
        }
        Err(Error::io("grow the file system in", &path)(error))
    }
}

/// What recovery has brought together.
enum Fitted {
    /// It was so.
    AsItWas,
    /// Size and limit are the same again.
    Corrected,
    /// The file system has that many bytes and cannot be made smaller.
    Larger(u64),
}

fn attach(path: &Path) -> Result<LoopDevice> {
    let mut options = LoopOptions {
        access: LoopAccess::ReadWrite,
        cache: LoopCache::Single,
        block_bytes: 4096,
    };
    let attached = match LoopDevice::attach_with(path, &options) {
        // Before kernel 4.14 blocks have 512 bytes, which smaller requests would need.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.cache = LoopCache::Double;
            options.block_bytes = 512;
            LoopDevice::attach_with(path, &options)
        }
        other => other,
    };
    attached.map_err(Error::io("make a loop device of", path))
}

fn cannot_grow(held: &Held<'_>) -> Error {
    Error::Precondition(format!(
        "the ext4 in the image of snapshot {held} cannot grow: that needs CAP_SYS_RESOURCE, which \
         this process has not; give the daemon CAP_SYS_RESOURCE (the service unit does), or make \
         the container with 300 MiB or more, which is xfs"
    ))
}

/// Whether a process has CAP_SYS_RESOURCE, by its status file (proc(5)).
fn may_grow_ext4(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set & CAP_SYS_RESOURCE != 0)
}

/// The parts of a record of ours.
struct Made {
    fs: Fs,
    inodes: Option<u64>,
    own: (u64, u64),
}

fn made(held: &Held<'_>) -> Result<Made> {
    match held.record {
        Record::Image {
            fs,
            inodes,
            own_bytes,
            own_inodes,
        } => Ok(Made {
            fs: *fs,
            inodes: *inodes,
            own: (*own_bytes, *own_inodes),
        }),
        other => Err(Error::Precondition(format!(
            "snapshot {held} is in no image: {other:?}"
        ))),
    }
}

impl Backend for Image {
    fn kind(&self) -> Kind {
        Kind::Image
    }

    fn abilities(&self) -> Abilities {
        let inodes = match self.options.fs {
            Some(Fs::Xfs) => Support::No,
            _ => Support::Yes,
        };
        Abilities {
            resize: Resize::Grow,
            inodes,
            soft: Support::No,
            groups: Support::No,
            full: Full::NoSpace,
            df: Support::Yes,
            counting: Counting::Exact,
        }
    }

    fn create(&self, directory: &Path, id: SnapshotId, limit: &Limit) -> Result<Record> {
        let Some(wanted) = self.wanted(limit)? else {
            directories::make(directory)?;
            return Ok(Record::Plain);
        };
        self.check_reserve()?;
        self.templates.instantiate(wanted, &image(directory), id)?;
        Self::mount(directory, wanted.fs, &attach(&image(directory))?)?;
        let (own_bytes, own_inodes) = mounted::used(directory)?;
        directories::make(&mounted::place(directory))?;
        Ok(Record::Image {
            fs: wanted.fs,
            inodes: wanted.inodes.map(|inodes| inodes.count().get()),
            own_bytes,
            own_inodes,
        })
    }

    fn attach(&self, held: &Held<'_>) -> Result<()> {
        let made = made(held)?;
        if !Self::mount_again(held, made.fs)? {
            return Ok(());
        }
        // The image may have grown alone.
        let path = image(held.directory);
        let bytes = fs::metadata(&path)
            .map_err(Error::io("look at", &path))?
            .len();
        if let Err(error) = Self::grow(held, made.fs, bytes) {
            tracing::warn!(
                snapshot = %held,
                %error,
                "the file system in an image may be smaller than its limit"
            );
        }
        Ok(())
    }

    fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        let made = made(held)?;
        let refuse = |why: &str| {
            Err(Error::Invalid(format!(
                "the limit of snapshot {held} {why}: it is the size of the file system in its image"
            )))
        };
        let (Mode::Hard, Some(size)) = (limit.mode, limit.bytes) else {
            return refuse("cannot be taken away");
        };
        separate::check(limit, "an image")?;
        let inodes = limit.inodes.map(|inodes| inodes.count().get());
        if inodes.is_some() && inodes != made.inodes {
            return refuse("on inodes cannot be changed");
        }
        // After an interrupted commit there may be no image any more, which this says.
        self.attach(held)?;
        let path = image(held.directory);
        let bytes = fs::metadata(&path)
            .map_err(Error::io("look at", &path))?
            .len();
        let wanted = size.bytes().get();
        image_size::check(wanted)?;
        if wanted > bytes && made.fs == Fs::Ext4 && !self.grows_ext4 {
            return Err(cannot_grow(held));
        }
        if wanted < bytes {
            return refuse(&format!(
                "cannot be made smaller, from {bytes} bytes to {wanted}"
            ));
        }
        Ok(())
    }

    /// Growing, since a file system cannot be made smaller again.
    fn settle(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        let made = made(held)?;
        let path = image(held.directory);
        let about = fs::metadata(&path).map_err(Error::io("look at", path))?;
        let wanted = limit.bytes.filter(|_| limit.mode == Mode::Hard);
        let Some(wanted) = wanted.filter(|size| size.bytes().get() > about.len()) else {
            return Ok(());
        };
        growth::begin(held.directory)?;
        let grown = Self::grow(held, made.fs, wanted.bytes().get());
        // Nobody needs it any more: the image has that size, or the one before.
        grown.and(growth::end(held.directory))
    }

    fn usage(&self, held: &Held<'_>) -> Result<Usage> {
        let made = made(held)?;
        self.attach(held)?;
        let (bytes, inodes) = mounted::used(held.directory)?;
        Ok(Usage {
            bytes: bytes.saturating_sub(made.own.0),
            inodes: inodes.saturating_sub(made.own.1),
        })
    }

    fn charge(&self, held: &Held<'_>) -> Result<Option<Charge>> {
        let made = made(held)?;
        let Some(room) = mounted::room(held.directory)? else {
            return Ok(None);
        };
        let (own_bytes, own_inodes) = made.own;
        let bytes_max = room.bytes.saturating_sub(own_bytes);
        let inodes_max = room.inodes.saturating_sub(own_inodes);
        Ok(Some(Charge {
            usage: Usage {
                bytes: bytes_max.saturating_sub(room.bytes_left),
                inodes: inodes_max.saturating_sub(room.inodes_left),
            },
            bytes_max: Some(bytes_max),
            bytes_soft: None,
            // xfs makes inodes as long as there is room.
            inodes_max: Some(inodes_max).filter(|_| made.fs == Fs::Ext4),
        }))
    }

    fn commit(&self, held: &Held<'_>) -> Result<Closed> {
        // Without it, the layer was complete before a crash.
        let usage = if image(held.directory).exists() {
            self.attach(held)?;
            lost_writes::sync(held)?;
            // The copy itself may take the last room on the host's disk.
            separate::copy_out(held, || lost_writes::sync(held))?
        } else {
            disk_usage::of(&Record::Plain.upper(held.directory))?
        };
        Ok(Closed {
            usage: Some(usage),
            record: Record::Plain,
        })
    }

    fn committed(&self, held: &Held<'_>) -> Result<()> {
        separate::clear(held.directory)
    }

    fn uncommitted(&self, held: &Held<'_>) -> Result<()> {
        if image(held.directory).exists() {
            separate::drop_copy(held)?;
        }
        Ok(())
    }

    fn audit(&self, held: &Held<'_>) -> Result<Audit> {
        Ok(lost_writes::known(held)?.map_or(Audit::Sound, Audit::LostWrites))
    }

    fn release(&self, left: &Left<'_>) -> Result<()> {
        mounted::unmount(left.directory)
    }

    fn forget(&self, _: &Left<'_>) -> Result<()> {
        Ok(())
    }

    fn recover(&self, kept: &[Kept<'_>]) -> Result<Report> {
        self.templates.clear_unfinished()?;
        let mut report = Report::default();
        for Kept { held, limit } in kept {
            let (Record::Image { fs, .. }, Some(limit)) = (held.record, limit) else {
                continue;
            };
            separate::log(held, self.uncommitted(held));
            let Some(wanted) = limit.bytes.filter(|_| limit.mode == Mode::Hard) else {
                continue;
            };
            match self.fit(held, *fs, wanted.bytes().get()) {
                Ok(Fitted::AsItWas) => {}
                Ok(Fitted::Corrected) => report.corrected += 1,
                Ok(Fitted::Larger(bytes)) => report.larger.push((held.id, bytes)),
                Err(error) => tracing::warn!(
                    snapshot = %held,
                    error = error.in_one_line(),
                    "the image of a snapshot is not as large as its limit"
                ),
            }
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{Inodes, Size};

    #[test]
    fn capability_is_read_from_the_status_file() {
        let check = |status: &str, expected: bool| {
            assert_eq!(may_grow_ext4(status), expected, "{status}");
        };
        check("Name:\tx\nCapEff:\t000001ffffffffff\n", true);
        check("CapEff:\t0000000001000000\n", true);
        check("CapEff:\t000001fffeffffff\n", false);
        check("CapPrm:\t000001ffffffffff\n", false);
        check("CapEff:\tx\n", false);
        check("", false);
    }

    #[test]
    fn file_system_is_one_that_can_do_what_was_asked() {
        let check = |grows_ext4, bytes, inodes, expected| {
            let image = Image {
                grows_ext4,
                ..Image::new(Path::new("/"), ImageOptions::default())
            };
            let limit = Limit {
                mode: Mode::Hard,
                bytes: Size::from_bytes(bytes),
                inodes: Inodes::new(inodes),
                ..Limit::counted()
            };
            let wanted = image.wanted(&limit).unwrap().unwrap();
            assert_eq!(wanted.fs, expected, "{grows_ext4} {bytes} {inodes}");
        };
        check(true, 1 << 30, 0, Fs::Ext4);
        check(false, 1 << 30, 0, Fs::Xfs);
        check(false, 1 << 30, 1000, Fs::Ext4);
        check(false, 1 << 28, 0, Fs::Ext4);
    }
}
