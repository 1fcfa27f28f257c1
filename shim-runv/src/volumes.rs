//! What of the host a container mounts: files and read-only directories as copies, made when the container
//! is, and emptyDirs as memory of the guest. Everything else is refused by name.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest::call::{File, SHARED_MEMORY, directory_path, file_path};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::held::Held;
use crate::pod::Place;
use crate::{Error, Result};

/// Largest file that is copied into a guest, in bytes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Files that are copied into one guest.
const FILES_MAX: usize = 64;

/// Largest directory that is copied into a guest, in bytes: the copy is in the host's memory.
pub(crate) const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// Directories that a container gets.
const DIRECTORIES_MAX: usize = 32;

/// Types of mounts that a guest makes itself.
const GUEST_MOUNTS: [&str; 7] = [
    "cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs",
];

/// The kubelet's volume plug-in of emptyDirs: they are `pods/UID/volumes/PLUGIN/NAME` below its root, and
/// their pod's alone.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// What a container mounts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Volumes {
    /// Copies of files.
    pub(crate) files: Vec<File>,
    /// Directories.
    pub(crate) directories: Vec<Directory>,
}

/// A directory that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Directory {
    /// The host's, to be copied.
    Copy(PathBuf),
    /// Memory of the guest.
    Memory(guest::call::Directory),
}

/// Takes the host's out of a list of mounts, which names places in the guest then.
///
/// # Errors
/// [`Error::Unsupported`] with the mount, or what a file says.
pub(crate) fn of(id: &str, mounts: &mut [Value], place: Place<'_>) -> Result<Volumes> {
    let mut volumes = Volumes::default();
    for mount in mounts {
        let text = |field: &str| mount[field].as_str().unwrap_or_default().to_owned();
        let (kind, source, target) = (text("type"), text("source"), text("destination"));
        let options = mount["options"].as_array().into_iter().flatten();
        let options: Vec<_> = options.filter_map(Value::as_str).collect();
        let is_bind = kind == "bind" || options.iter().any(|it| matches!(*it, "bind" | "rbind"));
        if !is_bind {
            if GUEST_MOUNTS.contains(&kind.as_str()) {
                continue;
            }
            return Err(refused(&target, format!("a guest does not mount {kind:?}")));
        }
        let path = Path::new(&source);
        let held = Held::at(path).map_err(Error::on("open", path))?;
        let metadata = &held.metadata;
        let there = if !metadata.is_dir() {
            volumes.add_file(id, (path, &held), &target)?
        } else if place != Place::Alone && target == SHARED_MEMORY {
            // What a pod's containers share is theirs alone, so it can be in their machine.
            SHARED_MEMORY.to_owned()
        } else {
            if is_part_of_empty_dir(path) {
                let why =
                    "is a subPath of an emptyDir, which is memory of the guest as a whole only";
                return Err(refused(&target, format!("{} {why}", path.display())));
            }
            let directory = if place != Place::Alone && is_empty_dir(path) {
                Directory::Memory(memory(&source, metadata))
            } else {
                copy(path, &options, &target)?
            };
            volumes.add_directory(id, directory, &target)?
        };
        mount["source"] = Value::String(there);
    }
    Ok(volumes)
}

fn is_empty_dir(path: &Path) -> bool {
    let names: Vec<_> = path.iter().collect();
    match names.as_slice() {
        [.., pods, _, volumes, plugin, _] => {
            *pods == "pods" && *volumes == "volumes" && *plugin == EMPTY_DIR
        }
        _ => false,
    }
}

/// The kubelet binds a subPath at `pods/UID/volume-subpaths/VOLUME/CONTAINER/NUMBER`.
fn is_part_of_empty_dir(path: &Path) -> bool {
    let mut above = path.ancestors().skip(2);
    let (Some(volume), Some(subpaths), Some(pod)) = (above.next(), above.next(), above.next())
    else {
        return false;
    };
    let Some(name) = volume.file_name() else {
        return false;
    };
    let whole = pod.join("volumes").join(EMPTY_DIR).join(name);
    subpaths.ends_with("volume-subpaths") && is_empty_dir(&whole) && whole.is_dir()
}

fn refused(target: &str, why: impl AsRef<str>) -> Error {
    Error::unsupported(format!("mount at {target}"), why.as_ref())
}

