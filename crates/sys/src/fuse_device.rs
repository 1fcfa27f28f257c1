//! The server's end of a FUSE connection, fuse(4): a file system whose requests come as messages. It reads requests and writes answers;
//! what they mean is nothing to it.
//!
//! A request that was read is owed an answer by whoever has the connection, and is read once. So requests are read into a
//! [`RequestJournal`], memory that outlives the process together with the connection: the kernel writes there in one system call, which
//! SIGKILL does not cut in two. An answer to one that was answered already is refused: numbers of requests never come twice.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::shared_slots::{SLOT_BYTES, SharedSlots};

/// What the kernel wants room for before it tells of a request: `FUSE_MIN_READ_BUFFER` of linux/fuse.h, which is more than any request
/// has that we let it make.
const REST_BYTES: usize = 8192;

/// Bytes that are kept of a request: its head, and what there is to a read, or a name of up to 87 bytes.
pub const REQUEST_BYTES: usize = SLOT_BYTES;

/// A connection, of which each copy of its descriptor is one more owner. When the last is closed, all who wait, and all who read later,
/// are told of an error.
#[derive(Debug)]
pub struct FuseDevice {
    device: OwnedFd,
}

/// Memory in which requests stand from when they are read until they are answered: a slot is free when it begins with zeros.
#[derive(Debug)]
pub struct RequestJournal {
    slots: SharedSlots,
}

impl FuseDevice {
    /// One that is not mounted yet; it never waits in `read`.
    ///
    /// # Errors
    /// What opening `/dev/fuse` says: ENOENT or ENODEV on a kernel without FUSE.
    pub fn open() -> io::Result<Self> {
        let mut options = File::options();
        let options = options.read(true).write(true);
        let device = options
            .custom_flags(libc::O_NONBLOCK)
            .open(Path::new("/dev/fuse"))?;
        Ok(Self {
            device: device.into(),
        })
    }

    /// Reads the next request into that free slot of the journal: whether there was one. What does not fit there is lost.
    ///
    /// # Errors
    /// ENODEV when nobody has it mounted any more, or it was aborted, and whatever else read(2) says.
    pub fn read(&self, journal: &RequestJournal, slot: usize) -> io::Result<bool> {
        let mut rest = [0_u8; REST_BYTES];
        let parts = [
            libc::iovec {
                iov_base: journal.slots.place(slot),
                iov_len: SLOT_BYTES,
            },
            libc::iovec {
                iov_base: rest.as_mut_ptr().cast(),
                iov_len: REST_BYTES,
            },
        ];
        // SAFETY: the first part is a slot of memory that is shared with other processes, is only looked at by atomic loads, and stays
        // mapped as long as the journal, which is borrowed; the second is `rest`, which outlives the call.
        let count = unsafe { libc::readv(self.device.as_raw_fd(), parts.as_ptr(), 2) };
        if count >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        // ENOENT: who asked has gone before this could be read.
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ENOENT) => Ok(false),
            _ => Err(error),
        }
    }

    /// Writes an answer: its head, and what there is to it.
    ///
    /// # Errors
    /// ENOENT when nobody waits for it; EINVAL for what is none.
    pub fn answer(&self, head: &[u8], contents: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(head), IoSlice::new(contents)];
        let parts = if contents.is_empty() {
            &parts[..1]
        } else {
            &parts
        };
        nix::sys::uio::writev(&self.device, parts)?;
        Ok(())
    }
}

impl From<OwnedFd> for FuseDevice {
    /// A connection that another process made.
    fn from(device: OwnedFd) -> Self {
        Self { device }
    }
}

impl AsFd for FuseDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl RequestJournal {
    /// An empty one for so many requests.
    ///
    /// # Errors
    /// ENOMEM, among others, when it is more than RLIMIT_MEMLOCK allows.
    pub fn new(slots: usize) -> io::Result<Self> {
        let slots = SharedSlots::new(c"fuse-journal", slots)?;
        Ok(Self { slots })
    }

    /// The one that another process made.
    ///
    /// # Errors
    /// As [`RequestJournal::new`], and `InvalidData` for a file that is none.
    pub fn open(memory: OwnedFd) -> io::Result<Self> {
        let slots = SharedSlots::open(memory)?;
        Ok(Self { slots })
    }

