//! Pre-content events of fanotify(7): a read of a watched file waits until it is answered, so that its bytes can be
//! put there first. Linux 6.14, a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, a file system on a device
//! (ext4, xfs, btrfs). It decides no answer and writes no file.
//!
//! An event that was read is owed an answer even when who read it is killed: the kernel keeps it for the number of its
//! descriptor alone, and lets nothing be read twice. So events are read into an [`EventJournal`], memory that outlives the
//! process together with the group: the kernel writes both in one system call, which SIGKILL does not cut in two.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use crate::event_journal::{EVENT_BYTES, EventJournal};
use crate::raw;

/// `FAN_PRE_ACCESS` of linux/fanotify.h.
const PRE_ACCESS: u64 = 0x0010_0000;

/// Where an errno stands in an answer: `FAN_DENY_ERRNO()`.
const ERRNO_SHIFT: u32 = 24;

/// Which file it is, by fstat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Of its file system.
    pub device: u64,
    /// Among the files there.
    pub inode: u64,
}

/// What a reader is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It reads what the file has now.
    Allow,
    /// read(2) is EIO.
    Fail,
}

/// A group of fanotify(7), of which each copy of its descriptor is one more owner. When the last is closed, all who wait read
/// what the files have: zeros where nothing was put yet.
#[derive(Debug)]
pub struct PreContent {
    group: OwnedFd,
}

/// Somebody waits for bytes of a file.
#[derive(Debug)]
pub struct PreAccess {
    /// The file, opened for reading and writing so that neither is an event. Its number is what the answer goes to, so it
    /// stays open until then.
    pub file: File,
    /// Where the event stands in the journal, to be cleared after the answer.
    pub slot: usize,
    /// The first byte, and how many; none when the kernel does not say.
    pub range: Option<(u64, u64)>,
    /// Who reads; 0 when it is not visible from here.
    pub pid: i32,
}

impl FileId {
    /// That of a file.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn of(file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self {
            device: about.dev(),
            inode: about.ino(),
        })
    }
}

impl PreContent {
    /// A group that watches nothing yet. It never waits in `read`, and never drops an event: one that did not fit into a
    /// queue would be allowed.
    ///
    /// # Errors
    /// EINVAL before Linux 5.0 or without CONFIG_FANOTIFY_ACCESS_PERMISSIONS; EPERM without CAP_SYS_ADMIN; EMFILE when
    /// `fs.fanotify.max_user_groups` are there.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_PRE_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let events = libc::O_RDWR | libc::O_CLOEXEC | libc::O_LARGEFILE;
        // SAFETY: the call takes two numbers and touches no memory.
        let group = unsafe { libc::fanotify_init(flags, events.unsigned_abs()) };
        Ok(Self {
            group: raw::owned(group.into())?,
        })
    }

    /// Tells of each read and write of the file by who opens it from now on; watched twice is watched once.
    ///
    /// # Errors
    /// EINVAL before Linux 6.14; EOPNOTSUPP for a file system that is on no device, such as tmpfs.
    pub fn watch(&self, file: &File) -> io::Result<()> {
        self.mark(libc::FAN_MARK_ADD, file)
    }

    /// No more; who waits is still owed an answer.
    ///
    /// # Errors
    /// ENOENT when it was not watched.
    pub fn unwatch(&self, file: &File) -> io::Result<()> {
        self.mark(libc::FAN_MARK_REMOVE, file)
    }

    /// How many files are watched, by whichever process. One that was deleted is among them as long as somebody has it open.
    ///
    /// # Errors
    /// What reading the descriptor's file in `/proc/self/fdinfo` says (proc_pid_fdinfo(5); Linux 3.8).
    pub fn watched(&self) -> io::Result<usize> {
        let path = format!("/proc/self/fdinfo/{}", self.group.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let is_file = |line: &&str| line.starts_with("fanotify ino:");
        Ok(text.lines().filter(is_file).count())
    }

    fn mark(&self, flags: libc::c_uint, file: &File) -> io::Result<()> {
        let group = self.group.as_raw_fd();
        // SAFETY: without a path, the call looks at the file of the descriptor and touches no memory.
        let result = unsafe {
            libc::fanotify_mark(group, flags, PRE_ACCESS, file.as_raw_fd(), std::ptr::null())
        };
        raw::unit(result.into())
    }

    /// The next event, put into that free slot of the journal; none when there is none now.
    ///
    /// # Errors
    /// What read(2) says, and `InvalidData` for what is no event as this knows them.
    pub fn read(&self, journal: &EventJournal, slot: usize) -> io::Result<Option<PreAccess>> {
        let place = journal.place(slot);
        // SAFETY: the slot has EVENT_BYTES of memory that is shared with other processes, is only looked at by atomic loads,
        // and stays mapped as long as the journal, which is borrowed.
        let count = unsafe { libc::read(self.group.as_raw_fd(), place.cast(), EVENT_BYTES) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        let event = journal.event(slot);
        let event = event.filter(|event| event.number >= 0).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "fanotify told of something else than a read",
            )
        })?;
        // SAFETY: the kernel has just put a new descriptor of that number into our table, and nobody else owns it.
        let file = unsafe { File::from_raw_fd(event.number) };
        journal.name(slot, FileId::of(&file)?);
        Ok(Some(PreAccess {
            file,
            slot,
            range: event.range,
            pid: event.pid,
        }))
    }

    /// Answers the oldest event that has that number of a descriptor, in whichever process it had.
    ///
    /// # Errors
    /// ENOENT when none waits for an answer.
    pub fn answer(&self, number: RawFd, verdict: Verdict) -> io::Result<()> {
        let verdict = match verdict {
            Verdict::Allow => libc::FAN_ALLOW,
            Verdict::Fail => libc::FAN_DENY | libc::EIO.unsigned_abs() << ERRNO_SHIFT,
        };
        let mut response = [0; 8];
        response[..4].copy_from_slice(&number.to_ne_bytes());
        response[4..].copy_from_slice(&verdict.to_ne_bytes());
        nix::unistd::write(&self.group, &response)?;
        Ok(())
    }
}

