//! A container's priority: carried out in its cgroup, and told.

use bundle::{Plan, Update, priority};
use cgroups::{Applied, Cgroup, Priority, Resources};

use crate::Result;
use crate::journal::Journal;

/// What the state says where no file was there to write.
const NOTHING: &str = "nothing: this kernel has no file for it, or linux.resources says all";

/// Writes what there is to write, into the cgroup and into the annotations of the state.
pub(crate) fn apply(plan: &Plan, cgroup: &Cgroup, journal: &mut Journal) {
    let Some(wanted) = plan.priority else { return };
    let applied = cgroup.prioritise(wanted, &plan.resources);
    tell(wanted, &applied, journal);
}

/// The same for a container that runs; `own` is what its config.json says.
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
    let applied = cgroup.reprioritise((old, wanted), &[own, &update.resources]);
    tell(wanted, &applied, journal);
    Ok(())
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
