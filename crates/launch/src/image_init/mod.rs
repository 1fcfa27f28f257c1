//! An image's own init as pid 1, with the program of the container as one of its jobs.
//!
//! ```text
//!   pid 1, the stub                keeper, its child              init, its services
//!   finds init, user, services
//!   files below /run
//!   a child tries the program
//!   fork ------------------------> program's plan, streams
//!   streams to null, Ready         waits at a socket
//!   Start: execve(init) ---------------------------------------> ...
//!                                                                the program's job:
//!                                  plan, streams  -------------> the stub again, which forks
//!                                  ends                          the program, and waits for it
//!                                                                its status to a file;
//!                                                                pid 1 is told to end all
//!   the last program of pid 1, which is the stub: all get TERM; ends with the status in the file
//! ```
//! What differs from one init to the other is in `systemd`, `sysv`, `upstart` and `busybox`: what is in the image, the
//! job, and how pid 1 comes to its last program. Nothing is written but to tmpfs: what is bound
//! over files of the image lies in [`OWN`]. Must not give pid 1 a right that the program lacks.

pub(crate) mod accounts;
mod application;
mod busybox;
mod component;
mod files;
mod inittab;
mod keeper;
mod rc;
mod sbin;
mod shutdown;
pub mod style;
mod systemd;
mod sysv;
mod upstart;

use std::os::fd::{AsFd, OwnedFd};

use sys::Child;
use sys::process::Fork;

use crate::control::{self, FromStub};
use crate::devices;
use crate::error::{Error, Result, host};
use crate::init::{self, End, Furnished};
use crate::plan::{
    CapabilitySets, ImageInit, InitPlan, Labels, PidOne, Process, Scheduling, Toggle,
};
use crate::process;
use crate::start;

use self::keeper::Word;

pub use application::run as run_application;
pub use busybox::{job as busybox_job, last};
pub use component::component;
pub use shutdown::run as run_shutdown;
pub use systemd::{SHUTDOWN, halt};
pub use sysv::{cover, end, halt as power_off, job, listening, stop};
pub use upstart::end as upstart_end;

/// A tmpfs of ours in the container.
pub const OWN: &str = "/run/runlxc";

/// What an init is told it runs in (systemd's CONTAINER_INTERFACE); all have known this word from
/// the first.
const CONTAINER: &str = "lxc";

const SEARCH_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What only the host's own tree tells, read while it is there.
#[derive(Debug, Default)]
pub(crate) struct FromHost {
    machine_id: String,
    os_release: Vec<u8>,
}

impl FromHost {
    /// Reads it; what is missing is left empty.
    pub(crate) fn read() -> Self {
        let read = |path| accounts::read_regular(path).ok().flatten();
        let machine_id = read("/etc/machine-id").unwrap_or_default();
        Self {
            machine_id: String::from_utf8_lossy(&machine_id).trim().to_owned(),
            os_release: read("/etc/os-release").unwrap_or_default(),
        }
    }
}

/// How an image's init is started.
struct Program {
    /// With its absolute path.
    args: Vec<String>,
    env: Vec<String>,
    signals: SignalsAtFirst,
    /// What is looked at once more before it is started.
    check: Option<fn() -> Result<()>>,
}

/// What becomes of a signal that comes before an init listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SignalsAtFirst {
    /// It waits: the init lets them in when it does.
    Blocked,
    /// It is lost, since the init never looks at what is blocked: the container has started when the
    /// init says so.
    Open,
}

/// Pid 1 as soon as it may start.
struct Ready {
    process: Process,
    signals: SignalsAtFirst,
    check: Option<fn() -> Result<()>>,
    master: Option<OwnedFd>,
}

/// The init that a plan asks for, if it does.
pub(crate) fn asked_for(plan: &InitPlan) -> Option<&ImageInit> {
    match &plan.pid_one {
        PidOne::Systemd(wanted) | PidOne::SbinInit(wanted) => Some(wanted),
        PidOne::Program | PidOne::Stub { .. } => None,
    }
}

