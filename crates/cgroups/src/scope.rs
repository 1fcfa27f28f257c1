//! A scope of systemd that holds a container: its names, and where its cgroup lies. Pure.
//!
//! Nothing here talks to systemd; who does, makes the scope before [`crate::Cgroup::complete_at`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::hierarchies::{Controller, Hierarchies, Kind};
use crate::paths::{CgroupDir, CgroupPaths, missing_parents};
use crate::{Error, Result};

const FIELD: &str = "linux.cgroupsPath";

/// Where scopes are that name no slice.
const SLICE_DEFAULT: &str = "system.slice";

const SLICE: &str = ".slice";

/// What comes before the id in the name of a scope whose container names none.
const PREFIX_DEFAULT: &str = "runlxc";

/// Longest name of a unit, in bytes (systemd's UNIT_NAME_MAX, without its end).
const NAME_BYTES_MAX: usize = 255;

/// The controllers of version 1 whose directories systemd makes and removes. Those of all others are ours.
const OF_SYSTEMD: [Controller; 7] = [
    Controller::Systemd,
    Controller::Cpu,
    Controller::Cpuacct,
    Controller::Memory,
    Controller::Blkio,
    Controller::Devices,
    Controller::Pids,
];

/// The names of a scope and of the slice it lies in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeName {
    /// The slice, e.g. `kubepods-burstable.slice`; `-.slice` is the root.
    pub slice: String,
    /// The scope, e.g. `cri-containerd-3f.scope`.
    pub unit: String,
}

impl ScopeName {
    /// From `linux.cgroupsPath` in the form `slice:prefix:name`, by runc's rules: the unit is
    /// `prefix-name.scope`, an empty slice is `system.slice`, and without a path the scope is
    /// `runlxc-ID.scope` there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another form, for a name that no unit can have, and for a name that ends in
    /// `.slice`: a slice holds no processes.
    pub fn new(cgroups_path: Option<&str>, id: &str) -> Result<Self> {
        let Some(path) = cgroups_path.filter(|path| !path.is_empty()) else {
            return Self::checked(SLICE_DEFAULT, format!("{PREFIX_DEFAULT}-{id}.scope"));
        };
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts.as_slice() else {
            // runc's words, which people look for.
            return refused(format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
            ));
        };
        if name.ends_with(SLICE) {
            return refused(format!(
                "{name} is a slice, which holds no processes: name a scope"
            ));
        }
        let slice = match *slice {
            "" => SLICE_DEFAULT,
            "-" => "-.slice",
            slice => slice,
        };
        Self::checked(slice, format!("{prefix}-{name}.scope"))
    }

    fn checked(slice: &str, unit: String) -> Result<Self> {
        slice_path(slice)?;
        if let Some(wrong) = unit.chars().find(|c| !is_of_name(*c)) {
            return refused(format!("a unit cannot be called {unit}: it has {wrong:?}"));
        }
        if unit.len() > NAME_BYTES_MAX {
            return refused(format!(
                "the unit {unit} would have a name of more than {NAME_BYTES_MAX} bytes"
            ));
        }
        Ok(Self {
            slice: slice.to_owned(),
            unit,
        })
    }

    /// The directories of the scope's cgroup, which systemd makes in its own hierarchies.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the name of a slice that is none.
    pub fn paths(&self, hierarchies: &Hierarchies) -> Result<CgroupPaths> {
        let below: PathBuf = slice_path(&self.slice)?.iter().collect();
        let below = below.join(&self.unit);
        let dirs = hierarchies.iter().map(|hierarchy| {
            let path = hierarchy.mount_point.join(&below);
            let made = if is_of_systemd(&hierarchy.kind) {
                Vec::new()
            } else {
                missing_parents(&path, &hierarchy.mount_point)
            };
            CgroupDir {
                kind: hierarchy.kind.clone(),
                names: hierarchy.names.clone(),
                mount_point: hierarchy.mount_point.clone(),
                path,
                made,
            }
        });
        Ok(CgroupPaths {
            layout: hierarchies.layout(),
            dirs: dirs.collect(),
        })
    }

    /// Those directories of a scope's cgroup that systemd leaves alone.
    #[must_use]
    pub fn without_systemds(paths: &CgroupPaths) -> CgroupPaths {
        let dirs = paths.dirs.iter().filter(|dir| !is_of_systemd(&dir.kind));
        CgroupPaths {
            layout: paths.layout,
            dirs: dirs.cloned().collect(),
        }
    }
}

