//! One request to CRIU: `criu swrk`, a socket, and what it tells on the way.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use prost::Message as _;
use sys::{Child, CloneFlags, Signal, Spawn};

use super::log;
use super::wire::{Kind, Options, Request, Response};
use crate::{Error, Result, answer, on_path, wait};

/// What cannot be had without it, in the words of a refusal.
const WHAT: &str = "checkpoint and restore";

/// Oldest version that tells its version (3.0).
const VERSION_MIN: (i32, i32) = (3, 0);

/// How long it may take to tell its version; it looks at the kernel first.
const VERSION_LIMIT: Duration = Duration::from_secs(30);

/// How long a dump that came to nothing may take to let the container go on.
const UNDO_LIMIT: Duration = Duration::from_secs(10);

/// Longest message of CRIU that is read, in bytes.
const BYTES_MAX: usize = 40 << 10;

/// The descriptor that the socket has in CRIU.
const SOCKET: i32 = 3;

/// An installed CRIU.
#[derive(Debug)]
pub(crate) struct Criu {
    program: PathBuf,
    version: (i32, i32, i32),
}

/// A request and all that goes with it.
pub(crate) struct Task<'a> {
    /// What.
    pub(crate) kind: Kind,
    /// How.
    pub(crate) options: Options,
    /// Its standard streams, which the restored processes get.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// Further descriptors, as numbers of CRIU's.
    pub(crate) fds: Vec<(i32, OwnedFd)>,
    /// The mount namespace that it stands in.
    pub(crate) mounts: Option<OwnedFd>,
    /// Where its log is.
    pub(crate) log: PathBuf,
    /// How long it may take as a whole.
    pub(crate) limit: Duration,
    /// Called at each moment that CRIU tells of; it waits until this returns.
    pub(crate) on_note: &'a mut dyn FnMut(Note) -> Result<()>,
}

/// Streams, further descriptors and the mount namespace of a [`Task`].
type Given = (Option<[OwnedFd; 3]>, Vec<(i32, OwnedFd)>, Option<OwnedFd>);

/// A moment on the way.
#[derive(Debug)]
pub(crate) enum Note {
    /// The namespaces are made; the first process has this host pid.
    Namespaces(i32),
    /// All processes are there, and still stopped.
    Restored,
    /// The master of a terminal whose other end is in the container.
    Terminal(OwnedFd),
    /// The page server listens.
    StatusReady,
    /// Another, which needs nothing of us.
    Other,
}

impl Criu {
    /// The CRIU of this host, asked whether it runs on this kernel.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with what is missing, [`Error::Timeout`].
    pub(crate) fn find() -> Result<Self> {
        Self::find_within(VERSION_LIMIT)
    }

    /// As [`Criu::find`], within a limit for all that is asked.
    ///
    /// # Errors
    /// As [`Criu::find`].
    pub(crate) fn find_within(limit: Duration) -> Result<Self> {
        match on_path::find("criu") {
            Some((program, _)) => Self::at(program, limit),
            None => Err(Error::unsupported(
                WHAT,
                "criu is not on the PATH: install criu",
            )),
        }
    }

    fn at(program: PathBuf, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let mut criu = Self {
            program,
            version: (0, 0, 0),
        };
        let told = criu.perform(Task {
            kind: Kind::Version,
            options: Options::default(),
            stdio: None,
            fds: Vec::new(),
            mounts: None,
            log: PathBuf::new(),
            limit,
            on_note: &mut |_note| Ok(()),
        });
        let version = match told {
            Ok(told) => told.version,
            Err(error @ Error::Timeout { .. }) => return Err(error),
            Err(_no_answer) => None,
        };
        let Some(version) = version else {
            return Err(criu.unusable(deadline.saturating_duration_since(Instant::now())));
        };
        criu.version = (
            version.major,
            version.minor,
            version.sublevel.unwrap_or_default(),
        );
        if (version.major, version.minor) < VERSION_MIN {
            let (major, minor) = VERSION_MIN;
            let found = format!(
                "{} is version {}.{}",
                criu.program.display(),
                version.major,
                version.minor
            );
            let why = format!("{found}, and {major}.{minor} is the oldest that can do it");
            return Err(Error::unsupported(WHAT, why));
        }
        Ok(criu)
    }

    /// Whether it is at least of that version.
    pub(crate) fn at_least(&self, major: i32, minor: i32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }

    /// Why it gives no answer: what it says to `criu check`.
    fn unusable(&self, limit: Duration) -> Error {
        let check = Spawn::new(&self.program).args(["check"]);
        let said = answer::ask(check, "criu check", limit).ok();
        let reason = said.and_then(|said| log::reason(&said.text));
        let reason = reason.unwrap_or_else(|| "it gives no answer".to_owned());
        let why = format!(
            "{} does not work on this kernel: {reason}",
            self.program.display()
        );
        Error::unsupported(WHAT, why)
    }

