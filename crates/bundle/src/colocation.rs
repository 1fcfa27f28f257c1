//! Alibaba's words for colocation, in the annotations of its internal plug-in and of PouchContainer:
//! each means a file that its kernels have.

use std::collections::BTreeMap;

use cgroups::{Controller, Setting};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Before what its internal plug-in understood.
const CUSTOMIZATION: &str = "customization.";

/// What was done for them: in the state of a container, not in its configuration.
pub const APPLIED: &str = "org.pouch.colocation.applied";

/// The class of resctrl that a container was put into, by its name here or by its priority: in the state,
/// too, and an update changes it never.
pub const CLASS_APPLIED: &str = "org.pouch.resctrl.applied";

/// The class of resctrl that a container is to be in, by name.
pub(crate) const CLASS: &str = "customization.intel_rdt_group";

/// No name of a directory of resctrl is longer (NAME_MAX).
const CLASS_BYTES_MAX: usize = 255;

/// A word, or two for the same.
struct Word {
    keys: &'static [&'static str],
    controller: Controller,
    file: &'static str,
    min: i64,
    max: i64,
}

const WORDS: [Word; 7] = [
    Word {
        keys: &["customization.cpu_bvt_warp_ns"],
        controller: Controller::Cpu,
        file: "cpu.bvt_warp_ns",
        min: -2,
        max: 2,
    },
    Word {
        keys: &[
            "customization.cpuacct_sched_lat_switch",
            "__schedule_latency_switch",
        ],
        controller: Controller::Cpuacct,
        file: "cpuacct.sched_lat_switch",
        min: 0,
        max: 1,
    },
    Word {
        keys: &["customization.memory_wmark_ratio", "__memory_wmark_ratio"],
        controller: Controller::Memory,
        file: "memory.wmark_ratio",
        min: 0,
        max: 100,
    },
    Word {
        keys: &["customization.memory_extra", "__memory_extra_in_bytes"],
        controller: Controller::Memory,
        file: "memory.extra_in_bytes",
        min: 0,
        max: i64::MAX,
    },
    Word {
        keys: &[
            "customization.memory_force_empty_ctl",
            "__memory_force_empty_ctl",
        ],
        controller: Controller::Memory,
        file: "memory.force_empty_ctl",
        min: 0,
        max: 1,
    },
    Word {
        keys: &["customization.memory_priority"],
        controller: Controller::Memory,
        file: "memory.priority",
        min: 0,
        max: 12,
    },
    Word {
        keys: &["customization.memory_use_priority_oom"],
        controller: Controller::Memory,
        file: "memory.use_priority_oom",
        min: 0,
        max: 1,
    },
];

/// What the words of a container ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Colocation {
    /// Files to write.
    pub settings: Vec<Setting>,
    /// A class of resctrl that the operator has made.
    pub class: Option<String>,
    /// Keys of the internal plug-in of which no kernel interface is known.
    pub unknown: Vec<String>,
}

impl Colocation {
    /// What these annotations ask for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value that means nothing, and for two words for the same that say
    /// different things.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let settings = WORDS.iter().map(|word| word.setting(annotations));
        let settings = settings
            .filter_map(Result::transpose)
            .collect::<Result<_>>()?;
        let unknown = annotations
            .keys()
            .filter(|key| key.starts_with(CUSTOMIZATION) && !is_known(key));
        Ok(Self {
            settings,
            class: annotations.get(CLASS).map(|name| class(name)).transpose()?,
            unknown: unknown.cloned().collect(),
        })
    }

    /// The first key with a meaning, whose file or class a container has from its start on.
    pub(crate) fn known_in(annotations: &BTreeMap<String, String>) -> Option<&str> {
        annotations
            .keys()
            .map(String::as_str)
            .find(|key| is_known(key))
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Word {
    fn setting(&self, annotations: &BTreeMap<String, String>) -> Result<Option<Setting>> {
        let mut said = self
            .keys
            .iter()
            .filter_map(|key| Some((key, annotations.get(*key)?)));
        let Some((key, text)) = said.next() else {
            return Ok(None);
        };
        let invalid = |why: String| Error::invalid(format!("annotations.{key}"), why);
        if let Some((other, theirs)) = said.find(|(_, theirs)| *theirs != text) {
            return Err(invalid(format!("{text}, but {other} is {theirs}")));
        }
        let (min, max) = (self.min, self.max);
        let number = text.parse().ok();
        let number: i64 = number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| invalid(format!("{text:?} is no number from {min} to {max}")))?;
        Ok(Some(Setting {
            controller: self.controller,
            file: self.file.to_owned(),
            value: number.to_string(),
        }))
    }
}

fn is_known(key: &str) -> bool {
    key == CLASS || WORDS.iter().any(|word| word.keys.contains(&key))
}

/// Whether a class may be called so: the name is that of a directory.
pub(crate) fn is_class(name: &str) -> bool {
    !["", ".", ".."].contains(&name)
        && name.len() <= CLASS_BYTES_MAX
        && !name.contains(['/', '\n', '\0'])
}

fn class(name: &str) -> Result<String> {
    if is_class(name) {
        return Ok(name.to_owned());
    }
    let why = format!("{name:?} is no name of a class of resctrl");
    Err(Error::invalid(format!("annotations.{CLASS}"), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[(&str, &str)]) -> Result<Colocation> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Colocation::of(&given.iter().map(own).collect())
    }

    #[test]
    fn words_of_both_are_read_and_what_nobody_knows_is_kept_by_name() {
        let found = parse(&[
            ("__memory_wmark_ratio", "95"),
            ("customization.cpu_bvt_warp_ns", "-1"),
            ("customization.memory_priority", "12"),
            ("customization.intel_rdt_group", "batch"),
            ("customization.blkio_meta_write_tps", "5"),
            ("com.example", "x"),
        ]);
        let found = found.unwrap();
        let files: Vec<_> = found
            .settings
            .iter()
            .map(|it| (it.file.as_str(), it.value.as_str()))
            .collect();
        let expected = [
            ("cpu.bvt_warp_ns", "-1"),
            ("memory.wmark_ratio", "95"),
            ("memory.priority", "12"),
        ];
        assert_eq!(files, expected);
        assert_eq!(found.class.as_deref(), Some("batch"));
        assert_eq!(found.unknown, ["customization.blkio_meta_write_tps"]);
        assert!(parse(&[("com.example", "x")]).unwrap().is_none());
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (given, why) in [
            (
                &[("customization.memory_priority", "13")][..],
                "annotations.customization.memory_priority: \"13\" is no number from 0 to 12",
            ),
            (
                &[
                    ("customization.memory_wmark_ratio", "80"),
                    ("__memory_wmark_ratio", "90"),
                ],
                "annotations.customization.memory_wmark_ratio: 80, but __memory_wmark_ratio is 90",
            ),
            (
                &[("customization.intel_rdt_group", "../x")],
                "annotations.customization.intel_rdt_group: \"../x\" is no name of a class of resctrl",
            ),
        ] {
            assert_eq!(parse(given).unwrap_err().to_string(), why);
        }
    }
}
