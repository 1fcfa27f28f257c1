//! Messages between the host side and the stub in the container, over a stream socket.
//!
//! Each is a little-endian u32 length and a postcard body of at most [`MESSAGE_BYTES_MAX`].
//!
//! ```text
//!   stub                                     host
//!     | Hello (kernel adds pid by SCM_CREDENTIALS) |
//!     |------------------------------------------->|  ends lxc-start
//!     |<------ Enter (+ tasks files by SCM_RIGHTS) |
//!     |  moves itself into its cgroups             |
//!     | Entered                                    |
//!     |------------------------------------------->|
//!     |<------------------------------- Init(plan) |
//!     |  mounts, devices                           |
//!     | Tree(i) (for some mounts)                  |
//!     |------------------------------------------->|
//!     |<---------------- Tree (+ it by SCM_RIGHTS) |
//!     | Furnished (if it is asked for)             |
//!     |------------------------------------------->|  runs prestart, createRuntime
//!     |<------------------------------------- GoOn |
//!     |  createContainer hooks, pivot,             |
//!     |  the program's rights, program found       |
//!     |  filter (with a listener)                  |
//!     | Listener (if it has one, by SCM_RIGHTS)    |
//!     |------------------------------------------->|  gives it to who answers
//!     |<------------------------------------- GoOn |
//!     | Ready (+ pty master by SCM_RIGHTS)         |
//!     |------------------------------------------->|  created
//!     |      on a connection to the start socket   |
//!     |<------------------------------------ Start |
//!     |  filter (without a listener)               |
//!     |  startContainer hooks, execve              |
//!     |  end of file: running   | Failed: why not  |
//!     |------------------------------------------->|
//! ```
//! An exec is the same without the start socket: Enter, Entered, Exec(plan), Hello, Ready, Start,
//! Listener, GoOn on one socket. Where pid 1 starts it (`agent.rs`), Join goes before that, and Ended comes after it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sys::{Credentials, ExitStatus};

use crate::error::{Error, Result, errno_words};
use crate::plan::{ExecPlan, InitPlan, Toggle};

/// Upper bound of one message: a plan of the largest execve argument list fits.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// From the host side to the stub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToStub {
    /// What to do as pid 1.
    Init {
        /// What to do.
        plan: Box<InitPlan>,
        /// What the descriptors are that come along, in their order.
        given: Vec<Given>,
        /// Whether to bring up `lo`, as in a network namespace that nobody else cares for.
        loopback: Toggle,
        /// Whether to say [`FromStub::Furnished`] and wait for [`ToStub::GoOn`].
        host_hooks: Toggle,
        /// Numbers below the first that the program does not get under which nothing was passed for it:
        /// what LXC left open there is closed.
        gaps: Vec<i32>,
    },
    /// What to do as a joining process.
    Exec(Box<ExecPlan>),
    /// Become the program.
    Start,
    /// Move into the cgroups of version 1: `0` is written to each of the `tasks` files that come
    /// along as descriptors, in the order of these paths, by which errors name them. Absent where
    /// there is no version 1.
    Enter(Vec<String>),
    /// The answer to [`FromStub::Furnished`], that the host's hooks have run, and to
    /// [`FromStub::Listener`], that it was given away.
    GoOn,
    /// The answer to [`FromStub::Tree`], with its descriptor.
    Tree,
    /// To a child of a pid 1 that stays: join. The socket for all further messages comes along as a
    /// descriptor, and after it the three standard streams unless there is to be a terminal.
    Join,
}

/// A namespace that is given to pid 1 to join; LXC has made all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Given {
    /// Of mounts, to make a new one as a copy of: in LXC's there are only slaves of the host's
    /// mounts, and here shared ones still reach the host.
    MountsToCopy,
    /// Of mounts, to be in.
    Mounts,
    /// Of cgroups.
    Cgroups,
    /// Of users. It is to own the namespaces with these CLONE_NEW* flags, which are made there.
    Users {
        /// The flags.
        make: i32,
    },
}

