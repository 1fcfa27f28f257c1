//! The scope of systemd that a container is in, when its caller has systemd keep cgroups.
//!
//! ```text
//!   planned ─> asked ─> systemd makes the scope around init ─> ours ─> limits in its cgroup
//!                 └──> systemd will not ─> refused
//! ```
//! Each state is in the journal before what follows. A unit's name is the host's, so another's scope may have it,
//! in any slice: what is not known as ours is never stopped, nobody in it is killed, and nothing of it removed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bundle::Bundle;
use cgroups::properties::{self, Property, Value};
use cgroups::{Cgroup, CgroupPaths, Layout, Resources, ScopeName};
use serde::{Deserialize, Serialize};
use sys::Signal;

use crate::host::Host;
use crate::id::ContainerId;
use crate::process::ProcessId;
use crate::systemd::{self, Manager, Unit};
use crate::{Error, Result, wait};

/// How long systemd may take to start or stop a scope (runc: 30 s).
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

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
    /// How far it has come.
    pub state: ScopeState,
    /// Its description, from when it is asked for: no other scope has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// systemd's number of this run of the unit, in hexadecimal, once it is ours; none before systemd 232.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<String>,
}

/// How far a scope has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeState {
    /// Nothing was asked of systemd.
    Planned,
    /// systemd is being asked for it; what came of that is not known.
    Asked,
    /// systemd has said that it will not make it.
    Refused,
    /// It was made around the container's init.
    Ours,
}

/// Who has a scope's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Ours,
    Nobody,
    Another,
}

/// What is asked of systemd, all of it checked, on a connection that stands.
#[derive(Debug)]
pub(crate) struct Prepared {
    manager: Manager,
    properties: Vec<Property>,
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
            // Before anything is made: what no scope can have.
            systemd::properties(&bundle.annotations())?;
            let paths = name.paths(&host.hierarchies)?;
            Ok((paths, Some(Scope::planned(name))))
        }
    }
}

impl Scope {
    fn planned(name: ScopeName) -> Self {
        Self {
            name,
            state: ScopeState::Planned,
            description: String::new(),
            invocation: None,
        }
    }

    /// Another of the same name, for when this one has ended.
    pub(crate) fn anew(&self) -> Self {
        Self::planned(self.name.clone())
    }

    /// Refuses limits that no scope can have, before there is anything.
    ///
    /// # Errors
    /// [`Error::Cgroup`].
    pub(crate) fn check(resources: &Resources, layout: Layout) -> Result<()> {
        properties::of(resources, layout, u32::MAX)?;
        Ok(())
    }

    /// Connects, and gathers what is to be asked of systemd: a scope around init with these limits. All of it
    /// is over after `limit`.
    ///
    /// # Errors
    /// [`Error::Systemd`], [`Error::Cgroup`] and [`Error::Usage`]; nothing was asked then.
    pub(crate) fn prepare(
        &mut self,
        (id, init): (&str, ProcessId),
        (resources, layout): (&Resources, Layout),
        annotations: &BTreeMap<String, String>,
        limit: Duration,
    ) -> Result<Prepared> {
        self.description = format!("runlxc container {id}, init {}", init.pid);
        let further = systemd::properties(annotations)?;
        let manager = Manager::connect(limit)?;
        let limits = properties::of(resources, layout, manager.version())?;
        let mut properties = self.own(init, layout);
        properties.extend(limits);
        properties.extend(further);
        self.state = ScopeState::Asked;
        Ok(Prepared {
            manager,
            properties,
        })
    }

    /// Has systemd make the scope, and says in its state what came of it.
    ///
    /// # Errors
    /// [`Error::Systemd`], also when another unit has its name.
    pub(crate) fn start(&mut self, prepared: Prepared) -> Result<()> {
        let Prepared {
            mut manager,
            properties,
        } = prepared;
        match manager.start_scope(&self.name.unit, &properties) {
            Ok(()) => {}
            Err(error) => {
                if matches!(&error, Error::Systemd { kind, .. } if kind.is_refusal()) {
                    self.state = ScopeState::Refused;
                }
                return Err(error);
            }
        }
        self.state = ScopeState::Ours;
        // Without it the description tells.
        let unit = manager.unit(&self.name.unit).ok().flatten();
        let unit = unit.filter(|unit| self.is(unit) && !unit.invocation.is_empty());
        self.invocation = unit.map(|unit| unit.invocation);
        Ok(())
    }

    /// Whether that unit is this scope.
    fn is(&self, unit: &Unit) -> bool {
        if unit.slice != self.name.slice {
            return false;
        }
        match &self.invocation {
            Some(known) if !unit.invocation.is_empty() => *known == unit.invocation,
            _ => !self.description.is_empty() && unit.description == self.description,
        }
    }

    fn holder(&self, manager: &mut Manager) -> Result<Holder> {
        Ok(match manager.unit(&self.name.unit)? {
            Some(unit) if self.is(&unit) => Holder::Ours,
            Some(unit) if unit.is_active => Holder::Another,
            Some(_) | None => Holder::Nobody,
        })
    }

