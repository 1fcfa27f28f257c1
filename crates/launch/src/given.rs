//! Namespaces that the host side gives pid 1 to join, because LXC cannot start a container in them.
//!
//! Those that a joined user namespace is to own are made here, too. Only that of pids is not among
//! them: pid 1 is born in it. A procfs of it cannot be mounted from the user namespace then, so the one
//! that LXC has mounted is taken along.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use sys::mount_api::{OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, open_tree};

use crate::control::Given;
use crate::error::{Error, Result, host};

/// What was given.
#[derive(Debug)]
pub(crate) struct Namespaces(Vec<(Given, OwnedFd)>);

impl Namespaces {
    /// # Errors
    /// Descriptors that nobody spoke of, or too few of them.
    pub(crate) fn new(given: Vec<Given>, fds: Vec<OwnedFd>) -> Result<Self> {
        if given.len() != fds.len() {
            return Err(Error::Unexpected("with other descriptors than namespaces"));
        }
        Ok(Self(given.into_iter().zip(fds).collect()))
    }

    /// Whether a cgroup namespace is among them.
    pub(crate) fn has_cgroups(&self) -> bool {
        self.0.iter().any(|(given, _)| *given == Given::Cgroups)
    }

    /// Enters all of them, that of users last, which takes the right to enter others; gives the
    /// container's procfs where it cannot be mounted afterwards.
    pub(crate) fn enter(self) -> Result<Option<OwnedFd>> {
        let mut users = None;
        let mut copies_mounts = false;
        let procfs = self.procfs()?;
        for (given, file) in self.0 {
            match given {
                Given::MountsToCopy => {
                    join(&file, CloneFlags::CLONE_NEWNS, "mount")?;
                    copies_mounts = true;
                }
                Given::Mounts => join(&file, CloneFlags::CLONE_NEWNS, "mount")?,
                Given::Cgroups => join(&file, CloneFlags::CLONE_NEWCGROUP, "cgroup")?,
                Given::Users { make } => users = Some((file, CloneFlags::from_bits_retain(make))),
            }
        }
        match users {
            Some((file, make)) => enter_users(&file, make)?,
            None if copies_mounts => make(CloneFlags::CLONE_NEWNS)?,
            None => {}
        }
        Ok(procfs)
    }

    fn procfs(&self) -> Result<Option<OwnedFd>> {
        let is_users = |(given, _): &(Given, OwnedFd)| matches!(given, Given::Users { .. });
        if !self.0.iter().any(is_users) {
            return Ok(None);
        }
        let step = || "take the container's procfs along (Linux 5.2)".to_owned();
        let root = File::open("/").map_err(host(step))?;
        let tree = open_tree(root, c"/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        tree.map(Some).map_err(host(step))
    }
}

fn join(file: impl AsFd, flag: CloneFlags, kind: &str) -> Result<()> {
    setns(file, flag).map_err(host(|| format!("join the {kind} namespace")))
}

fn make(flags: CloneFlags) -> Result<()> {
    unshare(flags).map_err(host(|| format!("make namespaces {flags:?}")))
}

fn enter_users(file: impl AsFd, own: CloneFlags) -> Result<()> {
    join(file, CloneFlags::CLONE_NEWUSER, "user")?;
    become_root()?;
    make(own)
}

/// Ids of the host mean nothing in a user namespace.
pub(crate) fn become_root() -> Result<()> {
    match setgroups(&[]) {
        // Denied for good in namespaces made without privilege.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(host(|| "drop groups of the host".to_owned())(errno)),
    }
    let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
    setresgid(gid, gid, gid)
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(host(|| "become root of the user namespace".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_what_they_are_go_together() {
        let file = || OwnedFd::from(File::open("/proc/self/ns/mnt").unwrap());
        let none = Namespaces::new(Vec::new(), Vec::new()).unwrap();
        assert!(!none.has_cgroups() && none.enter().unwrap().is_none());
        let one = Namespaces::new(vec![Given::Cgroups], vec![file()]).unwrap();
        assert!(one.has_cgroups());
        // A file of another kind is told by what it was to be.
        let refused = one.enter().unwrap_err().to_string();
        assert!(refused.contains("cgroup namespace"), "{refused}");
        for (given, fds) in [(vec![Given::Mounts], vec![]), (vec![], vec![file()])] {
            assert!(matches!(
                Namespaces::new(given, fds),
                Err(Error::Unexpected(_))
            ));
        }
    }
}
