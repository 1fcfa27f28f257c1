//! The guest's Debian root: one ext4 image with everything a test may need, never written to.

use std::{path::PathBuf, time::Duration};

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

/// The image, from the cache or made by mmdebstrap and mke2fs.
pub(super) fn image() -> Result<PathBuf> {
    let entry = cache::entry(&format!("guest-root-{RECIPE}"), |dir| {
        let limit = Duration::from_secs(1200);
        let tree = dir.join("tree");
        output_of(
            command("mmdebstrap")
                .args(["--quiet", "--variant=minbase"])
                .arg(format!("--include={PACKAGES}"))
                .arg("bookworm")
                .arg(&tree)
                .arg(apt::mirror()?),
            limit,
        )?;
        let image = dir.join("root.ext4");
        output_of(
            command("mke2fs")
                .args(["-q", "-t", "ext4", "-L", "root", "-d"])
                .arg(&tree)
                .arg(&image)
                .arg("2G"),
            limit,
        )?;
        std::fs::remove_dir_all(&tree)?;
        Ok(())
    })?;
    Ok(entry.join("root.ext4"))
}