    /// How many requests it has room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What is in a slot that is not free.
    #[must_use]
    pub fn request(&self, slot: usize) -> Option<[u8; REQUEST_BYTES]> {
        let mut bytes = [0; REQUEST_BYTES];
        let words = self.slots.words(slot).iter();
        for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        (bytes[..8] != [0; 8]).then_some(bytes)
    }

    /// Says that a request was answered, or wants no answer: its slot is free. A process that is killed in between leaves one that
    /// is answered once more, which is refused.
    pub fn clear(&self, slot: usize) {
        self.slots.words(slot)[0].store(0, Ordering::Release);
    }
}

impl AsFd for RequestJournal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.slots.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::FsContext;

    /// FUSE_INIT and FUSE_LOOKUP of linux/fuse.h.
    const INIT: u32 = 26;
    const LOOKUP: u32 = 1;

    fn mounted(device: &FuseDevice) -> OwnedFd {
        let context = FsContext::open(c"fuse").unwrap();
        let number = CString::new(device.as_fd().as_raw_fd().to_string()).unwrap();
        for (key, value) in [
            (c"fd", number.as_c_str()),
            (c"rootmode", c"40000"),
            (c"user_id", c"0"),
            (c"group_id", c"0"),
        ] {
            context.set(key, value).unwrap();
        }
        context.mount(0).unwrap()
    }

    /// The next request: its opcode, its number, and what follows its head.
    fn next(device: &FuseDevice, journal: &RequestJournal, slot: usize) -> (u32, [u8; 8], Vec<u8>) {
        loop {
            let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)), Ok(1));
            if device.read(journal, slot).unwrap() {
                break;
            }
        }
        let request = journal.request(slot).unwrap();
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let unique = request[8..16].try_into().unwrap();
        (opcode, unique, request[40..].to_vec())
    }

    fn refuse(device: &FuseDevice, unique: [u8; 8], errno: i32) -> io::Result<()> {
        let mut head = Vec::from(16_u32.to_ne_bytes());
        head.extend((-errno).to_ne_bytes());
        head.extend(unique);
        device.answer(&head, &[])
    }

    #[test]
    fn a_request_is_owed_by_whoever_has_connection_and_journal() {
        // A kernel may be without FUSE, as those of some guests are before the module is there.
        let Ok(device) = FuseDevice::open() else {
            assert!(!Path::new("/dev/fuse").exists());
            return;
        };
        let journal = RequestJournal::new(2).unwrap();
        let mount = mounted(&device);
        let (opcode, unique, _) = next(&device, &journal, 0);
        assert_eq!(opcode, INIT);
        // Version, flags and limits: nothing but what has to be there.
        let mut init = Vec::from(80_u32.to_ne_bytes());
        init.extend(0_u32.to_ne_bytes());
        init.extend(unique);
        init.extend([7_u32, 31].map(u32::to_ne_bytes).concat());
        init.resize(80, 0);
        device.answer(&init, &[]).unwrap();
        journal.clear(0);
        let path = format!("/proc/self/fd/{}/name", mount.as_raw_fd());
        let asks = std::thread::spawn(move || File::open(path));
        let (opcode, unique, name) = next(&device, &journal, 1);
        assert_eq!((opcode, &name[..5]), (LOOKUP, &b"name\0"[..]));
        // What a killed process leaves: the two are somewhere else.
        let [other, memory] =
            [device.as_fd(), journal.as_fd()].map(|fd| fd.try_clone_to_owned().unwrap());
        drop((device, journal));
        let (device, journal) = (
            FuseDevice::from(other),
            RequestJournal::open(memory).unwrap(),
        );
        assert!(journal.request(0).is_none());
        assert_eq!(journal.request(1).unwrap()[8..16], unique);
        refuse(&device, unique, libc::ENOENT).unwrap();
        let refused = asks.join().unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        let twice = refuse(&device, unique, libc::ENOENT).unwrap_err();
        assert_eq!(twice.raw_os_error(), Some(libc::ENOENT));
        drop(mount);
        let mut gone = device.read(&journal, 0);
        while matches!(gone, Ok(true)) {
            gone = device.read(&journal, 0);
        }
        assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
