//! Removing a cgroup: one rmdir(2) a hierarchy when all is well, and patience when it is not.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::paths::CgroupDir;
use crate::wait::{Events, Patience, Waited};
use crate::{Error, Result, procs};

/// So long dead tasks may take to leave the cgroup (runc: about one second).
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

impl Cgroup {
    /// Removes the cgroup with all that the container made below it, and the parents that were
    /// made for it when nobody else uses them. No error when it is gone.
    ///
    /// Nobody is killed: tasks that do not leave by themselves end it with EBUSY after
    /// 2 seconds. Every hierarchy is tried; the first error is returned.
    pub fn delete(&self) -> Result<()> {
        self.delete_within(REMOVE_LIMIT)
    }

    fn delete_within(&self, limit: Duration) -> Result<()> {
        let mut patience = Patience::new(limit);
        let mut result = Ok(());
        for dir in &self.paths.dirs {
            let removed = remove(&dir.path, &mut patience);
            if removed.is_ok() {
                remove_parents(dir);
            }
            result = result.and(removed);
        }
        result
    }
}

/// Removes one directory and the parents made for it, without waiting.
pub(crate) fn remove_now(dir: &CgroupDir) -> Result<()> {
    rmdir(&dir.path)?;
    remove_parents(dir);
    Ok(())
}

/// Innermost first. One that somebody else uses by now stays, and is theirs.
fn remove_parents(dir: &CgroupDir) {
    for parent in dir.made.iter().rev() {
        if rmdir(parent).is_err() {
            break;
        }
    }
}

fn remove(path: &Path, patience: &mut Patience) -> Result<()> {
    match rmdir(path) {
        Err(error) if is_busy(&error) => {}
        removed => return removed,
    }
    // Version 1 tells nobody when the last task leaves.
    let events = Events::open(path, "cgroup.events").ok();
    loop {
        // Read before looking: a change after it ends the pause below.
        let _armed = events.as_ref().map(Events::read);
        remove_children(path)?;
        match rmdir(path) {
            Err(error) if is_busy(&error) => {
                if patience.pause(events.as_ref()) == Waited::TooLong {
                    return Err(error);
                }
            }
            removed => return removed,
        }
    }
}

/// Children first. A busy one is not waited for here: the parent will be busy, too.
fn remove_children(path: &Path) -> Result<()> {
    for below in procs::tree(path)?.iter().skip(1).rev() {
        match rmdir(below) {
            Err(error) if is_busy(&error) => {}
            removed => removed?,
        }
    }
    Ok(())
}

fn is_busy(error: &Error) -> bool {
    [Errno::EBUSY, Errno::ENOTEMPTY]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

pub(crate) fn rmdir(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A file system mounted read-only says so even of what is not there.
        Err(source) if !path.exists() => {
            drop(source);
            Ok(())
        }
        Err(source) => Err(Error::Remove {
            path: path.to_owned(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::{Controller, Kind, Layout};
    use crate::paths::CgroupPaths;

    /// A cgroup `parent/own` in two hierarchies under a temporary directory.
    fn cgroup(root: &Path, made: bool) -> Cgroup {
        let place = |controller: Controller| {
            let mount_point = root.join(controller.name());
            let parent = mount_point.join("parent");
            CgroupDir {
                kind: Kind::V1(vec![controller]),
                names: controller.name().to_owned(),
                path: parent.join("own"),
                made: if made { vec![parent] } else { Vec::new() },
                mount_point,
            }
        };
        let dirs = [Controller::Pids, Controller::Freezer].map(place).to_vec();
        dirs.iter()
            .for_each(|dir| fs::create_dir_all(&dir.path).unwrap());
        Cgroup::from_paths(CgroupPaths {
            layout: Layout::V1,
            dirs,
        })
    }

    #[test]
    fn deleting_takes_what_the_container_made_and_is_idempotent() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path(), false);
        fs::create_dir_all(root.path().join("pids/parent/own/a/b/c")).unwrap();
        fs::create_dir_all(root.path().join("pids/parent/own/a/d")).unwrap();
        cgroup.delete().unwrap();
        assert!(!cgroup.exists());
        assert!(root.path().join("pids/parent").exists());
        cgroup.delete().unwrap();
    }

    #[test]
    fn parents_made_for_it_go_unless_somebody_uses_them() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path(), true);
        fs::create_dir(root.path().join("pids/parent/other")).unwrap();
        cgroup.delete().unwrap();
        assert!(root.path().join("pids/parent/other").exists());
        assert!(!root.path().join("freezer/parent").exists());
        assert!(root.path().join("freezer").exists());
    }

    #[test]
    fn one_that_stays_busy_is_an_error_and_the_others_go() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path(), false);
        // A file stands for a task: neither lets rmdir(2) through.
        fs::write(root.path().join("pids/parent/own/task"), "").unwrap();
        let error = cgroup.delete_within(Duration::from_millis(5)).unwrap_err();
        assert!(is_busy(&error), "{error}");
        assert!(!root.path().join("freezer/parent/own").exists());
    }
}
