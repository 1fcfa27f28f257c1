//! What a container mounts where its mount namespace is not its own: in the host's, or in one that it
//! joins. All of it is below one bind of its root file system onto itself, which `delete` takes away.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bundle::{NamespaceKind, Plan};
use mounts::mountinfo;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, mount_namespace};

/// The host's.
const OWN: &str = "/proc/self/ns/mnt";

/// So many mounts may have been made on the root file system by whoever knows why.
const ROUNDS_MAX: usize = 64;

/// A mount namespace that the container shares with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SharedMounts {
    /// Its file; what that means can change.
    path: PathBuf,
    /// Tells it apart from all that live as long as it.
    device: u64,
    inode: u64,
    /// How many mounts there were at the root file system's path before.
    before: usize,
}

/// The mount namespace of a container that has none of its own.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn namespace(plan: &Plan) -> Result<Option<(PathBuf, File)>> {
    let mut namespaces = plan.namespaces.iter();
    let path = match namespaces.find(|it| it.kind == NamespaceKind::Mount) {
        Some(own) if own.path.is_none() => return Ok(None),
        Some(joined) => joined.path.clone(),
        None => None,
    };
    let path = path.unwrap_or_else(|| OWN.into());
    let file = File::open(&path).map_err(Error::on("open namespace", &path))?;
    Ok(Some((path, file)))
}

impl SharedMounts {
    /// As it is before a container is made; none for one with mounts of its own.
    pub(crate) fn of(plan: &Plan) -> Result<Option<Self>> {
        let Some((path, file)) = namespace(plan)? else {
            return Ok(None);
        };
        let about = file.metadata().map_err(Error::on("stat", &path))?;
        let root = PathBuf::from(&plan.init.root.path);
        let before = within(&file, |table| mounts_at(&table()?, &root))?;
        Ok(Some(Self {
            device: about.dev(),
            inode: about.ino(),
            path,
            before,
        }))
    }

    /// Unmounts what a container, which has ended, has left at its root file system. A namespace that
    /// is not found again took it along, or is nobody's to change from here.
    pub(crate) fn undo(&self, root: &Path) -> Result<()> {
        let Ok(file) = File::open(&self.path) else {
            return Ok(());
        };
        let about = file.metadata().map_err(Error::on("stat", &self.path))?;
        if !self.is(&about) {
            return Ok(());
        }
        within(&file, |table| {
            for _ in 0..ROUNDS_MAX {
                if mounts_at(&table()?, root)? <= self.before {
                    return Ok(());
                }
                umount2(root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                    .map_err(|errno| Error::on("unmount", root)(errno.into()))?;
            }
            Err(Error::unsupported(
                format!("{ROUNDS_MAX} mounts at {}", root.display()),
                "nobody takes so many away",
            ))
        })
    }

    fn is(&self, about: &Metadata) -> bool {
        (about.dev(), about.ino()) == (self.device, self.inode)
    }
}

/// Work in the namespace, with its table of mounts.
fn within<T: Send>(
    namespace: &File,
    work: impl FnOnce(&dyn Fn() -> Result<String>) -> Result<T> + Send,
) -> Result<T> {
    // In there, /proc may be another one.
    mount_namespace::within_prepared(namespace, own_directory, |own| work(&|| table(&own)))
}

/// This thread's directory in a procfs, of the host's processes.
fn own_directory() -> Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/self/task/{}", nix::unistd::gettid()));
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(&path, flags, Mode::empty()).map_err(|errno| Error::on("open", &path)(errno.into()))
}

fn table(directory: &OwnedFd) -> Result<String> {
    let failed = || Error::io("read mountinfo");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(directory, "mountinfo", flags, Mode::empty())
        .map_err(|errno| failed()(errno.into()))?;
    let mut text = Vec::new();
    let mut limited = File::from(file).take(mountinfo::BYTES_MAX);
    limited.read_to_end(&mut text).map_err(failed())?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn mounts_at(table: &str, root: &Path) -> Result<usize> {
    let entries = mountinfo::parse(table);
    Ok(entries.iter().filter(|entry| entry.path() == root).count())
}
