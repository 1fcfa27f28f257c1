//! One word for how much a container matters beside the others of its host, in whatever this kernel
//! has to say it with.
//!
//! What is not there is left out, and what config.json sets itself is left as it is.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::hierarchies::{Controller, Layout};
use crate::resources::Resources;
use crate::{Error, file};

/// How much a container matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Priority {
    /// People wait for it, and it comes before others for which they do.
    OnlineHigh,
    /// People wait for it: what a container is that says nothing.
    Online,
    /// Nobody waits, but it should get on.
    Offline,
    /// It takes what is left.
    BestEffort,
}

impl Priority {
    /// All of them, the highest first.
    pub const ALL: [Self; 4] = [
        Self::OnlineHigh,
        Self::Online,
        Self::Offline,
        Self::BestEffort,
    ];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlineHigh => "online-high",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::BestEffort => "best-effort",
        }
    }
}

/// A file of a controller.
struct Knob {
    controller: Controller,
    /// Its name in version 1; none: only version 2 has it.
    legacy: Option<&'static str>,
    unified: Option<&'static str>,
    /// For each priority in the order of [`Priority::ALL`]; none: not written.
    values: [Option<&'static str>; 4],
    /// What takes a value back, for a priority that has none; none: another file does that.
    neutral: Option<&'static str>,
    /// Whether config.json says it itself; the same file by its name in `linux.resources.unified`
    /// always does.
    is_set: fn(&Resources) -> bool,
}

/// In the order in which they are written: weights are refused once a cgroup is idle (Linux 5.15).
const KNOBS: [Knob; 11] = [
    Knob {
        controller: Controller::Cpu,
        legacy: Some("cpu.shares"),
        unified: None,
        values: [Some("4096"), Some("1024"), Some("128"), None],
        neutral: None,
        is_set: sets_shares,
    },
    Knob {
        controller: Controller::Cpu,
        legacy: None,
        unified: Some("cpu.weight"),
        values: [Some("400"), Some("100"), Some("12"), None],
        neutral: None,
        is_set: sets_shares,
    },
    // SCHED_IDLE for all of its tasks: Linux 5.15, in both versions.
    Knob {
        controller: Controller::Cpu,
        legacy: Some("cpu.idle"),
        unified: Some("cpu.idle"),
        values: [None, None, None, Some("1")],
        neutral: Some("0"),
        is_set: |resources| resources.cpu.idle.is_some() || sets_shares(resources),
    },
    // Alibaba Cloud Linux: group identity.
    Knob {
        controller: Controller::Cpu,
        legacy: Some("cpu.bvt_warp_ns"),
        unified: Some("cpu.bvt_warp_ns"),
        values: [Some("2"), Some("1"), Some("-1"), Some("-1")],
        neutral: None,
        is_set: |_| false,
    },
    // Alibaba Cloud Linux: who is killed first when memory ends, 0 to 12.
    Knob {
        controller: Controller::Memory,
        legacy: Some("memory.priority"),
        unified: Some("memory.priority"),
        values: [Some("12"), Some("8"), Some("4"), Some("0")],
        neutral: None,
        is_set: |_| false,
    },
    // Memory that is taken from others first, as far as the cgroups above have such a share.
    Knob {
        controller: Controller::Memory,
        legacy: None,
        unified: Some("memory.low"),
        values: [Some("max"), None, None, None],
        neutral: Some("0"),
        is_set: |resources| resources.memory.reservation.is_some(),
    },
    // Classes 7075:1 to 7075:4 for the operator's own tc(8) filters and firewalls.
    Knob {
        controller: Controller::NetCls,
        legacy: Some("net_cls.classid"),
        unified: None,
        values: [
            Some("0x70750001"),
            Some("0x70750002"),
            Some("0x70750003"),
            Some("0x70750004"),
        ],
        neutral: None,
        is_set: |resources| resources.network.class_id.is_some_and(|class| class != 0),
    },
    // CFQ, before Linux 5.0.
    Knob {
        controller: Controller::Blkio,
        legacy: Some("blkio.weight"),
        unified: None,
        values: [Some("1000"), Some("500"), Some("100"), Some("10")],
        neutral: None,
        is_set: sets_io_weight,
    },
    Knob {
        controller: Controller::Blkio,
        legacy: Some("blkio.bfq.weight"),
        unified: Some("io.bfq.weight"),
        values: [Some("800"), Some("100"), Some("20"), Some("1")],
        neutral: None,
        is_set: sets_io_weight,
    },
    Knob {
        controller: Controller::Blkio,
        legacy: None,
        unified: Some("io.weight"),
        values: [Some("800"), Some("100"), Some("20"), Some("1")],
        neutral: None,
        is_set: sets_io_weight,
    },
    // Linux 5.14.
    Knob {
        controller: Controller::Blkio,
        legacy: Some("blkio.prio.class"),
        unified: Some("io.prio.class"),
        values: [None, None, Some("restrict-to-be"), Some("idle")],
        neutral: Some("no-change"),
        is_set: |_| false,
    },
];

impl Knob {
    fn value(&self, priority: Priority) -> Option<&'static str> {
        let index = Priority::ALL.iter().position(|&other| other == priority);
        self.values.get(index?).copied().flatten()
    }
}