/// From the stub to the host side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromStub {
    /// "I stand in my namespaces"; credentials tell the pid.
    Hello,
    /// Everything before the program is done; with a terminal its master comes along.
    Ready,
    /// A step failed; the stub exits after this.
    Failed(Failure),
    /// "I am in all of those cgroups."
    Entered,
    /// "File systems and devices are there, and the host's tree still is": what hooks of the host
    /// mount in this namespace now, they mount in the container.
    Furnished,
    /// "Make a tree ([`mounts::tree_of`]) of the plan's mount with this number, as it is in this
    /// namespace now": one that shows owners mapped, or whose source is closed to the container's
    /// user namespace.
    Tree(u32),
    /// The listener of the program's filter, a descriptor, comes along: who answers for system calls
    /// with the action SCMP_ACT_NOTIFY must get it.
    Listener,
    /// From pid 1: how a child of its own has ended.
    Ended(Ended),
}

/// How a process has ended, to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By exit(3) with this code, 0 to 255.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Exited(code) => Self::Exited(code),
            ExitStatus::Signaled(signal) => Self::Signaled(signal),
        }
    }
}

impl From<Ended> for ExitStatus {
    /// Whatever the sender says, the code is one that a process can have.
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Exited(code) => Self::Exited(code & 0xff),
            Ended::Signaled(signal) => Self::Signaled(signal & 0x7f),
        }
    }
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was tried, with its operands: "mount /x on /y", "execve /bin/foo".
    pub step: String,
    /// The errno, or 0 when the refusal is our own.
    pub errno: i32,
    /// What kind of refusal this is for the caller.
    pub kind: FailureKind,
}

/// What a caller would do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program was not found or is no program.
    Executable,
    /// The working directory, user or another field of the request does not fit the image.
    Request,
    /// The kernel or host refused.
    Host,
    /// A hook failed; `step` names it.
    Hook,
}

impl std::fmt::Display for Failure {
    /// The whole text for a person: the step, and the errno's words unless the step says them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.step)?;
        if self.errno != 0 && self.kind != FailureKind::Executable {
            write!(f, ": {}", errno_words(Errno::from_raw(self.errno)))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// A message as it arrived.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The sender as the kernel saw it, in our namespaces; only after `sys::enable_passcred`.
    pub credentials: Option<Credentials>,
}

/// How long a whole message may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// As long as it takes.
    None,
    /// Until then, on a socket that does not block; after it the error's source is `TimedOut`.
    Until(Instant),
}

