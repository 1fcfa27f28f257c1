//! Changes of a container that runs: limits, priority, network.

use std::collections::BTreeMap;
use std::time::Duration;

use bundle::{Bundle, Update};
use cgroups::Resources;

use crate::container::Container;
use crate::journal::Journal;
use crate::{Error, Result, priority};

/// How long another change of the same container may take.
pub(crate) const OTHER_LIMIT: Duration = Duration::from_secs(10);

impl Container {
    /// Applies limits, given as the JSON of `linux.resources`, and what annotations ask for, which are
    /// the container's from then on.
    ///
    /// # Errors
    /// [`Error::Bundle`] for a bad value, before anything is changed; [`Error::Traffic`]; the kernel's
    /// refusal of a limit.
    pub fn update(
        &self,
        resources_json: &[u8],
        annotations: &BTreeMap<String, String>,
    ) -> Result<()> {
        let update = Update::parse(resources_json, annotations)?;
        let memory = &update.resources.memory;
        if memory.kernel.is_some() || memory.kernel_tcp.is_some() {
            tracing::warn!("limits of kernel memory are ignored");
        }
        if update.annotations.is_empty() {
            return self.limit_use(&update.resources);
        }
        let alone = self.dir.lock_within(OTHER_LIMIT)?;
        if !alone.is_some_and(|locked| self.dir.is(&locked)) {
            let why = "cannot update a container that is being started, changed or deleted";
            return Err(Error::State(why.into()));
        }
        // Another program may have changed it since this one read it.
        let mut journal = Journal::read(&self.dir)?;
        let own = match update.priority {
            Some(_) => Some(Bundle::load(&journal.bundle)?.resources()?),
            None => None,
        };
        self.limit_use(&update.resources)?;
        self.limit_traffic(update.traffic)?;
        if let Some(own) = own {
            priority::change(&update, &own, &self.cgroup, &mut journal)?;
        }
        journal.annotations.extend(update.annotations);
        journal.write(&self.dir)
    }

    /// In the cgroup first: a value that is refused there is not told to systemd. That writes all of a
    /// controller, some of it rounded or by default: what was there is written once more.
    fn limit_use(&self, resources: &Resources) -> Result<()> {
        self.cgroup.apply(resources)?;
        if let Some(scope) = &self.journal.scope {
            let kept = self.cgroup.keep()?;
            let told = kept.complete(resources);
            let told = scope.update(&told, self.journal.cgroup.layout);
            let again = self.cgroup.apply(resources);
            kept.restore()?;
            told?;
            again?;
        }
        Ok(())
    }
}
