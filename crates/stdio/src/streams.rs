//! Opens all places of a process's streams before the process exists, so that a bad one fails its
//! creation. Blocking; copies nothing.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::unistd::{Gid, Uid, fchown};

use crate::Uri;
use crate::copier::{Copier, Parts};
use crate::error::{Error, Result};
use crate::input::InputCopy;
use crate::logger::{LoggerPlan, Ready};
use crate::output::Sink;
use crate::place::{Input, Place, set_nonblocking};
use crate::port::{Direction, Port};

/// Streams to open.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What the process reads.
    pub stdin: &'a Uri,
    /// Where its output goes.
    pub stdout: &'a Uri,
    /// Where its errors go; not looked at for a terminal.
    pub stderr: &'a Uri,
    /// Through what.
    pub mode: Mode,
    /// Whose they are.
    pub identity: Identity<'a>,
}

/// What stands between the process and the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A pipe for each stream.
    Pipes(Owner),
    /// One terminal, made by the runtime.
    Terminal,
}

/// To whom the pipes belong (runc's options `io_uid` and `io_gid`); 0 and 0 leave them alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What log binaries are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// `CONTAINER_ID`: the container's id, or the exec's.
    pub id: &'a str,
    /// `CONTAINER_NAMESPACE`.
    pub namespace: &'a str,
}

/// The process's side.
#[derive(Debug)]
pub enum Ends {
    /// To become its descriptors 0, 1 and 2. Close them once it has them, or its streams never
    /// end.
    Pipes {
        /// Read end.
        stdin: OwnedFd,
        /// Write end.
        stdout: OwnedFd,
        /// Write end.
        stderr: OwnedFd,
    },
    /// The runtime makes a terminal; [`Streams::copy`] wants its master.
    Terminal,
}

/// Open places, and our ends of the pipes. Dropped, log binaries are killed, without waiting for
/// their end: [`sys::reap`] finds it.
#[derive(Debug)]
pub struct Streams {
    source: Source,
    stdin: Option<Input>,
    loggers: Vec<Ready>,
}

/// Where output comes from and input goes to.
#[derive(Debug)]
enum Source {
    Pipes {
        /// Write end, if there is something to read for the process.
        stdin: Option<OwnedFd>,
        /// Read ends and where what comes out of them goes.
        outputs: Vec<(OwnedFd, Place)>,
    },
    Terminal(Place),
}

impl Streams {
    /// Opens everything and starts log binaries; waits until those are ready. Blocking.
    ///
    /// If output and errors go to the same fifo or file, the process gets one pipe for both, so
    /// that their order is kept.
    ///
    /// # Errors
    /// Nothing is left open or running.
    pub fn open(request: &Request<'_>) -> Result<(Self, Ends)> {
        match request.mode {
            Mode::Pipes(owner) => open_pipes(request, owner),
            Mode::Terminal => Ok((open_terminal(request)?, Ends::Terminal)),
        }
    }

    /// Starts copying, with the master of the terminal in [`Mode::Terminal`]. To be called in a
    /// tokio runtime with its I/O and time drivers.
    ///
    /// # Errors
    /// [`Error::Terminal`], or when the host is out of descriptors.
    pub fn copy(self, terminal: Option<OwnedFd>) -> Result<Copier> {
        let failed = Error::system("watch a stream");
        let parts = match (self.source, terminal) {
            (Source::Pipes { stdin, outputs }, None) => pipe_parts(self.stdin, stdin, outputs),
            (Source::Terminal(place), Some(master)) => terminal_parts(self.stdin, place, master),
            (Source::Pipes { .. }, Some(_)) => {
                return Err(Error::Terminal(
                    "a terminal was given and none was asked for",
                ));
            }
            (Source::Terminal(_), None) => {
                return Err(Error::Terminal("no terminal was given"));
            }
        };
        Ok(Copier::start(parts.map_err(failed)?, self.loggers))
    }
}

fn open_pipes(request: &Request<'_>, owner: Owner) -> Result<(Streams, Ends)> {
    let mut outputs = Outputs {
        owner,
        copied: Vec::new(),
        loggers: Vec::new(),
    };
    let stdin = open_stdin(request.stdin)?;
    let (our_stdin, their_stdin) = if stdin.is_some() {
        let (reader, writer) = pipe(owner)?;
        (Some(writer), reader)
    } else {
        (None, dev_null(OpenOptions::new().read(true))?)
    };
    let stdout = outputs.open("stdout", request.stdout)?;
    let shared = matches!(request.stdout, Uri::Fifo(_) | Uri::File(_));
    let stderr = if shared && request.stdout == request.stderr {
        stdout
            .try_clone()
            .map_err(Error::system("copy a descriptor"))?
    } else {
        outputs.open("stderr", request.stderr)?
    };
    let start = |plan: LoggerPlan<'_>| plan.start(request.identity);
    let loggers = outputs.loggers.into_iter().map(start);
    let streams = Streams {
        loggers: loggers.collect::<Result<_>>()?,
        source: Source::Pipes {
            stdin: our_stdin,
            outputs: outputs.copied,
        },
        stdin,
    };
    let ends = Ends::Pipes {
        stdin: their_stdin,
        stdout,
        stderr,
    };
    Ok((streams, ends))
}

