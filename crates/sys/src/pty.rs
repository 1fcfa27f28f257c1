//! Pseudo-terminals of a given devpts; must not copy data or change line settings.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::raw;

/// A new pseudo-terminal, both ends close-on-exec and nobody's controlling terminal.
#[derive(Debug)]
pub struct Pty {
    /// The end that the outside keeps.
    pub master: OwnedFd,
    /// The end that a program gets.
    pub slave: OwnedFd,
    /// N of `/dev/pts/N` in the devpts the pair lives in.
    pub number: u32,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

impl Pty {
    /// Opens a pair in the devpts that `ptmx` belongs to (`/dev/pts/ptmx`, `/dev/ptmx`).
    ///
    /// The slave comes from the master itself (TIOCGPTPEER, kernel 4.13); before that by its path
    /// beside `ptmx`, and it is refused unless it is the character device of that number: an image
    /// may have put something else there (CVE-2025-52565).
    pub fn open(ptmx: &Path) -> io::Result<Self> {
        let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        let master = options.open(ptmx)?;
        let unlock: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
        let result =
            unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
        raw::unit(result.into())?;
        let mut number: libc::c_uint = 0;
        // SAFETY: TIOCGPTN writes one unsigned int, which outlives the call.
        let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
        raw::unit(result.into())?;
        let slave = match peer(&master, libc::O_RDWR | flags) {
            Err(error) if unknown_ioctl(&error) => slave_by_path(ptmx, number, &options)?,
            other => other?,
        };
        Ok(Self {
            master: master.into(),
            slave,
            number,
        })
    }
}

fn peer(master: &File, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: TIOCGPTPEER takes open flags as a number and touches no memory.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    raw::owned(result.into())
}

fn unknown_ioctl(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOTTY | libc::ENOSYS)
    )
}

fn slave_by_path(ptmx: &Path, number: u32, options: &OpenOptions) -> io::Result<OwnedFd> {
    /// UNIX98_PTY_SLAVE_MAJOR; 8 majors of 256 numbers each.
    const SLAVE_MAJOR: u64 = 136;
    let beside = ptmx.with_file_name(number.to_string());
    let path = if beside.exists() {
        beside
    } else {
        ptmx.with_file_name("pts").join(number.to_string())
    };
    let mut options = options.clone();
    options.custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NOFOLLOW);
    let slave = options.open(&path)?;
    let metadata = slave.metadata()?;
    let (major, minor) = (
        nix::sys::stat::major(metadata.rdev()),
        nix::sys::stat::minor(metadata.rdev()),
    );
    let expected = (
        SLAVE_MAJOR + u64::from(number) / 256,
        u64::from(number) % 256,
    );
    let in_devpts = nix::sys::statfs::fstatfs(&slave)?.filesystem_type()
        == nix::sys::statfs::DEVPTS_SUPER_MAGIC;
    if metadata.file_type().is_char_device() && (major, minor) == expected && in_devpts {
        return Ok(slave.into());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} is not terminal {number}", path.display()),
    ))
}

/// The size of a terminal; either end will do.
pub fn window_size(terminal: impl AsFd) -> io::Result<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes one struct winsize, which outlives the call.
    raw::unit(unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Sets the size of a terminal and so sends SIGWINCH to its foreground processes.
pub fn set_window_size(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads one struct winsize, which outlives the call.
    raw::unit(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }.into())
}

/// Makes a terminal the controlling one of the calling session leader.
pub fn set_controlling(slave: impl AsFd) -> io::Result<()> {
    let fd = slave.as_fd().as_raw_fd();
    let steal: libc::c_int = 0;
    // SAFETY: TIOCSCTTY takes a number and touches no memory.
    raw::unit(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, steal) }.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const PTMX: &str = "/dev/ptmx";

    #[test]
    fn what_is_written_to_one_end_comes_out_of_the_other() {
        let pty = Pty::open(Path::new(PTMX)).unwrap();
        let (mut master, mut slave) = (File::from(pty.master), File::from(pty.slave));
        slave.write_all(b"out\n").unwrap();
        // A read of the master may end anywhere: even between the carriage return the line
        // discipline adds and the newline.
        let mut output = [0; b"out\r\n".len()];
        master.read_exact(&mut output).unwrap();
        assert_eq!(&output, b"out\r\n");
        master.write_all(b"in\n").unwrap();
        let mut input = [0; b"in\n".len()];
        slave.read_exact(&mut input).unwrap();
        assert_eq!(&input, b"in\n");
    }

    #[test]
    fn size_is_one_for_both_ends() {
        let pty = Pty::open(Path::new(PTMX)).unwrap();
        let size = WindowSize {
            rows: 40,
            columns: 132,
        };
        set_window_size(&pty.master, size).unwrap();
        assert_eq!(window_size(&pty.slave).unwrap(), size);
        assert!(window_size(File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn slave_is_found_by_path_and_an_impostor_refused() {
        let pty = Pty::open(Path::new(PTMX)).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let slave = slave_by_path(Path::new(PTMX), pty.number, &options).unwrap();
        let number = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_rdev;
        assert_eq!(number(&slave), number(&pty.slave));

        let folder = tempfile::tempdir().unwrap();
        let ptmx = folder.path().join("ptmx");
        let impostor = folder.path().join(pty.number.to_string());
        std::fs::write(&impostor, "").unwrap();
        assert!(slave_by_path(&ptmx, pty.number, &options).is_err());
        std::fs::remove_file(&impostor).unwrap();
        std::os::unix::fs::symlink(format!("/dev/pts/{}", pty.number), &impostor).unwrap();
        assert!(slave_by_path(&ptmx, pty.number, &options).is_err());
    }

    #[test]
    fn session_leader_gets_its_controlling_terminal() {
        let pty = Pty::open(Path::new(PTMX)).unwrap();
        let mut child = crate::fork::fork(&mut || {
            let done = nix::unistd::setsid().is_ok() && set_controlling(&pty.slave).is_ok();
            // SAFETY: _exit runs no code of ours and does not return.
            unsafe { libc::_exit(i32::from(!done)) }
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), crate::ExitStatus::Exited(0));
        // This process leads no session here, or has a terminal already.
        assert!(set_controlling(File::open("/dev/null").unwrap()).is_err());
    }
}
