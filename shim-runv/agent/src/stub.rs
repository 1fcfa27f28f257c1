//! The stub: this program again, in a container's namespaces, where `launch` makes it the container's
//! program.
//!
//! ```text
//!   agent ──spawn──> first process: new pid namespace for its children
//!                        └─ sibling in it: launch::init, pid 1 of the container, child of the agent
//!   agent ──spawn──> launch::exec: joins, and its sibling becomes the program
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use launch::control::{self, FromStub, Received, ToStub};
use launch::init::End;
use launch::plan::{ExecPlan, InitPlan, Toggle};
use sys::process::Fork;
use sys::{Child, CloneFlags, Pid, Spawn};

use crate::error::{Error, Result};

/// First argument of a process that becomes init.
pub(crate) const INIT: &str = "stub-init";

/// First argument of a process that joins a container.
pub(crate) const EXEC: &str = "stub-exec";

/// This program, whatever became of its name.
const SELF: &str = "/proc/self/exe";

const CONTROL_FD: i32 = 3;
const START_FD: i32 = 4;

/// Standard input, output and error of a process.
pub(crate) type Streams = [OwnedFd; 3];

/// What [`INIT`] does.
pub(crate) fn become_init(control: &str, start: &str) -> ExitCode {
    let (Ok(control), Ok(start)) = (control.parse(), start.parse()) else {
        return ExitCode::from(crate::EXIT_FAILED);
    };
    // Into the pid namespace that was made for it.
    match sys::process::clone_parent() {
        Ok(Fork::Parent(_)) => ExitCode::SUCCESS,
        Ok(Fork::Child) => exit_code(&launch::init::run(control, start, None)),
        Err(_no_hello) => ExitCode::from(crate::EXIT_FAILED),
    }
}

/// What [`EXEC`] does.
pub(crate) fn become_exec(control: &str) -> ExitCode {
    match control.parse() {
        Ok(control) => exit_code(&launch::exec::run(control)),
        Err(_no_number) => ExitCode::from(crate::EXIT_FAILED),
    }
}

fn exit_code(end: &launch::Result<End>) -> ExitCode {
    match end {
        Ok(End::Forked) => ExitCode::SUCCESS,
        Ok(End::Program(status)) => {
            ExitCode::from(u8::try_from(status.code()).unwrap_or(crate::EXIT_FAILED))
        }
        Ok(End::Signal(number)) => {
            ExitCode::from(u8::try_from(128 + number).unwrap_or(crate::EXIT_FAILED))
        }
        Ok(End::Abandoned | End::Failed) | Err(_) => ExitCode::from(crate::EXIT_FAILED),
    }
}

/// A process that stands in its namespaces. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) child: Child,
    control: OwnedFd,
}

/// Namespaces of a container's init.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Those of others that it joins.
    pub(crate) join: Vec<(OwnedFd, CloneFlags)>,
    /// Those that are made for it.
    pub(crate) make: CloneFlags,
}

/// Starts init in its namespaces, with the socket by which it is told to start.
pub(crate) fn init(
    namespaces: Namespaces,
    streams: Option<Streams>,
    start: UnixListener,
) -> Result<Standing> {
    let arguments = [
        INIT.to_owned(),
        CONTROL_FD.to_string(),
        START_FD.to_string(),
    ];
    let spawn = Spawn::new(Path::new(SELF))
        .args(arguments)
        .env_clear_set(Vec::new())
        .fd(START_FD, OwnedFd::from(start))
        .join_namespaces(namespaces.join)
        .unshare(namespaces.make);
    let (control, mut first) = spawn_with_control(with_streams(spawn, streams), None)?;
    let standing = hello(control, "init")?;
    first.wait().map_err(Error::io("wait for the stub"))?;
    Ok(standing)
}

