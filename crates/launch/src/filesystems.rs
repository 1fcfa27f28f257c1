//! The mounts that config.json lists, made under the new root while the host's tree is still there.
//!
//! What a mount means is in the crate `mounts`; here is their order, what `cgroup` means, and which
//! of them become read-only only at the end, when nothing more is to be made in them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use mounts::flags::{BIND, NODEV, NOEXEC, NOSUID, RDONLY, REC};
use mounts::{Kind, LastLink, Mount, MountOptions, RootDir, apply_tree_under, apply_under};
use nix::errno::Errno;
use nix::unistd::symlinkat;

use crate::error::{Result, host};
use crate::host_side::HostSide;
use crate::plan::{CgroupView, InitPlan, LegacyHierarchy, PlannedMount, Toggle};
use crate::procfs::Proc;
use crate::{labels, masks};

/// runc's flags for the mounts below a `cgroup` mount.
const CGROUP_FLAGS: u64 = NOSUID | NODEV | NOEXEC;

/// What is left to do for the file systems of a container.
#[derive(Debug)]
pub(crate) struct Filesystems {
    /// Targets that are still writable, in the order of their mounts.
    readonly_later: Vec<String>,
}

impl Filesystems {
    /// Makes the mounts of a plan in their order.
    pub(crate) fn mount(
        root: &RootDir,
        plan: &InitPlan,
        host: HostSide<'_>,
        (proc, mut procfs): (&Proc, Option<OwnedFd>),
    ) -> Result<Self> {
        let label = plan.mount_label.as_deref();
        let mut readonly_later = Vec::new();
        for (number, planned) in (0..).zip(&plan.mounts) {
            let (mount, filled_later) = match planned {
                PlannedMount::Plain(mount) if is_procfs(mount) && procfs.is_some() => {
                    if let Some(tree) = procfs.take() {
                        apply_tree_under(root, mount, tree.as_fd())?;
                    }
                    (mount, false)
                }
                PlannedMount::Plain(mount) => {
                    let tree = || host.tree(number);
                    mount_plain(root, mount, label, (proc, &tree))?;
                    (mount, mount.is_filled_later())
                }
                PlannedMount::Cgroup {
                    mount,
                    view: CgroupView::Unified { own },
                } => {
                    mount_unified(root, mount, own, plan.cgroup_namespace)?;
                    (mount, false)
                }
                PlannedMount::Cgroup {
                    mount,
                    view: CgroupView::Legacy { hierarchies },
                } => {
                    mount_tmpfs_for_legacy(root, mount, label)?;
                    mount_legacy(root, mount, hierarchies, plan.cgroup_namespace)?;
                    (mount, true)
                }
            };
            if filled_later && mount.options.flags_set & RDONLY != 0 {
                readonly_later.push(mount.target.clone());
            }
        }
        Ok(Self { readonly_later })
    }

    /// Makes read-only what was to be so from the start; inside the new root.
    pub(crate) fn make_readonly(&self, proc: &Proc) -> Result<()> {
        masks::remount_all_readonly(proc, &self.readonly_later)
    }
}

fn is_procfs(mount: &Mount) -> bool {
    mount.fstype == "proc" && !mount.is_bind()
}

fn mount_plain(
    root: &RootDir,
    mount: &Mount,
    label: Option<&str>,
    (proc, tree): (&Proc, &dyn Fn() -> Result<OwnedFd>),
) -> Result<()> {
    if mount.is_bind() {
        return bind_plain(root, mount, tree);
    }
    match labels::labelled(mount, label) {
        Some(labelled) => apply_under(root, &labelled)?,
        None => apply_under(root, mount)?,
    }
    match label {
        Some(label) if mount.fstype == "mqueue" && !mount.is_bind() => {
            labels::label_mqueue(root, proc, mount, label)
        }
        _ => Ok(()),
    }
}

