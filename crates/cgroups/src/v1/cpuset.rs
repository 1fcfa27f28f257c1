//! cpuset of version 1: processors and memory nodes, both empty in a new cgroup, and no task can
//! enter it until both are filled.

use std::path::Path;

use crate::resources::Cpu;
use crate::{Result, file};

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(cpu: &Cpu) -> Option<&'static str> {
    if list(cpu.cpus.as_deref()).is_some() {
        return Some("linux.resources.cpu.cpus");
    }
    list(cpu.mems.as_deref()).map(|_| "linux.resources.cpu.mems")
}

/// Writes what is set and fills what is then empty from the parent, whose own list may have to be
/// filled first. In this order because a parent's list can clash with an exclusive sibling where
/// the list asked for does not.
pub(crate) fn apply(dir: &Path, cpu: &Cpu) -> Result<()> {
    let names = Names::of(dir);
    for (name, value) in [(names.cpus, &cpu.cpus), (names.mems, &cpu.mems)] {
        match list(value.as_deref()) {
            Some(value) => {
                // A list must lie within the parent's.
                filled(parent(dir), name)?;
                file::write(dir, name, value)?;
            }
            None => drop(filled(dir, name)?),
        }
    }
    Ok(())
}

/// Fills empty lists from the parent.
pub(crate) fn fill(dir: &Path) -> Result<()> {
    let names = Names::of(dir);
    filled(dir, names.cpus)?;
    filled(dir, names.mems).map(drop)
}

/// The list, after it was filled if it was empty; the root's never is.
fn filled(dir: &Path, name: &str) -> Result<String> {
    let own = file::read(dir, name)?.trim().to_owned();
    if !own.is_empty() {
        return Ok(own);
    }
    let inherited = filled(parent(dir), name)?;
    file::write(dir, name, &inherited)?;
    Ok(inherited)
}

fn parent(dir: &Path) -> &Path {
    dir.parent().unwrap_or(dir)
}

fn list(value: Option<&str>) -> Option<&str> {
    value.filter(|value| !value.is_empty())
}

/// The files' names: the hierarchy can be mounted with the option `noprefix` (Android's way).
struct Names {
    cpus: &'static str,
    mems: &'static str,
}

impl Names {
    fn of(dir: &Path) -> Self {
        if file::exists(dir, "cpuset.cpus") || !file::exists(dir, "cpus") {
            Self {
                cpus: "cpuset.cpus",
                mems: "cpuset.mems",
            }
        } else {
            Self {
                cpus: "cpus",
                mems: "mems",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::file::tests::written;

    /// A root with processors 0-3 and node 0, an empty cgroup in it, and one in that with the
    /// lists given; the last one's lists afterwards.
    fn check(own: [&str; 2], cpu: &Cpu, expected: [&str; 2]) {
        for names in [["cpuset.cpus", "cpuset.mems"], ["cpus", "mems"]] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("parent/own");
            fs::create_dir_all(&dir).unwrap();
            for (name, lists) in names.iter().zip([["0-3\n", own[0]], ["0\n", own[1]]]) {
                fs::write(root.path().join(name), lists[0]).unwrap();
                fs::write(root.path().join("parent").join(name), "\n").unwrap();
                fs::write(dir.join(name), lists[1]).unwrap();
            }
            apply(&dir, cpu).unwrap();
            assert_eq!(
                names.map(|name| written(&dir, name).join(" ")),
                expected,
                "{cpu:?}"
            );
        }
    }

    #[test]
    fn empty_lists_are_filled_from_the_parent_and_set_ones_are_written() {
        let cpus = Cpu {
            cpus: Some("1".to_owned()),
            ..Cpu::default()
        };
        check(["", ""], &Cpu::default(), ["0-3", "0"]);
        check(["\n", "\n"], &cpus, [" 1", " 0"]);
        check(["2\n", "0\n"], &Cpu::default(), ["2", "0"]);
        check(["2\n", "0\n"], &cpus, ["2 1", "0"]);
        check(
            ["", ""],
            &Cpu {
                cpus: Some(String::new()),
                ..Cpu::default()
            },
            ["0-3", "0"],
        );
    }

    #[test]
    fn list_asked_for_needs_a_filled_parent() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("own");
        fs::create_dir(&dir).unwrap();
        for name in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let both = Cpu {
            cpus: Some("1".to_owned()),
            mems: Some("0".to_owned()),
            ..Cpu::default()
        };
        assert!(apply(&dir, &both).unwrap_err().is_not_found());
        assert!(written(&dir, "cpuset.cpus").is_empty());
    }

    #[test]
    fn asking_names_the_field() {
        assert_eq!(asked(&Cpu::default()), None);
        let mems = Cpu {
            cpus: Some(String::new()),
            mems: Some("0".to_owned()),
            ..Cpu::default()
        };
        assert_eq!(asked(&mems), Some("linux.resources.cpu.mems"));
    }
}
