//! An image's own systemd as pid 1, with the program of the container as one of its units.
//!
//! ```text
//!   pid 1, the stub                keeper, its child              systemd, its services
//!   finds systemd, user, services
//!   files below /run
//!   a child tries the program
//!   fork ------------------------> program's plan, streams
//!   streams to null, Ready         waits at a socket
//!   Start: execve(systemd) ------------------------------------> ...
//!                                                                pouch-application.service:
//!                                  plan, streams  -------------> the stub again, which forks
//!                                  ends                          the program, and waits for it
//!                                                                its status to a file;
//!                                                                ExecStopPost, the stub once more:
//!                                                                SIGRTMIN+3 to pid 1, units stop
//!   systemd-shutdown, which is the stub: all get TERM; ends with the status in the file
//! ```
//! Nothing is written but to tmpfs: the unit and its links to `/run/systemd/system`, and what is
//! bound over files of the image to [`OWN`]. Must not give pid 1 a right that the program lacks.

mod accounts;
mod application;
mod files;
mod image;
mod keeper;
mod shutdown;

use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};

use sys::Child;
use sys::process::Fork;

use crate::control::{self, FromStub};
use crate::devices;
use crate::error::{Error, Result, host};
use crate::init::{self, End, Furnished};
use crate::plan::{CapabilitySets, InitPlan, Labels, Process, Scheduling, SystemdPlan, Toggle};
use crate::process;
use crate::start::{self, Word};

pub use application::{halt, run as run_application};
pub use shutdown::run as run_shutdown;

/// A tmpfs of ours in the container.
pub const OWN: &str = "/run/runlxc";

/// What systemd runs as its last program; then it is the stub.
pub const SHUTDOWN: &str = "systemd-shutdown";

/// What systemd is told it runs in (its CONTAINER_INTERFACE); it has known this word from the first.
const CONTAINER: &str = "lxc";

/// The unit that is the program.
const UNIT: &str = "pouch-application.service";

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

/// Goes on as pid 1 in a container that is set up; does not return when systemd runs.
pub(crate) fn run(
    plan: &InitPlan,
    systemd: &SystemdPlan,
    furnished: Furnished,
    (control, start): (OwnedFd, OwnedFd),
) -> Result<End> {
    let pid_one = match prepare(plan, systemd, furnished, &control) {
        Ok(Prepared::PidOne(pid_one)) => pid_one,
        Ok(Prepared::Keeper(keeper)) => {
            drop((control, start));
            return keeper.run(&plan.process);
        }
        Ok(Prepared::Ended(end)) => return Ok(end),
        Err(error) => return init::tell(&control, &error),
    };
    let prepared = match process::prepare(&pid_one.process) {
        Ok(prepared) => prepared,
        Err(error) => return init::tell(&control, &error),
    };
    let masters: Vec<_> = pid_one.master.iter().map(AsFd::as_fd).collect();
    control::send(&control, &FromStub::Ready, &masters)?;
    drop((masters, control));
    drop(pid_one.master);
    let connection = match start::wait(start)? {
        Word::Start(connection) => connection,
        Word::Signal(number) => return Ok(End::Signal(number)),
    };
    let error = match init::run_start_hooks(plan, &prepared) {
        Ok(()) => {
            // systemd would take a TERM of before its time for a wish to execute itself anew.
            if let Some(number) = start::signal_meanwhile() {
                return Ok(End::Signal(number));
            }
            // A signal to stop may come before systemd listens.
            prepared.execute_with_signals_blocked()
        }
        Err(error) => error,
    };
    init::tell(&connection, &error)
}

/// Which process goes on.
enum Prepared {
    PidOne(PidOne),
    Keeper(keeper::Keeper),
    /// The one that tried the program, or pid 1 after it failed: the host side knows.
    Ended(End),
}

struct PidOne {
    process: Process,
    master: Option<OwnedFd>,
}

fn prepare(
    plan: &InitPlan,
    systemd: &SystemdPlan,
    furnished: Furnished,
    control: &OwnedFd,
) -> Result<Prepared> {
    let image = image::Image::find(&systemd.services)?;
    let application = application_of(&plan.process, systemd.user.as_deref())?;
    let uuid = uuid_of(&furnished.from_host.machine_id, &systemd.id);
    let files = files::Files {
        uuid: &uuid,
        os_release: &furnished.from_host.os_release,
        image: &image,
        rlimits: &plan.process.rlimits,
    };
    files.make(&furnished.proc)?;
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
                terminal: slave,
            }))
        }
        Fork::Parent(_) => {
            drop((listener, slave));
            devices::all_streams_to_null()?;
            let process = pid_one_of(&plan.process, &image, &uuid);
            Ok(Prepared::PidOne(PidOne { process, master }))
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

/// The program as a child of systemd's, which has the filter, labels and bounding set by then.
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
        let account = accounts::find(name)?;
        application.uid = account.uid;
        application.gid = account.gid;
        application.additional_gids = account.additional_gids;
    }
    Ok(application)
}

/// systemd: root of the container, with what the program is allowed at most.
fn pid_one_of(program: &Process, image: &image::Image, uuid: &str) -> Process {
    let own = |text: &str| text.to_owned();
    Process {
        args: vec![own(&image.systemd), own("--unit=multi-user.target")],
        env: vec![
            own(SEARCH_PATH),
            format!("container={CONTAINER}"),
            format!("container_uuid={uuid}"),
        ],
        cwd: own("/"),
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

/// The same for the same container on the same host: FNV-1a of 128 bits, as 32 digits.
fn uuid_of(machine_id: &str, id: &str) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = machine_id.bytes().chain([0]).chain(id.bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    // RFC 9562: version 8, variant 10.
    let hash = hash & !(0xf << 76) | 0x8 << 76;
    let hash = hash & !(0x3 << 62) | 0x2 << 62;
    let mut digits = String::new();
    let _written = write!(digits, "{hash:032x}");
    digits
}

/// A refusal that is about the image.
fn refusal(step: impl Into<String>) -> Error {
    Error::Request {
        step: step.into(),
        errno: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_that_of_the_container_on_its_host() {
        let one = uuid_of("a", "b");
        assert_eq!(one.len(), 32);
        assert_eq!(&one[12..13], "8");
        assert_eq!(one, uuid_of("a", "b"));
        assert_ne!(uuid_of("a", "b"), uuid_of("b", "a"));
        assert_ne!(uuid_of("ab", ""), uuid_of("a", "b"));
    }
}