/// The source of a bind may be closed to the container's user namespace, but not to the host side.
fn bind_plain(root: &RootDir, mount: &Mount, tree: &dyn Fn() -> Result<OwnedFd>) -> Result<()> {
    if mount.id_map().is_none() {
        match apply_under(root, mount) {
            Err(error) if error.errno() == Some(Errno::EACCES as i32) => {}
            result => return Ok(result?),
        }
    }
    Ok(apply_tree_under(root, mount, tree()?.as_fd())?)
}

/// A mount below that of type `cgroup`, with its propagation.
fn below(mount: &Mount, fstype: &str, source: &str, flags: u64) -> Mount {
    Mount {
        source: source.to_owned(),
        target: mount.target.clone(),
        fstype: fstype.to_owned(),
        options: MountOptions {
            flags_set: flags,
            propagation: mount.options.propagation.clone(),
            ..MountOptions::none()
        },
    }
}

fn bind(mount: &Mount, own: &str) -> Mount {
    let flags = BIND | REC | mount.options.flags_set;
    below(mount, "bind", own, flags)
}

/// Version 2: the hierarchy itself, which in a cgroup namespace begins with the container's own
/// group; without one, or where the kernel refuses it, that group by a bind.
fn mount_unified(root: &RootDir, mount: &Mount, own: &str, namespace: Toggle) -> Result<()> {
    let fresh = Mount {
        fstype: "cgroup2".to_owned(),
        source: "cgroup".to_owned(),
        ..mount.clone()
    };
    fresh_or_bind(root, &fresh, &bind(mount, own), namespace)
}

/// Version 1: a tmpfs, with a directory for each hierarchy and links for its other names.
fn mount_tmpfs_for_legacy(root: &RootDir, mount: &Mount, label: Option<&str>) -> Result<()> {
    let mut tmpfs = below(mount, "tmpfs", "tmpfs", CGROUP_FLAGS);
    tmpfs.options.data = "mode=755".to_owned();
    let labelled = labels::labelled(&tmpfs, label);
    Ok(apply_under(root, &labelled.unwrap_or(tmpfs))?)
}

fn mount_legacy(
    root: &RootDir,
    mount: &Mount,
    hierarchies: &[LegacyHierarchy],
    namespace: Toggle,
) -> Result<()> {
    let readonly = mount.options.flags_set & RDONLY;
    for hierarchy in hierarchies {
        let target = format!("{}/{}", mount.target, hierarchy.name);
        // The unified hierarchy beside the others is named by no option.
        let (fstype, source) = match hierarchy.options.as_str() {
            "" => ("cgroup2", "cgroup2"),
            _ => ("cgroup", "cgroup"),
        };
        let mut fresh = below(mount, fstype, source, CGROUP_FLAGS | readonly);
        fresh.options.data.clone_from(&hierarchy.options);
        fresh.target.clone_from(&target);
        let bound = Mount {
            target,
            ..bind(mount, &hierarchy.own)
        };
        fresh_or_bind(root, &fresh, &bound, namespace)?;
        link(root, &mount.target, hierarchy)?;
    }
    Ok(())
}

fn fresh_or_bind(root: &RootDir, fresh: &Mount, bound: &Mount, namespace: Toggle) -> Result<()> {
    if namespace == Toggle::On {
        match apply_under(root, fresh) {
            // Not in this user namespace, or not with these options.
            Err(error) if error.errno().is_some_and(is_refusal) => {}
            result => return Ok(result?),
        }
    }
    Ok(apply_under(root, bound)?)
}

fn is_refusal(errno: i32) -> bool {
    [Errno::EPERM, Errno::EBUSY].contains(&Errno::from_raw(errno))
}

fn link(root: &RootDir, target: &str, hierarchy: &LegacyHierarchy) -> Result<()> {
    let directory = root.make(Path::new(target), Kind::Directory, LastLink::Follow)?;
    for name in &hierarchy.links {
        match symlinkat(hierarchy.name.as_str(), directory.as_fd(), name.as_str()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(host(|| format!("link {target}/{name}"))(errno)),
        }
    }
    Ok(())
}
