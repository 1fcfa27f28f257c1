//! Copies what a tmpfs covers into it (`tmpcopyup`); must not follow links or leave either tree.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use crate::kernel::fd_path;

/// Deeper than any image; each level holds two descriptors.
const DEPTH_MAX: usize = 128;

/// Copies all below one directory into another, with types, modes, owners and contents.
pub(crate) fn copy(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    // What was opened by name alone cannot be listed.
    let listable = |fd: BorrowedFd<'_>| {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(fd, ".", flags, Mode::empty())
    };
    let (from, to) = (listable(from.as_fd())?, listable(to.as_fd())?);
    directory(from.as_fd(), to.as_fd(), DEPTH_MAX)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth_left: usize) -> io::Result<()> {
    let depth_left = depth_left.checked_sub(1).ok_or(Errno::ELOOP)?;
    for entry in std::fs::read_dir(fd_path(from))? {
        let name = entry?.file_name();
        let about = fstatat(from, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let pair = Pair {
            from,
            to,
            name: &name,
            about,
        };
        match SFlag::from_bits_truncate(about.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => pair.directory(depth_left)?,
            SFlag::S_IFREG => pair.file()?,
            SFlag::S_IFLNK => pair.link()?,
            kind => pair.node(kind)?,
        }
    }
    Ok(())
}

/// One name to copy from one directory to another.
struct Pair<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    name: &'a OsStr,
    about: FileStat,
}

impl Pair<'_> {
    fn directory(&self, depth_left: usize) -> io::Result<()> {
        mkdirat(self.to, self.name, Mode::S_IRWXU)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let (from, to) = (self.open(self.from, flags)?, self.open(self.to, flags)?);
        directory(from.as_fd(), to.as_fd(), depth_left)?;
        Ok(self.give(&to)?)
    }

    fn file(&self) -> io::Result<()> {
        let from = self.open(self.from, OFlag::O_RDONLY)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
        let to = self.open(self.to, flags)?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        io::copy(&mut from, &mut to)?;
        Ok(self.give(&to)?)
    }

    fn link(&self) -> io::Result<()> {
        let text = readlinkat(self.from, self.name)?;
        symlinkat(text.as_os_str(), self.to, self.name)?;
        Ok(self.give_name()?)
    }

    fn node(&self, kind: SFlag) -> io::Result<()> {
        mknodat(self.to, self.name, kind, self.mode(), self.about.st_rdev)?;
        Ok(self.give_name()?)
    }

    fn open(&self, directory: BorrowedFd<'_>, flags: OFlag) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(directory, self.name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// Owner first: changing it takes set-user-id away.
    fn give(&self, to: impl AsFd) -> nix::Result<()> {
        fchown(&to, Some(self.uid()), Some(self.gid()))?;
        fchmod(&to, self.mode())
    }

    fn give_name(&self) -> nix::Result<()> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(
            self.to,
            self.name,
            Some(self.uid()),
            Some(self.gid()),
            flags,
        )
    }

    fn mode(&self) -> Mode {
        Mode::from_bits_truncate(self.about.st_mode & 0o7777)
    }

    fn uid(&self) -> Uid {
        Uid::from_raw(self.about.st_uid)
    }

    fn gid(&self) -> Gid {
        Gid::from_raw(self.about.st_gid)
    }
}
