//! The host side of the stub in tests: util-linux' unshare stands where LXC will.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use launch::control::{self, Failure, FailureKind, FromStub, Given, Received, ToStub};
use launch::plan::{ExecPlan, InitPlan, Toggle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sys::{Child, CloneFlags, ExitStatus, Spawn};
use tempfile::TempDir;

use crate::image::PROGRAMS;

const STUB: &str = env!("CARGO_BIN_EXE_runlxc-init");

/// No step of a test takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What every container of a test gets of unshare.
const NAMESPACES: [&str; 6] = [
    "--mount",
    "--pid",
    "--uts",
    "--ipc",
    "--net",
    "--mount-proc",
];

/// A stub at work and our ends of its sockets.
#[derive(Debug)]
pub(crate) struct Container {
    unshare: Child,
    control: UnixStream,
    start: TempDir,
    output: OwnedFd,
    /// Init's pid on the host.
    pub(crate) pid: Pid,
}

/// What pid 1 is started with beside the two sockets.
#[derive(Debug, Default)]
pub(crate) struct Extras<'a> {
    /// More arguments for unshare.
    pub(crate) more: &'a [&'a str],
    /// Descriptors from 3 up.
    pub(crate) fds: Vec<OwnedFd>,
    /// Whose user namespaces they are, if not root's.
    pub(crate) user: Option<u32>,
    /// The mount namespace it comes from, if not the test's.
    pub(crate) host: Option<OwnedFd>,
    /// Standard input.
    pub(crate) stdin: Option<OwnedFd>,
    /// Whether it has the socket of an agent.
    pub(crate) agent: bool,
}

impl Container {
    /// Starts a stub in new namespaces and waits for its Hello.
    pub(crate) fn hello(extras: Extras<'_>) -> Self {
        let start = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(start.path().join("sock")).unwrap();
        let (control, control_theirs) = UnixStream::pair().unwrap();
        sys::enable_passcred(&control).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let (output, output_theirs) = sys::pipe_cloexec().unwrap();
        let mut spawn = match extras.user {
            None => Spawn::new(Path::new("/usr/bin/unshare")),
            Some(user) => Spawn::new(Path::new("/usr/bin/setpriv"))
                .args([format!("--reuid={user}"), format!("--regid={user}")])
                .args(["--clear-groups", "/usr/bin/unshare"]),
        };
        spawn = spawn
            .args(["--fork", "--propagation", "slave"])
            .args(NAMESPACES)
            .args(extras.more)
            .args([STUB, "init", "20", "21"])
            .args(extras.agent.then_some("22"))
            .fd(20, control_theirs.as_fd())
            .fd(21, listener.as_fd())
            .stdout(output_theirs.as_fd())
            .stderr(output_theirs.as_fd());
        if extras.agent {
            let listener = UnixListener::bind(start.path().join("agent")).unwrap();
            spawn = spawn.fd(22, OwnedFd::from(listener));
        }
        if let Some(host) = extras.host {
            spawn = spawn.join_namespaces(vec![(host, CloneFlags::CLONE_NEWNS)]);
        }
        if let Some(stdin) = extras.stdin {
            spawn = spawn.stdin(stdin);
        }
        for (number, fd) in (3..).zip(extras.fds) {
            spawn = spawn.fd(number, fd);
        }
        let unshare = start_program(spawn);
        drop((control_theirs, output_theirs));
        let hello: Received<FromStub> = control::recv(&control).unwrap().unwrap();
        assert_eq!(hello.message, FromStub::Hello);
        let pid = Pid::from_raw(hello.credentials.unwrap().pid);
        Self {
            unshare,
            control,
            start,
            output,
            pid,
        }
    }

    /// A container in the usual namespaces that is set up, and the master of its terminal.
    pub(crate) fn create(plan: InitPlan) -> Result<(Self, Vec<OwnedFd>), Failed> {
        Self::create_with(plan, Extras::default())
    }

