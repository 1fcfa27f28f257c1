//! A process that joins a running container, from its start on the host to execve.
//!
//! ```text
//!   first process: cgroups, plan, namespaces, fork as sibling, end
//!   second one, inside: Hello, terminal, labels, user's rights, program found, Ready
//!                       Start: limits, filter, execve
//! ```
//! The second is a child of whoever started the first, so its status goes there. Where pid 1 forks
//! the second (`agent.rs`), there is no first. Must not touch the container's files but for its terminal.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir};
use sys::process::Fork;

use crate::agent::Newcomer;
use crate::cgroups;
use crate::control::{self, FromStub, ToStub};
use crate::error::{Error, Result, host};
use crate::given::become_root;
use crate::init::{End, new_session, shield, tell};
use crate::labels;
use crate::plan::{ExecPlan, JoinNamespace};
use crate::process::{self, Prepared};
use crate::procfs::Proc;
use crate::terminal::Terminal;

/// Runs a joining process with the socket it was started with; does not return in the process
/// that becomes the program.
///
/// # Errors
/// What could not be told to the host side.
pub fn run(control_fd: RawFd) -> Result<End> {
    let control = sys::take_inherited_fd(control_fd)
        .map_err(host(|| format!("take over descriptor {control_fd}")))?;
    let received = match cgroups::await_plan(&control) {
        Ok(Some(received)) => received,
        Ok(None) => return Ok(End::Abandoned),
        Err(error) => return tell(&control, &error),
    };
    let ToStub::Exec(plan) = received.message else {
        return tell(
            &control,
            &Error::Unexpected("instead of a plan for a joining process"),
        );
    };
    let proc = match join(&plan) {
        Ok((Fork::Parent(_), _)) => return Ok(End::Forked),
        Ok((Fork::Child, proc)) => proc,
        Err(error) => return tell(&control, &error),
    };
    become_program(&control, &plan, proc)
}

/// Runs a joining process that pid 1 has forked, so that it stands in the namespaces already; does
/// not return in the process that becomes the program.
pub(crate) fn run_inside(newcomer: Newcomer) -> Result<End> {
    let (control, proc) = newcomer.equip()?;
    let Some(received) = control::recv::<ToStub>(&control)? else {
        return Ok(End::Abandoned);
    };
    let ToStub::Exec(plan) = received.message else {
        return tell(
            &control,
            &Error::Unexpected("instead of a plan for a joining process"),
        );
    };
    match shield(&proc, &plan.process) {
        Ok(()) => become_program(&control, &plan, proc),
        Err(error) => tell(&control, &error),
    }
}

/// From the first word in the container to execve.
fn become_program(control: &OwnedFd, plan: &ExecPlan, proc: Proc) -> Result<End> {
    control::send(control, &FromStub::Hello, &[])?;
    let (prepared, master) = match set_up(plan, proc) {
        Ok(ready) => ready,
        Err(error) => return tell(control, &error),
    };
    let masters: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    control::send(control, &FromStub::Ready, &masters)?;
    drop(master);
    let Some(received) = control::recv::<ToStub>(control)? else {
        return Ok(End::Abandoned);
    };
    if received.message != ToStub::Start {
        return tell(control, &Error::Unexpected("instead of a start"));
    }
    let error = prepared
        .commit_before(control)
        .err()
        .unwrap_or_else(|| prepared.execute());
    tell(control, &error)
}

/// Enters all namespaces and forks into the last of them, that of pids; gives the procfs of the
/// host side too.
fn join(plan: &ExecPlan) -> Result<(Fork, Proc)> {
    sys::close_inherited_from(process::first_unwanted_fd(&plan.process))
        .map_err(host(|| "close what was left open".to_owned()))?;
    let proc = Proc::open()?;
    shield(&proc, &plan.process)?;
    // All are opened while their paths mean what the host side meant.
    let mut left = plan
        .namespaces
        .iter()
        .map(open)
        .collect::<Result<Vec<_>>>()?;
    let open_root = |path| {
        let root = File::open(path).map_err(host(|| format!("open {path}")));
        root.map(OwnedFd::from)
    };
    let root = plan.root.as_ref().map(open_root).transpose()?;
    let user = left
        .iter()
        .position(|namespace| namespace.flag == CloneFlags::CLONE_NEWUSER);
    if let Some(user) = user.map(|at| left.remove(at)) {
        // Those that the container's user namespace does not own can only be joined before it,
        // those that it owns before or after it (as runc does).
        left = enter_permitted(left)?;
        user.enter().map_err(|errno| user.refused(errno))?;
        become_root()?;
    }
    for namespace in &left {
        namespace
            .enter()
            .map_err(|errno| namespace.refused(errno))?;
    }
    if let Some(root) = &root {
        enter_root(root)?;
    }
    let side =
        sys::process::clone_parent().map_err(host(|| "fork into the container".to_owned()))?;
    Ok((side, proc))
}

/// A namespace to enter.
struct Namespace<'a> {
    file: OwnedFd,
    flag: CloneFlags,
    path: &'a str,
}

fn open(namespace: &JoinNamespace) -> Result<Namespace<'_>> {
    let JoinNamespace { flag, path } = namespace;
    let file = File::open(path).map_err(host(|| format!("open namespace {path}")))?;
    Ok(Namespace {
        file: file.into(),
        flag: CloneFlags::from_bits_retain(*flag),
        path,
    })
}

impl Namespace<'_> {
    fn enter(&self) -> nix::Result<()> {
        setns(&self.file, self.flag)
    }

    fn refused(&self, errno: Errno) -> Error {
        host(|| format!("join namespace {}", self.path))(errno)
    }
}

/// Enters what it may; gives those that have to wait for the user namespace.
fn enter_permitted(namespaces: Vec<Namespace<'_>>) -> Result<Vec<Namespace<'_>>> {
    let mut waiting = Vec::new();
    for namespace in namespaces {
        match namespace.enter() {
            Ok(()) => {}
            Err(Errno::EPERM) => waiting.push(namespace),
            Err(errno) => return Err(namespace.refused(errno)),
        }
    }
    Ok(waiting)
}

/// Enters the container's root where its mount namespace has another one.
fn enter_root(root: &OwnedFd) -> Result<()> {
    fchdir(root)
        .and_then(|()| chroot("."))
        .map_err(host(|| "enter the container's root".to_owned()))
}

/// Everything before the program that only the start waits for.
fn set_up(plan: &ExecPlan, proc: Proc) -> Result<(Prepared<'_>, Option<OwnedFd>)> {
    new_session()?;
    process::new_keyring(&plan.process, &proc)?;
    labels::set_for_program(&proc, &plan.process.labels)?;
    // The last descriptor of the host's tree: the program must not be found by way of it.
    drop(proc);
    let terminal = plan.process.terminal.map(Terminal::open).transpose()?;
    let master = terminal.map(Terminal::wear).transpose()?;
    Ok((process::prepare(&plan.process)?, master))
}
