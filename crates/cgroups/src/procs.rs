//! Which processes are in a cgroup, and in which cgroup a process is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use sys::Pid;

use crate::{Error, Result, file};

/// The processes of a cgroup and of those below it. Cgroups that vanish meanwhile have none; a
/// process of another pid namespace has no number here and is left out.
pub(crate) fn below(dir: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for cgroup in tree(dir)? {
        found.extend(of(&cgroup)?);
    }
    Ok(found)
}

/// The processes of one cgroup. A threaded one lists threads, which can be signalled as well.
pub(crate) fn of(dir: &Path) -> Result<Vec<Pid>> {
    let text = match file::read(dir, "cgroup.procs") {
        Ok(text) => text,
        Err(error) if file::is(&error, Errno::EOPNOTSUPP) => file::read(dir, "cgroup.threads")?,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let pids = text.lines().filter_map(|line| line.parse().ok());
    Ok(pids.filter(|pid| *pid > 0).map(Pid::from_raw).collect())
}

/// A cgroup and all below it, parents before children; nothing when it is gone.
pub(crate) fn tree(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    let mut looked_at = 0;
    while let Some(next) = found.get(looked_at) {
        let children = children(next);
        match children {
            Ok(children) => {
                found.extend(children);
                looked_at += 1;
            }
            Err(error) if gone(&error) => {
                found.remove(looked_at);
            }
            Err(source) => {
                return Err(Error::Read {
                    path: next.clone(),
                    source,
                });
            }
        }
    }
    Ok(found)
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn gone(error: &io::Error) -> bool {
    [Errno::ENOENT, Errno::ENODEV]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// The threads of a process.
pub(crate) fn threads(pid: Pid) -> Result<Vec<i32>> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let listed = fs::read_dir(&path).map_err(|source| Error::Read { path, source })?;
    Ok(listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// The cgroup of version 2 that a process is in, from the root of the hierarchy.
pub(crate) fn unified_of(pid: Pid) -> Result<String> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let text = file::read(&dir, "cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    own.map(str::to_owned)
        .ok_or_else(|| file::malformed(&dir, "cgroup", &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_at_every_depth() {
        let root = tempfile::tempdir().unwrap();
        for (dir, text) in [("", "1\n2\n"), ("a", ""), ("a/b", "3\n0\n"), ("c", "4\n")] {
            let dir = root.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), text).unwrap();
        }
        let mut found: Vec<i32> = below(root.path())
            .unwrap()
            .into_iter()
            .map(Pid::as_raw)
            .collect();
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4]);
        let tree = tree(root.path()).unwrap();
        let at = |name: &str| tree.iter().position(|dir| dir.ends_with(name)).unwrap();
        assert!(at("a") < at("a/b"));
    }

    #[test]
    fn cgroup_that_is_gone_has_nobody() {
        let root = tempfile::tempdir().unwrap();
        assert!(below(&root.path().join("x")).unwrap().is_empty());
    }

    #[test]
    fn own_threads_and_cgroup_are_known() {
        let own = Pid::this();
        assert!(threads(own).unwrap().contains(&own.as_raw()));
        // Hosts without version 2 have no such line.
        if let Ok(path) = unified_of(own) {
            assert!(path.starts_with('/'));
        }
    }
}