    pub(crate) fn create_with(
        plan: InitPlan,
        extras: Extras<'_>,
    ) -> Result<(Self, Vec<OwnedFd>), Failed> {
        Self::hello(extras).set_up(plan, &[])
    }

    /// Sends the plan and waits for what comes of it.
    pub(crate) fn set_up(
        self,
        plan: InitPlan,
        fds: &[OwnedFd],
    ) -> Result<(Self, Vec<OwnedFd>), Failed> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let message = ToStub::Init {
            plan: Box::new(plan),
            given: vec![Given::MountsToCopy; fds.len()],
            loopback: Toggle::Off,
            host_hooks: Toggle::Off,
            gaps: Vec::new(),
        };
        control::send(&self.control, &message, &fds).unwrap();
        let answer: Option<Received<FromStub>> = control::recv(&self.control).unwrap();
        match answer.map(|answer| (answer.message, answer.fds)) {
            Some((FromStub::Ready, fds)) => Ok((self, fds)),
            Some((FromStub::Failed(failure), _)) => Err(Failed {
                failure,
                end: self.finish(),
            }),
            other => panic!("{other:?}, {}", self.finish().0),
        }
    }

    /// Returns when the stub does nothing but wait for the start, since it answers.
    pub(crate) fn wait_until_it_waits(&self) {
        let mut connection = self.connect();
        connection.write_all(&[1, 0, 0, 0, 0xff]).unwrap();
        assert!(failure_or_end(&connection).is_some());
        // It has closed that connection again.
        assert!(failure_or_end(&connection).is_none());
    }

    /// A connection to the start socket.
    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.start.path().join("sock")).unwrap()
    }

    /// A connection to the agent.
    pub(crate) fn connect_to_agent(&self) -> UnixStream {
        let connection = UnixStream::connect(self.start.path().join("agent")).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// The next word on the control socket.
    pub(crate) fn word(&self) -> Option<FromStub> {
        Some(control::recv(&self.control).unwrap()?.message)
    }

    /// Asks for the start; returns when the program runs or with why it does not.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        let connection = self.connect();
        control::send(&connection, &ToStub::Start, &[]).unwrap();
        failure_or_end(&connection).map_or(Ok(()), Err)
    }

    /// All the program wrote, and how it ended.
    pub(crate) fn finish(mut self) -> (String, ExitStatus) {
        let output = read_all(&self.output);
        (output, self.unshare.wait().unwrap())
    }

    /// Closes the control socket without a word.
    pub(crate) fn abandon(mut self) -> ExitStatus {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        self.unshare.wait().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The stub has cleared unshare's bond to it; ESRCH when it has ended.
        let _ended = kill(self.pid, Signal::SIGKILL);
    }
}

/// A set-up that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// What the stub wrote and how it ended.
    pub(crate) end: (String, ExitStatus),
}

/// Runs a plan to its end and gives its output; it must succeed.
pub(crate) fn output_of(plan: InitPlan) -> String {
    let (container, _) = Container::create(plan).unwrap();
    container.start().unwrap();
    let (output, status) = container.finish();
    assert_eq!(status, ExitStatus::Exited(0), "{output}");
    output
}

/// The text and kind with which a set-up fails.
pub(crate) fn refusal_of(plan: InitPlan) -> (String, FailureKind) {
    let failed = Container::create(plan).map(|_| ()).unwrap_err();
    assert_eq!(failed.end, (String::new(), ExitStatus::Exited(255)));
    (failed.failure.to_string(), failed.failure.kind)
}

