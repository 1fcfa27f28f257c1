//! The guest's Debian root: one ext4 image with everything a test may need, never written to. And a
//! second disk with images of several releases.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::{
    apt, cache,
    process::{command, output_of},
};

/// What the root has beside Debian's minimal set.
const PACKAGES: &str = "busybox-static,containerd,runc,lxc,iproute2,kmod,procps,e2fsprogs,\
    xfsprogs,btrfs-progs,fuse3,nbd-client,erofs-utils,quota,apparmor,checkpolicy,keyutils,criu,\
    iptables";

/// Change it with PACKAGES: it names the cache entry.
const RECIPE: u32 = 3;

const LIMIT: Duration = Duration::from_secs(1200);

/// The image, from the cache or made by mmdebstrap and mke2fs.
pub(super) fn image() -> Result<PathBuf> {
    let entry = cache::entry(&format!("guest-root-{RECIPE}"), |dir| {
        let tree = dir.join("tree");
        bootstrap("bookworm", PACKAGES, &tree)?;
        disk_of(&tree, &dir.join("root.ext4"), "2G")
    })?;
    Ok(entry.join("root.ext4"))
}

/// Releases of Debian with a systemd of their own: 247, 252 and 257.
pub const WITH_SYSTEMD: [&str; 3] = ["bullseye", "bookworm", "trixie"];

/// A second disk for a guest: the root of an image of each of [`WITH_SYSTEMD`], by its name.
pub fn systemds() -> Result<PathBuf> {
    let entry = cache::entry("guest-systemds-1", |dir| {
        let tree = dir.join("tree");
        std::fs::create_dir(&tree)?;
        for suite in WITH_SYSTEMD {
            bootstrap(suite, "systemd,cron,procps", &tree.join(suite))?;
        }
        disk_of(&tree, &dir.join("systemds.ext4"), "1G")
    })?;
    Ok(entry.join("systemds.ext4"))
}

fn bootstrap(suite: &str, packages: &str, tree: &Path) -> Result<()> {
    let mut mmdebstrap = command("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={packages}"))
        .arg(suite)
        .arg(tree)
        .arg(apt::mirror()?);
    output_of(&mut mmdebstrap, LIMIT).map(drop)
}

/// Makes a disk of a tree, which goes.
fn disk_of(tree: &Path, image: &Path, size: &str) -> Result<()> {
    let mut mke2fs = command("mke2fs");
    mke2fs
        .args(["-q", "-t", "ext4", "-L", "root", "-d"])
        .arg(tree)
        .arg(image)
        .arg(size);
    output_of(&mut mke2fs, LIMIT)?;
    Ok(std::fs::remove_dir_all(tree)?)
}
