//! Undoing a container, from its journal alone: after kill -9 of anything, and more than once.

use std::path::Path;
use std::time::Instant;

use bundle::{State, Status};
use cgroups::Cgroup;
use launch::hooks::{self, Place, Stage};
use sys::Signal;

use crate::container::{Container, KILL_LIMIT};
use crate::id::ContainerId;
use crate::journal::Journal;
use crate::scope::{Holder, Scope, ScopeState};
use crate::state_dir::StateDir;
use crate::{Error, Result, lxc, rich_hooks, traffic, wait};

/// What to do with a container that still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// Refuse.
    Refuse,
    /// Kill it. Nothing there is success.
    Kill,
}

/// Removes the container `id` below the state root; one that was never started is killed.
///
/// # Errors
/// [`Error::NotFound`], [`Error::State`] for one that runs, [`Error::Leftover`].
pub fn delete(root: &Path, id: &ContainerId, running: Running) -> Result<()> {
    delete_by(root, id, running, None)
}

/// As [`delete`]; the poststop hook of a rich container is over or killed at `deadline`.
///
/// # Errors
/// As [`delete`].
pub(crate) fn delete_by(
    root: &Path,
    id: &ContainerId,
    running: Running,
    deadline: Option<Instant>,
) -> Result<()> {
    let container = match Container::open(root, id) {
        Ok(container) => container,
        Err(Error::NotFound) => return no_journal(root, id, running),
        Err(error) => return Err(error),
    };
    let status = container.status()?;
    if running == Running::Refuse && !matches!(status, Status::Stopped | Status::Created) {
        return Err(Error::State(format!(
            "cannot delete container {id} that is not stopped: {}",
            status.as_str()
        )));
    }
    undo_by(&container.dir, &container.journal, deadline)
}

/// A directory whose creator died before the first word of its journal: nothing else was done.
fn no_journal(root: &Path, id: &ContainerId, running: Running) -> Result<()> {
    let dir = StateDir::at(root, id);
    // Seeing no lock is not enough: a creator may come between that and the removal, or be done.
    if dir.exists()
        && !dir.is_locked()?
        && let Ok(locked) = dir.lock()
        && dir.is(&locked)
        && matches!(Container::open(root, id), Err(Error::NotFound))
    {
        dir.remove()?;
    }
    match running {
        Running::Kill => Ok(()),
        Running::Refuse => Err(Error::NotFound),
    }
}

impl Container {
    /// Kills what is left, runs what a rich container has for its end, removes it all, runs poststop
    /// hooks.
    ///
    /// # Errors
    /// [`Error::Leftover`]; what could be removed was. It can be tried again.
    pub fn delete(&self) -> Result<()> {
        undo(&self.dir, &self.journal)
    }
}

/// As [`Container::delete`]. Tries every step, whatever the ones before it said.
pub(crate) fn undo(dir: &StateDir, journal: &Journal) -> Result<()> {
    undo_by(dir, journal, None)
}

/// As [`undo`]; what can be cut short is over at `deadline`.
pub(crate) fn undo_by(dir: &StateDir, journal: &Journal, deadline: Option<Instant>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut left = Vec::new();
    let mut note = |done: Result<()>| {
        if let Err(error) = done {
            left.push(error.chain());
        }
    };
    match kill_init(journal).and_then(|()| rich_hooks::end(dir, journal, deadline)) {
        // Another has removed it meanwhile, and its id may be that of a new one.
        Err(Error::NotFound) => return Ok(()),
        ended => note(ended),
    }
    note(traffic::lift(dir));
    note(remove_own(journal, deadline));
    if let Some(class) = &journal.resctrl {
        note(class.remove().map_err(Error::from));
    }
    if let Some(shared) = &journal.shared_mounts {
        note(shared.undo(&journal.rootfs));
    }
    note(remove_lxc_cgroups(journal));
    note(lxc::remove_locks());
    if !left.is_empty() {
        return Err(Error::Leftover { what: left });
    }
    dir.remove()?;
    poststop(journal);
    Ok(())
}

fn kill_init(journal: &Journal) -> Result<()> {
    let Some(init) = journal.init else {
        return lxc::kill_strays(&journal.lxc_name);
    };
    init.kill()?;
    let cgroup = Cgroup::from_paths(journal.cgroup.clone());
    if cgroup.is_frozen()? {
        cgroup.thaw()?; // Frozen by version 1, it would not die.
    }
    wait::until_ended(init, KILL_LIMIT)
}

fn remove_own(journal: &Journal, deadline: Option<Instant>) -> Result<()> {
    let cgroup = Cgroup::from_paths(journal.cgroup.clone());
    if let Some(scope) = &journal.scope {
        return remove_scope(scope, &cgroup, deadline);
    }
    if journal.has_entered() {
        cgroup.kill_all(Signal::SIGKILL as i32)?;
    } else if cgroup.is_in_use()? {
        return Ok(()); // Nobody of ours was ever in it, or froze it: it is somebody else's.
    }
    Ok(cgroup.delete()?)
}

/// The scope before its directories: systemd takes those of its own away.
fn remove_scope(scope: &Scope, cgroup: &Cgroup, deadline: Option<Instant>) -> Result<()> {
    let ended = scope.end(cgroup, deadline);
    let deleted = match (&ended, scope.state) {
        // What systemd keeps is the other's, also where nobody is in it yet.
        (Ok(Holder::Another), ScopeState::Ours) => {
            let own = cgroups::ScopeName::without_systemds(cgroup.paths());
            Cgroup::from_paths(own).delete().map_err(Error::from)
        }
        (_, ScopeState::Ours) | (Ok(Holder::Ours), _) => cgroup.delete().map_err(Error::from),
        // Nothing was made.
        _ => Ok(()),
    };
    ended.and(deleted)
}

/// Removes the cgroups that LXC made, with a monitor that outlived its maker.
pub(crate) fn remove_lxc_cgroups(journal: &Journal) -> Result<()> {
    for paths in journal.lxc_paths() {
        let cgroup = Cgroup::from_paths(paths);
        if !cgroup.procs()?.is_empty() {
            cgroup.kill_all(Signal::SIGKILL as i32)?;
        }
        cgroup.delete()?;
    }
    Ok(())
}

/// runtime-spec runtime.md, Lifecycle: a failed poststop hook is logged, and the others run.
fn poststop(journal: &Journal) {
    if journal.hooks_poststop.is_empty() {
        return;
    }
    let state = State {
        oci_version: bundle::state::OCI_VERSION,
        id: &journal.id,
        status: Status::Stopped,
        pid: 0,
        bundle: &journal.bundle,
        annotations: &journal.annotations,
    };
    let state = state.to_json();
    for (index, hook) in journal.hooks_poststop.iter().enumerate() {
        let place = Place {
            stage: Stage::Poststop,
            index: Some(index),
        };
        if let Err(error) = hooks::run(hook, &state, place) {
            tracing::warn!(container = %journal.id, error = %Error::from(error).chain(), "poststop hook failed");
        }
    }
}
