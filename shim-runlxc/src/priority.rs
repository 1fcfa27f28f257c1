//! A container's priority: carried out in its cgroup, and told.

use bundle::{Plan, priority};
use cgroups::Cgroup;

use crate::journal::Journal;

/// What the state says where no file was there to write.
const NOTHING: &str = "nothing: this kernel has no file for it, or linux.resources says all";

/// Writes what there is to write, into the cgroup and into the annotations of the state.
pub(crate) fn apply(plan: &Plan, cgroup: &Cgroup, journal: &mut Journal) {
    let Some(wanted) = plan.priority else { return };
    let applied = cgroup.prioritise(wanted, &plan.resources);
    let container = plan.id.as_str();
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