impl From<OwnedFd> for PreContent {
    /// A group that another process made.
    fn from(group: OwnedFd) -> Self {
        Self { group }
    }
}

impl AsFd for PreContent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// A watched file of zeros, and a thread that reads its first bytes when it was opened after that.
    struct Scene {
        directory: tempfile::TempDir,
        group: PreContent,
        journal: EventJournal,
        /// Opened before the file was watched.
        before: File,
        reader: thread::JoinHandle<io::Result<[u8; 8]>>,
    }

    /// None before Linux 6.14.
    fn scene() -> Option<Scene> {
        if !crate::Kernel::running().unwrap().at_least(6, 14) {
            println!("skipped: pre-content events, which Linux has from 6.14");
            return None;
        }
        // /tmp may be in memory, where nothing can be watched.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        let mut options = File::options();
        let before = options.read(true).write(true).create_new(true);
        let before = before.open(&path).unwrap();
        before.set_len(1 << 20).unwrap();
        let group = PreContent::new().unwrap();
        group.watch(&before).unwrap();
        group.watch(&before).unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = [0; 8];
            let file = File::open(path)?;
            file.read_exact_at(&mut bytes, 8192)?;
            Ok(bytes)
        });
        Some(Scene {
            directory,
            group,
            journal: EventJournal::new(4).unwrap(),
            before,
            reader,
        })
    }

    fn next(group: &PreContent, journal: &EventJournal, slot: usize) -> PreAccess {
        let mut fds = [PollFd::new(group.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
        group.read(journal, slot).unwrap().expect("somebody reads")
    }

    #[test]
    fn a_read_waits_until_its_bytes_are_there() {
        let Some(scene) = scene() else { return };
        let event = next(&scene.group, &scene.journal, 2);
        assert_eq!(event.range, Some((8192, 4096)));
        assert_eq!(
            FileId::of(&event.file).unwrap(),
            FileId::of(&scene.before).unwrap()
        );
        assert_eq!(event.pid.unsigned_abs(), std::process::id());
        assert!(scene.group.read(&scene.journal, 0).unwrap().is_none());
        // Neither is an event: this would wait for itself.
        scene.before.write_all_at(b"content", 8192).unwrap();
        event.file.write_all_at(b"s", 8199).unwrap();
        let number = event.file.as_raw_fd();
        scene.group.answer(number, Verdict::Allow).unwrap();
        assert_eq!(&scene.reader.join().unwrap().unwrap(), b"contents");
        let twice = scene.group.answer(number, Verdict::Allow).unwrap_err();
        assert_eq!(twice.raw_os_error(), Some(libc::ENOENT));
        scene.group.unwatch(&scene.before).unwrap();
        let twice = scene.group.unwatch(&scene.before).unwrap_err();
        assert_eq!(twice.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_deleted_file_is_watched_until_nobody_has_it_open() {
        let Some(scene) = scene() else { return };
        assert_eq!(scene.group.watched().unwrap(), 1);
        let event = next(&scene.group, &scene.journal, 0);
        std::fs::remove_file(scene.directory.path().join("file")).unwrap();
        let number = event.file.as_raw_fd();
        scene.group.answer(number, Verdict::Allow).unwrap();
        scene.reader.join().unwrap().unwrap();
        drop(event);
        assert_eq!(scene.group.watched().unwrap(), 1);
        drop(scene.before);
        assert_eq!(scene.group.watched().unwrap(), 0);
    }

    #[test]
    fn a_read_that_is_refused_is_an_input_output_error() {
        let Some(scene) = scene() else { return };
        let event = next(&scene.group, &scene.journal, 0);
        let number = event.file.as_raw_fd();
        scene.group.answer(number, Verdict::Fail).unwrap();
        let error = scene.reader.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn what_was_read_and_not_answered_is_answered_by_who_has_group_and_journal() {
        let Some(scene) = scene() else { return };
        let event = next(&scene.group, &scene.journal, 3);
        let number = event.file.as_raw_fd();
        let id = FileId::of(&event.file).unwrap();
        // What a killed process leaves: its descriptors are closed, the two are somewhere else.
        drop(event);
        let group = PreContent::from(scene.group.as_fd().try_clone_to_owned().unwrap());
        drop(scene.group);
        let journal = scene.journal.as_fd().try_clone_to_owned().unwrap();
        drop(scene.journal);
        let journal = EventJournal::open(journal).unwrap();
        let owed = journal.owed();
        assert_eq!(owed.len(), 1);
        assert_eq!(
            (owed[0].slot, owed[0].number, owed[0].file),
            (3, number, Some(id))
        );
        assert_eq!(owed[0].range, Some((8192, 4096)));
        let mut before = &scene.before;
        before.write_all(b"x").unwrap();
        before.write_all_at(b"contents", 8192).unwrap();
        group.answer(owed[0].number, Verdict::Allow).unwrap();
        journal.clear(3);
        assert!(journal.owed().is_empty());
        assert_eq!(&scene.reader.join().unwrap().unwrap(), b"contents");
    }
}
