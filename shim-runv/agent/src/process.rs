//! A process of a container as the agent holds it: its pidfd, its streams, and the threads that copy
//! them between pipes and the mux.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use mux::Stream;
use nix::unistd::{Gid, Uid, fchown};
use sys::Pid;
use sys::pty::WindowSize;

use crate::error::{Error, Result};
use crate::stub::Streams;

/// How much is copied at once, in bytes.
const COPY_BYTES: usize = 32 << 10;

/// The mux streams of a process.
#[derive(Debug)]
pub(crate) enum Mux {
    Streams {
        stdin: Arc<Stream>,
        stdout: Arc<Stream>,
        stderr: Arc<Stream>,
    },
    Terminal(Arc<Stream>),
}

/// Our ends of a process's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    /// Three pipes that belong to the process's user, who may open them by /dev/stdout; the process's
    /// ends are the second.
    pub(crate) fn make(uid: u32, gid: u32) -> Result<(Self, Streams)> {
        let pipe = || sys::pipe_cloexec().map_err(Error::io("make a pipe"));
        let ((stdin, writes_stdin), (stdout, writes_stdout), (stderr, writes_stderr)) =
            (pipe()?, pipe()?, pipe()?);
        for end in [&stdin, &writes_stdout, &writes_stderr] {
            fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(Error::io("give a pipe to the process's user"))?;
        }
        let ours = Self {
            stdin: writes_stdin,
            stdout,
            stderr,
        };
        Ok((ours, [stdin, writes_stdout, writes_stderr]))
    }
}

/// What copies between a process and the mux.
#[derive(Debug)]
pub(crate) struct Copying {
    /// Where input comes from: nothing more is taken of it once the process has ended.
    input: Arc<Stream>,
    terminal: Option<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Copying {
    /// Starts to copy.
    pub(crate) fn start(mux: Mux, pipes: Option<Pipes>, terminal: Option<OwnedFd>) -> Result<Self> {
        match (mux, pipes, terminal) {
            (
                Mux::Streams {
                    stdin,
                    stdout,
                    stderr,
                },
                Some(pipes),
                None,
            ) => {
                let mut this = Self {
                    input: Arc::clone(&stdin),
                    terminal: None,
                    threads: Vec::new(),
                };
                this.thread(move || feed(&stdin, pipes.stdin))?;
                this.thread(move || drain(pipes.stdout, &stdout))?;
                this.thread(move || drain(pipes.stderr, &stderr))?;
                Ok(this)
            }
            (Mux::Terminal(stream), None, Some(master)) => {
                let duplicate = || {
                    master
                        .try_clone()
                        .map_err(Error::io("duplicate a terminal"))
                };
                let (input, output) = (duplicate()?, duplicate()?);
                let mut this = Self {
                    input: Arc::clone(&stream),
                    terminal: Some(master),
                    threads: Vec::new(),
                };
                let typed = Arc::clone(&stream);
                this.thread(move || feed(&typed, input))?;
                this.thread(move || drain(output, &stream))?;
                Ok(this)
            }
            _ => Err(Error::Invalid(
                "process.terminal and the streams that the shim gives do not fit".to_owned(),
            )),
        }
    }

    fn thread(&mut self, copy: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name("copy".to_owned());
        let thread = thread.stack_size(256 << 10).spawn(copy);
        self.threads
            .push(thread.map_err(Error::io("start a thread"))?);
        Ok(())
    }

    /// Tells the terminal its size; nothing without one.
    pub(crate) fn resize(&self, size: WindowSize) -> Result<()> {
        match &self.terminal {
            Some(master) => sys::pty::set_window_size(master, size)
                .map_err(Error::io("set the size of a terminal")),
            None => Ok(()),
        }
    }

    /// The process has ended: nobody reads its input any more.
    pub(crate) fn process_ended(&self) {
        self.input.stop_reading();
    }

    /// Waits until all was copied: everybody who has its output open must be gone.
    pub(crate) fn join(self) {
        self.process_ended();
        drop(self.terminal);
        for thread in self.threads {
            // It ends by itself and has nothing to say.
            let _ended = thread.join();
        }
    }

    /// Whether all was copied.
    pub(crate) fn is_done(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

/// From the mux to a process, until either is at its end.
fn feed(from: &Stream, to: OwnedFd) {
    let mut to = File::from(to);
    copy(&mut &*from, &mut to);
    from.stop_reading();
}

/// From a process to the mux. The end is told by a Fin.
fn drain(from: OwnedFd, to: &Stream) {
    let mut from = File::from(from);
    copy(&mut from, &mut &*to);
    to.finish();
}

/// Copies until the end; an error of either side is one. (A terminal's master fails with EIO when
/// nobody has it open any more.)
fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => {
                if to.write_all(&buffer[..bytes]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_end) => return,
        }
    }
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) copying: Copying,
}

impl Running {
    /// Sends a signal by number.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        sys::process::pidfd_send_signal(self.pidfd.as_fd(), signal).map_err(|error| {
            match error.raw_os_error() {
                Some(code) if code == nix::errno::Errno::ESRCH as i32 => {
                    Error::NotFound(format!("process {}", self.pid))
                }
                _ => Error::io(format!("send signal {signal} to process {}", self.pid))(error),
            }
        })
    }
}
