//! `linux.namespaces` and the id maps of a user namespace (config-linux.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType};

use crate::plan::{IdMap, Namespace, NamespaceKind, TimeOffset};
use crate::{Error, Result};

/// The namespaces of a container, each kind once, in the order of [`NamespaceKind`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Namespaces(pub(crate) Vec<Namespace>);

impl Namespaces {
    /// # Errors
    /// A duplicate, a relative path, or a new user namespace without a new mount namespace.
    pub(crate) fn of(linux: &Linux) -> Result<Self> {
        let mut all: Vec<Namespace> = Vec::new();
        for (i, spec) in linux.namespaces().iter().flatten().enumerate() {
            let namespace = namespace(i, spec)?;
            if all.iter().any(|other| other.kind == namespace.kind) {
                let why = format!("a second {} namespace", namespace.kind.as_str());
                return Err(Error::invalid(format!("linux.namespaces[{i}]"), why));
            }
            all.push(namespace);
        }
        all.sort_by_key(|namespace| namespace.kind);
        let namespaces = Self(all);
        if namespaces.has(NamespaceKind::User) && !namespaces.makes(NamespaceKind::Mount) {
            let why = "a user namespace needs a new mount namespace";
            return Err(Error::invalid("linux.namespaces", why));
        }
        Ok(namespaces)
    }

    /// Whether the container is in a namespace of this kind other than the caller's.
    pub(crate) fn has(&self, kind: NamespaceKind) -> bool {
        self.0.iter().any(|namespace| namespace.kind == kind)
    }

    /// Whether a namespace of this kind is made for the container.
    pub(crate) fn makes(&self, kind: NamespaceKind) -> bool {
        self.0
            .iter()
            .any(|namespace| namespace.kind == kind && namespace.path.is_none())
    }

    /// Path of the namespace of this kind that the container joins.
    pub(crate) fn path_of(&self, kind: NamespaceKind) -> Option<&PathBuf> {
        self.0
            .iter()
            .find(|namespace| namespace.kind == kind)?
            .path
            .as_ref()
    }
}

fn namespace(i: usize, spec: &LinuxNamespace) -> Result<Namespace> {
    let path = spec
        .path()
        .clone()
        .filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
        let why = format!("{:?} is not an absolute path", path.to_string_lossy());
        return Err(Error::invalid(format!("linux.namespaces[{i}].path"), why));
    }
    let kind = match spec.typ() {
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    };
    Ok(Namespace { kind, path })
}

/// Clocks that a time namespace sets off (time_namespaces(7)).
const CLOCKS: [&str; 2] = ["monotonic", "boottime"];

/// `linux.timeOffsets`.
///
/// # Errors
/// Offsets without a new time namespace, or of another clock.
pub(crate) fn time_offsets(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, TimeOffset>> {
    const FIELD: &str = "linux.timeOffsets";
    let mut out = BTreeMap::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        if !namespaces.makes(NamespaceKind::Time) {
            return Err(Error::invalid(FIELD, "given without a new time namespace"));
        }
        if !CLOCKS.contains(&clock.as_str()) {
            let why = format!("{clock:?} is not one of {}", CLOCKS.join(", "));
            return Err(Error::invalid(FIELD, why));
        }
        let nanoseconds = offset.nanosecs().unwrap_or_default();
        if nanoseconds >= 1_000_000_000 {
            let why = format!("{clock}: {nanoseconds} nanoseconds are a second or more");
            return Err(Error::invalid(FIELD, why));
        }
        let seconds = offset.secs().unwrap_or_default();
        let offset = TimeOffset {
            seconds,
            nanoseconds,
        };
        out.insert(clock.clone(), offset);
    }
    Ok(out)
}

/// The ids of a user namespace; empty without one, or when those of one that is joined are unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct IdMaps {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
}

