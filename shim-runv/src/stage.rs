//! The volumes of one machine as folders of a mount namespace in which nothing runs but what serves them.
//! Nothing is mounted on the host, so nothing is left there, whoever is killed; what is not attached here
//! is not to be reached by any name.
//!
//! ```text
//!   /              a root of its own (`root.rs`), without the host's mounts
//!   /volumes       tmpfs, in that namespace only; what is attached below it arrives in namespaces made of it
//!     1/           a mount itself, so that a guest that is without it lets go of all that is below
//!       volume     a directory or file of the host, attached
//! ```
//!
//! The guest is as strong as who serves it. So the tmpfs is read-only there; names in it are made and
//! removed by a second mount, which is nowhere and has nothing attached, and no link is followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest::call::VOLUME;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat};
use sys::mount_api::{
    AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MountAttr, OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE,
    mount_setattr, move_mount, open_tree,
};

use crate::root::{self, Seen, Wanted, on_a_thread};
use crate::volumes::{Access, Scope, Shared};
use crate::{Error, Result};

/// The directory in that namespace at which volumes are.
const PLACE: &str = "volumes";

/// Two names for each volume, and no contents.
const TMPFS: &str = "mode=0755,size=1m,nr_inodes=1k";

/// A copy of the mount that a descriptor is on, from that directory down.
const COPY: u32 = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;

/// The namespace. It ends with its last user.
#[derive(Debug)]
pub(crate) struct Stage {
    namespace: File,
    roots: Roots,
}

/// The tmpfs, twice.
#[derive(Debug)]
struct Roots {
    /// At the place, read-only; volumes are attached to it.
    served: OwnedFd,
    /// Nowhere, with nothing attached: what is removed by it is never the host's.
    written: OwnedFd,
}

/// A volume that is attached. Dropped, it is gone from the stage.
#[derive(Debug)]
pub(crate) struct Staged {
    stage: Arc<Stage>,
    name: String,
}

impl Stage {
    /// Makes one, for that program to serve it.
    pub(crate) fn make(program: &Path) -> Result<Self> {
        let wanted = Wanted {
            program: program.to_owned(),
            directories: vec![PLACE],
            // It is root, reads how many files it may open, and makes a /proc of its own.
            seen: Seen::All,
            ..Wanted::default()
        };
        let fill = || -> io::Result<Roots> {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let place = place();
            mount(Some("volumes"), &place, Some("tmpfs"), flags, Some(TMPFS))?;
            Roots::at(&place)
        };
        let (namespace, roots) = root::make(&wanted, fill)?;
        Ok(Self { namespace, roots })
    }

    /// Its namespace, for a process that is to live in it.
    pub(crate) fn namespace(&self) -> Result<OwnedFd> {
        let namespace = self.namespace.try_clone();
        Ok(namespace
            .map_err(Error::io("duplicate a descriptor"))?
            .into())
    }

