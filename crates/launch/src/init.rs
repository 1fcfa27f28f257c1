//! Pid 1 of a container from its first breath to execve.
//!
//! ```text
//!   on the host's root                          in the container's root
//!   Hello, cgroups, plan, namespaces,      ->   working directory, terminal, parameters, names,
//!   procfs handle, root bound, file systems,    read-only and masked paths,
//!   devices, the host's hooks,                  labels, user's rights, program found, Ready
//!   createContainer hooks, pivot
//!                                               Start: limits, filter, startContainer hooks, execve
//! ```
//! Where pid 1 is to stay (`plan::PidOne::Stub`), the line is crossed by its child from "labels" on
//! (`reaper.rs`).
//! The order is runc's where the specification leaves it open. Must not outlive an error: whatever
//! fails is told, the process ends, and the kernel ends the namespaces with it.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, getpid, getsid, sethostname, setsid};
use sys::process::{self as rights, Dumpable};
use sys::{ExitStatus, Pid};

use crate::agent::Agent;
use crate::cgroups;
use crate::control::{self, Ended, FromStub, ToStub};
use crate::devices::Devices;
use crate::error::{Error, Result, host};
use crate::exec;
use crate::filesystems::Filesystems;
use crate::given::Namespaces;
use crate::hooks::{self, Stage};
use crate::host_side::HostSide;
use crate::image_init::{self, FromHost};
use crate::labels;
use crate::masks;
use crate::plan::{Hook, InitPlan, PidOne, Process, Restart, Rewrite, Toggle};
use crate::process::{self, Prepared};
use crate::procfs::Proc;
use crate::reaper::{self, Beside, Outcome, Passage, Reaper, Settled, Side};
use crate::restarts::{self, Restarts, Signals};
use crate::rootfs::{self, NewRoot};
use crate::services::{self, Starter, Supervisor};
use crate::signals::STOPS;
use crate::start::{self, Word};
use crate::terminal::Terminal;

/// How the stub ended without having become the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The host side went away before it asked for anything: nothing is left to do.
    Abandoned,
    /// A failure, which the host side was told.
    Failed,
    /// A signal that would have ended any process but pid 1, before the start.
    Signal(i32),
    /// The process that joins did its part; its sibling goes on.
    Forked,
    /// The program, whose parent this process was, as pid 1, until it ended so.
    Program(ExitStatus),
}

/// Runs pid 1 with the two sockets it was started with; does not return when the program runs.
///
/// Descriptors that come with the plan are namespaces that are joined (`given.rs`).
///
/// With the socket of an agent, a pid 1 that stays starts processes for whoever connects to it, and
/// tells the end of its program on the control socket.
///
/// # Errors
/// What could not be told to the host side.
pub fn run(control_fd: RawFd, start_fd: RawFd, agent_fd: Option<RawFd>) -> Result<End> {
    let take = |number| {
        sys::take_inherited_fd(number).map_err(host(|| format!("take over descriptor {number}")))
    };
    let (control, start) = (take(control_fd)?, take(start_fd)?);
    let agent = agent_fd.map(take).transpose()?;
    // LXC asks for a signal at the death of its monitor, which the host side ends on purpose.
    rights::clear_pdeathsig().map_err(host(|| "clear the parent death signal".to_owned()))?;
    control::send(&control, &FromStub::Hello, &[])?;
    let (plan, furnished) = match furnish(&control)? {
        Ok(furnished) => furnished,
        Err(end) => return Ok(end),
    };
    if let Some(wanted) = image_init::asked_for(&plan) {
        return image_init::run(&plan, wanted, furnished, (control, start));
    }
    let starter = match fork_program(&plan) {
        Ok(Forked::Program(starter)) => starter,
        Ok(Forked::PidOne(pid_one)) => {
            drop((start, furnished.terminal));
            let sockets = Sockets { control, agent };
            return pid_one.stay(&plan.process, (furnished.proc, sockets));
        }
        Ok(Forked::Supervisor(supervisor)) => {
            drop((control, start, agent, furnished));
            return supervisor.run();
        }
        Ok(Forked::Ended(end)) => return Ok(end),
        Err(error) => return tell(&control, &error),
    };
    drop(agent);
    let ready = furnished.prepare(&plan.process).and_then(|mut ready| {
        ready.0.commit_for_agent(&control)?;
        Ok(ready)
    });
    let (prepared, master) = match ready {
        Ok(ready) => ready,
        Err(error) => return tell(&control, &error),
    };
    let masters: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    control::send(&control, &FromStub::Ready, &masters)?;
    drop((master, control));

    let connection = match start::wait(start)? {
        Word::Start(connection) => connection,
        Word::Signal(number) => return Ok(End::Signal(number)),
    };
    if let Some(starter) = starter {
        match starter.start() {
            Ok(None) => {}
            Ok(Some(failure)) => {
                control::send(&connection, &FromStub::Failed(failure), &[])?;
                return Ok(End::Failed);
            }
            Err(error) => return tell(&connection, &error),
        }
    }
    if let Err(error) = run_start_hooks(&plan, &prepared, &connection) {
        return tell(&connection, &error);
    }
    match restart_of(&plan.pid_one) {
        Some((policy, whose)) => again_and_again(policy, whose, (&prepared, connection)),
        None => tell(&connection, &prepared.execute()),
    }
}

