//! What kernels made for colocation have beside the usual files, and what of priority lies outside of
//! a container's own files: written where it is there, and told.

use std::path::Path;

use crate::cgroup::Cgroup;
use crate::hierarchies::{Controller, Layout};
use crate::priority::{Applied, Priority, apply};
use crate::resources::Resources;
use crate::{Error, file};

/// A file that is written only where the kernel has it; both versions have it by the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The controller whose file it is.
    pub controller: Controller,
    /// Its name.
    pub file: &'static str,
    /// What to write.
    pub value: String,
}

/// Where a kernel that has resctrl shows it (Documentation/arch/x86/resctrl.rst).
pub const RESCTRL: &str = "/sys/fs/resctrl";

const IFPRIOMAP: &str = "net_prio.ifpriomap";

/// What a priority means for packets on a link: bands of pfifo_fast and prio (tc-prio(8)).
fn packets(priority: Priority) -> &'static str {
    match priority {
        Priority::OnlineHigh => "6",
        Priority::Online => "0",
        Priority::Offline => "2",
        Priority::BestEffort => "1",
    }
}

impl Cgroup {
    /// Writes those of the settings that this kernel has files for; tells what became of each.
    #[must_use]
    pub fn set_up(&self, settings: &[Setting]) -> Vec<Applied> {
        let write = |setting: &Setting| {
            let unified = self
                .paths
                .unified()
                .filter(|_| self.paths.layout == Layout::V2);
            let directory = unified.or_else(|| self.paths.legacy(setting.controller));
            let written = directory.and_then(|it| apply(it, setting.file, &setting.value));
            written.unwrap_or_else(|| Applied {
                file: setting.file.to_owned(),
                value: setting.value.clone(),
                refused: Some("this kernel has no such file".to_owned()),
            })
        };
        settings.iter().map(write).collect()
    }

    /// Gives packets a priority on each link of the host, unless config.json does; nothing where net_prio
    /// (version 1) is not mounted. Links of other network namespaces are not among them.
    #[must_use]
    pub fn prioritise_packets(&self, priority: Priority, resources: &[&Resources]) -> Vec<Applied> {
        let is_set = |resources: &&Resources| !resources.network.priorities.is_empty();
        let Some(directory) = self.paths.legacy(Controller::NetPrio) else {
            return Vec::new();
        };
        if resources.iter().any(is_set) {
            return Vec::new();
        }
        let Ok(table) = file::read(directory, IFPRIOMAP) else {
            return Vec::new();
        };
        let links = table.lines().filter_map(|line| line.split(' ').next());
        links
            .filter(|link| !["", "lo"].contains(link))
            .filter_map(|link| {
                let value = format!("{link} {}", packets(priority));
                apply(directory, IFPRIOMAP, &value)
            })
            .collect()
    }
}

/// Puts threads, and what they start from then on, into a class of resctrl that the operator has made.
/// None: there is no such class. The first refusal is told.
#[must_use]
pub fn classify(resctrl: &Path, class: &str, threads: &[i32]) -> Option<Applied> {
    let told = |refused| Applied {
        file: "resctrl".to_owned(),
        value: class.to_owned(),
        refused,
    };
    // A write takes one; lists are of Linux 6.7.
    let class_dir = resctrl.join(class);
    let mut threads = threads.iter();
    match threads.try_for_each(|id| file::write_number(&class_dir, "tasks", id)) {
        Ok(()) => Some(told(None)),
        Err(error) if error.is_not_found() => None,
        Err(Error::Write { source, .. }) => Some(told(Some(source.to_string()))),
        Err(error) => Some(told(Some(error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::Kind;
    use crate::paths::{CgroupDir, CgroupPaths};
    use crate::resources::InterfacePriority;

    fn cgroup(root: &Path, controller: Controller) -> Cgroup {
        Cgroup::from_paths(CgroupPaths {
            layout: Layout::V1,
            dirs: vec![CgroupDir {
                kind: Kind::V1(vec![controller]),
                names: controller.name().to_owned(),
                mount_point: root.to_owned(),
                path: root.to_owned(),
                made: Vec::new(),
            }],
        })
    }

    fn words(applied: &[Applied]) -> Vec<String> {
        applied.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_that_is_there_is_written_and_another_is_told() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("memory.wmark_ratio"), "").unwrap();
        let setting = |file| Setting {
            controller: Controller::Memory,
            file,
            value: "90".to_owned(),
        };
        let settings = [setting("memory.wmark_ratio"), setting("memory.gone")];
        let applied = cgroup(root.path(), Controller::Memory).set_up(&settings);
        let expected = [
            "memory.wmark_ratio=90",
            "memory.gone=90 refused (this kernel has no such file)",
        ];
        assert_eq!(words(&applied), expected);
        let written = std::fs::read_to_string(root.path().join("memory.wmark_ratio"));
        assert_eq!(written.unwrap(), "90\n");
    }

    #[test]
    fn packets_have_a_priority_on_each_link_but_the_loopback() {
        let root = tempfile::tempdir().unwrap();
        let table = || std::fs::write(root.path().join(IFPRIOMAP), "lo 0\neth0 0\neth1 3\n");
        table().unwrap();
        let cgroup = cgroup(root.path(), Controller::NetPrio);
        let mut resources = Resources::default();
        let applied = cgroup.prioritise_packets(Priority::OnlineHigh, &[&resources]);
        let expected = ["net_prio.ifpriomap=eth0 6", "net_prio.ifpriomap=eth1 6"];
        assert_eq!(words(&applied), expected);
        table().unwrap();
        resources.network.priorities.push(InterfacePriority {
            name: "eth0".to_owned(),
            priority: 4,
        });
        let applied = cgroup.prioritise_packets(Priority::Offline, &[&resources]);
        assert_eq!(applied, []);
    }

    #[test]
    fn a_class_is_the_operators_to_make() {
        let resctrl = tempfile::tempdir().unwrap();
        assert_eq!(classify(resctrl.path(), "pouch-offline", &[7]), None);
        let class = resctrl.path().join("pouch-offline");
        std::fs::create_dir(&class).unwrap();
        std::fs::write(class.join("tasks"), "").unwrap();
        let applied = classify(resctrl.path(), "pouch-offline", &[7, 9]).unwrap();
        assert_eq!(applied.to_string(), "resctrl=pouch-offline");
        let tasks = std::fs::read_to_string(class.join("tasks"));
        assert_eq!(tasks.unwrap(), "7\n9\n");
    }
}
