//! What is on the machine: processes, mounts, cgroups, network namespaces, loop devices, sockets, runtime files.
//!
//! Taken before and after, the difference is what was left behind. It only looks; `sweep` removes.

pub(crate) mod machine;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    tag::{SHIM_SOCKETS, Tag},
    wait::{Sources, until},
};

pub use machine::{Process, processes};

/// What sort of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process, by id and start time.
    Process,
    /// A mount, by mount point and file system.
    Mount,
    /// A directory of a cgroup hierarchy.
    Cgroup,
    /// A network namespace some process lives in.
    NetworkNamespace,
    /// A loop device in use.
    LoopDevice,
    /// A unix socket: a file below `/run/containerd/s`, or an abstract name of a shim or of LXC.
    Socket,
    /// A file or directory of a runtime: below `/run/containerd/runc`, `/run/lxc` and the like.
    RuntimeFile,
}

/// One thing, told from all others by `name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thing {
    /// What sort of thing it is.
    pub kind: Kind,
    /// What it is called, for a person to find it.
    pub name: String,
}

/// By what the things of one instance are known.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its tag: whatever has it in its path, command line, cgroup or environment is of this instance.
    pub tag: Tag,
    /// The sockets of its shims, whose names say nothing.
    pub sockets: BTreeSet<PathBuf>,
    /// Directories that are empty when no container is there: bundles.
    pub directories: Vec<PathBuf>,
    /// Processes that are meant to run.
    pub apart: Vec<i32>,
}

/// Everything that was there at one moment. To each thing belongs a text that says whose it is:
/// its path, its command line, its cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<Thing, String>);

impl Census {
    /// Everything on the machine, for tests that run alone. Of processes only orphans count (and
    /// not this program's own family): what a test leaves behind has lost its parent, and what
    /// other people start meanwhile has not.
    pub fn of_machine() -> Result<Self> {
        let processes = processes()?;
        let own = machine::family(&processes, own_pid());
        let mut census = Self(BTreeMap::new());
        for process in processes
            .values()
            .filter(|process| !own.contains(&process.pid))
        {
            if process.parent == 1 || own.contains(&process.parent) {
                census.add(Kind::Process, process.name(), process.owner.clone());
            }
        }
        census.add_namespaces(&processes, &own)?;
        census.add_rest()?;
        Ok(census)
    }

    /// What belongs to one instance: what names its tag, and its sockets and files.
    pub fn of_instance(scope: &Scope) -> Result<Self> {
        let mut census = Self(BTreeMap::new());
        for process in processes()?.values() {
            if process.pid != own_pid() && !scope.apart.contains(&process.pid) {
                census.add(Kind::Process, process.name(), process.owner.clone());
            }
        }
        census.add_rest()?;
        for directory in &scope.directories {
            // containerd renames a bundle to a hidden one before it removes it, and forgets that
            // one when it is killed in between: its own leak, whatever the runtime.
            let is_hidden = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default();
                name.as_bytes().starts_with(b".")
            };
            let mut entries = machine::entries(directory)?;
            entries.retain(|path| !is_hidden(path));
            let names = entries.iter().map(|path| path.display().to_string());
            census.add_named(Kind::RuntimeFile, names);
        }
        let tag = &scope.tag;
        census.0.retain(|thing, owner| match thing.kind {
            Kind::Socket => scope.sockets.contains(Path::new(&thing.name)) || tag.is_in(owner),
            // The parent of all containers of a namespace is the instance's, not a container's.
            Kind::Cgroup => tag.is_in(owner) && !thing.name.ends_with(tag.as_str()),
            _ => tag.is_in(owner),
        });
        Ok(census)
    }

    fn add(&mut self, kind: Kind, name: String, owner: String) {
        self.0.insert(Thing { kind, name }, owner);
    }

    fn add_named(&mut self, kind: Kind, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.add(kind, name.clone(), name);
        }
    }

    fn add_namespaces(
        &mut self,
        processes: &BTreeMap<i32, Process>,
        own: &BTreeSet<i32>,
    ) -> Result<()> {
        let this = machine::network_namespace(own_pid());
        for process in processes
            .values()
            .filter(|process| !own.contains(&process.pid))
        {
            if let Some(namespace) = machine::network_namespace(process.pid)
                && this.as_ref() != Some(&namespace)
            {
                self.add(Kind::NetworkNamespace, namespace, process.owner.clone());
            }
        }
        Ok(())
    }

    fn add_rest(&mut self) -> Result<()> {
        self.add_named(Kind::Mount, machine::mounts()?);
        self.add_named(Kind::Cgroup, machine::cgroups()?);
        self.add_named(Kind::LoopDevice, machine::loop_devices()?);
        self.add_named(Kind::Socket, machine::sockets()?);
        self.add_named(Kind::RuntimeFile, machine::runtime_files()?);
        Ok(())
    }

    /// The things that `before` has not.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let new = self
            .0
            .iter()
            .filter(|(thing, _)| !before.0.contains_key(thing));
        Self(
            new.map(|(thing, owner)| (thing.clone(), owner.clone()))
                .collect(),
        )
    }

    /// True when there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The things, sorted by kind and name.
    pub fn things(&self) -> impl Iterator<Item = &Thing> {
        self.0.keys()
    }

    /// How many there are of a kind.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.things().filter(|thing| thing.kind == kind).count()
    }

    /// Waits until `take` finds nothing that is not in `before`: what ends after its last answer
    /// (a shim, its socket) is no leak. What is still there at the limit comes back.
    pub fn settle(before: &Self, limit: Duration, take: impl Fn() -> Result<Self>) -> Result<Self> {
        let mut left = take()?.since(before);
        if left.is_empty() {
            return Ok(left);
        }
        let sources = left.sources()?;
        let settled = until("nothing is left behind", limit, sources, || {
            left = take()?.since(before);
            Ok(left.is_empty().then_some(()))
        });
        match settled {
            Ok(()) => Ok(Self::default()),
            Err(_) if !left.is_empty() => Ok(left),
            Err(error) => Err(error),
        }
    }

    /// What announces that one of these things has gone.
    fn sources(&self) -> Result<Sources> {
        let mut sources = Sources::none().mounts()?;
        if Path::new(SHIM_SOCKETS).exists() {
            sources = sources.directory(Path::new(SHIM_SOCKETS))?;
        }
        for thing in self.things().filter(|thing| thing.kind == Kind::Process) {
            sources = sources.process(thing.pid()?)?;
        }
        Ok(sources)
    }
}

impl Thing {
    /// The id of a process.
    pub fn pid(&self) -> Result<i32> {
        let word = self.name.split(' ').next().unwrap_or_default();
        word.parse()
            .with_context(|| format!("{} is no process", self.name))
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for thing in self.things() {
            writeln!(f, "  {thing}")?;
        }
        Ok(())
    }
}

/// The open descriptors of a process by what they are, numbers and inodes left out: what grows, leaks.
pub fn descriptors(pid: i32) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))
        .with_context(|| format!("listing the descriptors of {pid}"))?
    {
        // One that was closed while we looked does not count.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let text = String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned();
        let kind = text.split(":[").next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_default() += 1;
    }
    Ok(counts)
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).expect("pid_max is below 2^22")
}

#[cfg(test)]
mod tests;
