//! What may be changed while a container runs: limits, and what some annotations say.

use std::collections::BTreeMap;

use cgroups::{Priority, Resources};

use crate::annotations::PREFIX;
use crate::colocation::Colocation;
use crate::traffic::{EGRESS, INGRESS, Traffic};
use crate::{Error, Result, annotations, load, priority, resources};

/// The annotations that an update may have, of ours.
const LIVE: [&str; 3] = [INGRESS, EGRESS, priority::PRIORITY];

/// A change.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Limits of its cgroup; what they leave out stays.
    pub resources: Resources,
    /// How much it matters from now on.
    pub priority: Option<Priority>,
    /// Limits of its network.
    pub traffic: Traffic,
    /// Annotations of ours that say the last two.
    pub annotations: BTreeMap<String, String>,
}

impl Update {
    /// From the JSON of `linux.resources` and annotations. Those that have no meaning to us say nothing.
    ///
    /// # Errors
    /// [`Error::Text`] or [`Error::Invalid`] with the name of the field or annotation.
    pub fn parse(resources_json: &[u8], given: &BTreeMap<String, String>) -> Result<Self> {
        let limits = resources(&load::parse_resources(resources_json)?)?;
        let ours = given.iter().filter(|(key, _)| key.starts_with(PREFIX));
        let ours: BTreeMap<_, _> = ours.map(|(k, v)| (k.clone(), v.clone())).collect();
        annotations::check(&ours)?;
        Colocation::of(given)?;
        let mut fixed = ours.keys().map(String::as_str);
        let fixed = fixed.find(|key| !LIVE.contains(key));
        if let Some(key) = fixed.or_else(|| Colocation::known_in(given)) {
            let why = format!(
                "cannot change while a container runs: {} can",
                LIVE.join(", ")
            );
            return Err(Error::invalid(format!("annotations.{key}"), why));
        }
        Ok(Self {
            resources: limits,
            priority: priority::of(&ours)?,
            traffic: Traffic::of(&ours)?,
            annotations: ours,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rich;
    use crate::traffic::Rate;

    fn parse(given: &[(&str, &str)]) -> Result<Update> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let limits = br#"{"memory": {"limit": 4096}}"#;
        Update::parse(limits, &given.iter().map(own).collect())
    }

    #[test]
    fn limits_and_some_annotations_change_while_a_container_runs() {
        let words = [
            (priority::PRIORITY, "offline"),
            (INGRESS, "8mbit"),
            ("io.example", "x"),
            ("customization.unknown", "x"),
        ];
        let update = parse(&words).unwrap();
        assert_eq!(update.resources.memory.limit, Some(4096));
        assert_eq!(update.priority, Some(Priority::Offline));
        let rate = Some(Rate::BytesPerSecond(1_000_000));
        assert_eq!(
            (update.traffic.ingress, update.traffic.egress),
            (rate, None)
        );
        assert_eq!(update.annotations.len(), 2);
        let plain = parse(&[]).unwrap();
        assert!(plain.traffic.is_none() && plain.priority.is_none());
    }

    #[test]
    fn what_cannot_change_is_refused_by_name() {
        for (given, why) in [
            (
                (rich::MODE, "systemd"),
                "annotations.org.pouch.rich.mode: cannot change while a container runs: \
                 org.pouch.net.ingress, org.pouch.net.egress, org.pouch.priority can",
            ),
            (
                ("org.pouch.net.egres", "1mbit"),
                "annotations.org.pouch.net.egres: unknown: the nearest known one is \
                 org.pouch.net.egress",
            ),
            (
                ("customization.memory_priority", "3"),
                "annotations.customization.memory_priority: cannot change while a container runs: \
                 org.pouch.net.ingress, org.pouch.net.egress, org.pouch.priority can",
            ),
            (
                ("__memory_wmark_ratio", "101"),
                "annotations.__memory_wmark_ratio: \"101\" is no number from 0 to 100",
            ),
            (
                ("customization.intel_rdt_group", "batch"),
                "annotations.customization.intel_rdt_group: cannot change while a container runs: \
                 org.pouch.net.ingress, org.pouch.net.egress, org.pouch.priority can",
            ),
        ] {
            let error = parse(&[given]).unwrap_err().to_string();
            assert_eq!(error, why);
        }
    }
}
