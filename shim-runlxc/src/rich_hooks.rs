//! Hooks of a rich container: what runs in it before its program, and over its root and mounts after
//! its end.
//!
//! ```text
//!   start   a note that poststop is due ──> prestart: an exec of the created container ──> program
//!   end     all is killed ──> a container of its own, from the same plan, below the state directory
//!           ──> the note goes ──> poststop ──> that container is deleted
//! ```
//! The note goes just before the hook runs: whoever is killed, it runs once, or was killed itself.
//! What a killed end has left below the state directory, the next one removes first.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bundle::rich::hooks::{self, Command, OnFailure};
use bundle::traffic::{EGRESS, INGRESS};
use bundle::{Namespace, NamespaceKind, Plan, names};
use cgroups::{Cgroup, Resources};
use launch::plan::{PidOne, PlannedMount};
use nix::fcntl::Flock;
use sys::{ExitStatus, Pid, Signal};

use crate::bring_up::Attempt;
use crate::container::{CREATE_LIMIT, Container, KILL_LIMIT};
use crate::create::{Created, Parent, Stdio};
use crate::exec::{self, Paused};
use crate::hook_output::{self, End};
use crate::id::ContainerId;
use crate::joined::Joined;
use crate::journal::Journal;
use crate::process::{Liveness, ProcessId};
use crate::scope::Scope;
use crate::state_dir::StateDir;
use crate::{Error, Result, agent, components, delete, host_scripts, progress, stub, wait};

/// How long another start or end of the same container may take beside the time of its hook.
const OTHER_END_MAX: Duration = CREATE_LIMIT;

/// With less time than that a poststop hook is not begun: it takes a container first.
const HOOK_LEAST: Duration = Duration::from_millis(500);

/// How much of a command its failure repeats.
const COMMAND_CHARS_MAX: usize = 80;

/// The streams of a hook.
struct Streams {
    null: File,
    output: OwnedFd,
    theirs: OwnedFd,
}

impl Streams {
    fn new() -> Result<Self> {
        let path = Path::new("/dev/null");
        let null = File::open(path).map_err(Error::on("open", path))?;
        let (output, theirs) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
        Ok(Self {
            null,
            output,
            theirs,
        })
    }

    fn lend(&self) -> Stdio<'_> {
        let theirs = self.theirs.as_fd();
        Stdio::Streams([self.null.as_fd(), theirs, theirs])
    }

    /// Reads what the hook says until it ends; then no process of ours holds its end any more.
    fn follow(self, child: Option<&mut Joined>, limit: Duration) -> Result<Ended> {
        let Self { output, theirs, .. } = self;
        drop(theirs);
        let (end, said) = hook_output::follow(&output, child, limit)?;
        Ok(Ended { end, said, limit })
    }
}

/// How a hook went.
struct Ended {
    end: End,
    said: hook_output::Said,
    limit: Duration,
}

impl Ended {
    /// Logs what it said; an error unless all went well.
    fn judge(&self, journal: &Journal, key: &'static str, command: &Command) -> Result<()> {
        self.said.log(&journal.id, key);
        let what = match self.end {
            End::Exit(ExitStatus::Exited(0)) | End::Unknown => return Ok(()),
            End::Exit(status) => launch::hooks::status_words(status),
            End::Timeout => format!("it still ran after {:?} and was killed", self.limit),
        };
        Err(failed(key, command, what + &self.said.last_words()))
    }
}

fn failed(key: &'static str, command: &Command, what: String) -> Error {
    Error::RichHook {
        key,
        command: words(&command.args)
            .chars()
            .take(COMMAND_CHARS_MAX)
            .collect(),
        what,
    }
}

/// A command as its annotation has it.
fn words(args: &[String]) -> String {
    match args {
        [shell, option, line] if shell == "/bin/sh" && option == "-c" => line.clone(),
        args => args.join(" "),
    }
}

/// Keeps the plan of a container for its hooks, if it has any.
pub(crate) fn keep_plan(dir: &StateDir, plan: &Plan) -> Result<()> {
    if plan.rich_hooks.is_none() {
        return Ok(());
    }
    let path = dir.path().join(names::PLAN);
    let text = serde_json::to_vec(plan).map_err(|e| Error::on("write", &path)(e.into()))?;
    StateDir::write(&path, &text)
}