impl Volumes {
    fn add_file(&mut self, id: &str, (path, held): (&Path, &Held), target: &str) -> Result<String> {
        let refuse = |why: &str| Err(refused(target, format!("{} {why}", path.display())));
        if self.files.len() == FILES_MAX {
            let why = format!("at most {FILES_MAX} files of the host are copied into a guest");
            return Err(refused(target, why));
        }
        let metadata = &held.metadata;
        if !metadata.is_file() {
            return refuse("is neither a regular file nor a directory");
        }
        let file = held.open().map_err(Error::on("open", path))?;
        let mut contents = Vec::new();
        // It may grow, and what has no length (proc(5)) may have contents.
        let bounded = file
            .take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut contents);
        if bounded.map_err(Error::on("read", path))? > FILE_BYTES_MAX {
            return refuse("is larger than 1 MiB, the most that is copied into a guest");
        }
        self.files.push(File {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            contents,
        });
        Ok(file_path(id, self.files.len() - 1))
    }

    fn add_directory(&mut self, id: &str, directory: Directory, target: &str) -> Result<String> {
        if self.directories.len() == DIRECTORIES_MAX {
            let why = format!("a guest has at most {DIRECTORIES_MAX} directories for a container");
            return Err(refused(target, why));
        }
        self.directories.push(directory);
        Ok(directory_path(id, self.directories.len() - 1))
    }
}

/// A directory whose copy will do, since nobody in the guest can tell.
fn copy(path: &Path, options: &[&str], target: &str) -> Result<Directory> {
    let mut last = options.iter().rev();
    let last = last.find(|it| matches!(**it, "ro" | "rro" | "rw"));
    if !matches!(last, Some(&("ro" | "rro"))) {
        let why =
            "can be written, and only read-only directories are brought into a guest, as copies";
        return Err(refused(target, format!("{} {why}", path.display())));
    }
    Ok(Directory::Copy(path.to_owned()))
}

/// An emptyDir: its path is the same for all containers of its pod.
fn memory(source: &str, metadata: &Metadata) -> guest::call::Directory {
    let digest = Sha256::digest(source.as_bytes());
    guest::call::Directory::Memory {
        name: digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn bind(source: &Path, options: &[&str]) -> Value {
        json!({"destination": "/data", "type": "bind", "source": source, "options": options})
    }

    #[test]
    fn directories_are_copies_or_memory_or_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let plain = temporary.path().join("plain");
        let empty = temporary
            .path()
            .join("pods/uid/volumes/kubernetes.io~empty-dir/cache");
        let part = temporary
            .path()
            .join("pods/uid/volume-subpaths/cache/server/0");
        let other = temporary
            .path()
            .join("pods/uid/volume-subpaths/settings/server/0");
        for path in [&plain, &empty, &part, &other] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(plain.join("small"), "x").unwrap();
        let check = |mount: Value, place| {
            let mut mounts = [mount];
            let volumes = of("c", &mut mounts, place).map_err(|error| error.to_string())?;
            Ok::<_, String>((volumes.directories, mounts[0]["source"].clone()))
        };
        let there = json!("/run/containers/c/directories/0");
        let copied = check(bind(&plain, &["rbind", "ro"]), Place::Alone).unwrap();
        assert_eq!(
            copied,
            (vec![Directory::Copy(plain.clone())], there.clone())
        );
        let (shared, source) = check(bind(&empty, &["rbind", "rw"]), Place::Sandbox).unwrap();
        assert!(matches!(&shared[..], [Directory::Memory(_)]), "{shared:?}");
        assert_eq!(source, there);
        let error = check(bind(&part, &["ro"]), Place::Sandbox).unwrap_err();
        assert!(error.contains("subPath of an emptyDir"), "{error}");
        assert!(check(bind(&other, &["ro"]), Place::Sandbox).is_ok());
        let odd = plain.join("volumes/kubernetes.io~empty-dir/cache");
        fs::create_dir_all(&odd).unwrap();
        for (mount, place) in [
            (bind(&odd, &["rw"]), Place::Sandbox),
            (bind(&plain, &["rbind"]), Place::Sandbox),
            (bind(&plain, &["ro", "rw"]), Place::Alone),
            (bind(&empty, &["rw"]), Place::Alone),
        ] {
            let error = check(mount, place).unwrap_err();
            assert!(error.contains("can be written"), "{error}");
        }
    }

    #[test]
    fn only_files_are_read_and_only_so_far() {
        let temporary = tempfile::tempdir().unwrap();
        let check = |name: &str, expected: &str| {
            let mut mounts = [bind(&temporary.path().join(name), &["ro"])];
            let error = of("c", &mut mounts, Place::Alone).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        let fifo = temporary.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        check("fifo", "neither a regular file");
        let large = fs::File::create(temporary.path().join("large")).unwrap();
        large.set_len(FILE_BYTES_MAX as u64 + 1).unwrap();
        check("large", "larger than 1 MiB");
        large.set_len(FILE_BYTES_MAX as u64).unwrap();
        let mut mounts = [bind(&temporary.path().join("large"), &["ro"])];
        let files = of("c", &mut mounts, Place::Alone).unwrap().files;
        assert_eq!(files[0].contents.len(), FILE_BYTES_MAX);
    }
}
