//! Turns the stub into the user's process: limits, user, capabilities, filter, program.
//!
//! In two halves, as runc does it: [`prepare`] takes every right away that the program shall not
//! have and finds the program, so that `create` already fails if it cannot run; [`Prepared::commit`]
//! does what must come last. Must not talk to the host.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{Gid, Uid, chdir, fchown, getcwd, setgid, setgroups, setuid};
use sys::process::{self, Capabilities};

use crate::control::{self, FromStub, Received, ToStub};
use crate::environment;
use crate::error::{Error, Result, host};
use crate::executable::Executable;
use crate::labels;
use crate::masks::is_null_device;
use crate::plan::{CapabilitySets, Process, SeccompFilter, Toggle};
use crate::procfs::Proc;
use crate::scheduling;

/// umask(2) where config.json has none, as runc's.
const UMASK_DEFAULT: u32 = 0o022;

/// Names of resources by their numbers (asm-generic/resource.h).
pub(crate) const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Right to signal processes of other users (linux/capability.h).
const CAP_KILL: u64 = 1 << 5;

/// What it takes to make a process another user's with fewer rights and other limits: CAP_CHOWN,
/// CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_RESOURCE (linux/capability.h).
const RIGHTS_TO_START: u64 = 1 | CAP_KILL | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 24;

/// Right to load a filter without no_new_privs (linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The process with the user's rights, and what is left to do.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    plan: &'a Process,
    /// The sets of the program.
    capabilities: Capabilities,
    executable: Executable,
    /// Whether limits and filter are in force.
    is_committed: bool,
}

/// Gives the process a session keyring of its own, where the kernel has keyrings.
pub(crate) fn new_keyring(plan: &Process, proc: &Proc) -> Result<()> {
    if plan.new_keyring == Toggle::Off {
        return Ok(());
    }
    labels::set_for_keyrings(proc, &plan.labels)?;
    // Without search permission for its user nobody joins a keyring by its name: each call makes a
    // new one, and containers share none.
    match process::join_session_keyring(c"_ses.container") {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => Ok(()),
        Err(error) => Err(host(|| "join session keyring".to_owned())(error)),
    }
}

/// Becomes the user in the working directory, with the final capabilities, and finds the program.
///
/// CAP_SYS_ADMIN alone stays in force beside them where a filter needs it in [`Prepared::commit`].
/// Limits are only raised here, while that is allowed.
pub(crate) fn prepare(plan: &Process) -> Result<Prepared<'_>> {
    let environment = environment::complete(&plan.env, plan.uid)?;
    let capabilities = take_rights(plan)?;
    let executable = Executable::find(&plan.args, environment)?;
    Ok(Prepared {
        plan,
        capabilities,
        executable,
        is_committed: false,
    })
}

/// Goes on with all that a program by this plan would have, its filter included, but executes
/// nothing; gives the environment that it would have.
pub(crate) fn live_as(plan: &Process) -> Result<Vec<String>> {
    let environment = environment::complete(&plan.env, plan.uid)?;
    let capabilities = take_rights(plan)?;
    commit(plan, capabilities, None)?;
    Ok(environment)
}

/// Becomes the user in the working directory; gives the final capabilities.
fn take_rights(plan: &Process) -> Result<Capabilities> {
    let closed_to_us = enter_working_directory(plan)?;
    raise_limits(&plan.rlimits)?;
    scheduling::apply(&plan.scheduling)?;
    if let Some(sets) = &plan.capabilities {
        drop_bounding(sets.bounding)?;
    }
    process::keep_capabilities().map_err(host(|| "keep capabilities".to_owned()))?;
    become_user(plan)?;
    if closed_to_us {
        chdir(plan.cwd.as_str()).map_err(|errno| bad_working_directory(plan, errno))?;
    }
    verify_working_directory()?;
    let capabilities = final_capabilities(plan.capabilities.as_ref())?;
    set_capabilities(with_filter_right(capabilities, plan))?;
    if let Some(sets) = &plan.capabilities {
        raise_ambient(sets.ambient);
    }
    umask(Mode::from_bits_truncate(
        plan.umask.unwrap_or(UMASK_DEFAULT),
    ));
    Ok(capabilities)
}

