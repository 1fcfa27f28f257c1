//! Where a container's cgroup lies in each hierarchy.
//!
//! Path rules only, and which directories have to be made; nothing here makes one.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::hierarchies::{Controller, Hierarchies, Hierarchy, Kind, Layout};
use crate::{Error, Result};

/// One directory for each hierarchy; goes into the journal before the first of them is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPaths {
    /// How the host mounts its hierarchies.
    pub layout: Layout,
    /// In the order in which a task joins them.
    pub dirs: Vec<CgroupDir>,
}

/// The container's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDir {
    /// Version and controllers of the hierarchy.
    pub kind: Kind,
    /// The mount options that mount the hierarchy again; empty for version 2.
    pub names: String,
    /// Where the hierarchy is mounted.
    pub mount_point: PathBuf,
    /// The container's cgroup.
    pub path: PathBuf,
    /// Parents of `path` that did not exist before, outermost first: ours to remove when empty.
    pub made: Vec<PathBuf>,
}

impl CgroupPaths {
    /// The directories for `linux.cgroupsPath`, by the rules of runc's cgroupfs driver.
    ///
    /// - An absolute path lies below the mount point of each hierarchy.
    /// - A relative path lies below the caller's own cgroup: itself in version 1; its parent in
    ///   version 2, because a cgroup with processes cannot hand controllers on; and the mount
    ///   point of the unified hierarchy of a hybrid host.
    /// - `..` never leads out.
    /// - `slice:prefix:name` is a name like any other; [`crate::ScopeName`] is for who means a scope.
    /// - A path that names no cgroup of its own (`/`, `..`) is refused: deleting it would be
    ///   deleting somebody else's.
    pub fn new(hierarchies: &Hierarchies, cgroups_path: &str) -> Result<Self> {
        let layout = hierarchies.layout();
        let below = cleaned(cgroups_path);
        if below.is_empty() {
            return Err(Error::Invalid {
                field: "linux.cgroupsPath",
                why: format!("{cgroups_path:?} names no cgroup"),
            });
        }
        let place = |hierarchy: &Hierarchy| {
            let start = if Path::new(cgroups_path).is_absolute() {
                hierarchy.mount_point.as_path()
            } else {
                relative_start(hierarchy, layout)
            };
            let path = below
                .iter()
                .fold(start.to_owned(), |path, name| path.join(name));
            CgroupDir {
                kind: hierarchy.kind.clone(),
                names: hierarchy.names.clone(),
                mount_point: hierarchy.mount_point.clone(),
                made: missing_parents(&path, &hierarchy.mount_point),
                path,
            }
        };
        Ok(Self {
            layout,
            dirs: hierarchies.iter().map(place).collect(),
        })
    }

    /// The directory in the version 1 hierarchy of this controller.
    #[must_use]
    pub fn legacy(&self, controller: Controller) -> Option<&Path> {
        let dir = self.dirs.iter().find(|dir| match &dir.kind {
            Kind::V1(controllers) => controllers.contains(&controller),
            Kind::Unified => false,
        })?;
        Some(&dir.path)
    }

    /// The directory in the version 2 hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        let dir = self.dirs.iter().find(|dir| dir.kind == Kind::Unified)?;
        Some(&dir.path)
    }
}

/// Where relative paths start.
fn relative_start(hierarchy: &Hierarchy, layout: Layout) -> &Path {
    match (&hierarchy.kind, layout) {
        (Kind::V1(_), _) => &hierarchy.own,
        (Kind::Unified, Layout::V1 | Layout::Hybrid) => &hierarchy.mount_point,
        (Kind::Unified, Layout::V2) if hierarchy.own == hierarchy.mount_point => &hierarchy.own,
        (Kind::Unified, Layout::V2) => hierarchy.own.parent().unwrap_or(&hierarchy.mount_point),
    }
}

