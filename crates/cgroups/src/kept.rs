//! What a cgroup's files say that systemd writes, too: it knows some of their values only, and writes whole
//! controllers.
//!
//! ```text
//!   limits are written ─> the files are read ─> systemd is told, and writes ─> what differs is written back
//! ```

use std::path::PathBuf;

use crate::cgroup::Cgroup;
use crate::hierarchies::{Controller, Layout};
use crate::resources::Resources;
use crate::{Result, file};

/// Of version 2, in the order in which they are written: a weight is refused while a cgroup is idle.
const UNIFIED: [&str; 14] = [
    "cpu.idle",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "memory.zswap.max",
    "memory.oom.group",
    "pids.max",
    "cpuset.cpus",
    "cpuset.mems",
];

/// Of version 1, as [`UNIFIED`]. The quota comes last: it may not fit another period.
const LEGACY: [(Controller, &str); 7] = [
    (Controller::Cpu, "cpu.idle"),
    (Controller::Cpu, "cpu.shares"),
    (Controller::Cpu, "cpu.cfs_period_us"),
    (Controller::Cpu, "cpu.cfs_quota_us"),
    (Controller::Cpu, "cpu.cfs_burst_us"),
    (Controller::Memory, "memory.limit_in_bytes"),
    (Controller::Pids, "pids.max"),
];

/// The files as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    dir: PathBuf,
    name: &'static str,
    text: String,
}

impl Cgroup {
    /// Reads the files that systemd writes. One that the kernel does not have is left out.
    ///
    /// # Errors
    /// [`crate::Error::Read`].
    pub fn keep(&self) -> Result<Kept> {
        let mut places = Vec::new();
        match (self.paths.layout, self.paths.unified()) {
            (Layout::V2, Some(dir)) => places.extend(UNIFIED.map(|name| (dir, name))),
            _ => places.extend(
                LEGACY
                    .into_iter()
                    .filter_map(|(controller, name)| Some((self.paths.legacy(controller)?, name))),
            ),
        }
        let mut files = Vec::new();
        for (dir, name) in places {
            if let Some(text) = file::read_if_there(dir, name)? {
                let dir = dir.to_owned();
                files.push(File { dir, name, text });
            }
        }
        Ok(Kept { files })
    }
}

impl Kept {
    /// Writes what differs from what was read.
    ///
    /// # Errors
    /// [`crate::Error::Write`], [`crate::Error::Read`].
    pub fn restore(&self) -> Result<()> {
        let is_idle = self.text("cpu.idle") == Some("1");
        for File { dir, name, text } in &self.files {
            if is_idle && matches!(*name, "cpu.weight" | "cpu.shares") {
                continue; // It has none meanwhile.
            }
            if file::read(dir, name)? != *text {
                file::write(dir, name, text.trim())?;
            }
        }
        Ok(())
    }

    /// These limits with what systemd has to know beside them: of a quota and its period both, and the weight of
    /// what is idle no more.
    #[must_use]
    pub fn complete(&self, resources: &Resources) -> Resources {
        let mut all = resources.clone();
        let number = |name: &str| self.text(name)?.parse().ok();
        let is_set = resources.cpu.quota_us.is_some_and(|quota| quota != 0)
            || resources.cpu.period_us.is_some_and(|period| period != 0);
        if is_set && let Some(quota) = number("cpu.cfs_quota_us") {
            all.cpu.quota_us = Some(quota);
            let period = number("cpu.cfs_period_us");
            all.cpu.period_us = period.and_then(|period| u64::try_from(period).ok());
        }
        let mut say = |name: &str| {
            if let Some(text) = self.text(name) {
                all.unified.insert(name.to_owned(), text.to_owned());
            }
        };
        if is_set || resources.unified.contains_key("cpu.max") {
            say("cpu.max");
        }
        let files = &resources.unified;
        let is_woken = |idle: &String| idle.trim() == "0";
        if resources.cpu.idle == Some(0) || files.get("cpu.idle").is_some_and(is_woken) {
            say("cpu.weight");
        }
        all
    }

    fn text(&self, name: &str) -> Option<&str> {
        let found = self.files.iter().find(|file| file.name == name);
        found.map(|file| file.text.trim())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::file::tests::{directory, written};
    use crate::hierarchies::Kind;
    use crate::paths::{CgroupDir, CgroupPaths};

    fn cgroup(dir: &Path, layout: Layout) -> Cgroup {
        let kind = match layout {
            Layout::V2 => Kind::Unified,
            _ => Kind::V1(vec![Controller::Cpu, Controller::Memory]),
        };
        Cgroup::from_paths(CgroupPaths {
            layout,
            dirs: vec![CgroupDir {
                kind,
                names: String::new(),
                mount_point: dir.to_owned(),
                path: dir.to_owned(),
                made: Vec::new(),
            }],
        })
    }

    #[test]
    fn what_systemd_has_written_is_written_back_and_nothing_else() {
        let dir = directory(&[
            ("memory.max", "max\n"),
            ("memory.low", "4096\n"),
            ("cpu.weight", "7\n"),
        ]);
        let kept = cgroup(dir.path(), Layout::V2).keep().unwrap();
        std::fs::write(dir.path().join("memory.low"), "").unwrap();
        std::fs::write(dir.path().join("cpu.weight"), "").unwrap();
        kept.restore().unwrap();
        assert_eq!(written(dir.path(), "memory.low"), ["4096"]);
        assert_eq!(written(dir.path(), "cpu.weight"), ["7"]);
        assert_eq!(written(dir.path(), "memory.max"), ["max"]);
    }

    #[test]
    fn what_is_idle_stays_so_and_gets_no_weight() {
        let dir = directory(&[("cpu.idle", "1\n"), ("cpu.weight", "0\n")]);
        let kept = cgroup(dir.path(), Layout::V2).keep().unwrap();
        for name in ["cpu.idle", "cpu.weight"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        kept.restore().unwrap();
        assert_eq!(written(dir.path(), "cpu.idle"), ["1"]);
        assert!(written(dir.path(), "cpu.weight").is_empty());
    }

    #[test]
    fn of_a_quota_and_its_period_systemd_is_told_both() {
        let period = |period| {
            let mut resources = Resources::default();
            resources.cpu.period_us = Some(period);
            resources
        };
        let dir = directory(&[
            ("cpu.cfs_quota_us", "20000\n"),
            ("cpu.cfs_period_us", "50000\n"),
        ]);
        let kept = cgroup(dir.path(), Layout::V1).keep().unwrap();
        let told = kept.complete(&period(50_000));
        assert_eq!(told.cpu.quota_us, Some(20_000));
        let mut quota = Resources::default();
        quota.cpu.quota_us = Some(20_000);
        assert_eq!(kept.complete(&quota).cpu.period_us, Some(50_000));
        assert_eq!(kept.complete(&Resources::default()), Resources::default());
        let dir = directory(&[("cpu.max", "20000 50000\n"), ("cpu.weight", "59\n")]);
        let kept = cgroup(dir.path(), Layout::V2).keep().unwrap();
        let told = kept.complete(&period(50_000));
        assert_eq!(told.unified["cpu.max"], "20000 50000");
        let mut woken = Resources::default();
        woken.cpu.idle = Some(0);
        assert_eq!(kept.complete(&woken).unified["cpu.weight"], "59");
    }
}
