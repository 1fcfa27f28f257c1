//! A container's priority: carried out in its cgroup, and told.

use std::path::Path;

use bundle::colocation::{self, CLASS_APPLIED};
use bundle::{NamespaceKind, Plan, Update, priority};
use cgroups::resctrl::{self, RESCTRL};
use cgroups::{Applied, Cgroup, Priority, Resources};

use crate::Result;
use crate::journal::Journal;

/// What the state says where no file was there to write.
const NOTHING: &str = "nothing: this kernel has no file for it, or linux.resources says all";

/// Before the word for a priority, in the name of the operator's class of resctrl for it.
const CLASS: &str = "pouch-";

/// Writes what there is to write, into the cgroup and into the annotations of the state.
pub(crate) fn apply(plan: &Plan, cgroup: &Cgroup, journal: &mut Journal) {
    if let Some(wanted) = plan.priority {
        let mut applied = cgroup.prioritise(wanted, &plan.resources);
        if is_in_hosts_network(journal) {
            applied.extend(cgroup.prioritise_packets(wanted, &[&plan.resources]));
        }
        tell(wanted, &applied, journal);
    }
    let words = &plan.colocation;
    // What is said by the name of a file counts more than a priority.
    let applied = cgroup.set_up(&words.settings);
    let unknown = words.unknown.iter();
    let unknown = unknown.map(|key| format!("{key} refused (no file for it is known)"));
    let applied: Vec<_> = applied.iter().map(ToString::to_string).collect();
    let all: Vec<_> = applied.into_iter().chain(unknown).collect();
    if !all.is_empty() {
        let applied = all.join(", ");
        let container = journal.id.as_str();
        tracing::info!(container, applied, "words for colocation");
        let key = colocation::APPLIED.to_owned();
        journal.annotations.insert(key, applied);
    }
}

/// Puts threads into the class that config.json asks for, or that the container's annotations, or the
/// operator for its priority, have named: pid 1's before it forks, and all of a container that was brought back.
///
/// # Errors
/// A class that config.json asks for and the kernel refuses; what keeps it from knowing the threads.
pub(crate) fn classify(
    plan: &Plan,
    threads: impl FnOnce() -> Result<Vec<i32>>,
    journal: &mut Journal,
) -> Result<()> {
    if plan.intel_rdt.is_some() {
        return crate::resctrl::enter(plan, journal, threads);
    }
    let named = plan.colocation.class.clone();
    let is_named = named.is_some();
    let of_priority = || Some(format!("{CLASS}{}", plan.priority?.as_str()));
    let Some(class) = named.or_else(of_priority) else {
        return Ok(());
    };
    let told = match resctrl::classify(Path::new(RESCTRL), &class, &threads()?) {
        Some(applied) => applied.to_string(),
        None if is_named => {
            format!("resctrl={class} refused (there is no such class below {RESCTRL})")
        }
        // Nobody asked for that one by its name.
        None => return Ok(()),
    };
    let container = journal.id.as_str();
    tracing::info!(container, applied = told, "class of resctrl");
    let key = CLASS_APPLIED.to_owned();
    journal.annotations.insert(key, told);
    Ok(())
}

/// The same as [`apply`] for the priority of a container that runs; `own` is what its config.json says.
pub(crate) fn change(
    update: &Update,
    own: &Resources,
    cgroup: &Cgroup,
    journal: &mut Journal,
) -> Result<()> {
    let Some(wanted) = update.priority else {
        return Ok(());
    };
    let old = priority::of(&journal.annotations)?;
    let set = [own, &update.resources];
    let mut applied = cgroup.reprioritise((old, wanted), &set);
    if is_in_hosts_network(journal) {
        applied.extend(cgroup.prioritise_packets(wanted, &set));
    }
    tell(wanted, &applied, journal);
    Ok(())
}

/// Whether the host's links are the container's.
fn is_in_hosts_network(journal: &Journal) -> bool {
    match &journal.network {
        // One that cannot be looked at keeps the container from being made, too.
        Some(path) => network::Namespace::open(path).is_ok_and(|given| given.is_hosts()),
        None => !journal.namespaces.contains(&NamespaceKind::Network),
    }
}

fn tell(wanted: Priority, applied: &[Applied], journal: &mut Journal) {
    let container = journal.id.as_str();
    for one in applied.iter().filter(|one| one.refused.is_some()) {
        let refusal = one.to_string();
        tracing::warn!(
            container,
            refusal,
            "part of a priority was refused by the kernel"
        );
    }
    let words: Vec<_> = applied.iter().map(ToString::to_string).collect();
    let applied = match words.as_slice() {
        [] => NOTHING.to_owned(),
        words => words.join(", "),
    };
    tracing::info!(container, priority = wanted.as_str(), applied, "priority");
    let key = priority::APPLIED.to_owned();
    journal.annotations.insert(key, applied);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::journal::example;

    #[test]
    fn packets_have_a_priority_in_the_hosts_network_alone() {
        let in_hosts = |namespaces: serde_json::Value, path: Option<&str>| {
            let mut journal = example::journal(&json!({"namespaces": namespaces}));
            journal.network = path.map(Into::into);
            is_in_hosts_network(&journal)
        };
        let own = || serde_json::to_value([NamespaceKind::Network]).unwrap();
        assert!(in_hosts(json!([]), None));
        assert!(!in_hosts(own(), None));
        assert!(in_hosts(own(), Some("/proc/self/ns/net")));
        assert!(!in_hosts(own(), Some("/proc/self/ns/uts")));
    }

    #[test]
    fn a_class_stays_in_the_state_when_the_priority_changes() {
        let words = [(priority::PRIORITY.to_owned(), "offline".to_owned())];
        let update = Update::parse(b"{}", &words.into()).unwrap();
        for class in [
            "resctrl=pouch-online",
            "resctrl=batch refused (no, not now)",
        ] {
            let annotations = json!({
                priority::PRIORITY: "online",
                priority::APPLIED: "cpu.weight=100",
                CLASS_APPLIED: class,
            });
            let mut journal = example::journal(&json!({"annotations": annotations}));
            let cgroup = Cgroup::from_paths(journal.cgroup.clone());
            change(&update, &Resources::default(), &cgroup, &mut journal).unwrap();
            assert_eq!(journal.annotations[priority::APPLIED], NOTHING);
            assert_eq!(journal.annotations[CLASS_APPLIED], class);
        }
    }
}
