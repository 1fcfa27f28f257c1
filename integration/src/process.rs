//! Programs the harness starts: the one spawn function, output gathered while they run, a limit on every wait.
//!
//! Must not be used for processes that outlive their starter (containerd itself has its own type).

use std::{
    ffi::OsStr,
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::{Deadline, process_end};

/// The one place where the harness builds a command.
#[expect(
    clippy::disallowed_methods,
    reason = "the harness's one spawn function; it links no crate of ours"
)]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// Runs a program to its end and demands success; its standard output comes back.
pub fn output_of(command: &mut Command, limit: Duration) -> Result<String> {
    Ok(Running::start(command)?.finish(limit)?.success()?.stdout())
}

/// A program that runs with nothing on standard input and both outputs read by the harness.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    end: Option<OwnedFd>,
    stdout: Stream,
    stderr: Stream,
}

#[derive(Debug, Default)]
struct Stream {
    pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
}

/// A program that has ended, with all it wrote.
#[derive(Debug, Clone)]
pub struct Finished {
    shown: String,
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Running {
    /// Starts the command with its standard input as configured there (nothing unless it was set).
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_with_input(command, Stdio::null())
    }

    /// Starts the command with that standard input.
    pub fn start_with_input(command: &mut Command, input: Stdio) -> Result<Self> {
        let shown = show(command);
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{shown}`"))?;
        let stdout = Stream::of(child.stdout.take().map(OwnedFd::from));
        let stderr = Stream::of(child.stderr.take().map(OwnedFd::from));
        let end = process_end(pid_of(&child))?;
        Ok(Self {
            shown,
            child,
            end,
            stdout,
            stderr,
        })
    }

    /// Starts the command with that text on standard input, and nothing after it. The text is
    /// shorter than what a pipe holds.
    pub fn start_with_text(command: &mut Command, text: &str) -> Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(text.as_bytes())?;
        Self::start_with_input(command, Stdio::from(reader))
    }

    /// Its process id, valid until it has been waited for.
    #[must_use]
    pub fn pid(&self) -> i32 {
        pid_of(&self.child)
    }

    /// Sends it a signal; it was not waited for yet, so the id is its own.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("sending {signal} to `{}`", self.shown))
    }

    /// What it has written to standard output until now.
    #[must_use]
    pub fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes).into_owned()
    }

    /// Reads standard output until `found` makes something of all that came so far.
    pub fn wait_for_output<T>(
        &mut self,
        limit: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Deadline::after(limit);
        loop {
            if let Some(answer) = found(&self.stdout_so_far()) {
                return Ok(answer);
            }
            ensure!(
                !(self.stdout.pipe.is_none() && self.stderr.pipe.is_none()),
                "`{}` ended before it wrote what was waited for: {}",
                self.shown,
                self.written()
            );
            ensure!(
                self.read(deadline)?,
                "waited {limit:?} in vain for output of `{}`: {}",
                self.shown,
                self.written()
            );
        }
    }

    /// Waits until it has ended and both outputs are closed; kills it at the limit.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let deadline = Deadline::after(limit);
        while self.end.is_some() || self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
            if !self.read(deadline)? {
                bail!(
                    "`{}` did not end within {limit:?}: {}",
                    self.shown,
                    self.written()
                );
            }
        }
        let status = self
            .child
            .wait()
            .with_context(|| format!("waiting for `{}`", self.shown))?;
        Ok(Finished {
            shown: self.shown.clone(),
            status,
            stdout: std::mem::take(&mut self.stdout.bytes),
            stderr: std::mem::take(&mut self.stderr.bytes),
        })
    }

    /// Takes what is there to be read, or waits for it; false at the deadline.
    fn read(&mut self, deadline: Deadline) -> Result<bool> {
        let fds = [
            self.stdout.pipe.as_ref(),
            self.stderr.pipe.as_ref(),
            self.end.as_ref(),
        ];
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .flatten()
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            .collect();
        if !deadline.poll(&mut polled)? {
            return Ok(false);
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or_default());
        let ready = fds.map(|fd| fd.is_some() && ready.next().unwrap_or_default());
        drop(polled);
        if ready[0] {
            self.stdout.take_some()?;
        }
        if ready[1] {
            self.stderr.take_some()?;
        }
        if ready[2] {
            self.end = None;
        }
        Ok(true)
    }

    fn written(&self) -> String {
        written(&self.stdout.bytes, &self.stderr.bytes)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Stream {
    fn of(pipe: Option<OwnedFd>) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
        }
    }

    fn take_some(&mut self) -> io::Result<()> {
        let Some(pipe) = self.pipe.take() else {
            return Ok(());
        };
        let mut file = std::fs::File::from(pipe);
        let mut buffer = [0; 16384];
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.pipe = Some(file.into());
        Ok(())
    }
}

impl Finished {
    /// Exit code, or 128 + signal, as a shell shows it.
    #[must_use]
    pub fn code(&self) -> i32 {
        code_of(self.status)
    }

    /// Standard output; bytes that are no UTF-8 are replaced.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error; bytes that are no UTF-8 are replaced.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself when it exited with 0, else an error that shows command and output.
    pub fn success(self) -> Result<Self> {
        self.with_code(0)
    }

    /// Itself when it exited with that code, else an error that shows command and output.
    pub fn with_code(self, code: i32) -> Result<Self> {
        ensure!(self.code() == code, "expected exit code {code}: {self}");
        Ok(self)
    }

    /// Itself when it failed and said that on standard error.
    pub fn failing_with(self, text: &str) -> Result<Self> {
        let said = self.stderr().contains(text);
        ensure!(
            self.code() != 0 && said,
            "expected to fail with {text:?}: {self}"
        );
        Ok(self)
    }

    /// Its output when that is, white space at both ends apart, what was expected.
    pub fn printing(self, expected: &str) -> Result<Self> {
        ensure!(
            self.stdout().trim() == expected.trim(),
            "expected {expected:?}: {self}"
        );
        Ok(self)
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shown,
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "`{shown}`: {status}: {}", written(stdout, stderr))
    }
}

fn written(stdout: &[u8], stderr: &[u8]) -> String {
    format!(
        "stdout {:?}, stderr {:?}",
        String::from_utf8_lossy(stdout),
        String::from_utf8_lossy(stderr)
    )
}

/// Exit code, or 128 + signal.
pub(crate) fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .expect("a process that was waited for has a code or a signal")
}

/// The command line, for a person.
pub(crate) fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("pid_max is below 2^22")
}