/// Whether the program is started again, and whose signals are what.
fn restart_of(pid_one: &PidOne) -> Option<(Restart, Signals)> {
    match pid_one {
        PidOne::Stub {
            rewrites, restart, ..
        } if *restart != Restart::Never => {
            let stops = STOPS.iter();
            let stops = stops.filter_map(|stop| reaper::rewritten(rewrites, *stop));
            let stops = stops.collect();
            Some((*restart, Signals::Group { stops }))
        }
        _ => None,
    }
}

/// Starts the program as often as it is to be; returns in its child only if it cannot be executed.
fn again_and_again(
    policy: Restart,
    whose: Signals,
    (prepared, connection): (&Prepared<'_>, UnixStream),
) -> Result<End> {
    let mut restarts = match Restarts::new(policy, whose) {
        Ok(restarts) => restarts,
        Err(error) => return tell(&connection, &error),
    };
    let mut connection = Some(connection);
    loop {
        match restarts.fork() {
            Ok(restarts::Side::First) => {}
            Ok(restarts::Side::Forked(mut line)) => {
                let error = prepared.execute();
                line.failed();
                return tell_starter(connection, error);
            }
            Ok(restarts::Side::Stopped) => return Ok(End::Abandoned),
            Err(error) => return tell_starter(connection, error),
        }
        // Its end of file says that the first one runs.
        drop(connection.take());
        if let Some(code) = restarts.wait(|_| Ok(()))? {
            return Ok(End::Program(ExitStatus::Exited(code)));
        }
    }
}

/// Tells whoever waits for the first program; nobody does for those after it.
fn tell_starter(connection: Option<UnixStream>, error: Error) -> Result<End> {
    match connection {
        Some(connection) => tell(&connection, &error),
        None => Err(error),
    }
}

/// Receives the plan and sets the container up; gives how this process ends where that fails.
fn furnish(control: &OwnedFd) -> Result<std::result::Result<(InitPlan, Furnished), End>> {
    let received = match cgroups::await_plan(control) {
        Ok(Some(received)) => received,
        Ok(None) => return Ok(Err(End::Abandoned)),
        Err(error) => return tell(control, &error).map(Err),
    };
    let ToStub::Init {
        plan,
        given,
        loopback,
        host_hooks,
        gaps,
    } = received.message
    else {
        return tell(control, &Error::Unexpected("instead of a plan for pid 1")).map(Err);
    };
    for number in gaps {
        // EBADF: LXC left nothing there.
        drop(sys::take_inherited_fd(number));
    }
    let plan = with_own_pid(*plan);
    let host_side = HostSide {
        control: control.as_fd(),
        hooks: host_hooks,
    };
    let given = Namespaces::new(given, received.fds);
    match given.and_then(|given| set_up(&plan, (given, loopback), host_side)) {
        Ok(furnished) => Ok(Ok((plan, furnished))),
        Err(error) => tell(control, &error).map(Err),
    }
}

/// Which process goes on.
enum Forked {
    /// The one that becomes the program: pid 1 itself, or its child.
    Program(Option<Starter>),
    /// Pid 1, which stays.
    PidOne(PidOneBeside),
    Supervisor(Supervisor),
    Ended(End),
}

/// Pid 1 with its children.
struct PidOneBeside {
    reaper: Reaper,
    rewrites: Vec<Rewrite>,
    supervisor: Option<Pid>,
}

/// Makes the processes of a container whose pid 1 is to stay.
fn fork_program(plan: &InitPlan) -> Result<Forked> {
    let PidOne::Stub {
        rewrites, services, ..
    } = &plan.pid_one
    else {
        return Ok(Forked::Program(None));
    };
    let beside = match services::fork(services.as_deref())? {
        services::Side::PidOne(beside) => beside,
        services::Side::Supervisor(supervisor) => return Ok(Forked::Supervisor(supervisor)),
    };
    let (supervisor, starter) = beside.map(|beside| (beside.pid, beside.starter)).unzip();
    Ok(match reaper::fork()? {
        Side::Child(gate) => match gate.wait() {
            Passage::Open => Forked::Program(starter),
            Passage::Closed => Forked::Ended(End::Abandoned),
        },
        Side::Parent(reaper) => Forked::PidOne(PidOneBeside {
            reaper,
            rewrites: rewrites.clone(),
            supervisor,
        }),
    })
}

/// Tells the host side why this process ends, unless it is that nobody is left to tell.
pub(crate) fn tell(socket: impl AsFd, error: &Error) -> Result<End> {
    if matches!(error, Error::HostGone) {
        return Ok(End::Abandoned);
    }
    control::send(socket, &FromStub::Failed(error.failure()), &[])?;
    Ok(End::Failed)
}

/// A container that is set up but for its program's own process.
pub(crate) struct Furnished {
    pub(crate) terminal: Option<Terminal>,
    pub(crate) proc: Proc,
    /// What is known of the host, for an image's systemd.
    pub(crate) from_host: FromHost,
}

impl Furnished {
    /// Makes this process that of the program, up to what only the start waits for.
    fn prepare(self, plan: &Process) -> Result<(Prepared<'_>, Option<OwnedFd>)> {
        // The last descriptor of the host's tree: the program must not be found by way of it.
        drop(self.proc);
        let master = self.terminal.map(Terminal::wear).transpose()?;
        Ok((process::prepare(plan)?, master))
    }
}

/// What pid 1 that stays has of the host.
struct Sockets {
    control: OwnedFd,
    agent: Option<OwnedFd>,
}

impl PidOneBeside {
    /// Pid 1 beside its program, from the fork to its end.
    fn stay(self, plan: &Process, (proc, sockets): (Proc, Sockets)) -> Result<End> {
        let Sockets { control, agent } = sockets;
        let has_agent = agent.is_some();
        let settled = match settle(self.reaper, plan, &proc, (self.supervisor, agent)) {
            Ok(settled) => settled,
            Err(error) => return tell(&control, &error),
        };
        drop(proc);
        let report = has_agent.then_some(control);
        match settled.run(&self.rewrites)? {
            Outcome::Joins(newcomer) => {
                drop(report);
                exec::run_inside(newcomer)
            }
            Outcome::Ended(status) => {
                if let Some(report) = report {
                    let ended = FromStub::Ended(Ended::from(status));
                    // Whoever made the container may be gone, and not be waiting for it.
                    let _nobody = control::send(&report, &ended, &[]);
                }
                Ok(End::Program(status))
            }
        }
    }
}

fn settle(
    reaper: Reaper,
    plan: &Process,
    proc: &Proc,
    (supervisor, agent): (Option<Pid>, Option<OwnedFd>),
) -> Result<Settled> {
    let agent = match agent {
        Some(listener) => Some(Agent::new(listener, proc.duplicate()?)?),
        None => None,
    };
    reaper.settle(plan, proc, Beside { supervisor, agent })
}

/// Everything that is done once for all processes of the container.
fn set_up(
    plan: &InitPlan,
    (given, loopback): (Namespaces, Toggle),
    host_side: HostSide<'_>,
) -> Result<Furnished> {
    sys::close_inherited_from(process::first_unwanted_fd(&plan.process))
        .map_err(host(|| "close what LXC left open".to_owned()))?;
    new_session()?;
    umask(Mode::from_bits_truncate(0o022));
    let proc = Proc::open()?;
    shield(&proc, &plan.process)?;
    let makes_cgroups = plan.cgroup_namespace == Toggle::On && !given.has_cgroups();
    let procfs = given.enter()?;
    if loopback == Toggle::On {
        sys::loopback_up().map_err(host(|| "bring up lo".to_owned()))?;
    }
    process::new_keyring(&plan.process, &proc)?;
    if makes_cgroups {
        unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(host(|| "make a cgroup namespace".to_owned()))?;
    }

    let root = NewRoot::prepare(&plan.root)?;
    let filesystems = Filesystems::mount(root.directory(), plan, host_side, (&proc, procfs))?;
    let devices = Devices::of(plan);
    devices.make(root.directory(), &proc)?;
    host_side.hooks()?;
    root.make_working_directory()?;
    hooks::run_all(
        &plan.create_container_hooks,
        &plan.state_creating,
        Stage::CreateContainer,
    )?;
    let from_host = match &plan.pid_one {
        PidOne::Systemd(_) => FromHost::read(),
        PidOne::Program | PidOne::Stub { .. } | PidOne::SbinInit(_) => FromHost::default(),
    };
    root.enter()?;

    devices.replace_null_streams()?;
    make_working_directory(&plan.process)?;
    let terminal = plan.process.terminal.map(Terminal::open).transpose()?;
    // An init of the image would write to the program's terminal.
    if let Some(terminal) = &terminal
        && image_init::asked_for(plan).is_none()
    {
        terminal.bind_console(&proc)?;
    }
    name_and_tune(plan, &proc)?;
    labels::set_for_program(&proc, &plan.process.labels)?;
    filesystems.make_readonly(&proc)?;
    if plan.root.readonly == Toggle::On {
        rootfs::make_root_readonly()?;
    }
    masks::protect(&proc, &plan.readonly_paths)?;
    masks::mask(&proc, &plan.masked_paths, plan.mount_label.as_deref())?;
    chdir("/").map_err(host(|| "change directory to /".to_owned()))?;
    Ok(Furnished {
        terminal,
        proc,
        from_host,
    })
}

/// The specification wants the pid as the container sees it; the host side knows another one.
fn with_own_pid(mut plan: InitPlan) -> InitPlan {
    for state in [&mut plan.state_creating, &mut plan.state_created] {
        if let Some(changed) = replace_pid(state, getpid().as_raw()) {
            *state = changed;
        }
    }
    plan
}

/// Replaces the number of the first `"pid":`. Within a JSON string the quotes would be escaped, and
/// annotations, which may have a key of that name, come after it.
fn replace_pid(state: &str, pid: i32) -> Option<String> {
    let (before, after) = state.split_once("\"pid\":")?;
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    Some(format!("{before}\"pid\":{pid}{rest}"))
}

/// A session of its own, so that a terminal can become its controlling one.
pub(crate) fn new_session() -> Result<()> {
    match setsid() {
        Ok(_) => Ok(()),
        // LXC made it leader already.
        Err(Errno::EPERM) if getsid(None) == Ok(getpid()) => Ok(()),
        Err(errno) => Err(host(|| "make a session".to_owned())(errno)),
    }
}

/// Sets the OOM score, while its file belongs to us, and then closes `/proc/PID` to processes of
/// the container: until execve this one still has what is not for them (CVE-2016-9962).
pub(crate) fn shield(proc: &Proc, plan: &Process) -> Result<()> {
    if let Some(score) = plan.oom_score_adj {
        proc.set_oom_score_adj(score)?;
    }
    rights::set_dumpable(Dumpable::No).map_err(host(|| "become undumpable".to_owned()))
}

/// Makes the working directory of the program, as runc does; a program that joins later must do
/// with what is there.
fn make_working_directory(plan: &Process) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&plan.cwd);
    made.map_err(|error| {
        let errno = match error.raw_os_error() {
            Some(errno) if errno != Errno::EEXIST as i32 => errno,
            _ => Errno::ENOTDIR as i32,
        };
        Error::Request {
            step: format!("mkdir {}", plan.cwd),
            errno,
        }
    })
}

