//! Whether the processes of a restored container are in its cgroups: CRIU leaves them in its own
//! when its configuration says so, and then neither limits nor `kill --all` reach them.

use std::collections::BTreeMap;
use std::path::Path;

use cgroups::{Cgroup, CgroupPaths};
use sys::Pid;

use crate::Result;
use crate::process::{self, parent_of};

/// Moves `init` and all that descend from it into the container's cgroups where they are not;
/// gives whom it moved. They are stopped: none is born meanwhile.
///
/// # Errors
/// When one cannot be moved.
pub(crate) fn bring_in(cgroup: &Cgroup, init: Pid) -> Result<Vec<Pid>> {
    let all = tree(init)?;
    let paths = cgroup.paths();
    let mut moved = Vec::new();
    for dir in &paths.dirs {
        let hierarchy = Cgroup::from_paths(CgroupPaths {
            layout: paths.layout,
            dirs: vec![dir.clone()],
        });
        let members = hierarchy.procs()?;
        for pid in all.iter().filter(|pid| !members.contains(pid)) {
            hierarchy.attach(*pid)?;
            if !moved.contains(pid) {
                moved.push(*pid);
            }
        }
    }
    Ok(moved)
}

/// The threads of `init` and of all that descend from it; they are stopped, so that none is born
/// meanwhile.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn threads(init: Pid) -> Result<Vec<i32>> {
    let of_process = |pid: Pid| process::numbers(&Path::new("/proc").join(format!("{pid}/task")));
    let threads: Vec<_> = tree(init)?
        .into_iter()
        .map(of_process)
        .collect::<Result<_>>()?;
    Ok(threads.concat())
}

/// A process and all that descend from it.
fn tree(root: Pid) -> Result<Vec<Pid>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in process::all()? {
        if let Some(parent) = parent_of(pid)? {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root.as_raw()];
    let mut looked_at = 0;
    while let Some(next) = found.get(looked_at) {
        found.extend(children.remove(next).unwrap_or_default());
        looked_at += 1;
    }
    Ok(found.into_iter().map(Pid::from_raw).collect())
}

#[cfg(test)]
mod tests {
    use cgroups::Hierarchies;
    use sys::{Signal, Spawn};

    use super::*;

    /// A shell and its child.
    fn family() -> sys::Child {
        let (read, write) = sys::pipe_cloexec().unwrap();
        let script = "sleep 1000 & echo; wait";
        let init = Spawn::new("/bin/sh".as_ref())
            .args(["-c", script])
            .stdout(write)
            .spawn()
            .unwrap();
        nix::unistd::read(&read, &mut [0]).unwrap();
        init
    }

    #[test]
    fn threads_are_those_of_a_process_and_of_its_children() {
        let mut init = family();
        let processes = tree(init.pid());
        let found = threads(init.pid());
        for pid in processes.iter().flatten().rev() {
            sys::process::kill_number(*pid, Signal::SIGKILL as i32).unwrap();
        }
        init.wait().unwrap();
        let ids: Vec<_> = processes.unwrap().iter().map(|pid| pid.as_raw()).collect();
        assert_eq!(ids.len(), 2);
        assert_eq!(found.unwrap(), ids, "each has one thread");
    }

    #[test]
    fn who_is_outside_is_moved_with_all_descendants() {
        let mut init = family();
        let hierarchies = Hierarchies::at_host().unwrap();
        let path = format!("/runlxc-membership-{}", std::process::id());
        let cgroup = Cgroup::create(&hierarchies, &path).unwrap();
        let moved = bring_in(&cgroup, init.pid());
        let again = bring_in(&cgroup, init.pid());
        let members = cgroup.procs();
        cgroup.kill_all(Signal::SIGKILL as i32).unwrap();
        init.wait().unwrap();
        cgroup.delete().unwrap();
        let (moved, mut members) = (moved.unwrap(), members.unwrap());
        assert_eq!((moved.len(), moved[0]), (2, init.pid()));
        assert!(again.unwrap().is_empty());
        members.sort_unstable();
        assert_eq!(members, moved);
    }
}
