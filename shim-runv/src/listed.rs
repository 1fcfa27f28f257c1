//! Which containers and machines are on this host, as their state directories tell: for the operator. Nothing
//! is changed, and what goes away meanwhile is left out.

use std::fs;
use std::path::{Path, PathBuf};

use cgroups::{Cgroup, Stats};
use serde_json::Value;
use sys::Pid;

use crate::home::names;
use crate::journal::{Journal, StateDir};
use crate::qemu::PROGRAM;
use crate::{Error, Result};

/// Bytes of a process's name that the kernel keeps (TASK_COMM_LEN, without the last zero).
const NAME_BYTES: usize = 15;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its namespace of containerd's.
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) room: Room,
    /// What the guest wrote to its console.
    pub(crate) console: PathBuf,
    /// Its OCI state when it has ended; none of one that nobody can read.
    pub(crate) stopped: Option<Value>,
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Room {
    /// In a machine of its own.
    Own {
        /// QEMU's pid; none for one that has ended.
        qemu: Option<Pid>,
        /// What the machine has of the host's memory, in bytes.
        memory: u64,
    },
    /// In its pod's.
    Pod,
    /// Nobody can tell; why.
    Unreadable(String),
}

/// All below a state root. One of which nothing can be read keeps nobody from the others.
///
/// # Errors
/// What reading says.
pub(crate) fn all(root: &Path) -> Result<Vec<Listed>> {
    those(root, |_, _| true)
}

/// Those whose namespace and id are wanted; nothing is read of others.
fn those(root: &Path, is_wanted: impl Fn(&str, &str) -> bool) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for namespace in names(root)? {
        let below = root.join(&namespace);
        let ids = names(&below)?.into_iter();
        for id in ids.filter(|id| is_wanted(&namespace, id)) {
            let dir = StateDir::at(&below, &id);
            let read = dir
                .read()
                .and_then(|journal| journal.map(known).transpose());
            let (room, stopped) = match read {
                Ok(Some((room, stopped))) => (room, stopped),
                Ok(None) => continue,
                Err(error) => (Room::Unreadable(error.chain()), None),
            };
            all.push(Listed {
                namespace: namespace.clone(),
                console: dir.console(),
                id,
                room,
                stopped,
            });
        }
    }
    Ok(all)
}

/// The one of that id.
///
/// # Errors
/// [`Error::Usage`] when there is none, or one in several namespaces and none was named.
pub(crate) fn find(root: &Path, namespace: Option<&str>, id: &str) -> Result<Listed> {
    let is_it = |its: &str, it: &str| it == id && namespace.is_none_or(|wanted| its == wanted);
    let mut found = those(root, is_it)?.into_iter();
    match (found.next(), found.next()) {
        (Some(it), None) => Ok(it),
        (None, _) => Err(Error::Usage(format!(
            "there is no container {id}: `runv ps` lists them"
        ))),
        (Some(one), Some(other)) => Err(Error::Usage(format!(
            "container {id} is in the namespaces {} and {}: say which by --namespace",
            one.namespace, other.namespace
        ))),
    }
}

impl Listed {
    /// Where its config.json is.
    ///
    /// # Errors
    /// [`Error::Usage`] for one of which that cannot be read.
    pub(crate) fn bundle(&self) -> Result<&Path> {
        let bundle = self.stopped.as_ref().and_then(|it| it["bundle"].as_str());
        let id = &self.id;
        let none = || Error::Usage(format!("of container {id} nobody knows the bundle"));
        bundle.map(Path::new).ok_or_else(none)
    }
}

fn known(journal: Journal) -> Result<(Room, Option<Value>)> {
    let stopped = serde_json::from_str(&journal.state_stopped).ok();
    let room = match journal.cgroup {
        Some(paths) => own(&Cgroup::from_paths(paths))?,
        None => Room::Pod,
    };
    Ok((room, stopped))
}

fn own(cgroup: &Cgroup) -> Result<Room> {
    let ended = Room::Own {
        qemu: None,
        memory: 0,
    };
    if !cgroup.exists() {
        return Ok(ended);
    }
    match running(cgroup) {
        // It has ended meanwhile.
        Err(error) if error.is_not_found() => Ok(ended),
        other => Ok(other?),
    }
}

fn running(cgroup: &Cgroup) -> std::result::Result<Room, cgroups::Error> {
    let is_qemu = |pid: &Pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| PROGRAM[..NAME_BYTES] == *name.trim_end())
    };
    Ok(Room::Own {
        qemu: cgroup.procs()?.into_iter().find(is_qemu),
        memory: match cgroup.stats()? {
            Stats::V1(stats) => stats.memory.usage.usage,
            Stats::V2(stats) => stats.memory.usage,
        },
    })
}

#[cfg(test)]
mod tests {
    use cgroups::{CgroupDir, CgroupPaths, Layout};

    use super::*;

    #[test]
    fn containers_are_found_by_their_ids() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(all(&root.join("none")).unwrap(), []);
        let add = |namespace: &str, id: &str| {
            let dir = StateDir::create(&root.join(namespace), id).unwrap();
            let journal = Journal::new(None, Vec::new(), String::new());
            dir.write(&journal).unwrap();
        };
        add("one", "both");
        add("two", "both");
        add("one", "single");
        let unreadable = StateDir::create(&root.join("two"), "unreadable").unwrap();
        let journal = unreadable.path().join(bundle::names::JOURNAL);
        fs::write(journal, "{").unwrap();
        // Begun, and nothing was made yet.
        StateDir::create(&root.join("one"), "early").unwrap();
        let listed = all(root).unwrap();
        let listed: Vec<_> = listed
            .iter()
            .map(|it| (&*it.namespace, &*it.id, it.room == Room::Pod))
            .collect();
        assert!(
            matches!(&all(root).unwrap()[3].room, Room::Unreadable(why) if why.contains("state.json"))
        );
        let expected = [
            ("one", "both", true),
            ("one", "single", true),
            ("two", "both", true),
            ("two", "unreadable", false),
        ];
        assert_eq!(listed, expected);
        assert_eq!(find(root, None, "single").unwrap().namespace, "one");
        assert_eq!(find(root, Some("two"), "both").unwrap().namespace, "two");
        let error = find(root, None, "both").unwrap_err().to_string();
        assert!(
            error.contains("one and two: say which by --namespace"),
            "{error}"
        );
        let error = find(root, Some("two"), "single").unwrap_err().to_string();
        assert!(error.contains("no container single"), "{error}");
    }

    #[test]
    fn one_whose_cgroup_goes_away_meanwhile_has_ended() {
        // A directory stands for the cgroup of which the files are gone.
        let gone = tempfile::tempdir().unwrap();
        let paths = CgroupPaths {
            layout: Layout::V2,
            dirs: vec![CgroupDir {
                kind: cgroups::Kind::Unified,
                names: String::new(),
                mount_point: gone.path().to_owned(),
                path: gone.path().to_owned(),
                made: Vec::new(),
            }],
        };
        let ended = Room::Own {
            qemu: None,
            memory: 0,
        };
        assert_eq!(own(&Cgroup::from_paths(paths)).unwrap(), ended);
    }
}
