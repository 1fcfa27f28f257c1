//! From a plan to an init that waits for `start`.
//!
//! ```text
//!   journal ─> lxc-start ─────────> Hello ─> Enter ─> Init(plan) ─> Furnished ─> hooks ─> Ready ─> created
//!                 └─ meanwhile: cgroups │                  └─ meanwhile: LXC's leavings
//!                                       └─ lxc-start is killed, init is ours or the caller's
//! ```
//! Whatever fails, `progress.rs` undoes all of it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use bundle::{NamespaceKind, Plan, TimeOffset, names};
use cgroups::{Cgroup, CgroupPaths, Layout};
use launch::control::{Given, ToStub};
use launch::plan::{PlannedMount, Toggle};
use mounts::Mount;
use mounts::flags::SHARED;
use sys::{Child, Signal};

use crate::channel::Channel;
use crate::container::{CREATE_LIMIT, Container, KILL_LIMIT, LXC_LIMIT};
use crate::create::{Parent, Stdio, with_hooks};
use crate::delete;
use crate::furnish::{self, Furnishing};
use crate::joined::Joined;
use crate::journal::{Journal, Phase};
use crate::lxc::{self, LockFolders, Lxc, Mounts, Start};
use crate::lxc_config::{self, Rendered};
use crate::lxcfs::View;
use crate::process::{ProcessId, children_of, parent_of};
use crate::progress::Progress;
use crate::scope::{self, Scope};
use crate::shared_mounts::{self, SharedMounts};
use crate::state_dir::StateDir;
use crate::{Error, Result, inherited, out_of_memory, priority, resctrl, rich_hooks, stub, wait};

/// One try to make a container, with the state directory made.
pub(crate) struct Attempt<'a> {
    /// Descriptors of init.
    pub(crate) stdio: Stdio<'a>,
    /// Further ones from 3 up.
    pub(crate) inherited_fds: u32,
    /// The numbers among them under which there is none.
    pub(crate) gaps: Vec<i32>,
    /// Whose child init becomes.
    pub(crate) parent: Parent,
    pub(crate) plan: &'a Plan,
    /// The scope of systemd that its cgroup is to be.
    pub(crate) scope: Option<Scope>,
    pub(crate) view: Option<View>,
    pub(crate) dir: &'a StateDir,
    /// Whether pid 1, which stays then, starts execs and tells its end.
    pub(crate) agent: Toggle,
    /// No wait for LXC or for init goes beyond it.
    pub(crate) deadline: Option<Instant>,
}

/// What lxc-start is run with.
struct Tools {
    lxc: Lxc,
    stub: stub::Program,
    rendered: Rendered,
    mounts: Mounts,
}