fn read_plan(dir: &StateDir) -> Result<Plan> {
    let path = dir.path().join(names::PLAN);
    let text = std::fs::read(&path).map_err(Error::on("read", &path))?;
    serde_json::from_slice(&text).map_err(|e| Error::on("read", &path)(e.into()))
}

/// There while poststop is due.
fn note(dir: &StateDir) -> PathBuf {
    dir.path().join(names::POSTSTOP_DUE)
}

impl Container {
    /// With hooks one `start` at a time, so that they run once for each.
    ///
    /// # Errors
    /// [`Error::State`] for another one.
    pub(crate) fn only_start(&self) -> Result<Option<Flock<File>>> {
        if self.journal.rich_hooks.is_none() {
            return Ok(None);
        }
        match self.dir.lock() {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => Err(
                Error::State("cannot start a container that is being started".into()),
            ),
            locked => locked.map(Some),
        }
    }

    /// Runs the prestart hook in the created container.
    ///
    /// # Errors
    /// [`Error::RichHook`] when it failed and that is to fail the start.
    pub(crate) fn prestart(&self) -> Result<()> {
        if self.journal.rich_hooks.poststop.is_some() {
            StateDir::write(&note(&self.dir), b"")?;
        }
        let Some(command) = &self.journal.rich_hooks.prestart else {
            return Ok(());
        };
        let done = self.run_prestart(command);
        match (done, command.on_failure) {
            (Err(error), OnFailure::Warn) => {
                let (container, error) = (&self.journal.id, error.chain());
                tracing::warn!(%container, error, "prestart hook failed, the start goes on");
                Ok(())
            }
            (done, _) => done,
        }
    }

    fn run_prestart(&self, command: &Command) -> Result<()> {
        self.end_earlier_prestart()?;
        let plan = read_plan(&self.dir)?;
        let streams = Streams::new()?;
        let cannot = |error: Error| {
            let what = format!("cannot run: {}", error.chain());
            failed(hooks::PRESTART, command, what)
        };
        let prepared = self.exec(&exec::Request {
            process: command.process(&plan.init.process),
            stdio: streams.lend(),
            paused: Paused::Refuse,
        });
        let prepared = prepared.map_err(cannot)?;
        // Before it runs: until then its end is that of this process.
        self.keep_prestart(prepared.child.pid())?;
        let (mut child, _no_terminal) = prepared.start().map_err(cannot)?;
        let limit = Duration::from_secs(command.timeout_s.into());
        let ended = streams.follow(Some(&mut child), limit)?;
        if ended.end == End::Timeout {
            end_group(&mut child)?;
        }
        ended.judge(&self.journal, hooks::PRESTART, command)
    }

    fn keep_prestart(&self, pid: Pid) -> Result<()> {
        let path = self.dir.path().join(names::PRESTART_RUNS);
        let text = serde_json::to_vec(&ProcessId::of(pid.as_raw())?);
        StateDir::write(
            &path,
            &text.map_err(|e| Error::on("write", &path)(e.into()))?,
        )
    }

    /// Ends the hook of a `start` that was killed; at `delete` it ends with the container.
    fn end_earlier_prestart(&self) -> Result<()> {
        let path = self.dir.path().join(names::PRESTART_RUNS);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            text => text.map_err(Error::on("read", &path))?,
        };
        // Cut off by the kill: then it never ran.
        let Ok(hook) = serde_json::from_slice::<ProcessId>(&text) else {
            return Ok(());
        };
        if hook.liveness()? == Liveness::Alive {
            kill_group(hook.as_pid());
        }
        wait::until_ended(hook, KILL_LIMIT)
    }

    /// Runs the poststop hook now, after init's end, if it is due; without an error when it is not.
    ///
    /// # Errors
    /// What could not be removed afterwards.
    pub(crate) fn poststop(&self) -> Result<()> {
        end(&self.dir, &self.journal, None)
    }
}

/// Ends a hook with all that is still in its session's first process group.
fn end_group(child: &mut Joined) -> Result<()> {
    kill_group(child.pid());
    let wait = child.wait_timeout(KILL_LIMIT);
    wait.map(drop).map_err(Error::io("wait for a killed hook"))
}

fn kill_group(leader: Pid) {
    let group = Pid::from_raw(-leader.as_raw());
    // ESRCH: it has ended meanwhile.
    let _ended = sys::process::kill_number(group, Signal::SIGKILL as i32);
}

