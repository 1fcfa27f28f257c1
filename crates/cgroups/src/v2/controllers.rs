//! Handing controllers down: a cgroup of version 2 has only those that each of its ancestors
//! names in cgroup.subtree_control.

use std::path::Path;

use crate::{Result, file};

/// Enables every controller there is in each directory from `mount_point` down to the parent of
/// `path`.
///
/// What cannot be enabled is left: where a limit needs it, its file is missing and the error names
/// it. Enabling costs the kernel more than asking, so what is on is not written again.
pub(crate) fn enable_down_to(mount_point: &Path, path: &Path) -> Result<()> {
    let mut parents: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|parent| parent.starts_with(mount_point))
        .collect();
    parents.reverse();
    parents.into_iter().try_for_each(enable)
}

fn enable(dir: &Path) -> Result<()> {
    let available = file::read(dir, "cgroup.controllers")?;
    let enabled = file::read(dir, "cgroup.subtree_control")?;
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|name| !enabled.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if file::write(dir, "cgroup.subtree_control", &missing.join(" ")).is_err() {
        for name in missing {
            // One that is refused must not keep the others from being enabled.
            let _refused = file::write(dir, "cgroup.subtree_control", &name);
        }
    }
    Ok(())
}

/// A cgroup below a threaded one is born invalid and takes no task until it is threaded itself.
pub(crate) fn make_valid(dir: &Path) -> Result<()> {
    let kind = file::read_if_there(dir, "cgroup.type")?.unwrap_or_default();
    match kind.trim() {
        "domain invalid" => file::write(dir, "cgroup.type", "threaded"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn each_parent_hands_down_what_it_does_not_yet() {
        let root = directory(&[
            ("cgroup.controllers", "cpu io memory\n"),
            ("cgroup.subtree_control", "cpu io memory\n"),
        ]);
        let parent = root.path().join("a");
        fs::create_dir(&parent).unwrap();
        fs::write(parent.join("cgroup.controllers"), "cpu io memory\n").unwrap();
        fs::write(parent.join("cgroup.subtree_control"), "io\n").unwrap();
        enable_down_to(root.path(), &parent.join("b")).unwrap();
        assert_eq!(
            written(root.path(), "cgroup.subtree_control"),
            ["cpu io memory"]
        );
        assert_eq!(
            written(&parent, "cgroup.subtree_control"),
            ["io", "+cpu +memory"]
        );
    }

    #[test]
    fn only_an_invalid_cgroup_becomes_threaded() {
        for (kind, expected) in [
            ("domain invalid", vec!["domain invalid", "threaded"]),
            ("domain", vec!["domain"]),
        ] {
            let dir = directory(&[("cgroup.type", &format!("{kind}\n"))]);
            make_valid(dir.path()).unwrap();
            assert_eq!(written(dir.path(), "cgroup.type"), expected);
        }
    }
}
