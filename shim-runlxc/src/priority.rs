//! A container's priority: carried out in its cgroup, and told.

use std::path::Path;

use bundle::colocation::{self, Colocation};
use bundle::{NamespaceKind, Plan, Update, priority};
use cgroups::colocation::RESCTRL;
use cgroups::{Applied, Cgroup, Priority, Resources};

use crate::Result;
use crate::journal::Journal;

/// What the state says where no file was there to write.
const NOTHING: &str = "nothing: this kernel has no file for it, or linux.resources says all";

/// Before the word for a priority, in the name of the operator's class of resctrl for it.
const CLASS: &str = "pouch-";

/// Writes what there is to write, into the cgroup and into the annotations of the state.
///
/// # Errors
/// A word that means nothing.
pub(crate) fn apply(plan: &Plan, cgroup: &Cgroup, journal: &mut Journal) -> Result<()> {
    if let Some(wanted) = plan.priority {
        let mut applied = cgroup.prioritise(wanted, &plan.resources);
        if is_in_hosts_network(journal) {
            applied.extend(cgroup.prioritise_packets(wanted, &[&plan.resources]));
        }
        tell(wanted, &applied, journal);
    }
    let words = Colocation::of(&plan.annotations)?;
    if words.is_none() {
        return Ok(());
    }
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
        add(journal, colocation::APPLIED, applied);
    }
    Ok(())
}

/// Puts threads into the class that the container's annotations, or the operator for its priority, have
/// named: pid 1's before it forks, and all of a container that was brought back.
///
/// # Errors
/// A word that means nothing; what keeps it from knowing the threads.
pub(crate) fn classify(
    plan: &Plan,
    threads: impl FnOnce() -> Result<Vec<i32>>,
    journal: &mut Journal,
) -> Result<()> {
    let resctrl = Path::new(RESCTRL);
    let (class, key) = match (Colocation::of(&plan.annotations)?.class, plan.priority) {
        (Some(class), _) => (class, colocation::APPLIED),
        (None, Some(wanted)) => (format!("{CLASS}{}", wanted.as_str()), priority::APPLIED),
        (None, None) => return Ok(()),
    };
    let told = match cgroups::colocation::classify(resctrl, &class, &threads()?) {
        Some(applied) => applied.to_string(),
        // Nobody asked for that one by its name.
        None if key == priority::APPLIED => return Ok(()),
        None => format!("resctrl={class} refused (there is no such class below {RESCTRL})"),
    };
    let container = journal.id.as_str();
    tracing::info!(container, applied = told, "class of resctrl");
    add(journal, key, told);
    Ok(())
}

/// Adds to what the state says of it.
fn add(journal: &mut Journal, key: &str, words: String) {
    let before = journal.annotations.remove(key);
    let before = before.filter(|before| before != NOTHING);
    let all = [before, Some(words)].into_iter().flatten();
    let all = all.collect::<Vec<_>>().join(", ");
    journal.annotations.insert(key.to_owned(), all);
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
    let class = class_in(journal).map(str::to_owned);
    let set = [own, &update.resources];
    let mut applied = cgroup.reprioritise((old, wanted), &set);
    if is_in_hosts_network(journal) {
        applied.extend(cgroup.prioritise_packets(wanted, &set));
    }
    tell(wanted, &applied, journal);
    if let Some(class) = class {
        add(journal, priority::APPLIED, class);
    }
    Ok(())
}

/// What the state says of a class, which an update does not change; it is the last that was added.
fn class_in(journal: &Journal) -> Option<&str> {
    let applied = journal.annotations.get(priority::APPLIED)?;
    applied.find("resctrl=").and_then(|at| applied.get(at..))
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
        for (before, after) in [
            (
                "cpu.weight=100, resctrl=pouch-online",
                "resctrl=pouch-online",
            ),
            (
                "cpu.weight=100, resctrl=pouch-online refused (no, not now)",
                "resctrl=pouch-online refused (no, not now)",
            ),
            ("cpu.weight=100", NOTHING),
            (NOTHING, NOTHING),
        ] {
            let annotations = json!({priority::PRIORITY: "online", priority::APPLIED: before});
            let mut journal = example::journal(&json!({"annotations": annotations}));
            let cgroup = Cgroup::from_paths(journal.cgroup.clone());
            change(&update, &Resources::default(), &cgroup, &mut journal).unwrap();
            assert_eq!(journal.annotations[priority::APPLIED], after);
        }
    }
}
