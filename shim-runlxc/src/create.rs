//! What a caller asks for to have a container made, and what is checked before anything is done.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bundle::{Bundle, Plan, PlanContext, Status};
use cgroups::CgroupPaths;
use launch::hooks::{self, Stage};
use launch::plan::{Hook, PidOne, RootEntry, Toggle};

use crate::bring_up::Attempt;
use crate::components::{self, Components};
use crate::container::Container;
use crate::host::{Host, cgroup_view};
use crate::id::ContainerId;
use crate::joined::Joined;
use crate::lxcfs::{self, Lxcfs};
use crate::scope::{self, CgroupManager};
use crate::state_dir::StateDir;
use crate::{Error, Result, agent, host_scripts, image, inherited, progress, stub};

/// A container to make.
#[derive(Debug)]
pub struct Request<'a> {
    /// Absolute path of the state root.
    pub root: &'a Path,
    /// The container's id.
    pub id: &'a ContainerId,
    /// The bundle.
    pub bundle: &'a Bundle,
    /// Descriptors of init.
    pub stdio: Stdio<'a>,
    /// Further descriptors of the caller, from 3 up, that init keeps, as far as they are open.
    pub inherited_fds: u32,
    /// What is added to the environment of config.json.
    pub more_env: Vec<String>,
    /// Off: runc's `--no-new-keyring`.
    pub new_keyring: Toggle,
    /// How the root is entered.
    pub root_entry: RootEntry,
    /// Whose child init becomes.
    pub parent: Parent,
    /// Where a container gets the view of its limits from, if it asks for one.
    pub lxcfs: Lxcfs,
    /// What of the operator's a rich container may have.
    pub components: Components,
    /// Whether it may run without what the kernel lacks of no_new_privs and filters.
    pub hardening_optional: Toggle,
    /// Who makes its cgroups.
    pub cgroup_manager: CgroupManager,
}

/// Standard input, output and error.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// These three.
    Streams([BorrowedFd<'a>; 3]),
    /// A terminal made in the container; its master is returned.
    Terminal,
}

/// Whose child a container's init is once lxc-start is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// This process, which is a subreaper: it must wait for init.
    Us,
    /// A subreaper above us, or the host's pid 1.
    Above,
}

/// A container that was made.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub container: Container,
    /// Init, when its parent is us.
    pub init: Option<Joined>,
    /// The master of its terminal, when one was asked for.
    pub terminal: Option<OwnedFd>,
}

/// Makes a container.
///
/// # Errors
/// [`Error::Exists`], [`Error::Bundle`], [`Error::Inside`] and others; nothing is left then.
pub fn create(host: &Host, request: &Request<'_>) -> Result<Created> {
    let (paths, scope) = scope::place(host, request.bundle, request.id, request.cgroup_manager)?;
    let mut facts = host.facts;
    facts.hardening_optional = request.hardening_optional;
    let inherited_fds = inherited::present(request.inherited_fds)?;
    let mut plan = request.bundle.plan(&PlanContext {
        host: facts,
        preserve_fds: inherited_fds,
        new_keyring: request.new_keyring,
        root_entry: request.root_entry,
        ..context(host, request.id, &paths)
    })?;
    bundle::annotations::refuse_of_machines(&plan.annotations)?;
    components::add(&mut plan, &request.components)?;
    host_scripts::add(&mut plan, &request.components.hooks_root)?;
    let view = lxcfs::bind(&mut plan, &request.lxcfs)?;
    log(request.id.as_str(), &plan.warnings, &plan.notes);
    bundle::capabilities::check_inheritable(&plan.init.process)?;
    if let Some(mode) = plan.annotations.get(bundle::rich::MODE) {
        tracing::info!(container = request.id.as_str(), mode, "rich container");
    }
    plan.init
        .process
        .env
        .extend(request.more_env.iter().cloned());
    check_terminal(request.stdio, &plan)?;
    check_rootfs(Path::new(&plan.init.root.path))?;

    let agent = stay_if_needed(&mut plan.init.pid_one, request.parent);
    let dir = StateDir::create(request.root, request.id)?;
    let attempt = Attempt {
        agent,
        stdio: request.stdio,
        inherited_fds,
        gaps: inherited::gaps(inherited_fds)?,
        parent: request.parent,
        plan: &plan,
        scope,
        view,
        dir: &dir,
        deadline: None,
    };
    progress::make_or_undo(&dir, request.id, |progress| {
        attempt.bring_up(paths, progress)
    })
    .map_err(stub::explain)
}