fn sets_shares(resources: &Resources) -> bool {
    let names = ["cpu.weight", "cpu.weight.nice"];
    resources.cpu.shares.is_some_and(|shares| shares != 0) || names_one(resources, &names)
}

fn sets_io_weight(resources: &Resources) -> bool {
    let weight = resources.block_io.weight;
    weight.is_some_and(|weight| weight != 0)
        || names_one(resources, &["io.weight", "io.bfq.weight"])
}

/// Whether one of these files of version 2 is set by its name.
fn names_one(resources: &Resources, files: &[&str]) -> bool {
    files
        .iter()
        .any(|&file| resources.unified.contains_key(file))
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its name.
    pub file: String,
    /// What was written.
    pub value: String,
    /// Why the kernel did not take it; none: it did.
    pub refused: Option<String>,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.file, self.value)?;
        match &self.refused {
            Some(why) => write!(f, " refused ({why})"),
            None => Ok(()),
        }
    }
}

impl Cgroup {
    /// Gives the cgroup a priority by all files that are there; tells what was written. To be called
    /// after [`Cgroup::apply`].
    #[must_use]
    pub fn prioritise(&self, priority: Priority, resources: &Resources) -> Vec<Applied> {
        let knobs = KNOBS.iter();
        let write = |knob: &Knob| self.write_knob(knob, knob.value(priority)?, &[resources]);
        knobs.filter_map(write).collect()
    }

    /// Gives it another priority than it had; what one of `set` says itself stays.
    #[must_use]
    pub fn reprioritise(
        &self,
        (old, new): (Option<Priority>, Priority),
        set: &[&Resources],
    ) -> Vec<Applied> {
        let take_back = |knob: &Knob| {
            let was_written = old.and_then(|old| knob.value(old)).is_some();
            let neutral = knob.neutral.filter(|_| knob.value(new).is_none());
            self.write_knob(knob, neutral.filter(|_| was_written)?, set)
        };
        // First: a cgroup that is idle takes no weight.
        let mut applied: Vec<_> = KNOBS.iter().filter_map(take_back).collect();
        let write = |knob: &Knob| self.write_knob(knob, knob.value(new)?, set);
        applied.extend(KNOBS.iter().filter_map(write));
        applied
    }

    /// None: there is no such file, or it is not ours to write.
    fn write_knob(&self, knob: &Knob, value: &'static str, set: &[&Resources]) -> Option<Applied> {
        if set.iter().any(|resources| (knob.is_set)(resources)) {
            return None;
        }
        let (directory, file) = self.place_of(knob)?;
        if set.iter().any(|resources| names_one(resources, &[file])) {
            return None;
        }
        apply(directory, file, value)
    }