fn name_and_tune(plan: &InitPlan, proc: &Proc) -> Result<()> {
    if let Some(name) = &plan.hostname {
        sethostname(name).map_err(host(|| format!("set host name {name}")))?;
    }
    if let Some(name) = &plan.domainname {
        rights::set_domainname(name).map_err(host(|| format!("set domain name {name}")))?;
    }
    plan.sysctl
        .iter()
        .try_for_each(|(name, value)| proc.set_sysctl(name, value))
}

/// Limits, filter, startContainer hooks: only execve(2) may follow.
pub(crate) fn run_start_hooks(
    plan: &InitPlan,
    prepared: &Prepared<'_>,
    host: impl AsFd,
) -> Result<()> {
    prepared.commit_before(host)?;
    let hooks: Vec<Hook> = plan
        .start_container_hooks
        .iter()
        .map(|hook| with_default_environment(hook, prepared.environment()))
        .collect();
    hooks::run_all(&hooks, &plan.state_created, Stage::StartContainer)
}

/// A startContainer hook without an environment gets the program's: not in the specification, but
/// what runc always did and hooks rely on.
fn with_default_environment(hook: &Hook, environment: &[String]) -> Hook {
    let env = if hook.env.is_empty() {
        environment.to_vec()
    } else {
        hook.env.clone()
    };
    Hook {
        env,
        ..hook.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_usual_stop_signal_ends_restarts_and_a_rewritten_one_as_what_it_becomes() {
        let of = |pairs: &[(i32, Option<i32>)], restart| {
            let rewrites = pairs.iter().map(|&(from, to)| Rewrite { from, to });
            restart_of(&PidOne::Stub {
                rewrites: rewrites.collect(),
                services: None,
                restart,
            })
        };
        for (rewrites, expected) in [
            (&[][..], &[15, 2, 3, 30][..]),
            (&[(15, Some(10))], &[10, 2, 3, 30]),
            (&[(2, None), (28, Some(15))], &[15, 3, 30]),
        ] {
            let stops = expected.to_vec();
            let expected = Some((Restart::Always, Signals::Group { stops }));
            assert_eq!(of(rewrites, Restart::Always), expected);
        }
        assert_eq!(of(&[], Restart::Never), None);
    }

    #[test]
    fn nobody_is_told_that_nobody_is_there() {
        let (ours, theirs) = sys::socketpair_stream_cloexec().unwrap();
        drop(theirs);
        assert_eq!(tell(&ours, &Error::HostGone).unwrap(), End::Abandoned);
        tell(&ours, &Error::Unexpected("here")).unwrap_err();
    }
}
