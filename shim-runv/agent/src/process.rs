//! A process of a container as the agent holds it: its pidfd, its streams, and the threads that copy
//! them between pipes and the mux.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use guest::call::Written;
use mux::Stream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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

/// Our end of a pipe that a process writes, and how much was ever taken out of it, in bytes. What is in it and
/// what was taken are looked at together: nothing is on its way between the two.
#[derive(Debug)]
struct Output {
    pipe: File,
    taken: Mutex<u64>,
}

impl Output {
    /// Reading it does not wait from now on; who opens the pipe by /proc has a description of their own, which does.
    fn of(pipe: OwnedFd) -> Result<Arc<Self>> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(Error::io("set the flags of a pipe"))?;
        Ok(Arc::new(Self {
            pipe: File::from(pipe),
            taken: Mutex::new(0),
        }))
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        // No code panics while it holds the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is there; none when nothing is.
    fn take_some(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut taken = self.taken();
        match (&self.pipe).read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => {
                let bytes = other?;
                *taken += u64::try_from(bytes).expect("a buffer has no more");
                Ok(Some(bytes))
            }
        }
    }

    /// All that was ever written, but for what the process has read itself.
    fn written(&self) -> io::Result<u64> {
        let taken = self.taken();
        Ok(*taken + sys::unread_bytes(self.pipe.as_fd())?)
    }
}

/// The process may open its pipe by /dev/stdout and take what was seen there: the lock is never held while waiting.
impl Read for &Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if let Some(bytes) = self.take_some(buffer)? {
                return Ok(bytes);
            }
        }
    }
}

/// What copies between a process and the mux.
#[derive(Debug)]
pub(crate) struct Copying {
    /// Where input comes from: nothing more is taken of it once the process has ended.
    input: Arc<Stream>,
    /// Output and errors, as long as they are copied: then our ends are closed, and who writes on is told so. None
    /// with a terminal.
    outputs: Option<[Weak<Output>; 2]>,
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
                let (output, errors) = (Output::of(pipes.stdout)?, Output::of(pipes.stderr)?);
                let mut this = Self {
                    input: Arc::clone(&stdin),
                    outputs: Some([Arc::downgrade(&output), Arc::downgrade(&errors)]),
                    terminal: None,
                    threads: Vec::new(),
                };
                this.thread(move || feed(&stdin, pipes.stdin))?;
                this.thread(move || drain(&*output, &stdout))?;
                this.thread(move || drain(&*errors, &stderr))?;
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
                    outputs: None,
                    terminal: Some(master),
                    threads: Vec::new(),
                };
                let typed = Arc::clone(&stream);
                this.thread(move || feed(&typed, input))?;
                this.thread(move || drain(&File::from(output), &stream))?;
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

    /// The process has ended: nobody reads its input any more. Says how much it has written; the terminal of one
    /// that leads a session hangs up with it, so that its stream ends.
    pub(crate) fn process_ended(&self) -> Result<Written> {
        self.input.stop_reading();
        let Some([stdout, stderr]) = &self.outputs else {
            return Ok(Written::ALL);
        };
        let written = |output: &Weak<Output>| match output.upgrade() {
            Some(output) => output
                .written()
                .map_err(Error::io("count what a process has written")),
            None => Ok(Written::TO_THE_END),
        };
        Ok(Written {
            stdout: written(stdout)?,
            stderr: written(stderr)?,
        })
    }

    /// Waits until all was copied: everybody who has its output open must be gone.
    pub(crate) fn join(self) {
        self.input.stop_reading();
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
fn drain(mut from: impl Read, to: &Stream) {
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
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
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
    /// It was reaped.
    pub(crate) has_ended: bool,
}

impl Running {
    /// Whether nobody asks for it any more. One that has closed its streams may run on.
    pub(crate) fn is_over(&self) -> bool {
        self.has_ended && self.copying.is_done()
    }

    /// Sends a signal by number.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        sys::process::pidfd_send_signal(self.pidfd.as_fd(), signal).map_err(|error| {
            match error.raw_os_error() {
                Some(code) if code == Errno::ESRCH as i32 => {
                    Error::NotFound(format!("process {}", self.pid))
                }
                _ => Error::io(format!("send signal {signal} to process {}", self.pid))(error),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn what_is_in_a_pipe_and_what_was_taken_is_what_was_written() {
        let (ours, theirs) = sys::pipe_cloexec().unwrap();
        let (output, mut theirs) = (Output::of(ours).unwrap(), File::from(theirs));
        assert_eq!(output.written().unwrap(), 0);
        theirs.write_all(b"written").unwrap();
        assert_eq!(output.written().unwrap(), 7);
        let mut some = [0; 3];
        (&*output).read_exact(&mut some).unwrap();
        assert_eq!(output.written().unwrap(), 7);
        theirs.write_all(b" more").unwrap();
        drop(theirs);
        let mut rest = String::new();
        (&*output).read_to_string(&mut rest).unwrap();
        assert_eq!(
            (rest.as_str(), output.written().unwrap()),
            ("tten more", 12)
        );
    }

    #[test]
    fn what_a_process_takes_out_of_its_own_pipe_is_not_waited_for() {
        let (ours, theirs) = sys::pipe_cloexec().unwrap();
        let (output, mut theirs) = (Output::of(ours).unwrap(), File::from(theirs));
        theirs.write_all(b"w").unwrap();
        // As by /dev/stdout.
        let again = format!("/proc/self/fd/{}", theirs.as_raw_fd());
        let mut other = File::open(again).unwrap();
        other.read_exact(&mut [0]).unwrap();
        // A second reader has come between what was seen and what is taken; somebody may write on.
        assert_eq!(output.take_some(&mut [0; 8]).unwrap(), None);
        assert_eq!(output.written().unwrap(), 0);
        theirs.write_all(b"more").unwrap();
        drop(theirs);
        let mut rest = String::new();
        (&*output).read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), output.written().unwrap()), ("more", 4));
    }
}