/// Where this kernel needs it, has pid 1 stay beside a program that would have taken its place. On when
/// pid 1 is to do what the kernel cannot; an image's own init cannot do it.
fn stay_if_needed(pid_one: &mut PidOne, parent: Parent) -> Toggle {
    let needed = agent::is_needed(parent);
    if needed == Toggle::On && *pid_one == PidOne::Program {
        *pid_one = PidOne::stub();
    }
    match pid_one {
        PidOne::Stub { .. } => needed,
        PidOne::Program | PidOne::Systemd(_) | PidOne::SbinInit(_) => Toggle::Off,
    }
}

/// A container as its bundle asks for it, when its processes are not to be made anew.
pub(crate) fn plan(
    host: &Host,
    bundle: &Bundle,
    id: &ContainerId,
    paths: &CgroupPaths,
) -> Result<Plan> {
    Ok(bundle.plan(&context(host, id, paths))?)
}

fn context(host: &Host, id: &ContainerId, paths: &CgroupPaths) -> PlanContext {
    PlanContext {
        id: id.to_string(),
        cgroup_view: cgroup_view(paths),
        host: host.facts,
        preserve_fds: 0,
        new_keyring: Toggle::Off,
        root_entry: RootEntry::Pivot,
        init_of: image::init_of,
    }
}

/// What a plan has to say to the operator, and to whoever looks for a cause.
pub(crate) fn log(container: &str, warnings: &[String], notes: &[String]) {
    for warning in warnings {
        tracing::warn!(container, "{warning}");
    }
    for note in notes {
        tracing::debug!(container, "{note}");
    }
}

pub(crate) fn check_terminal(stdio: Stdio<'_>, plan: &Plan) -> Result<()> {
    let wanted = plan.init.process.terminal.is_some();
    match stdio {
        Stdio::Streams(_) if wanted => Err(Error::Usage(
            "process.terminal is true, but there is nobody to take its terminal".into(),
        )),
        Stdio::Terminal if !wanted => Err(Error::Usage(
            "a terminal was asked for, but process.terminal is not true".into(),
        )),
        _ => Ok(()),
    }
}

/// Early and with the path, instead of as a failed mount inside.
pub(crate) fn check_rootfs(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::Usage(format!(
            "root.path {} is not a directory",
            path.display()
        ))),
        Err(e) => Err(Error::on("stat root.path", path)(e)),
    }
}

/// The hooks of the host's side before the container's own.
pub(crate) fn host_hooks(plan: &Plan, pid: i32) -> Result<()> {
    if !has_host_hooks(plan) {
        return Ok(());
    }
    let state = plan.state(Status::Creating, pid);
    hooks::run_all(&plan.hooks_prestart, &state, Stage::Prestart)?;
    hooks::run_all(&plan.hooks_create_runtime, &state, Stage::CreateRuntime)?;
    Ok(())
}

/// Whether there are hooks for [`host_hooks`].
pub(crate) fn has_host_hooks(plan: &Plan) -> bool {
    !plan.hooks_prestart.is_empty() || !plan.hooks_create_runtime.is_empty()
}

/// A limit for something that runs hooks too; one without a timeout of its own gets an hour.
pub(crate) fn with_hooks(limit: Duration, hooks: &[Hook]) -> Duration {
    const UNLIMITED_S: u32 = 3600;
    let seconds = hooks
        .iter()
        .map(|hook| u64::from(hook.timeout_s.unwrap_or(UNLIMITED_S)));
    limit + Duration::from_secs(seconds.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_lengthen_a_limit() {
        let hook = |timeout_s| Hook {
            path: "/x".into(),
            args: vec![],
            env: vec![],
            timeout_s,
        };
        let limit = Duration::from_secs(30);
        assert_eq!(with_hooks(limit, &[]), limit);
        assert_eq!(
            with_hooks(limit, &[hook(Some(5)), hook(None)]),
            Duration::from_secs(3635)
        );
    }
}
