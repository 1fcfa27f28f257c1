//! The mounts containerd wants at `bundle/rootfs` before a container is made, and their end.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use bundle::names;
use mounts::{Mount, MountOptions, RootDir};

use crate::request::RootfsMount;
use crate::{Code, ShimError};

/// Makes the folder and all mounts, in order. When one fails, those made are taken away.
pub(crate) fn mount(bundle: &Path, wanted: &[RootfsMount]) -> Result<(), ShimError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let rootfs = bundle.join(names::ROOTFS);
    match DirBuilder::new().mode(0o711).create(&rootfs) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            let what = format!("create {}", rootfs.display());
            return Err(ShimError::failed(&what, &e));
        }
        _ => {}
    }
    wanted
        .iter()
        .try_for_each(|wanted| mount_one(&rootfs, wanted))
        .inspect_err(|_| {
            // The first error is the one to tell; `delete` tries again.
            let _left = unmount(bundle);
        })
}

/// Takes all mounts at and below `bundle/rootfs` away. Idempotent.
pub(crate) fn unmount(bundle: &Path) -> Result<(), ShimError> {
    mounts::unmount_tree(&bundle.join(names::ROOTFS))
        .map_err(|e| ShimError::caused(Code::Internal, &e))
}

fn mount_one(rootfs: &Path, wanted: &RootfsMount) -> Result<(), ShimError> {
    let options = MountOptions::parse_rootfs(&wanted.options)
        .map_err(|e| ShimError::caused(Code::InvalidArgument, &e))?;
    let mount = Mount {
        source: wanted.source.clone(),
        target: wanted.target.clone(),
        fstype: wanted.fstype.clone(),
        options,
    };
    // A target below the rootfs (containerd 2.x) must not be led out of it by the image.
    let mounted = match wanted.target.as_str() {
        "" | "/" => mounts::apply_host(&mount, rootfs),
        _ => RootDir::open(rootfs).and_then(|root| mounts::apply_under(&root, &mount)),
    };
    mounted.map_err(|e| ShimError::caused(Code::Internal, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(target: &str, options: &[&str]) -> RootfsMount {
        RootfsMount {
            fstype: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            target: target.to_owned(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        }
    }

    fn mounted(bundle: &Path) -> usize {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines()
            .filter(|line| line.contains(bundle.to_str().unwrap()))
            .count()
    }

    #[test]
    fn mounts_come_and_go() {
        let bundle = tempfile::tempdir().unwrap();
        mount(
            bundle.path(),
            &[tmpfs("", &["size=64k"]), tmpfs("/sub", &[])],
        )
        .unwrap();
        assert_eq!(mounted(bundle.path()), 2);
        unmount(bundle.path()).unwrap();
        assert_eq!(mounted(bundle.path()), 0);
        unmount(bundle.path()).unwrap();
    }

    #[test]
    fn a_failed_mount_leaves_none() {
        let bundle = tempfile::tempdir().unwrap();
        let wrong = RootfsMount {
            fstype: "nofs".to_owned(),
            ..tmpfs("", &[])
        };
        let error = mount(bundle.path(), &[tmpfs("", &[]), wrong]).unwrap_err();
        assert!(
            error.message.contains("No such device"),
            "{}",
            error.message
        );
        assert_eq!(mounted(bundle.path()), 0);
    }
}