    fn place_of(&self, knob: &Knob) -> Option<(&Path, &'static str)> {
        let unified = || Some((self.paths.unified()?, knob.unified?));
        if self.paths.layout == Layout::V2 {
            return unified();
        }
        let legacy = || Some((self.paths.legacy(knob.controller)?, knob.legacy?));
        legacy().or_else(unified)
    }
}

/// None: there is no such file.
pub(crate) fn apply(directory: &Path, file: &str, value: &str) -> Option<Applied> {
    let refused = match file::write(directory, file, value) {
        Ok(()) => None,
        Err(error) if error.is_not_found() => return None,
        Err(Error::Write { source, .. }) => Some(source.to_string()),
        Err(error) => Some(error.to_string()),
    };
    Some(Applied {
        file: file.to_owned(),
        value: value.to_owned(),
        refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::Kind;
    use crate::paths::{CgroupDir, CgroupPaths};

    /// A cgroup of version 1 whose cpu and blkio controllers have these files.
    fn cgroup(root: &Path, files: &[&str]) -> Cgroup {
        let dir = |controller: Controller| CgroupDir {
            kind: Kind::V1(vec![controller]),
            names: controller.name().to_owned(),
            mount_point: root.to_owned(),
            path: root.join(controller.name()),
            made: Vec::new(),
        };
        let dirs = [Controller::Cpu, Controller::Blkio].map(dir).to_vec();
        for dir in &dirs {
            std::fs::create_dir_all(&dir.path).unwrap();
            for file in files.iter().filter(|file| file.starts_with(&dir.names)) {
                std::fs::write(dir.path.join(file), "").unwrap();
            }
        }
        Cgroup::from_paths(CgroupPaths {
            layout: Layout::V1,
            dirs,
        })
    }

    /// A cgroup of version 2 with these files.
    fn unified(root: &Path, files: &[&str]) -> Cgroup {
        for file in files {
            std::fs::write(root.join(file), "").unwrap();
        }
        Cgroup::from_paths(CgroupPaths {
            layout: Layout::V2,
            dirs: vec![CgroupDir {
                kind: Kind::Unified,
                names: String::new(),
                mount_point: root.to_owned(),
                path: root.to_owned(),
                made: Vec::new(),
            }],
        })
    }

    fn written(files: &[&str], priority: Priority, resources: &Resources) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let applied = cgroup(root.path(), files).prioritise(priority, resources);
        applied.iter().map(Applied::to_string).collect()
    }

    #[test]
    fn what_is_there_is_written_and_nothing_else() {
        let none = &Resources::default();
        let files = ["cpu.shares", "cpu.idle", "blkio.bfq.weight"];
        for (priority, expected) in [
            (
                Priority::OnlineHigh,
                &["cpu.shares=4096", "blkio.bfq.weight=800"][..],
            ),
            (
                Priority::Online,
                &["cpu.shares=1024", "blkio.bfq.weight=100"],
            ),
            (
                Priority::Offline,
                &["cpu.shares=128", "blkio.bfq.weight=20"],
            ),
            (Priority::BestEffort, &["cpu.idle=1", "blkio.bfq.weight=1"]),
        ] {
            assert_eq!(written(&files, priority, none), expected, "{priority:?}");
        }
        assert!(written(&[], Priority::Offline, none).is_empty());
        let bvt = written(&["cpu.bvt_warp_ns"], Priority::OnlineHigh, none);
        assert_eq!(bvt, ["cpu.bvt_warp_ns=2"]);
    }

    #[test]
    fn what_is_set_by_its_own_name_stays() {
        let mut own = Resources::default();
        own.cpu.shares = Some(512);
        let files = ["cpu.shares", "cpu.idle", "blkio.bfq.weight"];
        for priority in [Priority::OnlineHigh, Priority::BestEffort] {
            let written = written(&files, priority, &own);
            assert!(
                written.iter().all(|one| one.starts_with("blkio")),
                "{written:?}"
            );
        }
    }

    #[test]
    fn what_is_set_by_the_name_of_its_file_stays() {
        const FILES: [&str; 5] = [
            "cpu.weight",
            "cpu.idle",
            "io.bfq.weight",
            "io.weight",
            "io.prio.class",
        ];
        for (file, priority, expected) in [
            (
                "memory.high",
                Priority::Offline,
                "cpu.weight=12 io.bfq.weight=20 io.weight=20 io.prio.class=restrict-to-be",
            ),
            (
                "cpu.weight",
                Priority::Offline,
                "io.bfq.weight=20 io.weight=20 io.prio.class=restrict-to-be",
            ),
            (
                "cpu.weight.nice",
                Priority::BestEffort,
                "io.bfq.weight=1 io.weight=1 io.prio.class=idle",
            ),
            (
                "cpu.idle",
                Priority::BestEffort,
                "io.bfq.weight=1 io.weight=1 io.prio.class=idle",
            ),
            (
                "io.weight",
                Priority::BestEffort,
                "cpu.idle=1 io.prio.class=idle",
            ),
            (
                "io.bfq.weight",
                Priority::BestEffort,
                "cpu.idle=1 io.prio.class=idle",
            ),
            (
                "io.prio.class",
                Priority::BestEffort,
                "cpu.idle=1 io.bfq.weight=1 io.weight=1",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let mut own = Resources::default();
            own.unified.insert(file.to_owned(), "50".to_owned());
            let applied = unified(root.path(), &FILES).prioritise(priority, &own);
            let told: Vec<_> = applied.iter().map(Applied::to_string).collect();
            assert_eq!(told.join(" "), expected, "{file}");
        }
    }

    #[test]
    fn another_priority_takes_back_what_the_old_one_had_written() {
        let files = ["cpu.shares", "cpu.idle", "blkio.prio.class"];
        let shares = Resources {
            cpu: crate::resources::Cpu {
                shares: Some(512),
                ..Default::default()
            },
            ..Resources::default()
        };
        let none = Resources::default();
        for (old, new, set, expected) in [
            (
                Some(Priority::BestEffort),
                Priority::Online,
                &none,
                "cpu.idle=0 blkio.prio.class=no-change cpu.shares=1024",
            ),
            (None, Priority::Online, &none, "cpu.shares=1024"),
            (
                Some(Priority::Offline),
                Priority::BestEffort,
                &none,
                "cpu.idle=1 blkio.prio.class=idle",
            ),
            (
                Some(Priority::BestEffort),
                Priority::OnlineHigh,
                &shares,
                "blkio.prio.class=no-change",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let cgroup = cgroup(root.path(), &files);
            let applied = cgroup.reprioritise((old, new), &[&none, set]);
            let told: Vec<_> = applied.iter().map(Applied::to_string).collect();
            assert_eq!(told.join(" "), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn the_highest_keeps_its_memory_until_it_is_another() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = unified(root.path(), &["memory.low"]);
        let mut own = Resources::default();
        let told = |change, own: &Resources| {
            let applied = cgroup.reprioritise(change, &[own]);
            applied.iter().map(Applied::to_string).collect::<Vec<_>>()
        };
        let (high, online) = (Priority::OnlineHigh, Priority::Online);
        assert_eq!(told((None, high), &own), ["memory.low=max"]);
        assert_eq!(told((Some(high), online), &own), ["memory.low=0"]);
        own.memory.reservation = Some(4096);
        assert!(told((Some(online), high), &own).is_empty());
    }

    #[test]
    fn a_refusal_is_told() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path(), &[]);
        std::fs::create_dir(root.path().join("cpu/cpu.shares")).unwrap();
        let applied = cgroup.prioritise(Priority::Online, &Resources::default());
        let said: Vec<_> = applied.iter().map(Applied::to_string).collect();
        assert_eq!(
            said,
            ["cpu.shares=1024 refused (Is a directory (os error 21))"]
        );
    }
}