/// A process that the agent starts, up to its program: its output and who tells its end.
pub(crate) fn exec_by_agent(
    container: &Container,
    plan: ExecPlan,
) -> Result<(OwnedFd, UnixStream), Failure> {
    let connection = container.connect_to_agent();
    let (control, theirs) = UnixStream::pair().unwrap();
    sys::enable_passcred(&control).unwrap();
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    let (output, output_theirs) = sys::pipe_cloexec().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let out = output_theirs.as_fd();
    let fds = [theirs.as_fd(), null.as_fd(), out, out];
    control::send(&connection, &ToStub::Join, &fds).unwrap();
    drop((theirs, output_theirs));
    control::send(&control, &ToStub::Exec(Box::new(plan)), &[]).unwrap();
    let hello: Received<FromStub> = control::recv(&control).unwrap().unwrap();
    assert_eq!(hello.message, FromStub::Hello);
    assert_ne!(Pid::from_raw(hello.credentials.unwrap().pid), container.pid);
    match control::recv::<FromStub>(&control)
        .unwrap()
        .unwrap()
        .message
    {
        FromStub::Ready => {}
        FromStub::Failed(failure) => return Err(failure),
        other => panic!("{other:?}"),
    }
    control::send(&control, &ToStub::Start, &[]).unwrap();
    failure_or_end(&control).map_or(Ok((output, connection)), Err)
}

/// A process that joins, after its Ready.
#[derive(Debug)]
pub(crate) struct Joining {
    control: UnixStream,
    child: Child,
    output: OwnedFd,
    pub(crate) master: Option<OwnedFd>,
}

impl Joining {
    /// Starts the stub of a joining process and waits until only the start is missing.
    pub(crate) fn prepare(plan: ExecPlan) -> Result<Self, Failure> {
        let (control, control_theirs) = UnixStream::pair().unwrap();
        sys::enable_passcred(&control).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let (output, output_theirs) = sys::pipe_cloexec().unwrap();
        let first = Spawn::new(Path::new(STUB))
            .args(["exec", "9"])
            .fd(9, control_theirs.as_fd())
            .stdout(output_theirs.as_fd())
            .stderr(output_theirs.as_fd());
        let mut first = start_program(first);
        drop((control_theirs, output_theirs));
        control::send(&control, &ToStub::Exec(Box::new(plan)), &[]).unwrap();
        let hello: Received<FromStub> = control::recv(&control).unwrap().unwrap();
        if let FromStub::Failed(failure) = hello.message {
            assert_eq!(first.wait().unwrap(), ExitStatus::Exited(255));
            return Err(failure);
        }
        assert_eq!(hello.message, FromStub::Hello);
        assert_eq!(first.wait().unwrap(), ExitStatus::Exited(0));
        // Born by CLONE_PARENT: ours to wait for.
        let mut child = Child::adopt(Pid::from_raw(hello.credentials.unwrap().pid));
        let ready: Received<FromStub> = control::recv(&control).unwrap().unwrap();
        match ready.message {
            FromStub::Ready => {}
            FromStub::Failed(failure) => {
                assert_eq!(child.wait().unwrap(), ExitStatus::Exited(255));
                return Err(failure);
            }
            other => panic!("{other:?}"),
        }
        Ok(Self {
            control,
            child,
            output,
            master: ready.fds.into_iter().next(),
        })
    }

    /// Its pid on the host.
    pub(crate) fn pid(&self) -> Pid {
        self.child.pid()
    }

    pub(crate) fn start(&self) -> Result<(), Failure> {
        control::send(&self.control, &ToStub::Start, &[]).unwrap();
        failure_or_end(&self.control).map_or(Ok(()), Err)
    }

    /// All the program wrote, and how it ended.
    pub(crate) fn finish(mut self) -> (String, ExitStatus) {
        drop(self.control);
        let output = read_all(&self.output);
        (output, self.child.wait().unwrap())
    }
}

fn start_program(program: Spawn<'_>) -> Child {
    let _starting = PROGRAMS.read().unwrap();
    program.spawn().unwrap()
}

/// Nothing when the other side was closed by execve.
fn failure_or_end(connection: &UnixStream) -> Option<Failure> {
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    match control::recv::<FromStub>(connection).unwrap()?.message {
        FromStub::Failed(failure) => Some(failure),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn read_all(output: &OwnedFd) -> String {
    let mut text = Vec::new();
    std::fs::File::from(output.try_clone().unwrap())
        .read_to_end(&mut text)
        .unwrap();
    String::from_utf8(text).unwrap()
}
