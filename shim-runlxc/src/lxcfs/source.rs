//! The lxcfs that runs on the host; must not start one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mounts::mountinfo;

use crate::{Error, Result, bounded};

/// Where distributions have it.
pub const ROOT: &str = "/var/lib/lxcfs";

/// How long it may take to answer one question; it takes microseconds.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Type of its mount: no other program's files are taken for it.
pub(crate) const FSTYPE: &str = "fuse.lxcfs";

/// What it has below its root and a container sees in the same place. Its loadavg is the host's
/// unless it was started with `-l`.
pub(crate) const TARGETS: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    CPUS,
];

/// The only directory among them.
pub(crate) const CPUS: &str = "/sys/devices/system/cpu";

/// What the operator says of lxcfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lxcfs {
    /// Where it is mounted; absolute.
    pub root: PathBuf,
    /// A container that asks for it runs without it where there is none.
    pub is_optional: bool,
}

impl Default for Lxcfs {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
            is_optional: false,
        }
    }
}

/// A mounted lxcfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Its mount point, as the kernel lists it.
    pub(crate) root: PathBuf,
    /// Major and minor number of its device.
    pub(crate) device: (u32, u32),
}

impl Mounted {
    /// The one that is mounted there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none; that it answers is not known yet.
    pub(crate) fn at(root: &Path) -> Result<Self> {
        let place = mount_point(root)?;
        let table = mountinfo::below(&place).map_err(Error::io("read mountinfo"))?;
        // The last one at a mount point is on top.
        let top = table.iter().rfind(|entry| entry.path() == place);
        match top {
            Some(entry) if entry.fstype == FSTYPE => Ok(Self {
                root: place,
                device: entry.device,
            }),
            _ => Err(missing(root, "none is mounted there")),
        }
    }

    /// Where it has what belongs at a target.
    pub(crate) fn source(&self, target: &str) -> PathBuf {
        self.root.join(target.trim_start_matches('/'))
    }

    /// The targets that it has something for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it does not answer: it hangs, or was killed and left its mount behind.
    pub(crate) fn targets(&self) -> Result<Vec<&'static str>> {
        let asked = self.clone();
        let told = bounded::within(ANSWER_LIMIT, "an answer of lxcfs", move || asked.look());
        told.unwrap_or_else(|_silence| {
            let seconds = ANSWER_LIMIT.as_secs();
            Err(missing(
                &self.root,
                &format!("it does not answer within {seconds} seconds"),
            ))
        })
    }

    fn look(&self) -> Result<Vec<&'static str>> {
        let mut found = Vec::with_capacity(TARGETS.len());
        for target in TARGETS {
            match self.source(target).symlink_metadata() {
                Ok(_) => found.push(target),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(missing(&self.root, &format!("it is dead ({error})"))),
            }
        }
        if found.is_empty() {
            return Err(missing(&self.root, "it has none of the files"));
        }
        Ok(found)
    }
}

/// The path without symbolic links, as the kernel lists mount points. The last component is not
/// looked at: a dead lxcfs answers nothing.
fn mount_point(root: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(Error::Usage(format!(
            "lxcfs root {} is no directory below another",
            root.display()
        )));
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(missing(root, "none is mounted there"))
        }
        Err(error) => Err(Error::on("resolve", root)(error)),
    }
}

fn missing(root: &Path, why: &str) -> Error {
    Error::unsupported(
        "the view lxcfs (org.pouch.view)",
        format!(
            "no lxcfs at {}: {why}; install lxcfs and start it (systemctl start lxcfs, or lxcfs {})",
            root.display(),
            root.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_lxcfs_is_refused_by_its_place() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("lxcfs");
        std::fs::create_dir_all(root.join("proc")).unwrap();
        std::fs::write(root.join("proc/meminfo"), "").unwrap();
        for place in [root, scratch.path().join("missing/lxcfs"), "/proc".into()] {
            let error = Mounted::at(&place).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
            let text = error.to_string();
            let named = format!("no lxcfs at {}: none is mounted there", place.display());
            assert!(text.contains(&named), "{text}");
        }
        assert!(matches!(Mounted::at("/".as_ref()), Err(Error::Usage(_))));
    }
}
