//! The volumes of one machine as folders of a mount namespace in which nothing runs but what serves them.
//! Nothing is mounted on the host, so nothing is left there, whoever is killed; what is not attached here
//! is not to be reached by any name.
//!
//! ```text
//!   PLACE          tmpfs, in that namespace only; what is attached below it arrives in namespaces made of it
//!     1/           a mount itself, so that a guest that is without it lets go of all that is below
//!       volume     a directory or file of the host, attached
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest::call::VOLUME;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use sys::mount_api::{
    AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MountAttr, OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE,
    mount_setattr, move_mount, open_tree,
};

use crate::volumes::{Access, Scope, Shared};
use crate::{Error, Result};

const NONE: Option<&str> = None;

/// The namespace. It ends with its last user.
#[derive(Debug)]
pub(crate) struct Stage {
    namespace: File,
    place: PathBuf,
}

/// A volume that is attached. Dropped, it is gone from the stage.
#[derive(Debug)]
pub(crate) struct Staged {
    stage: Arc<Stage>,
    name: String,
}

impl Stage {
    /// Makes one, with an empty directory of the host for its place.
    pub(crate) fn make(place: &Path) -> Result<Self> {
        let leave = || -> io::Result<File> {
            let own = format!("/proc/self/task/{}/ns/mnt", nix::unistd::gettid());
            unshare(CloneFlags::CLONE_NEWNS)?;
            let from_above = MsFlags::MS_SLAVE | MsFlags::MS_REC;
            mount(NONE, "/", NONE, from_above, NONE)?;
            let options = Some("mode=0755");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("volumes"), place, Some("tmpfs"), flags, options)?;
            mount(NONE, place, NONE, MsFlags::MS_SHARED, NONE)?;
            File::open(own)
        };
        let made = on_a_thread(|| leave().map_err(Error::on("make a stage for volumes at", place)));
        Ok(Self {
            namespace: made?,
            place: place.to_owned(),
        })
    }

    /// Its namespace, for a process that is to live in it.
    pub(crate) fn namespace(&self) -> Result<OwnedFd> {
        let namespace = self.namespace.try_clone();
        Ok(namespace
            .map_err(Error::io("duplicate a descriptor"))?
            .into())
    }

    /// Where the volumes are, for who lives in it.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Attaches a volume.
    ///
    /// # Errors
    /// What the kernel says against it; nothing of it is left then.
    pub(crate) fn add(self: &Arc<Self>, volume: &Shared) -> Result<Staged> {
        let tree = tree(volume).map_err(Error::on("share", &volume.path))?;
        let staged = Staged {
            stage: Arc::clone(self),
            name: volume.name.clone(),
        };
        let folder = self.place.join(&volume.name);
        let attach = || -> io::Result<()> {
            fs::create_dir(&folder)?;
            let itself = Some(folder.as_path());
            mount(itself, &folder, NONE, MsFlags::MS_BIND, NONE)?;
            let at = folder.join(VOLUME);
            let at = if volume.held.metadata.is_dir() {
                fs::create_dir(&at)?;
                File::open(&at)?
            } else {
                File::create_new(&at)?
            };
            move_mount(tree.as_fd(), at.as_fd())
        };
        self.within(|| attach().map_err(Error::on("share", &volume.path)))?;
        Ok(staged)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let folder = self.place.join(name);
        let detach = || -> io::Result<()> {
            // What cannot be detached keeps its names: nothing below a mount is ever deleted, for it is the
            // host's.
            match umount2(&folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // It was not attached.
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let at = folder.join(VOLUME);
            let removed = fs::remove_dir(&at).or_else(|error| match error.kind() {
                ErrorKind::NotADirectory => fs::remove_file(&at),
                _other => Err(error),
            });
            for removed in [removed, fs::remove_dir(&folder)] {
                match removed {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        };
        self.within(|| detach().map_err(Error::on("take away", &folder)))
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            // The root and working directory of the process are not this thread's to change.
            unshare(CloneFlags::CLONE_FS)
                .and_then(|()| setns(&self.namespace, CloneFlags::CLONE_NEWNS))
                .map_err(Error::io("enter the mount namespace of volumes"))?;
            work()
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = self.stage.remove(&self.name) {
            let (name, error) = (&self.name, error.chain());
            tracing::warn!(name, error, "a volume stays with its machine");
        }
    }
}

/// What is shared, as a mount that is nowhere yet. What only may be read is read-only here: whatever the
/// guest does, it does not write.
fn tree(volume: &Shared) -> io::Result<OwnedFd> {
    let scope = match volume.scope {
        Scope::Mount => 0,
        Scope::Tree => AT_RECURSIVE,
    };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | scope;
    let tree = open_tree(&volume.held, c"", flags)?;
    let private = MountAttr {
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..MountAttr::default()
    };
    mount_setattr(&tree, c"", AT_EMPTY_PATH | AT_RECURSIVE, &private)?;
    let read_only = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    let reach = match volume.access {
        Access::Write => return Ok(tree),
        Access::Read => 0,
        Access::ReadAll => AT_RECURSIVE,
    };
    mount_setattr(&tree, c"", AT_EMPTY_PATH | reach, &read_only)?;
    Ok(tree)
}

/// A thread may leave the mount namespace of its process; this one ends with its work.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let panicked = |_panic| Error::io("share volumes")(io::Error::other("a panic"));
        scope.spawn(work).join().map_err(panicked)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::Held;

    fn volume(name: &str, path: &Path, access: Access) -> Shared {
        Shared {
            name: name.to_owned(),
            held: Held::at(path).unwrap(),
            path: path.to_owned(),
            access,
            scope: Scope::Tree,
        }
    }

    #[test]
    fn volumes_are_on_the_stage_alone_and_leave_it_without_a_trace() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        for name in ["place", "data", "other"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("data/kept"), "ours").unwrap();
        fs::write(at("file"), "one").unwrap();
        let stage = Arc::new(Stage::make(&at("place")).unwrap());
        let data = stage.add(&volume("1", &at("data"), Access::Write)).unwrap();
        let file = stage.add(&volume("2", &at("file"), Access::Write)).unwrap();
        let other = volume("3", &at("other"), Access::Read);
        let other = stage.add(&other).unwrap();
        assert_eq!(fs::read_dir(at("place")).unwrap().count(), 0);
        let inside = |work: &(dyn Fn(&Path) -> io::Result<()> + Sync)| {
            let place = at("place");
            let worked = stage.within(|| work(&place).map_err(Error::on("work in", &place)));
            worked.map_err(|error| error.chain())
        };
        inside(&|place| fs::write(place.join("1/volume/new"), "theirs")).unwrap();
        inside(&|place| fs::write(place.join("2/volume"), "two")).unwrap();
        let refused = inside(&|place| fs::write(place.join("3/volume/new"), "")).unwrap_err();
        assert!(refused.contains("Read-only"), "{refused}");
        assert_eq!(fs::read_to_string(at("data/new")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "two");
        drop((data, file, other));
        inside(&|place| match fs::read_dir(place)?.count() {
            0 => Ok(()),
            left => Err(io::Error::other(format!("{left} are left"))),
        })
        .unwrap();
        assert_eq!(fs::read_to_string(at("data/kept")).unwrap(), "ours");
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "two");
    }
}
