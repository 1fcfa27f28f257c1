//! Staying with a process: its signals, its terminal, its exit code.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, OutputFlags, SetArg};
use stdio::{Flow, RawTerminal, Signals};
use sys::{Signal, pty};

use crate::joined::Joined;
use crate::wait::Mortal;
use crate::{Error, Result};

/// Ready to stay: signals are ours, the caller's terminal is raw.
pub(crate) struct Foreground {
    signals: Signals,
    terminal: Option<Attached>,
}

/// Takes over signals, and the caller's terminal when the process has one of its own.
pub(crate) fn attach(terminal: Option<OwnedFd>) -> Result<Foreground> {
    Ok(Foreground {
        signals: Signals::take().map_err(Error::io("take signals"))?,
        terminal: terminal.map(Attached::new).transpose()?,
    })
}

impl Foreground {
    /// Passes signals, input and output on until `child` has ended; gives its code, or 128 and the
    /// number of the signal that killed it.
    pub(crate) fn wait(mut self, mut child: Joined) -> Result<ExitCode> {
        loop {
            if let Some(status) = child
                .try_wait()
                .map_err(Error::io("wait for the process"))?
            {
                if let Some(terminal) = &mut self.terminal {
                    terminal.drain();
                }
                return Ok(ExitCode::from(
                    u8::try_from(status.code()).unwrap_or(u8::MAX),
                ));
            }
            self.wait_for_something(&child)?;
            // Orphans of a container in our pid namespace: nobody else waits for them.
            sys::reap();
            self.pass_signals(&child)?;
            if let Some(terminal) = &mut self.terminal {
                terminal.copy();
            }
        }
    }

    fn wait_for_something(&self, child: &Joined) -> Result<()> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let news = child.news();
        fds.extend(news.map(|news| PollFd::new(news, PollFlags::POLLIN)));
        if let Some(terminal) = &self.terminal {
            fds.extend(terminal.polled());
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::io("poll")(e.into())),
        }
    }

    fn pass_signals(&self, child: &Joined) -> Result<()> {
        let read = || self.signals.read().map_err(Error::io("read a signalfd"));
        while let Some(signal) = read()? {
            match &self.terminal {
                Some(terminal) if signal == Signal::SIGWINCH as i32 => terminal.resize(),
                _ => match child.kill_number(signal) {
                    Err(e) if e.raw_os_error() != Some(Errno::ESRCH as i32) => {
                        return Err(Error::io(format!("pass on signal {signal}"))(e));
                    }
                    _ => {} // Sent, or it has just ended.
                },
            }
        }
        Ok(())
    }
}

/// A process's terminal, connected to our standard streams.
struct Attached {
    master: OwnedFd,
    streams: (io::Stdin, io::Stdout),
    input: Flow,
    output: Flow,
    raw: Option<RawTerminal>,
}

impl Attached {
    fn new(master: OwnedFd) -> Result<Self> {
        let failed = |e: Errno| Error::io("prepare the terminal")(e.into());
        leave_line_ends(&master).map_err(failed)?;
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL).map_err(failed)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
        let attached = Self {
            master,
            streams: (io::stdin(), io::stdout()),
            input: Flow::default(),
            output: Flow::default(),
            raw: RawTerminal::of_caller().map_err(Error::io("prepare the terminal"))?,
        };
        attached.resize();
        Ok(attached)
    }

    /// Gives it the size of the caller's terminal; without one it keeps what it has.
    fn resize(&self) {
        let Some(raw) = &self.raw else { return };
        if let Ok(size) = raw.size()
            && let Err(error) = pty::set_window_size(&self.master, size)
        {
            tracing::debug!(%error, "window size cannot be passed on");
        }
    }

    fn polled(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        let mut master = PollFlags::empty();
        if self.input.wants_more() {
            fds.push(PollFd::new(self.streams.0.as_fd(), PollFlags::POLLIN));
        }
        if self.output.wants_more() {
            master |= PollFlags::POLLIN;
        }
        if self.output.has_some() {
            fds.push(PollFd::new(self.streams.1.as_fd(), PollFlags::POLLOUT));
        }
        if self.input.has_some() {
            master |= PollFlags::POLLOUT;
        }
        if !master.is_empty() {
            fds.push(PollFd::new(self.master.as_fd(), master));
        }
        fds
    }

    fn copy(&mut self) {
        self.input.fill(self.streams.0.as_fd());
        self.input.empty_into(self.master.as_fd());
        self.output.fill(self.master.as_fd());
        self.output.empty_into(self.streams.1.as_fd());
    }

    /// Copies what is left of the output once the process has ended.
    fn drain(&mut self) {
        while !self.output.is_over() {
            self.output.fill(self.master.as_fd());
            if !self.output.has_some() {
                return;
            }
            let stdout = self.streams.1.as_fd();
            let mut fds = [PollFd::new(stdout, PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => self.output.empty_into(stdout),
                Err(_errno) => return,
            }
        }
    }
}

/// Line ends of a container's terminal stay what the program wrote (as runc has it): whoever reads
/// them from a pipe gets no carriage returns, and the caller's terminal makes its own.
fn leave_line_ends(master: &OwnedFd) -> nix::Result<()> {
    let mut settings = termios::tcgetattr(master)?;
    settings.output_flags.remove(OutputFlags::ONLCR);
    termios::tcsetattr(master, SetArg::TCSANOW, &settings)
}