/// Limits and filter, and no right but these. The host side gets the filter's listener, if it has
/// one; without a host side nobody has it, and what it would be asked about fails (ENOSYS).
fn commit(
    plan: &Process,
    capabilities: Capabilities,
    host_side: Option<BorrowedFd<'_>>,
) -> Result<()> {
    process::close_on_exec_from(first_unwanted_fd(plan))
        .map_err(host(|| "mark descriptors close-on-exec".to_owned()))?;
    for &(resource, soft, hard) in &plan.rlimits {
        process::setrlimit_raw(resource, soft, hard)
            .map_err(host(|| set_limit(resource, soft, hard)))?;
    }
    if plan.no_new_privs == Toggle::On {
        process::no_new_privs().map_err(host(|| {
            "set no_new_privs, which Linux has from 3.5".to_owned()
        }))?;
    }
    if let Some(SeccompFilter { program, flags }) = &plan.seccomp {
        let listener = process::load_seccomp(program, *flags)
            .map_err(host(|| format!("load seccomp filter, flags {flags:#x}")))?;
        if let (Some(listener), Some(host_side)) = (listener, host_side) {
            hand_over(&listener, host_side)?;
        }
    }
    if with_filter_right(capabilities, plan) != capabilities {
        set_capabilities(capabilities)?;
    }
    Ok(())
}

/// Before any other system call, about which it may be asked: the filter is in force.
fn hand_over(listener: &OwnedFd, host_side: BorrowedFd<'_>) -> Result<()> {
    control::send(host_side, &FromStub::Listener, &[listener.as_fd()])?;
    match control::recv(host_side)? {
        Some(Received {
            message: ToStub::GoOn,
            ..
        }) => Ok(()),
        Some(_) => Err(Error::Unexpected("instead of the listener's receipt")),
        None => Err(Error::HostGone),
    }
}

impl Prepared<'_> {
    /// Sets the limits, and at the last moment the filter; only execve(2) may follow, and hooks
    /// that shall live with the same rights.
    pub(crate) fn commit(&self) -> Result<()> {
        commit(self.plan, self.capabilities, None)
    }

    /// As [`Prepared::commit`]; the host side gets the filter's listener, if it has one.
    pub(crate) fn commit_before(&self, host_side: impl AsFd) -> Result<()> {
        if self.is_committed {
            return Ok(());
        }
        commit(self.plan, self.capabilities, Some(host_side.as_fd()))
    }

    /// Commits now, long before the program, if the filter has a listener: its agent is to have that
    /// when the container is created, as with runc, and may wait for it before anybody starts it.
    pub(crate) fn commit_for_agent(&mut self, host_side: impl AsFd) -> Result<()> {
        let filter = self.plan.seccomp.as_ref();
        if filter.is_some_and(|filter| process::makes_listener(filter.flags)) {
            self.commit_before(host_side)?;
            self.is_committed = true;
        }
        Ok(())
    }

    /// Becomes the program; returns only with the reason why not.
    pub(crate) fn execute(&self) -> Error {
        match process::reset_signals() {
            Ok(()) => self.executable.execute(),
            Err(error) => host(|| "reset signals".to_owned())(error),
        }
    }

    /// As [`Prepared::execute`], for a program that keeps all signals blocked until it listens.
    pub(crate) fn execute_with_signals_blocked(&self) -> Error {
        let blocked = process::reset_signals().and_then(|()| Ok(SigSet::all().thread_block()?));
        match blocked {
            Ok(()) => self.executable.execute(),
            Err(error) => host(|| "block signals".to_owned())(error),
        }
    }

    /// The environment the program gets.
    pub(crate) fn environment(&self) -> &[String] {
        self.executable.environment()
    }
}

