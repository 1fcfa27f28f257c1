//! The name by which everything of one containerd instance is known on the machine, and its directories.
//!
//! The tag is the containerd namespace (and so the cgroup parent) and part of every path, so that
//! what belongs to an instance can be told from its name alone, by this process or by a later one.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// What every tag begins with.
const PREFIX: &str = "pp-";

/// The sockets of shims, named by hash, where every containerd puts them.
pub const SHIM_SOCKETS: &str = "/run/containerd/s";

/// `pp-` and eight hexadecimal digits: short, for a socket path has 107 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Tag {
    /// A tag nobody else has.
    pub fn fresh() -> Result<Self> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading a uuid")?;
        Ok(Self(format!("{PREFIX}{}", &uuid[..8])))
    }

    /// The tag of the instance whose images are copied by others. It is as long as any other.
    #[must_use]
    pub fn of_templates() -> Self {
        Self(format!("{PREFIX}template"))
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when that text names something of this instance.
    #[must_use]
    pub fn is_in(&self, text: &str) -> bool {
        text.contains(&self.0)
    }
}

/// The directories of one instance, claimed by a lock for as long as its test program lives.
#[derive(Debug)]
pub struct Directories {
    /// `/run/TAG`: sockets, state, fifos, log. Short, on a tmpfs where `/run` is one.
    pub run: PathBuf,
    /// `TMPDIR/TAG`: the root with snapshots and content, and what tests put beside it.
    pub data: PathBuf,
    _lock: File,
}

impl Directories {
    /// Makes and claims them.
    pub fn claim(tag: &Tag) -> Result<Self> {
        let run = Path::new("/run").join(tag.as_str());
        let data = data_directory(tag);
        // Somebody else's sweep must never see the directory without its lock.
        let unborn = Path::new("/run").join(format!(".{tag}"));
        make_traversable(&unborn)?;
        let lock = File::create(unborn.join("lock"))?;
        lock.lock()
            .with_context(|| format!("locking {}", unborn.display()))?;
        make_traversable(&data)?;
        fs::rename(&unborn, &run).with_context(|| format!("claiming {}", run.display()))?;
        Ok(Self {
            run,
            data,
            _lock: lock,
        })
    }

    /// The socket of the daemon.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("c.sock")
    }

    /// The ids of all containers that were ever to be made, one a line.
    #[must_use]
    pub fn ids(&self) -> PathBuf {
        self.run.join("ids")
    }

    /// containerd's `root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.data.join("root")
    }

    /// containerd's `state`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.run.join("state")
    }
}

/// `TMPDIR/TAG`.
#[must_use]
pub fn data_directory(tag: &Tag) -> PathBuf {
    std::env::temp_dir().join(tag.as_str())
}

/// Makes a directory that a container's root may pass through but not list: with a user namespace
/// every directory above the rootfs needs that.
pub fn make_traversable(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o711)
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}

/// The tags of instances whose test program is gone.
pub fn abandoned() -> Result<Vec<Tag>> {
    let mut tags = Vec::new();
    for entry in fs::read_dir("/run")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            continue;
        };
        match lock.try_lock() {
            Ok(()) => tags.push(Tag(name)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => bail!("locking {}: {error}", entry.path().display()),
        }
    }
    Ok(tags)
}

/// The socket a shim listens on: every containerd names it by address, namespace and container id.
#[must_use]
pub fn shim_socket(address: &Path, tag: &Tag, id: &str) -> PathBuf {
    let name = address.join(tag.as_str()).join(id);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    Path::new(SHIM_SOCKETS).join(format!("{digest:x}"))
}

/// The sockets of an instance whose program is gone.
pub fn sockets_of_abandoned(tag: &Tag) -> Result<BTreeSet<PathBuf>> {
    let run = Path::new("/run").join(tag.as_str());
    let ids = match fs::read_to_string(run.join("ids")) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => return Err(error).context("reading the ids of an abandoned instance"),
    };
    Ok(shim_sockets(&run.join("c.sock"), tag, &ids))
}

/// The sockets of all those containers.
#[must_use]
pub fn shim_sockets(address: &Path, tag: &Tag, ids: &BTreeSet<String>) -> BTreeSet<PathBuf> {
    ids.iter().map(|id| shim_socket(address, tag, id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_sockets_are_named_as_containerd_names_them() {
        // Seen with 1.6.20: address /run/ppx16/c.sock, namespace pp-test, id c1.
        let socket = shim_socket(
            Path::new("/run/ppx16/c.sock"),
            &Tag("pp-test".to_owned()),
            "c1",
        );
        let hash = "04777f4b717ea30afe4d2663c60b727354fc151e18d87c7a84105ae425ea721d";
        assert_eq!(socket, Path::new(SHIM_SOCKETS).join(hash));
    }

    #[test]
    fn tags_differ_and_are_as_long_as_the_template_s() {
        let [one, two] = [Tag::fresh().unwrap(), Tag::fresh().unwrap()];
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), Tag::of_templates().as_str().len());
    }
}