impl IdMaps {
    /// # Errors
    /// Maps without a user namespace, a new one without maps, maps without a root, overlaps.
    pub(crate) fn of(
        linux: &Linux,
        namespaces: &Namespaces,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let uids = map("linux.uidMappings", linux.uid_mappings().as_deref())?;
        let gids = map("linux.gidMappings", linux.gid_mappings().as_deref())?;
        if !namespaces.has(NamespaceKind::User) {
            for (field, map) in [("linux.uidMappings", &uids), ("linux.gidMappings", &gids)] {
                if !map.is_empty() {
                    return Err(Error::invalid(field, "given without a user namespace"));
                }
            }
            return Ok(Self::default());
        }
        if let Some(path) = namespaces.path_of(NamespaceKind::User) {
            if uids.is_empty() && gids.is_empty() {
                return Ok(Self::of_joined(path));
            }
            // containerd and CRI-O give both; runc warns as well.
            warnings.push(format!(
                "linux.uidMappings and linux.gidMappings are ignored but for mounts: the user \
                 namespace {} is joined and has its own",
                path.display()
            ));
            return Ok(Self { uids, gids });
        }
        for (field, map) in [("linux.uidMappings", &uids), ("linux.gidMappings", &gids)] {
            if map.is_empty() {
                return Err(Error::invalid(field, "a new user namespace needs mappings"));
            }
            if !holds(map, 0) {
                return Err(Error::invalid(field, "id 0 of the container is not mapped"));
            }
        }
        Ok(Self { uids, gids })
    }

    /// Those of a user namespace that is named by a process in it.
    fn of_joined(path: &Path) -> Self {
        let Some(process) = path
            .to_str()
            .and_then(|path| path.strip_suffix("/ns/user"))
            .filter(|process| process.starts_with("/proc/"))
        else {
            return Self::default();
        };
        // Without them only what needs them is refused.
        let ranges = |name| {
            let text = std::fs::read_to_string(format!("{process}/{name}"));
            text.map_or(Vec::new(), |text| text.lines().filter_map(range).collect())
        };
        Self {
            uids: ranges("uid_map"),
            gids: ranges("gid_map"),
        }
    }

    /// # Errors
    /// The first id of the process that the maps lack: the kernel would answer EINVAL.
    pub(crate) fn check(
        &self,
        process: &launch::plan::Process,
        namespaces: &Namespaces,
    ) -> Result<()> {
        // Those of a user namespace that is joined are its own.
        if namespaces.path_of(NamespaceKind::User).is_some() {
            return Ok(());
        }
        let missing = |field: &str, id| {
            Err(Error::invalid(
                field,
                format!("{id} is not mapped in the user namespace"),
            ))
        };
        if !self.uids.is_empty() && !holds(&self.uids, process.uid) {
            return missing("process.user.uid", process.uid);
        }
        if self.gids.is_empty() {
            return Ok(());
        }
        if !holds(&self.gids, process.gid) {
            return missing("process.user.gid", process.gid);
        }
        match process
            .additional_gids
            .iter()
            .find(|gid| !holds(&self.gids, **gid))
        {
            Some(gid) => missing("process.user.additionalGids", *gid),
            None => Ok(()),
        }
    }
}

/// A line of `/proc/PID/uid_map`, as the host reads it.
fn range(line: &str) -> Option<IdMap> {
    let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
    Some(IdMap {
        container_id: numbers.next()??,
        host_id: numbers.next()??,
        size: numbers.next()??,
    })
}

fn holds(map: &[IdMap], id: u32) -> bool {
    map.iter()
        .any(|range| id >= range.container_id && id - range.container_id < range.size)
}

fn map(field: &str, spec: Option<&[LinuxIdMapping]>) -> Result<Vec<IdMap>> {
    let mut out: Vec<IdMap> = Vec::new();
    for (i, range) in spec.unwrap_or_default().iter().enumerate() {
        let range = IdMap {
            container_id: range.container_id(),
            host_id: range.host_id(),
            size: range.size(),
        };
        let refuse = |why: &str| Err(Error::invalid(format!("{field}[{i}]"), why));
        if range.size == 0 {
            return refuse("size is 0");
        }
        let fits = |first: u32| first.checked_add(range.size).is_some();
        if !fits(range.container_id) || !fits(range.host_id) {
            return refuse("goes beyond the largest id");
        }
        if out.iter().any(|other| overlap(other, &range)) {
            return refuse("overlaps an earlier range");
        }
        out.push(range);
    }
    Ok(out)
}

fn overlap(a: &IdMap, b: &IdMap) -> bool {
    let meet = |x: u32, y: u32| x < y + b.size && y < x + a.size;
    meet(a.container_id, b.container_id) || meet(a.host_id, b.host_id)
}