/// Leaves the calling process nothing but the right to signal any process of its user namespace,
/// under the filter and bounding set of its container. It must not execute anything afterwards.
pub(crate) fn keep_right_to_signal(plan: &Process) -> Result<()> {
    if let Some(sets) = &plan.capabilities {
        drop_bounding(sets.bounding)?;
    }
    // EINVAL before Linux 4.3, which has no ambient set.
    let _none = process::cap_ambient_clear();
    let now = process::capget().map_err(host(|| "read capabilities".to_owned()))?;
    set_capabilities(Capabilities {
        effective: CAP_KILL & now.permitted,
        permitted: CAP_KILL & now.permitted,
        inheritable: 0,
    })?;
    let Some(SeccompFilter { program, flags }) = &plan.seccomp else {
        return Ok(());
    };
    // Instead of CAP_SYS_ADMIN, which is gone.
    process::no_new_privs().map_err(host(|| "set no_new_privs".to_owned()))?;
    process::load_seccomp(program, *flags)
        .map(drop)
        .map_err(host(|| format!("load seccomp filter, flags {flags:#x}")))
}

/// As [`keep_right_to_signal`], for a pid 1 whose children become further programs of the container:
/// it keeps what the container may have, and what it takes to become another user.
pub(crate) fn keep_rights_of_container(plan: &Process) -> Result<()> {
    let Some(sets) = &plan.capabilities else {
        return Ok(());
    };
    let keep = sets.bounding | RIGHTS_TO_START;
    drop_bounding(keep)?;
    let now = process::capget().map_err(host(|| "read capabilities".to_owned()))?;
    set_capabilities(Capabilities {
        effective: keep & now.permitted,
        permitted: keep & now.permitted,
        inheritable: 0,
    })
}

/// The first descriptor that the program does not get.
pub(crate) fn first_unwanted_fd(plan: &Process) -> i32 {
    i32::try_from(plan.preserve_fds).unwrap_or(i32::MAX - 3) + 3
}

/// Whether the directory is closed to us; the user may have access where we have none.
fn enter_working_directory(plan: &Process) -> Result<bool> {
    match chdir(plan.cwd.as_str()) {
        Ok(()) => Ok(false),
        Err(Errno::EACCES | Errno::EPERM) => Ok(true),
        Err(errno) => Err(bad_working_directory(plan, errno)),
    }
}

pub(crate) fn bad_working_directory(plan: &Process, errno: Errno) -> Error {
    Error::Request {
        step: format!("chdir to cwd (\"{}\") set in config.json failed", plan.cwd),
        errno: errno as i32,
    }
}

/// A working directory outside of the root would be a way out (CVE-2024-21626).
fn verify_working_directory() -> Result<()> {
    let outside = |errno| Error::Request {
        step: "current working directory is outside of container mount namespace root -- possible \
               container breakout detected"
            .to_owned(),
        errno,
    };
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        Ok(_) | Err(Errno::ENOENT) => Err(outside(0)),
        Err(errno) => Err(host(|| "verify the current working directory".to_owned())(
            errno,
        )),
    }
}

fn set_limit(resource: u32, soft: u64, hard: u64) -> String {
    let index = usize::try_from(resource).unwrap_or(usize::MAX);
    match RLIMITS.get(index) {
        Some(name) => format!("set RLIMIT_{name} to {soft}:{hard}"),
        None => format!("set rlimit {resource} to {soft}:{hard}"),
    }
}

/// Raises hard limits that are to be raised, which needs CAP_SYS_RESOURCE; nothing is lowered yet,
/// since our own work could be too much for the program's limits.
fn raise_limits(rlimits: &[(u32, u64, u64)]) -> Result<()> {
    for &(resource, soft, hard) in rlimits {
        let step = || set_limit(resource, soft, hard);
        let (soft_now, hard_now) = process::getrlimit_raw(resource).map_err(host(step))?;
        if hard > hard_now {
            process::setrlimit_raw(resource, soft_now, hard).map_err(host(step))?;
        }
    }
    Ok(())
}

fn drop_bounding(keep: u64) -> Result<()> {
    let unwanted = (0..=process::last_cap()).filter(|capability| keep & (1 << capability) == 0);
    for capability in unwanted {
        process::cap_bounding_drop(capability).map_err(host(|| {
            format!("drop capability {capability} from the bounding set")
        }))?;
    }
    Ok(())
}

