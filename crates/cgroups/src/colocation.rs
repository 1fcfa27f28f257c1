//! What kernels made for colocation have beside the usual files, and what of priority lies outside of
//! a container's own files: written where it is there, and told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::file;
use crate::hierarchies::{Controller, Layout};
use crate::priority::{Applied, Priority, apply};
use crate::resources::Resources;

/// A file that is written only where the kernel has it; both versions have it by the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The controller whose file it is.
    pub controller: Controller,
    /// Its name.
    pub file: String,
    /// What to write.
    pub value: String,
}

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
            let written = directory.and_then(|it| apply(it, &setting.file, &setting.value));
            written.unwrap_or_else(|| Applied {
                file: setting.file.clone(),
                value: setting.value.clone(),
                refused: Some("this kernel has no such file".to_owned()),
            })
        };
        settings.iter().map(write).collect()
    }

    /// Gives packets a priority on each link of the host, unless config.json does; nothing where net_prio
    /// (version 1) is not mounted. Links of other network namespaces are not among them: it is for who
    /// is in the host's. Tells how many links have it, and each refusal once.
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
        let band = packets(priority);
        let links = table.lines().filter_map(|line| line.split_once(' '));
        let links = links.filter(|(link, _)| !["", "lo"].contains(link));
        let applied = links.filter_map(|(link, has)| {
            // Each write makes the kernel copy a link's table, and hosts have hundreds of links.
            if has == band {
                return Some((link, None));
            }
            let applied = apply(directory, IFPRIOMAP, &format!("{link} {band}"))?;
            Some((link, applied.refused))
        });
        counted(band, applied)
    }
}

/// What became of a band on links, which may be hundreds: a number, and of each refusal one link, too.
fn counted<'a>(band: &str, links: impl Iterator<Item = (&'a str, Option<String>)>) -> Vec<Applied> {
    let mut by_refusal: BTreeMap<Option<String>, (&str, usize)> = BTreeMap::new();
    for (link, refused) in links {
        by_refusal.entry(refused).or_insert((link, 0)).1 += 1;
    }
    let told = |(refused, (link, count)): (Option<String>, (&str, usize))| {
        let links = if count == 1 { "link" } else { "links" };
        Applied {
            file: IFPRIOMAP.to_owned(),
            value: format!("{band} on {count} {links}"),
            refused: refused.map(|why| format!("{link}: {why}")),
        }
    };
    by_refusal.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        let setting = |file: &str| Setting {
            controller: Controller::Memory,
            file: file.to_owned(),
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
        assert_eq!(words(&applied), ["net_prio.ifpriomap=6 on 2 links"]);
        let written = || std::fs::read_to_string(root.path().join(IFPRIOMAP)).unwrap();
        assert_eq!(written(), "lo 0\neth0 0\neth1 3\neth0 6\neth1 6\n");
        table().unwrap();
        let applied = cgroup.prioritise_packets(Priority::Online, &[&resources]);
        assert_eq!(words(&applied), ["net_prio.ifpriomap=0 on 2 links"]);
        // The one that has it already is counted, and not written.
        assert_eq!(written(), "lo 0\neth0 0\neth1 3\neth1 0\n");
        table().unwrap();
        resources.network.priorities.push(InterfacePriority {
            name: "eth0".to_owned(),
            priority: 4,
        });
        let applied = cgroup.prioritise_packets(Priority::Offline, &[&resources]);
        assert_eq!(applied, []);
    }

    #[test]
    fn links_are_counted_and_each_refusal_is_told_once() {
        let gone = || Some("No such device".to_owned());
        let names: Vec<_> = (0..300).map(|number| format!("veth{number}")).collect();
        let taken = names.iter().map(|name| (name.as_str(), None));
        let refused = [("eth0", gone()), ("eth1", gone())];
        let expected = [
            "net_prio.ifpriomap=2 on 300 links",
            "net_prio.ifpriomap=2 on 2 links refused (eth0: No such device)",
        ];
        assert_eq!(words(&counted("2", taken.chain(refused))), expected);
        let one = counted("2", [("eth0", None)].into_iter());
        assert_eq!(words(&one), ["net_prio.ifpriomap=2 on 1 link"]);
        assert_eq!(counted("2", std::iter::empty()), []);
    }
}