impl Attempt<'_> {
    /// Gives the container and the master of its terminal.
    pub(crate) fn bring_up(
        &self,
        paths: CgroupPaths,
        progress: &mut Progress,
    ) -> Result<(Container, Option<OwnedFd>)> {
        let lxc = Lxc::find(Path::new(lxc::VERSION_CACHE))?;
        let name = lxc_config::name_of(self.dir.path());
        let tools = self.tools(lxc, &name, paths.layout)?;
        let Progress {
            journal,
            monitor,
            init: child,
            ..
        } = progress;
        let journal = journal.insert(Journal {
            lxc_cgroups: tools.rendered.cgroups.clone(),
            view: self.view.clone(),
            resctrl: resctrl::class(self.plan)?,
            shared_mounts: SharedMounts::of(self.plan)?,
            scope: self.scope.clone(),
            ..Journal::of(self.plan, name, paths)
        });
        journal.write(self.dir)?;
        self.keep_for_later()?;

        // Before lxc-start, which speaks on the program's stderr when it is ended early.
        let cgroup = self.cgroup(journal)?;
        let (mut channel, theirs) = Channel::pair("lxc-start", self.limit(LXC_LIMIT))?;
        let coming_up = LockFolders::in_use();
        // These words are runc's, for whoever reads its log.
        tracing::debug!(lxc = %tools.lxc.version, "nsexec container setup by lxc-start");
        let monitor = monitor.insert(self.start_lxc(tools, &journal.lxc_name, theirs)?);
        self.limit_unless_scope(&cgroup, journal)?;
        let pid = self.hello(&mut channel, monitor)?;
        drop(coming_up);
        tracing::debug!(pid = pid.as_raw(), "child process in init()");

        let init = ProcessId::of(pid.as_raw())?;
        priority::classify(self.plan, || Ok(vec![init.pid]), journal)?;
        if self.parent == Parent::Us {
            // Before its parent dies, so that no reaper takes it for a stray orphan.
            *child = Some(self.adopt(init, &channel)?);
        }
        monitor
            .kill(Signal::SIGKILL)
            .map_err(Error::io("kill lxc-start"))?;
        journal.init = Some(init);
        journal.write(self.dir)?;
        self.enter_scope(&cgroup, journal, init)?;
        cgroup.attach_unified(init.as_pid())?;
        let explain = |error| self.explain(&cgroup, error);
        channel.wait_for(
            "the stub's word that it is in its cgroups",
            self.limit(LXC_LIMIT),
        );
        channel
            .enter("the stub", &cgroup.open_tasks()?)
            .map_err(explain)?;
        self.send_plan(&mut channel, journal, init)
            .map_err(explain)?;
        self.clean_up_behind(monitor, journal)?;
        let furnishing = Furnishing {
            plan: self.plan,
            init: init.pid,
            stdio: self.stdio,
            limit: self.set_up_limit(),
        };
        let terminal = furnishing.serve(&mut channel).map_err(explain)?;
        tracing::debug!("init: closing the pipe to signal completion");
        journal.phase = Phase::Created;
        journal.write(self.dir)?;
        let (dir, journal) = (self.dir.clone(), journal.clone());
        Ok((
            Container {
                dir,
                journal,
                cgroup,
            },
            terminal,
        ))
    }

    /// LXC, while the stub is at work.
    fn clean_up_behind(&self, monitor: &mut Child, journal: &Journal) -> Result<()> {
        await_end(monitor, self.limit(KILL_LIMIT))?;
        delete::remove_lxc_cgroups(journal)
    }

    fn explain(&self, cgroup: &Cgroup, error: Error) -> Error {
        out_of_memory::explain(cgroup, self.plan.resources.memory.limit, error)
    }

    /// Its cgroup, made; that of a scope is made around init, and must not be another's.
    fn cgroup(&self, journal: &Journal) -> Result<Cgroup> {
        let paths = journal.cgroup.clone();
        if self.scope.is_none() {
            return Ok(Cgroup::create_at(paths)?);
        }
        Scope::check(&self.plan.resources, paths.layout)?;
        let cgroup = Cgroup::from_paths(paths);
        cgroup.check_unused()?;
        Ok(cgroup)
    }

    /// The limits of a cgroup that is there; those of a scope are written when it is ([`Self::enter_scope`]).
    fn limit_unless_scope(&self, cgroup: &Cgroup, journal: &mut Journal) -> Result<()> {
        match self.scope {
            None => self.limit_use(cgroup, journal),
            Some(_) => Ok(()),
        }
    }

    fn limit_use(&self, cgroup: &Cgroup, journal: &mut Journal) -> Result<()> {
        cgroup.apply(&self.plan.resources)?;
        priority::apply(self.plan, cgroup, journal);
        Ok(())
    }

    /// Has systemd put init into its scope, if it is to be in one.
    fn enter_scope(&self, cgroup: &Cgroup, journal: &mut Journal, init: ProcessId) -> Result<()> {
        let Some(mut scope) = journal.scope.clone() else {
            return Ok(());
        };
        let layout = journal.cgroup.layout;
        let limits = (&self.plan.resources, layout);
        let limit = self.limit(scope::LIMIT);
        let further = &self.plan.annotations;
        let prepared = scope.prepare((&journal.id, init), limits, further, limit)?;
        journal.scope = Some(scope.clone());
        journal.write(self.dir)?;
        let started = scope.start(prepared);
        journal.scope = Some(scope);
        let written = journal.write(self.dir);
        started.and(written)?;
        Cgroup::complete_at(cgroup.paths().clone())?;
        self.limit_use(cgroup, journal)
    }

    /// What execs and hooks want of the plan.
    fn keep_for_later(&self) -> Result<()> {
        if let Some(filter) = &self.plan.init.process.seccomp {
            // These words are runc's, for whoever reads its log.
            tracing::debug!("seccomp filter flags: {}", filter.flags);
            self.dir.write_filter(filter)?;
        }
        rich_hooks::keep_plan(self.dir, self.plan)
    }

    /// Whom to wait for: init, or what it tells where it does not become our child.
    fn adopt(&self, init: ProcessId, channel: &Channel) -> Result<Joined> {
        if self.agent == Toggle::On && sys::set_subreaper().is_err() {
            return Ok(Joined::pid_one(init, channel.duplicate()?));
        }
        Ok(Joined::Ours(Child::adopt(init.as_pid())))
    }

    fn limit(&self, usual: Duration) -> Duration {
        wait::within(self.deadline, usual)
    }

    fn makes_user_namespace(&self) -> bool {
        let mut namespaces = self.plan.namespaces.iter();
        namespaces.any(|it| it.kind == NamespaceKind::User && it.path.is_none())
    }

    /// Version 2 is one hierarchy, and LXC has to see that it is alone. In a user namespace of LXC's the
    /// stub cannot get back to the host's mounts, where the container's cgroups are.
    fn tools(&self, lxc: Lxc, name: &str, layout: Layout) -> Result<Tools> {
        let user = self.makes_user_namespace();
        let mounts = if layout == Layout::V2 || user || !lxc.version.can_do_without_cgroups() {
            Mounts::Copy
        } else {
            Mounts::without_cgroups()
        };
        let stub = stub::Program::get(self.dir)?;
        let request = lxc_config::Request {
            name,
            stub: match stub {
                stub::Program::Installed(path) => Some(path),
                stub::Program::Kept(_) => None,
            },
            namespaces: &self.plan.namespaces,
            uid_maps: &self.plan.uid_maps,
            gid_maps: &self.plan.gid_maps,
            cgroups: match mounts {
                Mounts::Copy => lxc_config::Cgroups::Seen,
                Mounts::WithoutCgroups(_) => lxc_config::Cgroups::Hidden,
            },
        };
        let rendered = lxc_config::render(lxc.version, &request)?;
        Ok(Tools {
            lxc,
            stub,
            rendered,
            mounts,
        })
    }

    fn send_plan(&self, channel: &mut Channel, journal: &Journal, init: ProcessId) -> Result<()> {
        channel.wait_for(furnish::WHAT, self.set_up_limit());
        let (given, files): (Vec<_>, Vec<_>) = self.given(journal)?.into_iter().unzip();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let message = ToStub::Init {
            plan: Box::new(self.plan.init_for(init.pid)),
            given,
            loopback: furnish::loopback(self.plan),
            host_hooks: furnish::host_hooks(self.plan),
            gaps: self.gaps.clone(),
        };
        channel.send_with(&message, &fds)
    }

    fn set_up_limit(&self) -> Duration {
        let hooks = &self.plan.init.create_container_hooks;
        self.limit(with_hooks(CREATE_LIMIT, hooks))
    }

    fn start_lxc(&self, tools: Tools, name: &str, control: OwnedFd) -> Result<Child> {
        let Tools {
            lxc,
            stub,
            rendered,
            mounts,
        } = tools;
        let config = self.dir.lxc_config();
        StateDir::write(&config, rendered.text.as_bytes())?;
        let listener = self.listen(names::START_SOCKET)?;
        let control_fd = inherited::end(self.inherited_fds);
        let start_fd = control_fd + 1;
        let stub_fd = start_fd + 1;
        let agent_fd = stub_fd + 1;
        let mut init = vec![
            match &stub {
                stub::Program::Installed(path) => path.to_string_lossy().into_owned(),
                stub::Program::Kept(_) => format!("/proc/self/fd/{stub_fd}"),
            },
            "init".to_owned(),
            control_fd.to_string(),
            start_fd.to_string(),
        ];
        if self.agent == Toggle::On {
            init.push(agent_fd.to_string());
        }
        let log = self.dir.lxc_log();
        // lxc-start appends to it, and ends without a word where it cannot be made.
        StateDir::write(&log, b"")?;
        let mut spawn = lxc.spawn(Start {
            name,
            config: &config,
            log: &log,
            arguments: &rendered.arguments,
            init: &init,
            mounts,
            namespaces: self.joined_namespaces()?,
            time: self.time_offsets(),
        })?;
        if let Stdio::Streams([stdin, stdout, stderr]) = self.stdio {
            spawn = spawn.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        if let stub::Program::Kept(image) = &stub {
            spawn = spawn.fd(stub_fd, image.as_fd());
        }
        if self.agent == Toggle::On {
            spawn = spawn.fd(agent_fd, OwnedFd::from(self.listen(names::AGENT_SOCKET)?));
        }
        inherited::pass_on(spawn, self.inherited_fds)?
            .fd(control_fd, control)
            .fd(start_fd, OwnedFd::from(listener))
            .spawn()
            .map_err(Error::on("start", &lxc.program))
    }

    /// A socket in the state directory. Bound by way of the directory's descriptor, because the path
    /// of a socket has at most 107 bytes.
    fn listen(&self, name: &str) -> Result<UnixListener> {
        let dir = File::open(self.dir.path()).map_err(Error::on("open", self.dir.path()))?;
        let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        UnixListener::bind(path).map_err(Error::on("bind", &self.dir.path().join(name)))
    }

    /// As `/proc/PID/timens_offsets` takes them; none without a new time namespace.
    fn time_offsets(&self) -> Option<String> {
        let mut namespaces = self.plan.namespaces.iter();
        namespaces.find(|n| n.kind == NamespaceKind::Time && n.path.is_none())?;
        let line = |(clock, offset): (&String, &TimeOffset)| {
            format!("{clock} {} {}\n", offset.seconds, offset.nanoseconds)
        };
        Some(self.plan.time_offsets.iter().map(line).collect())
    }

    fn joined_namespaces(&self) -> Result<Vec<(OwnedFd, sys::CloneFlags)>> {
        use NamespaceKind::{Cgroup, Mount, User};
        let by_path = self
            .plan
            .namespaces
            .iter()
            .filter(|it| !matches!(it.kind, Cgroup | Mount | User))
            .filter_map(|n| Some((n.kind, n.path.as_ref()?)));
        by_path
            .map(|(kind, path)| {
                let flag = sys::CloneFlags::from_bits_retain(kind.clone_flag());
                Ok((open_namespace(path)?.into(), flag))
            })
            .collect()
    }

    /// Namespaces that the stub is to join, because lxc-start cannot start it there.
    fn given(&self, journal: &Journal) -> Result<Vec<(Given, File)>> {
        let mut given = Vec::new();
        if let Some((_, file)) = shared_mounts::namespace(self.plan)? {
            given.push((Given::Mounts, file));
        } else if let Some(file) = self.host_mounts(journal)? {
            given.push((Given::MountsToCopy, file));
        }
        for namespace in &self.plan.namespaces {
            let what = match (namespace.kind, &namespace.path) {
                (NamespaceKind::Cgroup, Some(path)) => Some((Given::Cgroups, path)),
                (NamespaceKind::User, Some(path)) => Some((self.users(), path)),
                _ => None,
            };
            if let Some((what, path)) = what {
                given.push((what, open_namespace(path)?));
            }
        }
        Ok(given)
    }

    /// A user namespace to join, with the namespaces it is to own.
    fn users(&self) -> Given {
        let new = self.plan.namespaces.iter().filter(|it| it.path.is_none());
        let owned = new.filter(|it| lxc_config::is_owned(it.kind));
        Given::Users {
            make: owned.fold(0, |flags, it| flags | it.kind.clone_flag()),
        }
    }

    /// Waits for the stub; gives its host pid, as the kernel tells it.
    fn hello(&self, channel: &mut Channel, monitor: &mut Child) -> Result<sys::Pid> {
        channel.wait_for("lxc-start", self.limit(LXC_LIMIT));
        let said = || lxc::reason(&self.dir.lxc_log());
        // Killed before init runs, it leaves a child behind that holds the stub's end and waits
        // for it without end.
        let word = match channel.await_word(monitor) {
            Ok(Some(status)) => {
                let ended = || format!("lxc-start ended with {} before init ran", status.code());
                return Err(Error::Lxc {
                    said: said().unwrap_or_else(ended),
                });
            }
            Ok(None) => channel.hello("the stub"),
            Err(timeout) => Err(timeout),
        };
        match word {
            Ok(Some(pid)) => init_of(monitor.pid(), pid),
            Ok(None) => Err(Error::Lxc {
                said: said().unwrap_or_else(|| "it ended without a word".to_owned()),
            }),
            Err(Error::Timeout { limit, .. }) => Err(Error::Lxc {
                said: format!(
                    "no container after {limit:?}{}",
                    said().map_or(String::new(), |s| format!(": {s}"))
                ),
            }),
            Err(other) => Err(other),
        }
    }

    /// LXC's mount namespace has nothing but slaves of the host's mounts, and may lack cgroups.
    /// Where something is to be shared with the host, or cgroups to be seen, the stub makes
    /// another one from the host's.
    fn host_mounts(&self, journal: &Journal) -> Result<Option<File>> {
        let shared = |mount: &Mount| {
            mount
                .options
                .propagation
                .iter()
                .any(|flags| flags & SHARED != 0)
        };
        let root = self.plan.init.root.propagation & SHARED != 0;
        let mounts = self.plan.init.mounts.iter().any(|planned| match planned {
            PlannedMount::Plain(mount) | PlannedMount::Cgroup { mount, .. } => shared(mount),
        });
        let hidden = journal.lxc_cgroups.is_empty();
        if self.makes_user_namespace() {
            // Nobody gets back from there; what is shared is shared inside.
            return Ok(None);
        }
        let joins_users = lxc_config::joins_users(&self.plan.namespaces);
        if !root && !mounts && !hidden && !joins_users {
            return Ok(None);
        }
        let path = Path::new("/proc/self/ns/mnt");
        File::open(path).map(Some).map_err(Error::on("open", path))
    }
}

