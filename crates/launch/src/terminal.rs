//! The terminal of a process: made in the container's own devpts, handed to the host, worn as
//! standard streams. Must run inside the container's root.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use sys::pty::{Pty, WindowSize, set_controlling, set_window_size};

use crate::error::{Error, Result, host};
use crate::plan::TerminalSize;
use crate::procfs::{self, Proc};

const PTMX: &str = "/dev/pts/ptmx";
const CONSOLE: &str = "/dev/console";

/// A new pair, of which the slave is not worn yet.
#[derive(Debug)]
pub(crate) struct Terminal {
    pty: Pty,
}

impl Terminal {
    /// Makes a pair in the devpts at `/dev/pts` of this root.
    pub(crate) fn open(size: TerminalSize) -> Result<Self> {
        require_devpts()?;
        let pty = Pty::open(Path::new(PTMX)).map_err(host(|| format!("open {PTMX}")))?;
        let TerminalSize { rows, columns } = size;
        if rows != 0 && columns != 0 {
            set_window_size(&pty.master, WindowSize { rows, columns })
                .map_err(host(|| format!("set terminal size {columns}x{rows}")))?;
        }
        Ok(Self { pty })
    }

    /// Binds the slave on `/dev/console`, from descriptor to descriptor: no name is resolved
    /// between check and use (CVE-2025-52565).
    pub(crate) fn bind_console(&self, proc: &Proc) -> Result<()> {
        let step = || format!("bind the terminal on {CONSOLE}");
        let target = console_target().map_err(host(step))?;
        let mode = fstat(&target).map_err(host(step))?.st_mode;
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFLNK {
            let step = format!("{CONSOLE} of the image is a symbolic link");
            return Err(Error::Request { step, errno: 0 });
        }
        proc.make_working_directory()?;
        procfs::bind(&self.pty.slave, &target).map_err(host(step))
    }

    /// Master and slave, for somebody else to wear.
    pub(crate) fn split(self) -> (OwnedFd, OwnedFd) {
        (self.pty.master, self.pty.slave)
    }

    /// Makes the slave controlling terminal and standard streams; gives the master.
    pub(crate) fn wear(self) -> Result<OwnedFd> {
        let slave = self.pty.slave;
        set_controlling(&slave).map_err(host(|| "set the controlling terminal".to_owned()))?;
        let worn = dup2_stdin(&slave)
            .and_then(|()| dup2_stdout(&slave))
            .and_then(|()| dup2_stderr(&slave));
        worn.map_err(host(|| "make the terminal the standard streams".to_owned()))?;
        Ok(self.pty.master)
    }
}

/// Refuses whatever an image has at `/dev/pts/ptmx` when no devpts is mounted there, before it is
/// really opened.
fn require_devpts() -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let ptmx =
        open(PTMX, flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| Error::Request {
            step: format!("terminal without {PTMX}"),
            errno: errno as i32,
        })?;
    let magic = fstatfs(&ptmx)
        .map_err(host(|| format!("look at {PTMX}")))?
        .filesystem_type();
    if magic == DEVPTS_SUPER_MAGIC {
        return Ok(());
    }
    Err(Error::Request {
        step: format!("terminal without a devpts mount: {PTMX}"),
        errno: 0,
    })
}

/// What is at `/dev/console`, made when missing.
fn console_target() -> nix::Result<OwnedFd> {
    let unopened = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open(
        CONSOLE,
        unopened | OFlag::O_NONBLOCK | OFlag::O_NOCTTY,
        Mode::empty(),
    ) {
        Err(Errno::ENOENT) => {
            let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            open(CONSOLE, new, Mode::from_bits_truncate(0o666))
        }
        other => other,
    }
}