    /// Asks it, and waits for the end of it.
    ///
    /// During a dump the container is frozen, and CRIU has code of its own in its processes: it
    /// alone can undo that, and does when the socket closes. So it gets the time for it, and does
    /// not end with us.
    ///
    /// # Errors
    /// [`Error::Criu`] with the reason from its log; [`Error::Timeout`], and it is killed.
    pub(crate) fn perform(&self, task: Task<'_>) -> Result<Response> {
        let (kind, limit) = (task.kind, task.limit);
        let deadline = Instant::now() + limit;
        let failed = || Error::io("ask criu");
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| failed()(errno.into()))?;
        let given = (task.stdio, task.fds, task.mounts);
        let mut child = self.spawn(kind, given, theirs)?;
        let converse = || {
            send(&ours, kind, Some(task.options), None)?;
            converse(&ours, (kind, &task.log), (deadline, limit), task.on_note)
        };
        let told = converse();
        drop(ours);
        if told.is_err() && kind.freezes() {
            // Not done by then, it is killed.
            child.wait_timeout(UNDO_LIMIT).map_err(failed())?;
        }
        let response = told?;
        // A pre-dump waits for a dump on the same socket, and ends without success when that is
        // closed; the answer above is what counts.
        let left = deadline.saturating_duration_since(Instant::now());
        match child.wait_timeout(left).map_err(failed())? {
            Some(_ended) => Ok(response),
            None => Err(Error::Timeout {
                what: "the end of criu",
                limit,
            }),
        }
    }

    fn spawn(&self, kind: Kind, given: Given, socket: OwnedFd) -> Result<Child> {
        let (stdio, fds, mounts) = given;
        let mut spawn = Spawn::new(&self.program)
            .args(["swrk", &SOCKET.to_string()])
            .fd(SOCKET, socket);
        spawn = if kind.freezes() {
            // Out of reach of a terminal's signals, too.
            spawn.new_session()
        } else {
            spawn.pdeath_signal(Signal::SIGKILL)
        };
        if let Some([stdin, stdout, stderr]) = stdio {
            spawn = spawn.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        for (number, fd) in fds {
            spawn = spawn.fd(number, fd);
        }
        if let Some(mounts) = mounts {
            spawn = spawn.join_namespaces(vec![(mounts, CloneFlags::CLONE_NEWNS)]);
        }
        spawn.spawn().map_err(Error::on("start", &self.program))
    }
}

/// Hears it out until it answers.
fn converse(
    socket: &OwnedFd,
    (kind, log): (Kind, &Path),
    (deadline, limit): (Instant, Duration),
    on_note: &mut dyn FnMut(Note) -> Result<()>,
) -> Result<Response> {
    loop {
        let (response, fds) =
            receive(socket, deadline, limit).map_err(|error| named(error, log, kind))?;
        if !response.success {
            return Err(refused(&response, log, kind));
        }
        if response.kind != Kind::Notify as i32 {
            return Ok(response);
        }
        on_note(note(&response, fds))?;
        send(socket, Kind::Notify, None, Some(true))?;
    }
}

fn send(
    socket: &OwnedFd,
    kind: Kind,
    options: Option<Options>,
    notify_success: Option<bool>,
) -> Result<()> {
    let request = Request {
        kind: kind as i32,
        options,
        notify_success,
    };
    sys::send_with_fds(socket, &request.encode_to_vec(), &[])
        .map(drop)
        .map_err(Error::io("ask criu"))
}

fn receive(
    socket: &OwnedFd,
    deadline: Instant,
    limit: Duration,
) -> Result<(Response, Vec<OwnedFd>)> {
    let left = deadline.saturating_duration_since(Instant::now());
    if !wait::readable(socket.as_fd(), left)? {
        return Err(Error::Timeout {
            what: "criu",
            limit,
        });
    }
    let mut buffer = vec![0; BYTES_MAX];
    let (count, fds, _) =
        sys::recv_with_fds(socket, &mut buffer).map_err(Error::io("hear from criu"))?;
    if count == 0 {
        return Err(Error::Criu {
            said: "it ended without an answer".to_owned(),
        });
    }
    let response = Response::decode(&buffer[..count]).map_err(|e| Error::Criu {
        said: format!("its answer cannot be read: {e}"),
    })?;
    Ok((response, fds))
}

fn note(response: &Response, mut fds: Vec<OwnedFd>) -> Note {
    let notify = response.notify.clone().unwrap_or_default();
    match (notify.script.as_deref(), notify.pid) {
        (Some("setup-namespaces"), Some(pid)) => Note::Namespaces(pid),
        (Some("post-restore"), _) => Note::Restored,
        (Some("orphan-pts-master"), _) => fds.pop().map_or(Note::Other, Note::Terminal),
        (Some("status-ready"), _) => Note::StatusReady,
        _ => Note::Other,
    }
}

/// A failure without a word is named from the log.
fn named(error: Error, log: &Path, kind: Kind) -> Error {
    match (error, log::reason_in_file(log)) {
        (Error::Criu { .. }, Some(reason)) => Error::Criu {
            said: with_place(&reason, log, kind),
        },
        (error, _) => error,
    }
}

fn refused(response: &Response, log: &Path, kind: Kind) -> Error {
    let reason = log::reason_in_file(log)
        .or_else(|| response.message.clone())
        .unwrap_or_else(|| match response.errno {
            Some(errno) if errno != 0 => std::io::Error::from_raw_os_error(errno).to_string(),
            _ => "it does not say why".to_owned(),
        });
    Error::Criu {
        said: with_place(&reason, log, kind),
    }
}

fn with_place(reason: &str, log: &Path, kind: Kind) -> String {
    match kind {
        Kind::Version => reason.to_owned(),
        _ => format!("{reason} (all of it: {})", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_criu_that_hangs_is_waited_for_within_the_limit() {
        let temp = tempfile::tempdir().unwrap();
        let program = temp.path().join("criu");
        // Written by another process: none of ours may hold it open when it is executed.
        let write = format!("printf '%s' \"$0\" > {0}; chmod 755 {0}", program.display());
        let text = "#!/bin/sh\nexec sleep 1000\n";
        let writer = Spawn::new("/bin/sh".as_ref()).args(["-c", &write, text]);
        assert_eq!(writer.spawn().unwrap().wait().unwrap().code(), 0);
        let started = Instant::now();
        let hung = Criu::at(program, Duration::from_millis(50));
        assert!(matches!(hung, Err(Error::Timeout { what: "criu", .. })));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