    fn own(&self, init: ProcessId, layout: Layout) -> Vec<Property> {
        let blocks = match layout {
            Layout::V2 => "IOAccounting",
            Layout::V1 | Layout::Hybrid => "BlockIOAccounting",
        };
        let text = |name: &str, text: &str| (name.to_owned(), Value::Text(text.to_owned()));
        let truth = |name: &str, value| (name.to_owned(), Value::Boolean(value));
        vec![
            text("Description", &self.description),
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
        if self.holder(&mut manager)? != Holder::Ours {
            let unit = &self.name.unit;
            return Err(Error::State(format!(
                "cannot update a container whose scope has ended: {unit}"
            )));
        }
        manager.set_properties(&self.name.unit, &limits)
    }

    /// Kills whoever is in the scope, stops it and waits for its end, until `deadline` at most; then it ends by
    /// itself, because nobody is in it. Nothing is done to a unit that is not this scope.
    ///
    /// # Errors
    /// [`Error::Systemd`]; those of killing.
    pub(crate) fn end(&self, cgroup: &Cgroup, deadline: Option<Instant>) -> Result<Holder> {
        if matches!(self.state, ScopeState::Planned | ScopeState::Refused) {
            return Ok(Holder::Nobody);
        }
        let is_ours = self.state == ScopeState::Ours;
        let kill = || cgroup.kill_all(Signal::SIGKILL as i32);
        if !Manager::is_there() {
            // Its scopes went with it.
            if is_ours {
                kill()?;
            }
            return Ok(Holder::Nobody);
        }
        // Its directories are removed afterwards, in the rest.
        let limit = match deadline {
            Some(_) => wait::within(deadline, LIMIT) / 2,
            None => LIMIT,
        };
        let found = Manager::connect(limit).and_then(|mut manager| {
            let holder = self.holder(&mut manager)?;
            Ok((holder, manager))
        });
        if is_ours && !matches!(found, Ok((Holder::Another, _))) {
            kill()?;
        }
        let ended = found.and_then(|(holder, mut manager)| {
            if holder == Holder::Ours {
                manager.stop(&self.name.unit)?;
            }
            Ok(holder)
        });
        match ended {
            Err(error) if deadline.is_some() && is_ours => {
                let (unit, error) = (&self.name.unit, error.chain());
                tracing::warn!(unit, error, "systemd is left to end a scope by itself");
                Ok(Holder::Ours)
            }
            ended => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(description: &str, invocation: Option<&str>) -> Scope {
        Scope {
            description: description.to_owned(),
            invocation: invocation.map(str::to_owned),
            ..Scope::planned(ScopeName::new(Some("a-b.slice:p:n"), "c").unwrap())
        }
    }

    #[test]
    fn a_scope_holds_init_and_lets_the_container_have_cgroups() {
        let init = ProcessId::of(std::process::id().cast_signed()).unwrap();
        let properties = scope("d", None).own(init, Layout::V2);
        let of = |name: &str| {
            let mut all = properties.iter();
            all.find(|(known, _)| known == name).map(|(_, value)| value)
        };
        assert_eq!(of("Slice"), Some(&Value::Text("a-b.slice".into())));
        assert_eq!(of("Description"), Some(&Value::Text("d".into())));
        assert_eq!(of("Delegate"), Some(&Value::Boolean(true)));
        assert_eq!(of("PIDs"), Some(&Value::Numbers(vec![std::process::id()])));
        assert!(of("IOAccounting").is_some() && of("BlockIOAccounting").is_none());
    }

    #[test]
    fn a_unit_is_ours_by_its_slice_and_its_run_or_else_its_description() {
        let unit = |slice: &str, description: &str, invocation: &str| Unit {
            slice: slice.to_owned(),
            description: description.to_owned(),
            invocation: invocation.to_owned(),
            is_active: true,
        };
        for (ours, unit, expected) in [
            (scope("d", None), unit("a-b.slice", "d", "12"), true),
            (scope("d", None), unit("a-b.slice", "e", "12"), false),
            (scope("d", None), unit("a.slice", "d", "12"), false),
            (scope("", None), unit("a-b.slice", "", ""), false),
            (scope("d", Some("12")), unit("a-b.slice", "x", "12"), true),
            (scope("d", Some("12")), unit("a-b.slice", "d", "34"), false),
            (scope("d", Some("12")), unit("a.slice", "d", "12"), false),
            (scope("d", Some("12")), unit("a-b.slice", "d", ""), true),
        ] {
            assert_eq!(ours.is(&unit), expected, "{ours:?} {unit:?}");
        }
    }

    #[test]
    fn of_what_was_not_asked_for_nothing_is_ended() {
        let nowhere = CgroupPaths {
            layout: Layout::V2,
            dirs: Vec::new(),
        };
        for state in [ScopeState::Planned, ScopeState::Refused] {
            let mut scope = scope("d", None);
            scope.state = state;
            // Killing in no hierarchy at all would be an error.
            let cgroup = Cgroup::from_paths(nowhere.clone());
            assert_eq!(scope.end(&cgroup, None).unwrap(), Holder::Nobody);
        }
    }
}
