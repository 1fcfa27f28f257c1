//! A process's stdio between the descriptors that shim-core gives and streams to the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use guest::call::{Io, Written};
use mux::Stream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use shim_core::ProcessIo;
use sys::pty::Pty;

use crate::agent::Agent;
use crate::{Error, Result};

/// How much is copied at once, in bytes.
const COPY_BYTES: usize = 32 << 10;

/// The copying of one process, by threads that end with their streams. Dropped, it takes no more input;
/// output goes on to its end.
#[derive(Debug)]
pub(crate) struct Streams {
    /// What the guest knows them by.
    pub(crate) io: Io,
    /// Closed, input ends.
    input: Mutex<Option<OwnedFd>>,
    /// What the process writes to.
    outputs: Vec<Output>,
}

/// One of them.
#[derive(Debug)]
struct Output {
    /// A stream is known to the link until nobody holds it, and who copies does.
    stream: Weak<Stream>,
    copied: Arc<Copied>,
}

impl Output {
    fn of(stream: &Arc<Stream>) -> Self {
        Self {
            stream: Arc::downgrade(stream),
            copied: Arc::default(),
        }
    }
}

/// How much has reached the descriptor that shim-core gave.
#[derive(Debug, Default)]
struct Copied {
    so_far: Mutex<SoFar>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SoFar {
    bytes: u64,
    is_all: bool,
}

impl SoFar {
    fn has(&self, bytes: u64) -> bool {
        self.is_all || self.bytes >= bytes
    }
}

impl Copied {
    fn lock(&self) -> MutexGuard<'_, SoFar> {
        // No code panics while it holds the lock.
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut SoFar)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until there were so many bytes, or nothing more comes; says whether that was so in time.
    fn wait(&self, bytes: u64, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), left, |it| !it.has(bytes));
        waited.unwrap_or_else(PoisonError::into_inner).0.has(bytes)
    }
}

/// Streams of a process that is to be made, and the master of its terminal when one was asked for.
pub(crate) fn open(io: ProcessIo, agent: &Agent) -> Result<(Streams, Option<OwnedFd>)> {
    let (stop, input) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
    let open = || agent.stream().map(Arc::new);
    match io {
        ProcessIo::Streams {
            stdin,
            stdout,
            stderr,
        } => {
            let [input_stream, output, errors] = [open()?, open()?, open()?];
            let streams = Streams {
                io: Io::Streams {
                    stdin: input_stream.id(),
                    stdout: output.id(),
                    stderr: errors.id(),
                },
                input: Mutex::new(Some(input)),
                outputs: vec![Output::of(&output), Output::of(&errors)],
            };
            let [of_output, of_errors] =
                [0, 1].map(|number| Arc::clone(&streams.outputs[number].copied));
            thread(move || feed(stdin, &input_stream, &stop))?;
            thread(move || drain(&output, stdout, &of_output))?;
            thread(move || drain(&errors, stderr, &of_errors))?;
            Ok((streams, None))
        }
        ProcessIo::Terminal => {
            let stream = open()?;
            let (master, slave) = raw_terminal()?;
            let duplicate = slave
                .try_clone()
                .map_err(Error::io("duplicate a terminal"))?;
            let streams = Streams {
                io: Io::Terminal(stream.id()),
                input: Mutex::new(Some(input)),
                outputs: vec![Output::of(&stream)],
            };
            let (typed, copied) = (Arc::clone(&stream), Arc::clone(&streams.outputs[0].copied));
            thread(move || feed(slave, &typed, &stop))?;
            thread(move || drain(&stream, duplicate, &copied))?;
            Ok((streams, Some(master)))
        }
    }
}

/// A terminal that changes nothing: the one in the guest does.
fn raw_terminal() -> Result<(OwnedFd, OwnedFd)> {
    let pty = Pty::open(Path::new("/dev/ptmx")).map_err(Error::io("open a terminal"))?;
    let mut settings = tcgetattr(&pty.slave).map_err(Error::io("read a terminal's settings"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)
        .map_err(Error::io("set a terminal's settings"))?;
    Ok((pty.master, pty.slave))
}

/// Copies on a thread of its own, which ends with the streams that it copies.
fn thread(copy: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("copy".to_owned());
    let thread = thread.stack_size(256 << 10).spawn(copy);
    thread.map(drop).map_err(Error::io("start a thread"))
}

impl Streams {
    /// The process has ended: it reads no more.
    pub(crate) fn process_ended(&self) {
        drop(
            self.input
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Nobody takes output any more: who still has some in the guest does not wait.
    pub(crate) fn stop_reading(&self) {
        for output in self.outputs.iter().filter_map(|it| it.stream.upgrade()) {
            output.stop_reading();
        }
    }

    /// Whether all output was copied.
    pub(crate) fn are_over(&self) -> bool {
        self.outputs.iter().all(|it| it.stream.strong_count() == 0)
    }

    /// Waits until what a process has written was copied; says whether it was, in time.
    pub(crate) fn have(&self, written: Written, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let bytes = [written.stdout, written.stderr];
        let mut outputs = self.outputs.iter().zip(bytes);
        outputs.all(|(output, bytes)| output.copied.wait(bytes, deadline))
    }
}

/// From a descriptor to the guest, until its end or that of the process.
fn feed(from: OwnedFd, to: &Stream, stop: &OwnedFd) {
    let mut file = File::from(from);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let mut fds = [
            PollFd::new(file.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => break,
        }
        if fds[1].any().unwrap_or(true) {
            break;
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => {
                if (&mut &*to).write_all(&buffer[..bytes]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_end) => break,
        }
    }
    to.finish();
}

/// From the guest to a descriptor, until the guest says the end. Nobody may read it any more: then the
/// guest is told so.
fn drain(from: &Stream, to: OwnedFd, copied: &Copied) {
    let mut file = File::from(to);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match (&mut &*from).read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(bytes) => {
                if file.write_all(&buffer[..bytes]).is_err() {
                    break;
                }
                let bytes = u64::try_from(bytes).expect("a buffer has no more");
                copied.change(|it| it.bytes += bytes);
            }
        }
    }
    from.stop_reading();
    // The end is there before it is told.
    drop(file);
    copied.change(|it| it.is_all = true);
}