/// After the end of init: takes away what an end before this one has left, and runs the poststop hook
/// if it is due, until `deadline` at most. Its failure is logged.
///
/// # Errors
/// What could not be removed; [`Error::NotFound`] when another has removed the container meanwhile.
pub(crate) fn end(dir: &StateDir, journal: &Journal, deadline: Option<Instant>) -> Result<()> {
    let Some(command) = &journal.rich_hooks.poststop else {
        return Ok(());
    };
    let below = StateDir::at(dir.path(), &ContainerId::parse(names::POSTSTOP)?);
    // Whoever undoes a container that was not started may hold its lock.
    if !note(dir).exists() && !below.exists() {
        return Ok(());
    }
    let timeout = Duration::from_secs(command.timeout_s.into());
    let limit = wait::within(deadline, timeout + OTHER_END_MAX);
    let alone = match dir.lock_within(limit) {
        _ if !dir.exists() => return Err(Error::NotFound),
        locked => locked?,
    };
    if alone.as_ref().is_some_and(|locked| !dir.is(locked)) {
        return Err(Error::NotFound);
    }
    undo_below(&below, deadline)?;
    if !note(dir).exists() {
        return Ok(());
    }
    if alone.is_none() || wait::within(deadline, HOOK_LEAST) < HOOK_LEAST {
        let container = &journal.id;
        tracing::warn!(%container, "poststop hook does not run: no time is left for it");
        return Ok(());
    }
    end_processes(journal, deadline)?;
    if let Err(error) = run_poststop(dir, journal, command, deadline) {
        let (container, error) = (&journal.id, error.chain());
        tracing::warn!(%container, error, "poststop hook failed");
    }
    undo_below(&below, deadline)
}

/// What is left of the container's own. A scope ends with its last process, and what is made meanwhile would go
/// with it: its end is waited for.
fn end_processes(journal: &Journal, deadline: Option<Instant>) -> Result<()> {
    let cgroup = Cgroup::from_paths(journal.cgroup.clone());
    match &journal.scope {
        Some(scope) => scope.end(&cgroup, deadline).map(drop),
        None => Ok(cgroup.kill_all(Signal::SIGKILL as i32)?),
    }
}

/// Removes the container that a poststop hook ran in, however far it came.
fn undo_below(below: &StateDir, deadline: Option<Instant>) -> Result<()> {
    match Journal::read(below) {
        Ok(left) => delete::undo_by(below, &left, deadline),
        Err(Error::NotFound) => below.remove(),
        Err(error) => Err(error),
    }
}

fn run_poststop(
    dir: &StateDir,
    journal: &Journal,
    command: &Command,
    deadline: Option<Instant>,
) -> Result<()> {
    let mut plan = read_plan(dir)?;
    let mut paths = journal.cgroup.clone();
    // What is above it is the container's to remove.
    paths.dirs.iter_mut().for_each(|dir| dir.made.clear());
    let cgroup = Cgroup::from_paths(paths.clone());
    if matches!(plan.init.pid_one, PidOne::Systemd(_)) {
        // Version 2 lets nobody into one whose cgroups below have controllers.
        cgroup.delete()?;
    }
    if journal.scope.is_none() && cgroup.exists() {
        // It has its limits, as they were changed meanwhile; a scope is a new one.
        plan.resources = Resources::default();
    }
    leave_view(&mut plan, journal);
    reshape(&mut plan, command);
    // Before Linux 3.4 its pid 1 tells its status.
    let agent = agent::is_needed(Parent::Us);
    let id = ContainerId::parse(names::POSTSTOP)?;
    let below = StateDir::create(dir.path(), &id)?;
    let streams = Streams::new()?;
    let attempt = Attempt {
        stdio: streams.lend(),
        inherited_fds: 0,
        gaps: Vec::new(),
        parent: Parent::Us,
        plan: &plan,
        scope: journal.scope.as_ref().map(Scope::anew),
        view: None,
        dir: &below,
        agent,
        deadline,
    };
    let made = progress::make_or_undo(&below, &id, |progress| {
        progress.deadline = deadline;
        attempt.bring_up(paths, progress)
    });
    let made = made.map_err(stub::explain);
    let cannot = |error: Error| {
        let what = format!("cannot run: {}", error.chain());
        failed(hooks::POSTSTOP, command, what)
    };
    let Created {
        mut container,
        mut init,
        ..
    } = made.map_err(cannot)?;
    let usual = Duration::from_secs(container.journal.start_limit_s);
    container.journal.start_limit_s = wait::within(deadline, usual).as_secs().max(1);
    // From here on it has run: half of it twice would be worse than half of it once.
    let note = note(dir);
    std::fs::remove_file(&note).map_err(Error::on("remove", &note))?;
    container.start().map_err(cannot)?;
    let timeout = Duration::from_secs(command.timeout_s.into());
    let limit = wait::within(deadline, timeout);
    let ended = streams.follow(init.as_mut(), limit)?;
    ended.judge(journal, hooks::POSTSTOP, command)
}

