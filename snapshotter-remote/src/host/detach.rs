//! A disk is unmounted, and it is found out whether the kernel has it no more: an overlay may have it still.
//!
//! Who takes the last of a disk away waits for all reads of it that are on their way, whoever began them, and nothing ends that wait but their
//! answers. The daemon gives those answers, so it is another process that unmounts:
//!
//! ```text
//!  detach --starts--> unmount-served --the mount is gone--> waits for reads, if there are any --> ends
//!     |                                       |                                                    |
//!     +--waits for either------------------ Leaving: the disk is there still, in no directory --- Gone, or an overlay has it
//! ```
//!
//! A daemon that is killed meanwhile does not wait, and the next answers.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use mounts::{mountinfo, unmount_tree};
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use snapshot_core::{Error, Result};
use sys::{Child, Spawn};

use super::{attach, probe};

/// The word of the command for the process that unmounts, which nobody else needs.
pub(crate) const WORD: &str = "unmount-served";

/// After so long it is looked whether the mount is gone, and the disk not yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A mount that is not gone by then stays.
const PATIENCE: Duration = Duration::from_secs(30);

/// What has become of a disk.
#[derive(Debug)]
pub(super) enum Detached {
    /// It had this device number, which the next disk may have.
    Gone(u64),
    /// Somebody else has it, or there was none.
    Stays,
    /// It goes when reads of it are answered.
    Leaving(Leaving),
}

/// A disk that is mounted nowhere here, and perhaps not gone.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The number of its device.
    pub(super) device: u64,
    witness: Option<Inotify>,
    /// None when it has ended.
    child: Option<Child>,
}

impl Leaving {
    /// Whether it is gone, when that is known.
    pub(super) fn is_gone(&mut self) -> Option<bool> {
        let runs = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        if self.child.as_mut().is_some_and(runs) {
            return None;
        }
        self.child = None;
        // Without a witness it counts as there.
        Some(self.witness.as_ref().is_some_and(saw_its_end))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // It ends by itself.
        if let Some(child) = self.child.take() {
            child.release();
        }
    }
}

/// Takes what is mounted at a directory away, and waits for no read of it.
///
/// # Errors
/// What keeps it from being unmounted.
pub(super) fn detach(target: &Path) -> Result<Detached> {
    let failed = || Error::io("look at", target);
    let about = match fs::metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Detached::Stays),
        about => about.map_err(failed())?,
    };
    if !attach::is_mounted(target)? {
        probe::unmount(target)?;
        return Ok(Detached::Stays);
    }
    let mut leaving = Leaving {
        device: about.dev(),
        witness: watch(target).ok(),
        child: Some(start(target).map_err(Error::io("unmount", target))?),
    };
    wait(&mut leaving, target)?;
    Ok(match leaving.is_gone() {
        Some(true) => Detached::Gone(leaving.device),
        Some(false) => Detached::Stays,
        None => Detached::Leaving(leaving),
    })
}

/// The program that this process is, also when another has been installed since.
fn start(target: &Path) -> io::Result<Child> {
    Spawn::new(Path::new("/proc/self/exe"))
        .args([WORD.as_ref(), target])
        .cwd(Path::new("/"))
        .spawn()
}

/// Until the mount is gone. It is looked for in the table of mounts only: to look at it would be to have it.
fn wait(leaving: &mut Leaving, target: &Path) -> Result<()> {
    let failed = || Error::io("unmount", target);
    let begun = Instant::now();
    while let Some(child) = &mut leaving.child {
        match child.wait_timeout(LOOK_EVERY).map_err(failed())? {
            Some(status) if status.code() == 0 => leaving.child = None,
            Some(status) => {
                let error = match Errno::from_raw(status.code()) {
                    Errno::UnknownErrno => io::Error::other(format!("{status:?}")),
                    errno => errno.into(),
                };
                return Err(failed()(error));
            }
            None if !is_listed(target).map_err(failed())? => return Ok(()),
            None if begun.elapsed() < PATIENCE => {}
            None => return Err(failed()(io::ErrorKind::TimedOut.into())),
        }
    }
    Ok(())
}

fn is_listed(target: &Path) -> io::Result<bool> {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(true);
    };
    let path = folder.canonicalize()?.join(name);
    Ok(!mountinfo::below(&path)?.is_empty())
}

/// What the process that is started does: the number of an error, if it is not unmounted.
pub(crate) fn unmount(target: &Path) -> Option<u8> {
    let error = unmount_tree(target).err()?;
    let errno = error.errno().and_then(|errno| u8::try_from(errno).ok());
    // It is no number of an error.
    Some(errno.unwrap_or(u8::MAX))
}

/// The kernel tells who watches a file when its whole file system goes, in the call that takes the last of it away.
fn watch(target: &Path) -> nix::Result<Inotify> {
    let witness = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    witness.add_watch(target, AddWatchFlags::IN_DELETE_SELF)?;
    Ok(witness)
}

fn saw_its_end(witness: &Inotify) -> bool {
    let events = witness.read_events().unwrap_or_default();
    let mut events = events.iter();
    events.any(|event| event.mask.contains(AddWatchFlags::IN_UNMOUNT))
}