    /// Attaches a volume.
    ///
    /// # Errors
    /// What the kernel says against it; nothing of it is left then.
    pub(crate) fn add(self: &Arc<Self>, volume: &Shared) -> Result<Staged> {
        let tree = tree(volume).map_err(Error::on("share", &volume.path))?;
        let name = &volume.name;
        // A name that is there already is not ours to remove.
        mkdirat(&self.roots.written, name, Mode::from_raw_mode(0o755))
            .map_err(Error::on("share", &volume.path))?;
        let staged = Staged {
            stage: Arc::clone(self),
            name: name.clone(),
        };
        let is_folder = volume.held.metadata.is_dir();
        self.within(|| {
            self.roots
                .attach(&tree, name, is_folder)
                .map_err(Error::on("share", &volume.path))
        })?;
        Ok(staged)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let folder = place().join(name);
        let failed = |error: io::Error| Error::on("take away", &folder)(error);
        // What cannot be detached keeps its names.
        self.within(|| self.roots.detach(name).map_err(&failed))?;
        self.roots.remove(name).map_err(failed)
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

impl Roots {
    /// Of a tmpfs that was just mounted there.
    fn at(place: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let served = rustix::fs::open(place, flags, Mode::empty())?;
        let written = open_tree(&served, c"", COPY)?;
        let attributes = MountAttr {
            attr_set: MOUNT_ATTR_RDONLY,
            propagation: MsFlags::MS_SHARED.bits(),
            ..MountAttr::default()
        };
        mount_setattr(&served, c"", AT_EMPTY_PATH, &attributes)?;
        Ok(Self { served, written })
    }

    /// Attaches a tree below a folder that was just made, from within the namespace.
    fn attach(&self, tree: &OwnedFd, name: &str, is_folder: bool) -> io::Result<()> {
        let folder = beneath(&self.written, name)?;
        if is_folder {
            mkdirat(&folder, VOLUME, Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&folder, VOLUME, flags, Mode::from_raw_mode(0o644))?;
        }
        let folder = beneath(&self.served, name)?;
        let itself = open_tree(&folder, c"", COPY)?;
        // What is attached to it is attached once, and not below the mount that it is a copy of.
        mount_setattr(&itself, c"", AT_EMPTY_PATH, &private())?;
        move_mount(&itself, &folder)?;
        let at = beneath(&self.served, &format!("{name}/{VOLUME}"))?;
        move_mount(tree, &at)
    }

    /// Detaches a folder with all that is below, from within the namespace and on a thread of its own.
    fn detach(&self, name: &str) -> io::Result<()> {
        nix::unistd::fchdir(self.served.as_fd())?;
        match umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It was not attached.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes the names of a folder that is detached.
    fn remove(&self, name: &str) -> io::Result<()> {
        let folder = beneath(&self.written, name)?;
        match unlinkat(&folder, VOLUME, AtFlags::REMOVEDIR) {
            Err(rustix::io::Errno::NOTDIR) => unlinkat(&folder, VOLUME, AtFlags::empty())?,
            // It was not made.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(unlinkat(&self.written, name, AtFlags::REMOVEDIR)?)
    }
}

/// Where the volumes are, for who lives in a stage.
pub(crate) fn place() -> PathBuf {
    Path::new("/").join(PLACE)
}

/// What is at a path below a directory, by no link.
fn beneath(directory: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(directory, path, flags, Mode::empty(), resolve)?)
}

fn private() -> MountAttr {
    MountAttr {
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..MountAttr::default()
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
    let tree = open_tree(&volume.held, c"", COPY | scope)?;
    mount_setattr(&tree, c"", AT_EMPTY_PATH | AT_RECURSIVE, &private())?;
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use rustix::fs::{renameat, symlinkat};

    use super::*;
    use crate::held::Held;

    const NONE: Option<&str> = None;

    /// Whoever serves.
    const PROGRAM: &str = "/usr/lib/qemu/virtiofsd";

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
        for name in ["data", "other"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("data/kept"), "ours").unwrap();
        fs::write(at("file"), "one").unwrap();
        let stage = Arc::new(Stage::make(Path::new(PROGRAM)).unwrap());
        let data = stage.add(&volume("1", &at("data"), Access::Write)).unwrap();
        let file = stage.add(&volume("2", &at("file"), Access::Write)).unwrap();
        let other = volume("3", &at("other"), Access::Read);
        let other = stage.add(&other).unwrap();
        let inside = |work: &(dyn Fn(&Path) -> io::Result<()> + Sync)| {
            let place = place();
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

    #[test]
    fn links_of_a_guest_lead_nowhere_and_it_makes_none() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        for name in ["data", "host", "host/volume"] {
            fs::create_dir(at(name)).unwrap();
        }
        let stage = Arc::new(Stage::make(Path::new(PROGRAM)).unwrap());
        let data = |name: &str| stage.add(&volume(name, &at("data"), Access::Write));
        let first = data("1").unwrap();
        // The guest has the mounts of the stage as its daemon has them: of a copy of the namespace.
        for name in ["2", "1/2", "1/volume/link"] {
            let (host, link) = (at("host"), place().join(name));
            let plant = || -> io::Result<()> {
                unshare(CloneFlags::CLONE_NEWNS)?;
                std::os::unix::fs::symlink(&host, &link)
            };
            let planted = stage.within(|| plant().map_err(Error::on("plant", &link)));
            let planted = planted.map_err(|error| error.chain());
            match name {
                "1/volume/link" => planted.unwrap(),
                _other => assert!(planted.unwrap_err().contains("Read-only"), "{name}"),
            }
        }
        // Links that are there nevertheless: at a new name, of an old folder, of an old volume.
        let written = &stage.roots.written;
        symlinkat(at("host"), written, "2").unwrap();
        assert!(data("2").unwrap_err().chain().contains("exists"));
        renameat(written, "1", written, "old").unwrap();
        symlinkat(at("host"), written, "1").unwrap();
        drop(first);
        let third = data("3").unwrap();
        renameat(written, "3/volume", written, "older").unwrap();
        symlinkat(at("host"), written, "3/volume").unwrap();
        drop(third);
        assert!(at("host/volume").is_dir());
        assert!(at("data/link").is_symlink());
        assert!(openat(written, "3", OFlags::PATH, Mode::empty()).is_err());
    }

    #[test]
    fn who_has_the_stage_for_root_sees_and_writes_what_is_attached_later() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::create_dir(at("data")).unwrap();
        let stage = Arc::new(Stage::make(Path::new(PROGRAM)).unwrap());
        // As virtiofsd does it.
        let enter = |place: &Path| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(place), place, NONE, bind, NONE)?;
            nix::unistd::chdir(place)?;
            nix::unistd::pivot_root(".", ".")?;
            Ok(umount2(".", MntFlags::MNT_DETACH)?)
        };
        let (entered, wait_entered) = mpsc::channel();
        let (added, wait_added) = mpsc::channel();
        let place = place();
        let serve = move || -> io::Result<bool> {
            enter(&place)?;
            entered.send(()).map_err(io::Error::other)?;
            wait_added.recv().map_err(io::Error::other)?;
            fs::write("/1/volume/new", "theirs")?;
            Ok(fs::write("/new", "").is_err() && fs::write("/1/new", "").is_err())
        };
        std::thread::scope(|scope| {
            // It ends with this closure, and the other one's waiting with it.
            let (stage, added) = (&stage, added);
            let served = move || stage.within(move || serve().map_err(Error::io("serve")));
            let served = scope.spawn(served);
            wait_entered.recv().unwrap();
            let _data = stage.add(&volume("1", &at("data"), Access::Write)).unwrap();
            added.send(()).unwrap();
            assert!(served.join().unwrap().unwrap());
        });
        assert_eq!(fs::read_to_string(at("data/new")).unwrap(), "theirs");
    }
}