fn open_terminal(request: &Request<'_>) -> Result<Streams> {
    let stdin = open_stdin(request.stdin)?;
    let mut loggers = Vec::new();
    let place = match request.stdout {
        Uri::Null => Place::Null,
        Uri::Fifo(path) => Place::open_fifo("stdout", path)?,
        Uri::File(path) => Place::open_file("stdout", path)?,
        Uri::Binary {
            path,
            args,
            readiness,
        } => {
            let (reader, writer) = pipe(Owner::default())?;
            let plan = LoggerPlan {
                path,
                args,
                readiness: *readiness,
                stdout: Some(reader),
                stderr: None,
            };
            loggers.push(plan.start(request.identity)?);
            Place::Pipe(writer)
        }
    };
    Ok(Streams {
        source: Source::Terminal(place),
        stdin,
        loggers,
    })
}

fn open_stdin(uri: &Uri) -> Result<Option<Input>> {
    let (path, found) = match uri {
        Uri::Null => return Ok(None),
        Uri::Fifo(path) => return Input::open(path).map(Some),
        Uri::File(path) => (path, "a log file"),
        Uri::Binary { path, .. } => (path, "a log binary"),
    };
    Err(Error::WrongKind {
        stream: "stdin",
        path: path.clone(),
        found,
        expected: "a fifo",
    })
}

/// What the output streams of a process lead to.
struct Outputs<'a> {
    owner: Owner,
    copied: Vec<(OwnedFd, Place)>,
    loggers: Vec<LoggerPlan<'a>>,
}

impl<'a> Outputs<'a> {
    /// Opens a place; gives the process's end.
    fn open(&mut self, stream: &'static str, uri: &'a Uri) -> Result<OwnedFd> {
        let place = match uri {
            Uri::Null => return dev_null(OpenOptions::new().write(true)),
            Uri::Fifo(path) => Place::open_fifo(stream, path)?,
            Uri::File(path) => Place::open_file(stream, path)?,
            Uri::Binary {
                path,
                args,
                readiness,
            } => {
                let (reader, writer) = pipe(self.owner)?;
                self.log((path, args, *readiness), stream, reader);
                return Ok(writer);
            }
        };
        let (reader, writer) = pipe(self.owner)?;
        self.copied.push((reader, place));
        Ok(writer)
    }

    /// Lets a log binary read a pipe; one for both streams if both name the same.
    fn log(
        &mut self,
        (path, args, readiness): (
            &'a std::path::Path,
            &'a [std::ffi::OsString],
            crate::Readiness,
        ),
        stream: &'static str,
        reader: OwnedFd,
    ) {
        let same = |plan: &&mut LoggerPlan<'_>| {
            plan.path == path && plan.args == args && plan.readiness == readiness
        };
        if stream == "stdout" {
            self.loggers.push(LoggerPlan {
                path,
                args,
                readiness,
                stdout: Some(reader),
                stderr: None,
            });
        } else if let Some(plan) = self.loggers.iter_mut().find(same) {
            plan.stderr = Some(reader);
        } else {
            self.loggers.push(LoggerPlan {
                path,
                args,
                readiness,
                stdout: None,
                stderr: Some(reader),
            });
        }
    }
}

fn pipe_parts(
    stdin: Option<Input>,
    our_stdin: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Place)>,
) -> io::Result<Parts> {
    let mut parts = Parts::default();
    if let (Some(input), Some(sink)) = (stdin, our_stdin) {
        parts.keep_alive = Some(input.keep_alive);
        parts.input = Some(InputCopy {
            source: Port::pipe(input.reader, Direction::Read)?,
            sink: Port::pipe(sink, Direction::Write)?,
        });
    }
    for (source, place) in outputs {
        let source = Port::pipe(source, Direction::Read)?;
        parts.outputs.push((source, Sink::new(place)?));
    }
    Ok(parts)
}

fn terminal_parts(stdin: Option<Input>, place: Place, master: OwnedFd) -> io::Result<Parts> {
    set_nonblocking(&master)?;
    let master = Arc::new(master);
    let mut parts = Parts::default();
    if let Some(input) = stdin {
        parts.keep_alive = Some(input.keep_alive);
        parts.input = Some(InputCopy {
            source: Port::pipe(input.reader, Direction::Read)?,
            sink: Port::terminal(&master, Direction::Write)?,
        });
    }
    let source = Port::terminal(&master, Direction::Read)?;
    parts.outputs.push((source, Sink::new(place)?));
    parts.master = Some(master);
    Ok(parts)
}

/// Read end and write end; both block.
fn pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = sys::pipe_cloexec().map_err(Error::system("make a pipe"))?;
    if owner != Owner::default() {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        // Both ends are the same inode.
        fchown(&reader, Some(uid), Some(gid))
            .map_err(|e| Error::system("give a pipe to its owner")(e.into()))?;
    }
    Ok((reader, writer))
}

fn dev_null(options: &OpenOptions) -> Result<OwnedFd> {
    let file = options.open("/dev/null");
    Ok(file.map_err(Error::system("open /dev/null"))?.into())
}