/// The names in a path when `..` at its root stays there.
fn cleaned(path: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.extend(name.to_str()),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

/// Parents of `path` below `mount_point` that are not there now, outermost first.
pub(crate) fn missing_parents(path: &Path, mount_point: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .take_while(|parent| *parent != mount_point && !parent.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A hybrid host under a temporary directory, the caller in `/own/scope` everywhere.
    fn hybrid(root: &Path) -> Hierarchies {
        let at = root.display();
        let mountinfo = format!(
            "1 0 0:1 / {at}/pids rw - cgroup c rw,pids\n\
             2 0 0:2 / {at}/cpu,cpuacct rw - cgroup c rw,cpu,cpuacct\n\
             3 0 0:3 / {at}/unified rw - cgroup2 c rw\n"
        );
        Hierarchies::detect(
            &mountinfo,
            "2:cpu,cpuacct:/own/scope\n1:pids:/own/scope\n0::/own/scope\n",
        )
        .unwrap()
    }

    fn check(hierarchies: &Hierarchies, root: &Path, given: &str, expected: &[&str]) {
        let paths = CgroupPaths::new(hierarchies, given).unwrap();
        let shown: Vec<&Path> = paths
            .dirs
            .iter()
            .map(|dir| dir.path.strip_prefix(root).unwrap())
            .collect();
        let expected: Vec<&Path> = expected.iter().map(Path::new).collect();
        assert_eq!(shown, expected, "{given}");
    }

    #[test]
    fn paths_follow_runcs_rules_on_a_hybrid_host() {
        let root = tempfile::tempdir().unwrap();
        let host = hybrid(root.path());
        let check = |given: &str, expected: [&str; 3]| check(&host, root.path(), given, &expected);
        check(
            "/default/x",
            [
                "cpu,cpuacct/default/x",
                "pids/default/x",
                "unified/default/x",
            ],
        );
        check(
            "x",
            ["cpu,cpuacct/own/scope/x", "pids/own/scope/x", "unified/x"],
        );
        check(
            "a/../../../x/.",
            ["cpu,cpuacct/own/scope/x", "pids/own/scope/x", "unified/x"],
        );
        check(
            "//../..//b/../a//c/",
            ["cpu,cpuacct/a/c", "pids/a/c", "unified/a/c"],
        );
        check(
            "/t.slice:cri:id",
            [
                "cpu,cpuacct/t.slice:cri:id",
                "pids/t.slice:cri:id",
                "unified/t.slice:cri:id",
            ],
        );
    }

    #[test]
    fn relative_paths_of_version_2_are_siblings_of_the_caller() {
        let detect = |own: &str| {
            Hierarchies::detect(
                "1 0 0:1 / /nowhere rw - cgroup2 c rw\n",
                &format!("0::{own}\n"),
            )
            .unwrap()
        };
        check(
            &detect("/a/scope"),
            Path::new("/nowhere"),
            "t.slice:p:n",
            &["a/t.slice:p:n"],
        );
        check(&detect("/"), Path::new("/nowhere"), "x", &["x"]);
    }

    #[test]
    fn path_that_names_no_cgroup_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for given in ["", "/", ".", "a/..", "/.."] {
            let refused = CgroupPaths::new(&hybrid(root.path()), given);
            assert!(
                matches!(refused, Err(Error::Invalid { .. })),
                "{given:?}: {refused:?}"
            );
        }
    }

    #[test]
    fn parents_that_are_missing_are_remembered_per_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("pids/a")).unwrap();
        let paths = CgroupPaths::new(&hybrid(root.path()), "/a/b/c").unwrap();
        let made = |controller: Controller| {
            let with = |dir: &&CgroupDir| dir.kind == Kind::V1(vec![controller]);
            paths.dirs.iter().find(with).unwrap().made.clone()
        };
        assert_eq!(made(Controller::Pids), [root.path().join("pids/a/b")]);
        assert_eq!(paths.dirs[0].made.len(), 2);
        assert_eq!(
            paths.legacy(Controller::Cpuacct),
            Some(root.path().join("cpu,cpuacct/a/b/c").as_path())
        );
        assert_eq!(paths.legacy(Controller::Memory), None);
        assert_eq!(
            paths.unified(),
            Some(root.path().join("unified/a/b/c").as_path())
        );
    }
}