/// Whether systemd makes the slices there, and removes them.
fn is_of_systemd(kind: &Kind) -> bool {
    match kind {
        Kind::Unified => true,
        Kind::V1(controllers) => controllers.iter().any(|it| OF_SYSTEMD.contains(it)),
    }
}

/// The directories of a slice from the root: those of `a-b.slice` are `a.slice` and `a-b.slice`.
fn slice_path(slice: &str) -> Result<Vec<String>> {
    let wrong = || refused(format!("invalid slice name: {slice}"));
    let Some(name) = slice.strip_suffix(SLICE) else {
        return wrong();
    };
    if name == "-" {
        return Ok(Vec::new());
    }
    if slice.len() > NAME_BYTES_MAX || !name.chars().all(is_of_name) {
        return wrong();
    }
    let mut path: Vec<String> = Vec::new();
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return wrong();
        }
        so_far.push_str(part);
        path.push(format!("{so_far}{SLICE}"));
        so_far.push('-');
    }
    Ok(path)
}

/// Whether names of units may have it (systemd's VALID_CHARS).
fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || ":-_.\\@".contains(character)
}

fn refused<T>(why: String) -> Result<T> {
    Err(Error::Invalid { field: FIELD, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_runcs_rules() {
        for (path, slice, unit) in [
            (None, "system.slice", "runlxc-c1.scope"),
            (Some(""), "system.slice", "runlxc-c1.scope"),
            (
                Some("machine.slice:libpod:3f"),
                "machine.slice",
                "libpod-3f.scope",
            ),
            (Some(":crio:3f"), "system.slice", "crio-3f.scope"),
            (Some("-:a:b"), "-.slice", "a-b.scope"),
            (Some("-.slice::b"), "-.slice", "-b.scope"),
        ] {
            let name = ScopeName::new(path, "c1").unwrap();
            assert_eq!((name.slice.as_str(), name.unit.as_str()), (slice, unit));
        }
    }

    #[test]
    fn what_is_no_scope_is_refused() {
        for (path, why) in [
            ("/default/x", "of format \"slice:prefix:name\""),
            ("a.slice:b", "of format"),
            ("a.slice:b:c:d", "of format"),
            ("a.slice:b:c.slice", "holds no processes"),
            ("a:b:c", "invalid slice name: a"),
            ("a.slice/b.slice:c:d", "invalid slice name"),
            ("a--b.slice:c:d", "invalid slice name"),
            ("-a.slice:c:d", "invalid slice name"),
            (".slice:c:d", "invalid slice name"),
            ("a.slice:c:d/e", "it has '/'"),
            ("a.slice:c:d e", "it has ' '"),
        ] {
            let error = ScopeName::new(Some(path), "c1").unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
        let long = format!("a.slice:b:{}", "c".repeat(250));
        let error = ScopeName::new(Some(&long), "c1").unwrap_err().to_string();
        assert!(error.contains("more than 255 bytes"), "{error}");
    }

    #[test]
    fn a_slice_lies_in_those_that_its_name_begins_with() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().display();
        let mountinfo = format!(
            "1 0 0:1 / {at}/freezer rw - cgroup c rw,freezer\n\
             2 0 0:2 / {at}/systemd rw - cgroup c rw,name=systemd\n"
        );
        let own = "2:name=systemd:/own\n1:freezer:/own\n";
        let host = Hierarchies::detect(&mountinfo, own).unwrap();
        let name = ScopeName::new(Some("kubepods-pod7.slice:cri:3f"), "c1").unwrap();
        let paths = name.paths(&host).unwrap();
        let shown: Vec<_> = paths
            .dirs
            .iter()
            .map(|dir| (dir.path.strip_prefix(root.path()).unwrap(), dir.made.len()))
            .collect();
        let below = |hierarchy: &str| {
            PathBuf::from(hierarchy).join("kubepods.slice/kubepods-pod7.slice/cri-3f.scope")
        };
        // Of the hierarchies that systemd keeps, nothing above the scope is ours.
        let expected = [
            (below("freezer").into_boxed_path(), 2),
            (below("systemd").into_boxed_path(), 0),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(path, made)| (&**path, *made))
            .collect();
        assert_eq!(shown, expected);
        let ours = ScopeName::without_systemds(&paths);
        let ours: Vec<_> = ours.dirs.iter().map(|dir| &dir.path).collect();
        assert_eq!(ours, [&root.path().join(below("freezer"))]);
    }
}