/// Starts a process that joins a container's namespaces, in its cgroup.
pub(crate) fn exec(plan: ExecPlan, streams: Option<Streams>, cgroup: &OwnedFd) -> Result<Standing> {
    let arguments = [EXEC.to_owned(), CONTROL_FD.to_string()];
    let spawn = Spawn::new(Path::new(SELF))
        .args(arguments)
        .env_clear_set(Vec::new())
        .new_session();
    let (control, mut first) = spawn_with_control(with_streams(spawn, streams), Some(cgroup))?;
    control::send(&control, &ToStub::Exec(Box::new(plan)), &[])?;
    let standing = hello(control, "the process that joins the container")?;
    first.wait().map_err(Error::io("wait for the stub"))?;
    Ok(standing)
}

fn with_streams(spawn: Spawn<'_>, streams: Option<Streams>) -> Spawn<'_> {
    match streams {
        Some([stdin, stdout, stderr]) => spawn.stdin(stdin).stdout(stdout).stderr(stderr),
        None => spawn,
    }
}

fn spawn_with_control(spawn: Spawn<'_>, cgroup: Option<&OwnedFd>) -> Result<(OwnedFd, Child)> {
    let (ours, theirs) =
        sys::socketpair_stream_cloexec().map_err(Error::io("make a socket pair"))?;
    sys::enable_passcred(&ours).map_err(Error::io("set SO_PASSCRED"))?;
    let spawn = spawn.fd(CONTROL_FD, theirs);
    let spawned = match cgroup {
        Some(directory) => spawn.spawn_into_cgroup(directory.as_fd()).map(|it| it.0),
        None => spawn.spawn(),
    };
    Ok((ours, spawned.map_err(Error::io("start the stub"))?))
}

fn hello(control: OwnedFd, who: &'static str) -> Result<Standing> {
    let word = receive(&control, who)?;
    match (word.message, word.credentials) {
        (FromStub::Hello, Some(sender)) if sender.pid > 0 => Ok(Standing {
            child: Child::adopt(Pid::from_raw(sender.pid)),
            control,
        }),
        _ => Err(Error::Vanished(who)),
    }
}

fn receive(control: &OwnedFd, who: &'static str) -> Result<Received<FromStub>> {
    match control::recv::<FromStub>(control)? {
        Some(Received {
            message: FromStub::Failed(failure),
            ..
        }) => Err(Error::Inside(failure)),
        Some(received) => Ok(received),
        None => Err(Error::Vanished(who)),
    }
}

impl Standing {
    /// Has init carry out its plan; gives the master of its terminal, if it made one.
    pub(crate) fn set_up(&self, plan: InitPlan) -> Result<Option<OwnedFd>> {
        // Hooks of the host are run by the shim, outside of the machine.
        let message = ToStub::Init {
            plan: Box::new(plan),
            given: Vec::new(),
            loopback: Toggle::Off,
            host_hooks: Toggle::Off,
            gaps: Vec::new(),
        };
        control::send(&self.control, &message, &[])?;
        self.ready("init, while it was set up,")
    }

    /// Waits for the last step before the program.
    pub(crate) fn ready(&self, who: &'static str) -> Result<Option<OwnedFd>> {
        let mut word = receive(&self.control, who)?;
        match word.message {
            FromStub::Ready => Ok(word.fds.pop()),
            FromStub::Tree(_) => {
                let why = "mounts: owners of a bind are not mapped in a guest";
                Err(Error::Invalid(why.to_owned()))
            }
            _ => Err(Error::Vanished(who)),
        }
    }

    /// Lets a process that joined become its program.
    pub(crate) fn start(self) -> Result<Child> {
        control::send(&self.control, &ToStub::Start, &[])?;
        started(&self.control)?;
        Ok(self.child)
    }
}

/// Lets init become the program, by the socket it listens at.
pub(crate) fn start(socket: &Path) -> Result<()> {
    let connection = UnixStream::connect(socket).map_err(Error::on("connect to", socket))?;
    control::send(&connection, &ToStub::Start, &[])?;
    started(connection)
}

/// The end of the stream is the success: execve has closed it.
fn started(control: impl AsFd) -> Result<()> {
    match control::recv::<FromStub>(control)? {
        None => Ok(()),
        Some(Received {
            message: FromStub::Failed(failure),
            ..
        }) => Err(Error::Inside(failure)),
        Some(_) => Err(Error::Vanished("the program, before it started,")),
    }
}
