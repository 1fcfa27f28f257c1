//! What of the host a container mounts: live, where its machine shares volumes; else files and read-only
//! directories as copies, made when the container is. EmptyDirs are memory of the guest. Everything else is
//! refused by name.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use guest::call::{File, SHARED_MEMORY, directory_path, file_path, volume_path};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::held::Held;
use crate::pod::Place;
use crate::sharing::Sharing;
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

/// Volumes that a container shares with the host.
const SHARED_MAX: usize = 96;

/// What engines and kubelets mount into every container: copies do, and no machine shares its memory for
/// them alone.
const OF_ENGINES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// What a container mounts.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// Copies of files.
    pub(crate) files: Vec<File>,
    /// Directories.
    pub(crate) directories: Vec<Directory>,
    /// The host's own.
    pub(crate) shared: Vec<Shared>,
}

/// A file or directory of the host that a guest sees as it is.
#[derive(Debug)]
pub(crate) struct Shared {
    /// By which the guest knows it: one that no other volume of its machine ever had.
    pub(crate) name: String,
    /// It.
    pub(crate) held: Held,
    /// Where it was found.
    pub(crate) path: PathBuf,
    /// What the guest may do.
    pub(crate) access: Access,
    /// How much of it is shared.
    pub(crate) scope: Scope,
}

/// What a guest may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Write it.
    Write,
    /// Read it; mounts below it are what they are (`ro`).
    Read,
    /// Read it and all mounts below it (`rro`).
    ReadAll,
}

/// How much of the host's mounts a bind takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The one (`bind`).
    Mount,
    /// Those below it, too (`rbind`).
    Tree,
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
pub(crate) fn of(
    id: &str,
    mounts: &mut [Value],
    place: Place<'_>,
    sharing: Sharing,
) -> Result<Volumes> {
    let mut volumes = Volumes::default();
    for mount in mounts {
        let text = |field: &str| mount[field].as_str().unwrap_or_default().to_owned();
        let (kind, source, target) = (text("type"), text("source"), text("destination"));
        let options = mount["options"].as_array().into_iter().flatten();
        let options: Vec<_> = options.filter_map(Value::as_str).collect();
        if !is_bind(&kind, &options) {
            if GUEST_MOUNTS.contains(&kind.as_str()) {
                continue;
            }
            return Err(refused(&target, format!("a guest does not mount {kind:?}")));
        }
        let path = Path::new(&source);
        let held = Held::at(path).map_err(Error::on("open", path))?;
        let there = volumes.add(id, (path, held), (&target, &options), (place, sharing))?;
        mount["source"] = Value::String(there);
    }
    Ok(volumes)
}

fn is_bind(kind: &str, options: &[&str]) -> bool {
    kind == "bind" || options.iter().any(|it| matches!(*it, "bind" | "rbind"))
}

