//! A program on a pseudo-terminal that the harness holds the other end of.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags},
    pty::{Winsize, openpty},
};

use crate::{
    process::{code_of, command, show},
    wait::{Deadline, SOON, for_end_of},
};

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// What [`Terminal::is_a_programs`] wants to be run: it tells its terminal, takes a line, and goes on when
/// the size has changed.
pub const USES: &str = "tty; until stty size 2>/dev/null | grep '24 80'; do :; done; read line; echo \"<$line>\"; \
                        until stty size | grep '30 100'; do :; done";

/// The size of the terminal that it begins with.
pub const FIRST: Size = Size {
    rows: 24,
    columns: 80,
};

/// A session on a terminal.
#[derive(Debug)]
pub struct Terminal {
    shown: String,
    child: Child,
    master: File,
    output: Vec<u8>,
    read_until: usize,
}

impl Terminal {
    /// Starts the program as leader of a session whose controlling terminal has that size.
    pub fn start(program: &Command, size: Size) -> Result<Self> {
        let winsize = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&winsize), None).context("opening a pseudo-terminal")?;
        let shown = show(program);
        let stdio = || -> io::Result<Stdio> { Ok(Stdio::from(pty.slave.try_clone()?)) };
        let mut session = command("setsid");
        session
            .arg("--ctty")
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(stdio()?)
            .stdout(stdio()?)
            .stderr(stdio()?);
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let child = session
            .spawn()
            .with_context(|| format!("starting `{shown}`"))?;
        Ok(Self {
            shown,
            child,
            master: File::from(pty.master),
            output: Vec::new(),
            read_until: 0,
        })
    }

    /// Types that text.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.master
            .write_all(text.as_bytes())
            .with_context(|| format!("typing to `{}`", self.shown))
    }

    /// Changes the size; the program is told by SIGWINCH.
    pub fn resize(&self, size: Size) -> Result<()> {
        let winsize = rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.master, winsize).context("resizing the terminal")
    }

    /// A program that begins with [`USES`] finds a terminal of its own with the size [`FIRST`], reads what is
    /// typed, and is told of another size.
    pub fn is_a_programs(&mut self) -> Result<()> {
        self.expect("/dev/pts/", SOON)?;
        self.expect("24 80", SOON)?;
        self.type_text("typed\n")?;
        self.expect("<typed>", SOON)?;
        self.resize(Size {
            rows: 30,
            columns: 100,
        })
    }

    /// Reads until that text comes, after what earlier calls found; what comes up to its end is returned.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Deadline::after(limit);
        loop {
            let unread = String::from_utf8_lossy(&self.output[self.read_until..]).into_owned();
            if let Some(found) = unread.find(text) {
                let end = found + text.len();
                self.read_until += end;
                return Ok(unread[..end].to_owned());
            }
            ensure!(
                self.read(deadline)?,
                "`{}` did not show {text:?}, but {unread:?}",
                self.shown
            );
        }
    }

    /// Waits for its end; the exit code and all it showed come back.
    pub fn finish(mut self, limit: Duration) -> Result<(i32, String)> {
        let deadline = Deadline::after(limit);
        while self.read(deadline)? {}
        let pid = i32::try_from(self.child.id())?;
        if for_end_of(pid, deadline.left()).is_err() {
            let shown = String::from_utf8_lossy(&self.output);
            bail!("`{}` did not end within {limit:?}: {shown:?}", self.shown);
        }
        let status = self.child.wait()?;
        Ok((
            code_of(status),
            String::from_utf8_lossy(&self.output).into_owned(),
        ))
    }

    /// Takes what comes; false at the deadline and when the other side has gone.
    fn read(&mut self, deadline: Deadline) -> Result<bool> {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if !deadline.poll(&mut fds)? {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.output.extend_from_slice(&buffer[..count]);
                Ok(true)
            }
            // The other side has been closed by all who held it.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(false),
            Err(error) => Err(error).context("reading from the terminal"),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
