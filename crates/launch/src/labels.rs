//! Labels of the kernel's security modules: those the program gets at its execve(2), and those of
//! files that are made for it.
//!
//! Everything is written through the pinned procfs: a `/proc/self/attr` that an image or a mount
//! had put in its place would leave the program unconfined (CVE-2019-16884, CVE-2019-19921).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use mounts::{LastLink, Mount, RootDir};
use nix::errno::Errno;

use crate::error::{Error, Result, host};
use crate::plan::Labels;
use crate::procfs::{Proc, fd_path};

/// Its own since Linux 5.8; before, all modules share one.
const APPARMOR_EXEC: &str = "self/attr/apparmor/exec";
const EXEC: &str = "self/attr/exec";
const APPARMOR_CURRENT: &str = "self/attr/apparmor/current";
const CURRENT: &str = "self/attr/current";
const KEY_CREATE: &str = "self/attr/keycreate";

/// File systems that take no label at mount(2); the program's type alone decides there (as runc).
const UNLABELLED: [&str; 4] = ["proc", "sysfs", "cgroup", "cgroup2"];

/// Asks for the labels of the next program of this process. They are inherited by fork(2), so
/// hooks that run after this have them too.
pub(crate) fn set_for_program(proc: &Proc, labels: &Labels) -> Result<()> {
    if let Some(profile) = &labels.apparmor {
        set_profile(proc, profile, Moment::Execve)?;
    }
    if let Some(label) = &labels.selinux {
        proc.write(EXEC, label)
            .map_err(|error| bad_label("process.selinuxLabel", label, error))?;
    }
    Ok(())
}

/// Gives this process itself the profile that its program would have. SELinux changes at an
/// execve(2) only, as its policies go: without one the process keeps the label it has.
pub(crate) fn change_now(proc: &Proc, labels: &Labels) -> Result<()> {
    match &labels.apparmor {
        Some(profile) => set_profile(proc, profile, Moment::Now),
        None => Ok(()),
    }
}

/// Lets keyrings that this process makes have its program's label.
pub(crate) fn set_for_keyrings(proc: &Proc, labels: &Labels) -> Result<()> {
    let Some(label) = &labels.selinux else {
        return Ok(());
    };
    match proc.write(KEY_CREATE, label) {
        // Before Linux 2.6.18, or without keyrings.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| bad_label("process.selinuxLabel", label, error)),
    }
}

/// When a profile is changed to.
#[derive(Clone, Copy)]
enum Moment {
    Now,
    Execve,
}

fn set_profile(proc: &Proc, profile: &str, moment: Moment) -> Result<()> {
    let (own, shared, word) = match moment {
        Moment::Now => (APPARMOR_CURRENT, CURRENT, "changeprofile"),
        Moment::Execve => (APPARMOR_EXEC, EXEC, "exec"),
    };
    let file = if proc.has(own) { own } else { shared };
    proc.write(file, &format!("{word} {profile}"))
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Error::Request {
                step: format!(
                    "process.apparmorProfile: {profile:?} is not loaded on this host: load it \
                     with apparmor_parser -r FILE"
                ),
                errno: 0,
            },
            Some(Errno::EACCES | Errno::EPERM) => Error::Host {
                step: format!(
                    "change to AppArmor profile {profile:?}, which the profile of the runtime \
                     itself must allow (change_profile)"
                ),
                source: error,
            },
            _ => host(|| format!("change to AppArmor profile {profile:?}"))(error),
        })
}

fn bad_label(field: &str, label: &str, error: io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL) => Error::Request {
            step: format!("{field}: {label:?} is no label of the SELinux policy on this host"),
            errno: 0,
        },
        _ => host(|| format!("set SELinux label {label:?}"))(error),
    }
}

/// The mount with the label of the container's files; none where it takes none: a bind shows the
/// labels there are, an mqueue is labelled when it is there ([`label_mqueue`]).
pub(crate) fn labelled(mount: &Mount, label: Option<&str>) -> Option<Mount> {
    let label = label?;
    let fstype = mount.fstype.as_str();
    if mount.is_bind() || mount.is_remount() || fstype == "mqueue" || UNLABELLED.contains(&fstype) {
        return None;
    }
    let mut labelled = mount.clone();
    labelled.options.data = with_context(&mount.options.data, label);
    Some(labelled)
}

/// Options of a file system with the label in them (mount(8), context).
pub(crate) fn with_context(data: &str, label: &str) -> String {
    let comma = if data.is_empty() { "" } else { "," };
    format!("{data}{comma}context=\"{label}\"")
}

/// Labels the root of a message queue file system, whose mounts in one namespace are all the same
/// and so cannot have a label each.
pub(crate) fn label_mqueue(root: &RootDir, proc: &Proc, mount: &Mount, label: &str) -> Result<()> {
    let place = root.find(Path::new(&mount.target), LastLink::Follow)?;
    let step = || format!("label {}", mount.target);
    let place = place
        .ok_or_else(|| io::Error::from(Errno::ENOENT))
        .map_err(host(step))?;
    proc.make_working_directory()?;
    let path = fd_path(place.as_fd());
    sys::set_xattr(&path, c"security.selinux", label.as_bytes())
        .map_err(|error| bad_label("linux.mountLabel", label, error))
}
