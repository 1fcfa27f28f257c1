//! What of a container lies outside of it, and is named in its images instead of kept in them:
//! bind mounts, cgroups, namespaces by path, standard streams.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use bundle::{NamespaceKind, Plan};
use launch::plan::{CgroupView, PlannedMount};

use crate::criu::wire::Pair;
use crate::{Error, Result, bounded};

/// File in the folder of images: what the standard streams of init were, by CRIU's names. The
/// same file with the same content as runc's, but for regular files, which runc cannot dump.
pub(crate) const STREAMS: &str = "descriptors.json";

/// How long the file systems of the three may take to tell what they are.
const STREAMS_LIMIT: Duration = Duration::from_secs(10);

/// Mount points in the container and what is on the host for each.
pub(crate) fn mounts(plan: &Plan) -> Vec<Pair> {
    let pair = |target: &str, source: &str| Pair {
        key: target.to_owned(),
        value: source.to_owned(),
    };
    let own = |kind| plan.namespaces.iter().any(|n| n.kind == kind);
    let mut pairs = Vec::new();
    for planned in &plan.init.mounts {
        match planned {
            PlannedMount::Plain(mount) if mount.is_bind() => {
                pairs.push(pair(&mount.target, &mount.source));
            }
            // In a namespace of their own, they are mounts of the hierarchies.
            PlannedMount::Plain(_) => {}
            PlannedMount::Cgroup { .. } if own(NamespaceKind::Cgroup) => {}
            PlannedMount::Cgroup { mount, view } => match view {
                CgroupView::Unified { own } => pairs.push(pair(&mount.target, own)),
                CgroupView::Legacy { hierarchies } => {
                    pairs.extend(hierarchies.iter().map(|hierarchy| {
                        let target = Path::new(&mount.target).join(&hierarchy.name);
                        pair(&target.to_string_lossy(), &hierarchy.own)
                    }));
                }
            },
        }
    }
    if own(NamespaceKind::User) {
        // There, nodes are binds of the host's.
        let nodes = plan.init.devices.iter();
        pairs.extend(nodes.map(|node| pair(&node.path, &node.path)));
    }
    pairs
}

/// CRIU's name of the namespace that a container joined by path.
pub(crate) fn namespace_key(kind: NamespaceKind) -> Option<&'static str> {
    match kind {
        NamespaceKind::Network => Some("extRootNetNS"),
        NamespaceKind::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// The word `--external` takes for it.
///
/// # Errors
/// When it cannot be looked at.
pub(crate) fn namespace(kind: NamespaceKind, path: &Path, key: &str) -> Result<String> {
    let inode = fs::metadata(path)
        .map_err(Error::on("open namespace", path))?
        .ino();
    Ok(format!("{}[{inode}]:{key}", kind.proc_name()))
}

/// What the three standard streams of a process are, by CRIU's names: `pipe:[INODE]` for a pipe,
/// `file[MOUNT:INODE]` for a file that no mount of the container holds, else its path.
///
/// # Errors
/// When `/proc` cannot be read; [`Error::Timeout`] when the file system of one does not answer.
pub(crate) fn streams(pid: i32) -> Result<[String; 3]> {
    let what = "a look at the container's standard streams";
    bounded::within(STREAMS_LIMIT, what, move || streams_of(pid))?
}

fn streams_of(pid: i32) -> Result<[String; 3]> {
    let own_mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))
        .map_err(Error::io("read the container's mountinfo"))?;
    let name = |number: i32| {
        let path = format!("/proc/{pid}/fd/{number}");
        // A stream that is closed has no name.
        let Ok(link) = fs::read_link(&path) else {
            return String::new();
        };
        let outside = fs::metadata(&path)
            .ok()
            .filter(fs::Metadata::is_file)
            .and_then(|file| Some((mount_of(pid, number)?, file.ino())))
            .filter(|(mount, _)| !holds(&own_mounts, *mount));
        match outside {
            Some((mount, inode)) => format!("file[{mount:x}:{inode:x}]"),
            None => link.to_string_lossy().into_owned(),
        }
    };
    Ok([name(0), name(1), name(2)])
}

/// The names among them that CRIU must be given a descriptor for.
pub(crate) fn is_outside(name: &str) -> bool {
    name.starts_with("pipe:[") || name.starts_with("file[")
}

/// The id of the mount that a descriptor's file is on (proc(5), fdinfo; Linux 3.15).
fn mount_of(pid: i32, number: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

fn holds(mountinfo: &str, mount: u64) -> bool {
    let mut ids = mountinfo.lines().filter_map(|line| line.split(' ').next());
    ids.any(|id| id.parse() == Ok(mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pipes_or_files_outside() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (read, _write) = sys::pipe_cloexec().unwrap();
        let mut child = sys::Spawn::new("/bin/sleep".as_ref())
            .args(["1000"])
            .stdin(std::os::fd::AsFd::as_fd(&read))
            .spawn()
            .unwrap();
        let names = streams(child.pid().as_raw()).unwrap();
        child.kill(sys::Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(names[0].starts_with("pipe:["), "{names:?}");
        assert_eq!(names[1], "/dev/null");
        assert!(is_outside(&names[0]) && !is_outside(&names[1]));
        assert!(is_outside("file[1f:2a]") && !is_outside(""));
        assert!(mount_of(pid, -1).is_none());
    }

    #[test]
    fn a_mount_is_known_by_its_id() {
        let mountinfo = "89 66 254:0 / / rw - ext4 x rw\n90 89 0:1 / /proc rw - proc proc rw\n";
        assert!(holds(mountinfo, 90) && !holds(mountinfo, 66) && !holds("", 1));
    }
}