impl Limit {
    /// Waits until the socket has room or something to read.
    fn wait(self, socket: BorrowedFd<'_>, events: PollFlags, refused: io::Error) -> io::Result<()> {
        let Self::Until(deadline) = self else {
            return Err(refused);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Rounded up, so that it does not end a moment before the deadline.
        let left = PollTimeout::try_from(left + Duration::from_millis(1));
        match poll(
            &mut [PollFd::new(socket, events)],
            left.unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Sends one message whole, with descriptors on its first byte.
pub fn send<M: Serialize>(socket: impl AsFd, message: &M, fds: &[BorrowedFd<'_>]) -> Result<()> {
    send_within(socket, message, fds, Limit::None)
}

/// As [`send`], within a limit.
pub fn send_within<M: Serialize>(
    socket: impl AsFd,
    message: &M,
    fds: &[BorrowedFd<'_>],
    limit: Limit,
) -> Result<()> {
    let socket = socket.as_fd();
    let mut frame = vec![0; LENGTH_BYTES];
    frame = postcard::to_extend(message, frame).map_err(Error::Malformed)?;
    let bytes = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(bytes)
        .ok()
        .filter(|_| bytes <= MESSAGE_BYTES_MAX);
    let length = length.ok_or(Error::TooLong {
        bytes,
        max: MESSAGE_BYTES_MAX,
    })?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());

    let mut sent = 0;
    while sent < frame.len() {
        let fds = if sent == 0 { fds } else { &[] };
        match sys::send_with_fds(socket, &frame[sent..], fds) {
            Ok(count) => sent += count,
            Err(error) => {
                again(error, socket, PollFlags::POLLOUT, limit).map_err(failed("send"))?;
            }
        }
    }
    Ok(())
}

/// Whether it is worth another try: a signal came in between, or the socket has something by then.
fn again(
    error: io::Error,
    socket: BorrowedFd<'_>,
    events: PollFlags,
    limit: Limit,
) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => limit.wait(socket, events, error),
        _ => Err(error),
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Socket { what, source }
}

/// Receives one message; none when the peer closed the socket instead.
///
/// The body is read only as far as the length announces, so that what follows stays in the socket.
pub fn recv<M: DeserializeOwned>(socket: impl AsFd) -> Result<Option<Received<M>>> {
    recv_within(socket, Limit::None)
}

/// As [`recv`], within a limit.
pub fn recv_within<M: DeserializeOwned>(
    socket: impl AsFd,
    limit: Limit,
) -> Result<Option<Received<M>>> {
    let socket = socket.as_fd();
    let mut parts = Parts {
        fds: Vec::new(),
        credentials: None,
        limit,
    };
    let mut length = [0; LENGTH_BYTES];
    match parts.fill(socket, &mut length)? {
        0 => return Ok(None),
        LENGTH_BYTES => {}
        got => {
            return Err(Error::CutOff {
                got,
                want: LENGTH_BYTES,
            });
        }
    }
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong {
            bytes,
            max: MESSAGE_BYTES_MAX,
        });
    }
    let mut body = vec![0; bytes];
    let got = parts.fill(socket, &mut body)?;
    if got < bytes {
        return Err(Error::CutOff { got, want: bytes });
    }
    let message = postcard::from_bytes(&body).map_err(Error::Malformed)?;
    Ok(Some(Received {
        message,
        fds: parts.fds,
        credentials: parts.credentials,
    }))
}

/// What comes beside the bytes of a message.
struct Parts {
    fds: Vec<OwnedFd>,
    credentials: Option<Credentials>,
    limit: Limit,
}

impl Parts {
    /// Reads until `buffer` is full or the peer has closed; gives the bytes read.
    fn fill(&mut self, socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
        let mut got = 0;
        while got < buffer.len() {
            match sys::recv_with_fds(socket, &mut buffer[got..]) {
                Ok((0, ..)) => break,
                Ok((count, fds, credentials)) => {
                    got += count;
                    self.fds.extend(fds);
                    self.credentials = self.credentials.or(credentials);
                }
                Err(error) => {
                    again(error, socket, PollFlags::POLLIN, self.limit)
                        .map_err(failed("receive"))?;
                }
            }
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::plan::TerminalSize;

    #[test]
    fn messages_arrive_whole_with_descriptors_and_who_sent_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        sys::enable_passcred(&ours).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&theirs, &FromStub::Ready, &[writer.as_fd(), writer.as_fd()]).unwrap();
        send(&theirs, &FromStub::Hello, &[]).unwrap();
        drop((writer, theirs));

        let ready: Received<FromStub> = recv(&ours).unwrap().unwrap();
        assert_eq!(ready.message, FromStub::Ready);
        let credentials = ready.credentials.unwrap();
        assert_eq!(credentials.pid.unsigned_abs(), std::process::id());
        let [first, second] = <[OwnedFd; 2]>::try_from(ready.fds).unwrap();
        std::fs::File::from(first).write_all(b"x").unwrap();
        drop(second);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");

        let hello: Received<FromStub> = recv(&ours).unwrap().unwrap();
        assert_eq!((hello.message, hello.fds.len()), (FromStub::Hello, 0));
        assert!(recv::<FromStub>(&ours).unwrap().is_none());
    }

    #[test]
    fn a_message_larger_than_a_socket_buffer_arrives() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let failure = Failure {
            step: "x".repeat(MESSAGE_BYTES_MAX / 2),
            errno: 2,
            kind: FailureKind::Host,
        };
        let sent = FromStub::Failed(failure);
        let receiver = std::thread::spawn(move || recv::<FromStub>(&ours).unwrap().unwrap());
        send(&theirs, &sent, &[]).unwrap();
        assert_eq!(receiver.join().unwrap().message, sent);
    }

    #[test]
    fn a_limit_is_for_the_whole_message_however_slowly_it_comes() {
        let timed_out = |error: Error| matches!(error, Error::Socket { source, .. } if source.kind() == io::ErrorKind::TimedOut);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let limit = Limit::Until(Instant::now() + Duration::from_millis(50));
        // A byte whenever the one before was taken: no single wait is long.
        let trickle = std::thread::spawn(move || {
            theirs.set_nonblocking(false).unwrap();
            let mut theirs = theirs;
            theirs.write_all(&[0xff, 0xff, 0x0f, 0]).unwrap();
            while theirs.write_all(&[0]).is_ok() {
                std::thread::yield_now();
            }
        });
        assert!(timed_out(
            recv_within::<FromStub>(&ours, limit).unwrap_err()
        ));
        drop(ours);
        trickle.join().unwrap();

        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let failure = Failure {
            step: "x".repeat(MESSAGE_BYTES_MAX / 2),
            errno: 0,
            kind: FailureKind::Host,
        };
        let limit = Limit::Until(Instant::now() + Duration::from_millis(50));
        let sent = send_within(&ours, &FromStub::Failed(failure), &[], limit);
        assert!(timed_out(sent.unwrap_err()));
    }

    fn receive(bytes: &[u8]) -> Result<Option<Received<ToStub>>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        recv(&ours)
    }

