//! The scope of systemd that a container is in, when its caller has systemd keep cgroups.
//!
//! ```text
//!   journal: asked ─> systemd makes the scope around init ─> journal: ours ─> limits in its cgroup
//! ```
//! Until it is ours, another's scope may have its name: nobody in it is killed, and nothing of it removed.

use std::collections::BTreeMap;
use std::time::Duration;

use bundle::Bundle;
use cgroups::properties::{self, Property, Value};
use cgroups::{CgroupPaths, Layout, Resources, ScopeName};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::host::Host;
use crate::id::ContainerId;
use crate::process::ProcessId;
use crate::systemd::{self, Manager};

/// How long systemd may take to start or stop a scope (runc: 30 s).
const LIMIT: Duration = Duration::from_secs(30);

/// How long to change one.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupManager {
    /// We, as directories.
    #[default]
    Cgroupfs,
    /// systemd, as a scope; its limits are written into its cgroup, too.
    Systemd,
}

/// A container's scope, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Its names.
    pub name: ScopeName,
    /// Whether systemd has made it for this container.
    pub state: ScopeState,
}

/// How far a scope has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeState {
    /// systemd is going to be asked for it, or was.
    Asked,
    /// It was made around the container's init.
    Ours,
}

/// Where a container's cgroups are to be, and in which scope.
pub(crate) fn place(
    host: &Host,
    bundle: &Bundle,
    id: &ContainerId,
    manager: CgroupManager,
) -> Result<(CgroupPaths, Option<Scope>)> {
    let path = bundle.cgroups_path();
    match manager {
        CgroupManager::Cgroupfs => {
            let path = path.unwrap_or_else(|| id.to_string());
            Ok((CgroupPaths::new(&host.hierarchies, &path)?, None))
        }
        CgroupManager::Systemd => {
            Manager::require()?;
            let name = ScopeName::new(path.as_deref(), id.as_str())?;
            let state = ScopeState::Asked;
            let paths = name.paths(&host.hierarchies)?;
            Ok((paths, Some(Scope { name, state })))
        }
    }
}

impl Scope {
    /// Another of the same name, for when this one has ended.
    pub(crate) fn anew(&self) -> Self {
        Self {
            name: self.name.clone(),
            state: ScopeState::Asked,
        }
    }

    /// Has systemd make the scope around init, with these limits.
    ///
    /// # Errors
    /// [`crate::Error::Systemd`], also when another unit has its name.
    pub(crate) fn start(
        &self,
        (id, init): (&str, ProcessId),
        (resources, layout): (&Resources, Layout),
        annotations: &BTreeMap<String, String>,
    ) -> Result<()> {
        let further = systemd::properties(annotations)?;
        let mut manager = Manager::connect(LIMIT)?;
        let limits = properties::of(resources, layout, manager.version())?;
        let mut all = self.own(id, init, layout);
        all.extend(limits);
        all.extend(further);
        manager.start_scope(&self.name.unit, &all)
    }

    fn own(&self, id: &str, init: ProcessId, layout: Layout) -> Vec<Property> {
        let blocks = match layout {
            Layout::V2 => "IOAccounting",
            Layout::V1 | Layout::Hybrid => "BlockIOAccounting",
        };
        let text = |name: &str, text: &str| (name.to_owned(), Value::Text(text.to_owned()));
        let truth = |name: &str, value| (name.to_owned(), Value::Boolean(value));
        vec![
            text("Description", &format!("runlxc container {id}")),
            text("Slice", &self.name.slice),
            // Below it, cgroups are the container's own affair.
            truth("Delegate", true),
            (
                "PIDs".to_owned(),
                Value::Numbers(vec![init.pid.unsigned_abs()]),
            ),
            // As in cgroups of ours, and memory cannot be accounted later.
            truth("MemoryAccounting", true),
            truth("CPUAccounting", true),
            truth(blocks, true),
            truth("TasksAccounting", true),
            // When the host stops, who manages the container ends it first.
            truth("DefaultDependencies", false),
        ]
    }

    /// Tells systemd of limits that were written into the cgroup.
    ///
    /// # Errors
    /// [`crate::Error::Systemd`].
    pub(crate) fn update(&self, resources: &Resources, layout: Layout) -> Result<()> {
        let mut manager = Manager::connect(CHANGE_LIMIT)?;
        let limits = properties::of(resources, layout, manager.version())?;
        if limits.is_empty() {
            return Ok(());
        }
        manager.set_properties(&self.name.unit, &limits)
    }

    /// Stops the scope, whose processes are gone, and waits for its end. No error when it is gone.
    ///
    /// # Errors
    /// [`crate::Error::Systemd`].
    pub(crate) fn end(&self) -> Result<()> {
        if !Manager::is_there() {
            return Ok(()); // Its scopes went with it.
        }
        Manager::connect(LIMIT)?.stop(&self.name.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_holds_init_and_lets_the_container_have_cgroups() {
        let scope = Scope {
            name: ScopeName::new(Some("a-b.slice:p:n"), "c").unwrap(),
            state: ScopeState::Asked,
        };
        let init = ProcessId::of(std::process::id().cast_signed()).unwrap();
        let properties = scope.own("c", init, Layout::V2);
        let of = |name: &str| {
            let mut all = properties.iter();
            all.find(|(known, _)| known == name).map(|(_, value)| value)
        };
        assert_eq!(of("Slice"), Some(&Value::Text("a-b.slice".into())));
        assert_eq!(of("Delegate"), Some(&Value::Boolean(true)));
        assert_eq!(of("PIDs"), Some(&Value::Numbers(vec![std::process::id()])));
        assert!(of("IOAccounting").is_some() && of("BlockIOAccounting").is_none());
    }
}