fn become_user(plan: &Process) -> Result<()> {
    own_standard_streams(plan.uid)?;
    let groups: Vec<Gid> = plan
        .additional_gids
        .iter()
        .copied()
        .map(Gid::from_raw)
        .collect();
    match setgroups(&groups) {
        Ok(()) => {}
        // An unprivileged user namespace with "deny" in /proc/PID/setgroups.
        Err(Errno::EPERM) if groups.is_empty() => {}
        Err(errno) => return Err(bad_user(plan, "setgroups", errno)),
    }
    setgid(Gid::from_raw(plan.gid)).map_err(|errno| bad_user(plan, "setgid", errno))?;
    setuid(Uid::from_raw(plan.uid)).map_err(|errno| bad_user(plan, "setuid", errno))
}

fn bad_user(plan: &Process, call: &str, errno: Errno) -> Error {
    let (uid, gid) = (plan.uid, plan.gid);
    match errno {
        Errno::EINVAL => Error::Request {
            step: format!("cannot {call} to an id that the user namespace lacks, user {uid}:{gid}"),
            errno: errno as i32,
        },
        _ => host(|| format!("{call} for user {uid}:{gid}"))(errno),
    }
}

/// Gives the user its standard streams, which were made by somebody else; otherwise it could use
/// but not reopen them (`/dev/stdout`). The group is left: devpts may set it on purpose.
fn own_standard_streams(uid: u32) -> Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for (number, stream) in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .enumerate()
    {
        let step = || format!("chown descriptor {number} to user {uid}");
        if fstat(stream).map_err(host(step))?.st_uid == uid || is_null_device(stream) {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(uid)), None) {
            // Its owner is not mapped here, or it lies on a read-only file system, or has no owner
            // that could be set: better as it is than no container.
            Ok(()) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => {}
            Err(errno) => return Err(host(step)(errno)),
        }
    }
    Ok(())
}

/// What is asked for as far as this process has it: "runtimes SHOULD NOT fail if the container
/// configuration requests capabilities that cannot be granted" (config.md, Process).
/// Without a wish the sets stay as they are.
fn final_capabilities(asked: Option<&CapabilitySets>) -> Result<Capabilities> {
    let now = process::capget().map_err(host(|| "read capabilities".to_owned()))?;
    Ok(asked.map_or(now, |asked| {
        let permitted = asked.permitted & now.permitted;
        Capabilities {
            permitted,
            effective: asked.effective & permitted,
            // capset(2): nothing becomes inheritable that is outside of the bounding set.
            inheritable: asked.inheritable & now.permitted & (bounding() | now.inheritable),
        }
    }))
}

fn bounding() -> u64 {
    (0..=process::last_cap())
        .filter(|capability| process::cap_bounding_has(*capability).unwrap_or_default())
        .fold(0, |set, capability| set | 1 << capability)
}

/// The sets until the filter is loaded, which needs CAP_SYS_ADMIN or no_new_privs.
fn with_filter_right(last: Capabilities, plan: &Process) -> Capabilities {
    if plan.seccomp.is_none() || plan.no_new_privs == Toggle::On {
        return last;
    }
    Capabilities {
        effective: last.effective | CAP_SYS_ADMIN,
        permitted: last.permitted | CAP_SYS_ADMIN,
        inheritable: last.inheritable,
    }
}

fn set_capabilities(sets: Capabilities) -> Result<()> {
    let Capabilities {
        effective,
        permitted,
        inheritable,
    } = sets;
    process::capset(&sets).map_err(host(|| {
        format!(
            "set capabilities, effective {effective:#x}, permitted {permitted:#x}, inheritable \
             {inheritable:#x}"
        )
    }))
}

/// Raises ambient capabilities as far as they can be; before Linux 4.3 there are none.
fn raise_ambient(ambient: u64) {
    if process::cap_ambient_clear().is_err() {
        return;
    }
    for capability in
        (0..=process::last_cap()).filter(|capability| ambient & (1 << capability) != 0)
    {
        // EPERM: not permitted and inheritable as well, so it cannot be granted.
        let _ungrantable = process::cap_ambient_raise(capability);
    }
}
