//! A process's stdio between the descriptors that shim-core gives and streams to the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use guest::call::Io;
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
    /// What the process writes to: a stream is known to the link until nobody holds it, and who copies does.
    outputs: Vec<Weak<Stream>>,
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
                outputs: vec![Arc::downgrade(&output), Arc::downgrade(&errors)],
            };
            thread(move || feed(stdin, &input_stream, &stop))?;
            thread(move || drain(&output, stdout))?;
            thread(move || drain(&errors, stderr))?;
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
                outputs: vec![Arc::downgrade(&stream)],
            };
            let typed = Arc::clone(&stream);
            thread(move || feed(slave, &typed, &stop))?;
            thread(move || drain(&stream, duplicate))?;
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
        for output in self.outputs.iter().filter_map(Weak::upgrade) {
            output.stop_reading();
        }
    }

    /// Whether all output was copied.
    pub(crate) fn are_over(&self) -> bool {
        self.outputs.iter().all(|it| it.strong_count() == 0)
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
fn drain(from: &Stream, to: OwnedFd) {
    let mut file = File::from(to);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match (&mut &*from).read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(bytes) => {
                if file.write_all(&buffer[..bytes]).is_err() {
                    break;
                }
            }
        }
    }
    from.stop_reading();
}