fn open_namespace(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::on("open namespace", path))
}

/// The host pid of the stub, a child of lxc-start, which told `said` by its credentials: before Linux
/// 2.6.36 that is its number inside, 1.
fn init_of(monitor: sys::Pid, said: sys::Pid) -> Result<sys::Pid> {
    if parent_of(said.as_raw())? == Some(monitor.as_raw()) {
        return Ok(said);
    }
    match children_of(monitor.as_raw())?.as_slice() {
        [only] => Ok(sys::Pid::from_raw(*only)),
        several => Err(Error::Vanished {
            what: "the container's init",
            hint: format!(": lxc-start has {} children", several.len()),
        }),
    }
}

/// Waits for a killed lxc-start: init has another parent then.
fn await_end(monitor: &mut Child, limit: Duration) -> Result<()> {
    match monitor
        .wait_timeout(limit)
        .map_err(Error::io("wait for lxc-start"))?
    {
        Some(_) => Ok(()),
        None => Err(Error::Timeout {
            what: "the end of lxc-start",
            limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use sys::{Pid, Spawn};

    use super::*;

    #[test]
    fn init_is_the_child_of_lxc_start_whatever_number_it_tells() {
        let (read, write) = sys::pipe_cloexec().unwrap();
        let script = "sleep 1000 & echo $!; wait";
        let monitor = Spawn::new("/bin/sh".as_ref())
            .args(["-c", script])
            .stdout(write)
            .spawn()
            .unwrap();
        let mut line = [0; 16];
        let count = nix::unistd::read(&read, &mut line).unwrap();
        let line = std::str::from_utf8(&line[..count]).unwrap();
        let init = Pid::from_raw(line.trim().parse().unwrap());
        for said in [init, Pid::from_raw(1), Pid::this()] {
            assert_eq!(init_of(monitor.pid(), said).unwrap(), init);
        }
        // A process without children has no init, whatever is said.
        let error = init_of(init, Pid::from_raw(1)).unwrap_err().to_string();
        assert!(error.contains("lxc-start has 0 children"), "{error}");
        sys::process::kill_number(init, Signal::SIGKILL as i32).unwrap();
    }
}
