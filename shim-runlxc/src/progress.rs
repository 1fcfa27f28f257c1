//! How far a try to have a container came, and the way back from there.

use std::os::fd::OwnedFd;
use std::time::Instant;

use sys::Child;

use crate::Result;
use crate::container::Container;
use crate::create::Created;
use crate::delete;
use crate::id::ContainerId;
use crate::joined::Joined;
use crate::journal::Journal;
use crate::state_dir::StateDir;

/// What is to be undone if the try fails.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) journal: Option<Journal>,
    /// lxc-start.
    pub(crate) monitor: Option<Child>,
    /// Init, when its parent is us.
    pub(crate) init: Option<Joined>,
    /// When undoing it is to be over, if it has to.
    pub(crate) deadline: Option<Instant>,
}

/// Makes the container `id` in the directory that was made for it, and locks that meanwhile; gives
/// it with the master of its terminal. Whatever fails, all of it is undone before the lock is given
/// back and the error returned.
pub(crate) fn make_or_undo(
    dir: &StateDir,
    id: &ContainerId,
    make: impl FnOnce(&mut Progress) -> Result<(Container, Option<OwnedFd>)>,
) -> Result<Created> {
    let mut progress = Progress::default();
    let creating = match dir.lock() {
        Ok(creating) => creating,
        Err(error) => {
            progress.undo(dir, id);
            return Err(error);
        }
    };
    match make(&mut progress) {
        Ok((container, terminal)) => Ok(Created {
            container,
            init: progress.init,
            terminal,
        }),
        Err(error) => {
            // `delete --force` may have undone it all meanwhile, and another container may have
            // the id now: that one is not ours to undo.
            if dir.is(&creating) {
                progress.undo(dir, id);
            }
            Err(error)
        }
    }
}

impl Progress {
    fn undo(self, dir: &StateDir, id: &ContainerId) {
        let Self {
            journal,
            monitor,
            init,
            deadline,
        } = self;
        // Killed and waited for; what they started dies by its cgroup or its closed socket.
        drop((monitor, init));
        let undone = match &journal {
            Some(journal) => delete::undo_by(dir, journal, deadline),
            None => dir.remove(),
        };
        if let Err(left) = undone {
            let error = left.chain();
            tracing::warn!(container = %id, error, "not everything could be undone");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::Error;
    use crate::journal::example;

    fn made(root: &Path) -> (StateDir, ContainerId) {
        let id = ContainerId::parse("c").unwrap();
        (StateDir::create(root, &id).unwrap(), id)
    }

    /// A journal of nothing but a hook that shows who holds which lock.
    fn journal(locks: &Path) -> Journal {
        let hook = json!({
            "path": "/bin/sh",
            "args": ["sh", "-c", format!("cat /proc/locks > {}", locks.display())],
            "env": [],
            "timeout_s": null,
        });
        example::journal(&json!({"hooksPoststop": [hook], "phase": "creating"}))
    }

    #[test]
    fn a_failed_try_is_undone_before_its_lock_is_given_back() {
        let temp = tempfile::tempdir().unwrap();
        let locks = temp.path().join("locks");
        let (dir, id) = made(temp.path());
        let mut inode = 0;
        let failed = make_or_undo(&dir, &id, |progress| {
            assert!(dir.is_locked().unwrap());
            inode = fs::metadata(dir.path()).unwrap().ino();
            progress.journal = Some(journal(&locks));
            Err(Error::NotRunning)
        });
        assert!(matches!(failed, Err(Error::NotRunning)));
        assert!(!dir.exists());
        let locks = fs::read_to_string(locks).unwrap();
        assert!(locks.contains(&format!(":{inode} ")), "{inode}: {locks}");
    }

    #[test]
    fn another_container_of_the_same_id_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, id) = made(temp.path());
        let failed = make_or_undo(&dir, &id, |_progress| {
            dir.remove().unwrap();
            made(temp.path());
            Err(Error::NotRunning)
        });
        assert!(failed.is_err() && dir.exists());
    }

    #[test]
    fn what_cannot_be_locked_is_not_begun() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, id) = made(temp.path());
        let _another = dir.lock().unwrap();
        let failed = make_or_undo(&dir, &id, |_progress| panic!("begun"));
        assert!(failed.is_err() && !dir.exists());
    }
}