/// Whether config.json has mounts that a machine would share, so that it has to be known whether it can.
pub(crate) fn are_wanted(config: &Value) -> bool {
    let mounts = config["mounts"].as_array().into_iter().flatten();
    mounts.into_iter().any(|mount| {
        let text = |field: &str| mount[field].as_str().unwrap_or_default();
        let options = mount["options"].as_array().into_iter().flatten();
        let options: Vec<_> = options.filter_map(Value::as_str).collect();
        is_bind(text("type"), &options) && !OF_ENGINES.contains(&text("destination"))
    })
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

/// Why a device or the like is refused.
const NO_FILE: &str = "is neither a regular file nor a directory";

/// What the last word about it says.
fn access(options: &[&str]) -> Access {
    let mut last = options.iter().rev();
    match last.find(|it| matches!(**it, "ro" | "rro" | "rw" | "rrw")) {
        Some(&"ro") => Access::Read,
        Some(&"rro") => Access::ReadAll,
        _ => Access::Write,
    }
}

fn refused(target: &str, why: impl AsRef<str>) -> Error {
    Error::unsupported(format!("mount at {target}"), why.as_ref())
}

impl Volumes {
    /// Gives its place in the guest.
    fn add(
        &mut self,
        id: &str,
        (path, held): (&Path, Held),
        (target, options): (&str, &[&str]),
        (place, sharing): (Place<'_>, Sharing),
    ) -> Result<String> {
        if held.metadata.is_dir() {
            if place != Place::Alone && target == SHARED_MEMORY {
                // What a pod's containers share is theirs alone, so it can be in their machine.
                return Ok(SHARED_MEMORY.to_owned());
            }
            if is_part_of_empty_dir(path) {
                let why =
                    "is a subPath of an emptyDir, which is memory of the guest as a whole only";
                return Err(refused(target, format!("{} {why}", path.display())));
            }
            if place != Place::Alone && is_empty_dir(path) {
                let memory = Directory::Memory(memory(path, &held.metadata));
                return self.add_directory(id, memory, target);
            }
        }
        match sharing {
            Sharing::Live if !OF_ENGINES.contains(&target) => {
                self.add_shared((path, held), options, target)
            }
            Sharing::Copies(why) if held.metadata.is_dir() => {
                let directory = copy(path, options, (target, why))?;
                self.add_directory(id, directory, target)
            }
            Sharing::Copies(_) | Sharing::Live => self.add_file(id, (path, &held), target),
        }
    }

    fn add_shared(
        &mut self,
        (path, held): (&Path, Held),
        options: &[&str],
        target: &str,
    ) -> Result<String> {
        let refuse = |why: &str| Err(refused(target, format!("{} {why}", path.display())));
        if !held.metadata.is_dir() && !held.metadata.is_file() {
            return refuse(NO_FILE);
        }
        if options.iter().any(|it| matches!(*it, "shared" | "rshared")) {
            return refuse("is shared, and what is mounted in a guest does not reach the host");
        }
        if self.shared.len() == SHARED_MAX {
            let why = format!("a container shares at most {SHARED_MAX} volumes with the host");
            return Err(refused(target, why));
        }
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let there = volume_path(&name);
        self.shared.push(Shared {
            name,
            held,
            path: path.to_owned(),
            access: access(options),
            scope: match options.contains(&"rbind") {
                true => Scope::Tree,
                false => Scope::Mount,
            },
        });
        Ok(there)
    }

    fn add_file(&mut self, id: &str, (path, held): (&Path, &Held), target: &str) -> Result<String> {
        let refuse = |why: &str| Err(refused(target, format!("{} {why}", path.display())));
        if self.files.len() == FILES_MAX {
            let why = format!("at most {FILES_MAX} files of the host are copied into a guest");
            return Err(refused(target, why));
        }
        let metadata = &held.metadata;
        if !metadata.is_file() {
            return refuse(NO_FILE);
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
fn copy(path: &Path, options: &[&str], (target, why): (&str, &str)) -> Result<Directory> {
    if access(options) == Access::Write {
        let path = path.display();
        let why = format!(
            "{path} can be written, and {why}: only read-only directories are brought into a guest then, as copies"
        );
        return Err(refused(target, why));
    }
    Ok(Directory::Copy(path.to_owned()))
}

/// An emptyDir: its path is the same for all containers of its pod.
fn memory(path: &Path, metadata: &Metadata) -> guest::call::Directory {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
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

    const COPIES: Sharing = Sharing::Copies("there is none");

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
            let volumes = of("c", &mut mounts, place, COPIES).map_err(|error| error.to_string())?;
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
            assert!(
                error.contains("can be written, and there is none: only"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_shared_is_the_hosts_own() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::create_dir_all(at("pods/uid/volumes/kubernetes.io~empty-dir/cache")).unwrap();
        fs::create_dir(at("data")).unwrap();
        fs::write(at("file"), "x").unwrap();
        let shared = |mount: Value| {
            let mut mounts = [mount];
            let volumes = of("c", &mut mounts, Place::Sandbox, Sharing::Live);
            let mut volumes = volumes.map_err(|error| error.to_string())?;
            let source = mounts[0]["source"].as_str().unwrap().to_owned();
            Ok::<_, String>((volumes.shared.pop(), source))
        };
        let check = |name: &str, options: &[&str], expected: (Access, Scope)| {
            let (volume, source) = shared(bind(&at(name), options)).unwrap();
            let volume = volume.unwrap();
            assert_eq!((volume.access, volume.scope), expected, "{options:?}");
            assert_eq!(source, format!("/run/volumes/{}/volume", volume.name));
            volume.name
        };
        let first = check("data", &["rbind", "rw"], (Access::Write, Scope::Tree));
        let second = check("data", &["rbind"], (Access::Write, Scope::Tree));
        assert_ne!(first, second);
        check("data", &["bind", "rw", "ro"], (Access::Read, Scope::Mount));
        check("data", &["rbind", "rro"], (Access::ReadAll, Scope::Tree));
        check("file", &["rbind", "rw"], (Access::Write, Scope::Tree));
        let empty = bind(
            &at("pods/uid/volumes/kubernetes.io~empty-dir/cache"),
            &["rbind"],
        );
        assert!(shared(empty).unwrap().0.is_none());
        let mut hosts = bind(&at("file"), &["rbind"]);
        hosts["destination"] = json!("/etc/hosts");
        assert_eq!(shared(hosts).unwrap().1, "/run/containers/c/files/0");
        let error = shared(bind(&at("data"), &["rbind", "rshared"])).unwrap_err();
        assert!(error.contains("does not reach the host"), "{error}");
        let error = shared(bind(Path::new("/dev/null"), &["rbind"])).unwrap_err();
        assert!(error.contains("neither a regular file"), "{error}");
    }

    #[test]
    fn only_files_are_read_and_only_so_far() {
        let temporary = tempfile::tempdir().unwrap();
        let check = |name: &str, expected: &str| {
            let mut mounts = [bind(&temporary.path().join(name), &["ro"])];
            let error = of("c", &mut mounts, Place::Alone, COPIES).unwrap_err();
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
        let files = of("c", &mut mounts, Place::Alone, COPIES).unwrap().files;
        assert_eq!(files[0].contents.len(), FILE_BYTES_MAX);
    }
}