    #[test]
    fn what_is_no_message_is_refused_by_its_kind() {
        assert!(matches!(receive(&[]), Ok(None)));
        assert!(matches!(
            receive(&[1, 0]),
            Err(Error::CutOff { got: 2, want: 4 })
        ));
        assert!(matches!(
            receive(&[5, 0, 0, 0, 2]),
            Err(Error::CutOff { got: 1, want: 5 })
        ));
        assert!(matches!(
            receive(&[1, 0, 0, 0, 99]),
            Err(Error::Malformed(_))
        ));
        let too_long = receive(&[0xff; 8]).unwrap_err();
        assert!(matches!(
            too_long,
            Error::TooLong {
                bytes: 0xffff_ffff,
                ..
            }
        ));
        let failure = Failure {
            step: "x".repeat(MESSAGE_BYTES_MAX),
            errno: 0,
            kind: FailureKind::Host,
        };
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let sent = send(&theirs, &FromStub::Failed(failure), &[]);
        assert!(matches!(sent, Err(Error::TooLong { .. })));
    }

    #[test]
    fn a_failure_reads_as_one_sentence() {
        let check = |step: &str, errno, kind, expected: &str| {
            let failure = Failure {
                step: step.to_owned(),
                errno,
                kind,
            };
            assert_eq!(failure.to_string(), expected);
        };
        check(
            "mount x on y",
            2,
            FailureKind::Host,
            "mount x on y: no such file or directory",
        );
        check("too few", 0, FailureKind::Request, "too few");
        let said = "exec: \"x\": permission denied";
        check(said, 13, FailureKind::Executable, said);
    }

    #[test]
    fn any_bytes_for_a_plan_are_refused_or_taken_without_a_panic() {
        // A plan whose every length is at the mercy of one byte changed.
        let plan = ToStub::Exec(Box::new(ExecPlan {
            namespaces: Vec::new(),
            root: None,
            process: crate::plan::Process {
                args: vec!["a".to_owned(); 3],
                env: vec!["b=c".to_owned(); 3],
                cwd: "/".to_owned(),
                uid: 1,
                gid: 2,
                additional_gids: vec![3],
                umask: Some(4),
                capabilities: None,
                no_new_privs: Toggle::On,
                rlimits: vec![(1, 2, 3)],
                oom_score_adj: Some(-5),
                seccomp: None,
                terminal: Some(TerminalSize {
                    rows: 1,
                    columns: 2,
                }),
                preserve_fds: 0,
                new_keyring: Toggle::Off,
                labels: crate::plan::Labels {
                    apparmor: Some("a".to_owned()),
                    selinux: None,
                },
                scheduling: crate::plan::Scheduling {
                    cpus: vec![1, 2],
                    personality: Some(8),
                    ..crate::plan::Scheduling::default()
                },
            },
        }));
        let bytes = postcard::to_allocvec(&plan).unwrap();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let length = u32::try_from(changed.len()).unwrap().to_le_bytes();
                let _taken_or_refused = receive(&[&length[..], &changed].concat());
            }
        }
    }
}