/// Goes on as pid 1 in a container that is set up; does not return when the init runs.
pub(crate) fn run(
    plan: &InitPlan,
    wanted: &ImageInit,
    furnished: Furnished,
    (control, start): (OwnedFd, OwnedFd),
) -> Result<End> {
    let ready = match prepare(plan, wanted, furnished, &control) {
        Ok(Prepared::PidOne(ready)) => ready,
        Ok(Prepared::Keeper(keeper)) => {
            drop((control, start));
            return keeper.run(&plan.process);
        }
        Ok(Prepared::Ended(end)) => return Ok(end),
        Err(error) => return init::tell(&control, &error),
    };
    let prepared = match process::prepare(&ready.process) {
        Ok(prepared) => prepared,
        Err(error) => return init::tell(&control, &error),
    };
    let masters: Vec<_> = ready.master.iter().map(AsFd::as_fd).collect();
    control::send(&control, &FromStub::Ready, &masters)?;
    drop((masters, control));
    drop(ready.master);
    let connection = match start::wait(start)? {
        start::Word::Start(connection) => connection,
        start::Word::Signal(number) => return Ok(End::Signal(number)),
    };
    let checked = init::run_start_hooks(plan, &prepared, &connection)
        .and_then(|()| ready.check.map_or(Ok(()), |check| check()));
    let error = match checked {
        Ok(()) => {
            // systemd would take a TERM of before its time for a wish to execute itself anew.
            if let Some(number) = start::signal_meanwhile() {
                return Ok(End::Signal(number));
            }
            match ready.signals {
                SignalsAtFirst::Blocked => prepared.execute_with_signals_blocked(),
                SignalsAtFirst::Open => match keeper::say(Word::Started, &[connection.as_fd()]) {
                    Ok(_) => prepared.execute(),
                    Err(error) => error,
                },
            }
        }
        Err(error) => error,
    };
    init::tell(&connection, &error)
}

/// Which process goes on.
enum Prepared {
    PidOne(Ready),
    Keeper(keeper::Keeper),
    /// The one that tried the program, or pid 1 after it failed: the host side knows.
    Ended(End),
}

fn prepare(
    plan: &InitPlan,
    wanted: &ImageInit,
    furnished: Furnished,
    control: &OwnedFd,
) -> Result<Prepared> {
    let program = match &plan.pid_one {
        PidOne::SbinInit(_) => sbin::furnish(wanted, &furnished)?,
        _ => systemd::furnish(plan, wanted, &furnished)?,
    };
    let application = application_of(&plan.process, wanted.user.as_deref())?;
    // The last descriptor of the host's tree: no program must be found by way of it.
    drop(furnished.proc);
    if let Some(end) = try_program(&application, control)? {
        return Ok(Prepared::Ended(end));
    }
    let (master, slave) = furnished.terminal.map(|terminal| terminal.split()).unzip();
    let listener = keeper::listen()?;
    match sys::process::fork().map_err(host(|| "fork the keeper of the streams".to_owned()))? {
        Fork::Child => {
            drop(master);
            Ok(Prepared::Keeper(keeper::Keeper {
                listener,
                application,
                restart: wanted.restart,
                terminal: slave,
            }))
        }
        Fork::Parent(_) => {
            drop((listener, slave));
            devices::all_streams_to_null()?;
            Ok(Prepared::PidOne(Ready {
                signals: program.signals,
                check: program.check,
                process: pid_one_of(&plan.process, program),
                master,
            }))
        }
    }
}

/// Tries all but execve(2) in a process of its own, so that `create` fails if the program cannot
/// run. Gives how this process ends, if it does.
fn try_program(application: &Process, control: &OwnedFd) -> Result<Option<End>> {
    let step = || "try the program".to_owned();
    match sys::process::fork().map_err(host(step))? {
        Fork::Child => match process::prepare(application) {
            Ok(_) => Ok(Some(End::Forked)),
            Err(error) => init::tell(control, &error).map(Some),
        },
        Fork::Parent(child) => {
            let status = Child::adopt(child).wait().map_err(host(step))?;
            match status.code() {
                0 => Ok(None),
                // It has said why.
                _ => Ok(Some(End::Failed)),
            }
        }
    }
}

/// The program as a descendant of pid 1, which has the filter, labels and bounding set by then.
fn application_of(program: &Process, user: Option<&str>) -> Result<Process> {
    let mut application = Process {
        seccomp: None,
        oom_score_adj: None,
        new_keyring: Toggle::Off,
        labels: Labels::default(),
        ..program.clone()
    };
    if let Some(sets) = &mut application.capabilities {
        // Dropping needs CAP_SETPCAP even for what is not there.
        sets.bounding = u64::MAX;
    }
    if let Some(name) = user {
        let account = accounts::find("org.pouch.rich.user", name)?;
        application.uid = account.uid;
        application.gid = account.gid;
        application.additional_gids = account.additional_gids;
    }
    Ok(application)
}

/// The init: root of the container, with what the program is allowed at most.
fn pid_one_of(program: &Process, init: Program) -> Process {
    Process {
        args: init.args,
        env: init.env,
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        umask: None,
        capabilities: program.capabilities.as_ref().map(|sets| CapabilitySets {
            bounding: sets.bounding,
            effective: sets.bounding,
            permitted: sets.bounding,
            inheritable: 0,
            ambient: 0,
        }),
        oom_score_adj: None,
        terminal: None,
        preserve_fds: 0,
        new_keyring: Toggle::Off,
        scheduling: Scheduling {
            personality: program.scheduling.personality,
            ..Scheduling::default()
        },
        ..program.clone()
    }
}

/// A refusal that is about the image.
fn refusal(step: impl Into<String>) -> Error {
    Error::Request {
        step: step.into(),
        errno: 0,
    }
}