/// From a container to one that is the same around another program, and has no hooks.
fn reshape(plan: &mut Plan, command: &Command) {
    plan.hooks_prestart.clear();
    plan.hooks_create_runtime.clear();
    plan.hooks_poststart.clear();
    plan.hooks_poststop.clear();
    plan.init.create_container_hooks.clear();
    plan.init.start_container_hooks.clear();
    plan.rich_hooks = hooks::Hooks::default();
    plan.ready = None;
    // Its network may be new and empty, and the limits of one that stays are there.
    for limit in [INGRESS, EGRESS] {
        plan.annotations.remove(limit);
    }
    // Links of the host went with its network, and its class of resctrl is there as it is now.
    plan.net_devices.clear();
    if let Some(wanted) = &mut plan.intel_rdt {
        wanted.shared.clear();
        wanted.schemata.clear();
        wanted.is_monitored = false;
    }
    // A component's directory may be gone, and nobody starts it here; so may another hook's script.
    plan.init.mounts.retain(|planned| {
        !components::is_mount(planned) && !host_scripts::is_of_another(planned, command)
    });
    plan.init.process = command.process(&plan.init.process);
    plan.init.pid_one = PidOne::stub();
    plan.namespaces.iter_mut().for_each(renew);
}

/// lxcfs may be gone by now.
fn leave_view(plan: &mut Plan, journal: &Journal) {
    let Some(view) = &journal.view else { return };
    let is_of_lxcfs = |planned: &PlannedMount| match planned {
        PlannedMount::Plain(mount) => Path::new(&mount.source).starts_with(&view.root),
        PlannedMount::Cgroup { .. } => false,
    };
    plan.init.mounts.retain(|planned| !is_of_lxcfs(planned));
}

/// A namespace of a process may be gone, and its number another's: it gets a new one. Files that
/// stand for a namespace are what they were.
fn renew(namespace: &mut Namespace) {
    let is_lasting = |path: &PathBuf| !path.starts_with("/proc") && path.exists();
    if namespace.kind != NamespaceKind::User && !namespace.path.as_ref().is_some_and(is_lasting) {
        namespace.path = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_as_it_was_written() {
        let args = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
        for (command, named) in [
            (
                args(&["/opt/pre.sh", "--db", "main"]),
                "/opt/pre.sh --db main",
            ),
            (args(&["/bin/sh", "-c", "exit 3"]), "exit 3"),
            (args(&["/bin/sh", "/opt/pre.sh"]), "/bin/sh /opt/pre.sh"),
            (
                args(&["/opt/é", &"x".repeat(100)]),
                &format!("/opt/é {}", "x".repeat(73)),
            ),
        ] {
            let command = Command {
                script: None,
                args: command,
                timeout_s: 1,
                on_failure: OnFailure::Fail,
            };
            let said = failed(hooks::PRESTART, &command, "exit status 1".to_owned()).to_string();
            assert!(said.contains(&format!("({named:?})")), "{said}");
        }
    }

    #[test]
    fn namespaces_of_processes_are_made_anew_and_files_that_last_are_joined() {
        let temp = tempfile::tempdir().unwrap();
        let lasting = temp.path().join("net");
        std::fs::write(&lasting, "").unwrap();
        let own = PathBuf::from("/proc/self/ns/net");
        for (kind, path, expected) in [
            (NamespaceKind::Network, None, None),
            (NamespaceKind::Network, Some(own.clone()), None),
            (NamespaceKind::Network, Some(temp.path().join("x")), None),
            (NamespaceKind::Network, Some(lasting.clone()), Some(lasting)),
            (NamespaceKind::User, Some(own.clone()), Some(own)),
        ] {
            let mut namespace = Namespace { kind, path };
            renew(&mut namespace);
            assert_eq!(namespace.path, expected);
        }
    }
}
