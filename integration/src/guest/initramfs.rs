//! What a guest boots into: busybox, the modules for its disk, and the payload; then Debian's root.
//!
//! The payload is copied to a tmpfs of the guest at /payload: our binaries and the program to run.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

use super::kernel::Kernel;
use crate::process::{command, output_of};

/// Modules that the root disk and the tests need, if this kernel has them as modules.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "virtio_rng"];

/// Loaded after the switch to the root, from its /lib/modules bind.
const LATER_MODULES: &[&str] = &[
    "overlay",
    "loop",
    "fuse",
    "veth",
    "bridge",
    "nbd",
    "xfs",
    "btrfs",
    "erofs",
    "tun",
    "quota_v2",
    // CRIU asks the kernel about sockets and connections by these, and stops a network by nftables.
    "unix_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "af_packet_diag",
    "netlink_diag",
    "nf_tables",
    "nft_compat",
    "xt_mark",
    "nf_conntrack_netlink",
];

/// Between these lines on the serial port lies what the program printed.
pub(super) const START_MARK: &str = "pouch-guest-program-starts";
/// Followed by the exit code.
pub(super) const END_MARK: &str = "pouch-guest-program-ended";

/// One file for the guest's /payload.
#[derive(Debug, Clone)]
pub(super) struct PayloadFile {
    /// Its name in /payload.
    pub(super) name: String,
    /// Where it lies here.
    pub(super) source: std::path::PathBuf,
}

/// Packs a gzip-less cpio archive for `-initrd` into `archive`, working below `dir`.
pub(super) fn pack(
    kernel: &Kernel,
    payload: &[PayloadFile],
    program: &[String],
    dir: &Path,
) -> Result<std::path::PathBuf> {
    let tree = dir.join("initramfs");
    for sub in [
        "bin",
        "dev",
        "proc",
        "sys",
        "newroot",
        "lib/modules",
        "payload",
    ] {
        fs::create_dir_all(tree.join(sub))?;
    }
    copy_executable(Path::new("/bin/busybox"), &tree.join("bin/busybox"))?;
    symlink("busybox", tree.join("bin/sh"))?;
    copy_modules(kernel, &tree.join("lib/modules"))?;
    for file in payload {
        copy_executable(&file.source, &tree.join("payload").join(&file.name))?;
    }
    write_script(&tree.join("init"), &first_stage())?;
    write_script(&tree.join("payload/run"), &second_stage(program))?;
    let archive = dir.join("initramfs.cpio");
    let pack = "cd \"$1\" && find . | cpio --quiet -o -H newc -R 0:0 > \"$2\"";
    output_of(
        command("sh")
            .args(["-c", pack, "sh"])
            .arg(&tree)
            .arg(&archive),
        Duration::from_secs(120),
    )?;
    fs::remove_dir_all(&tree)?;
    Ok(archive)
}

/// Pid 1 of the initramfs: modules, root disk, payload, switch.
fn first_stage() -> String {
    let modules = MODULES.join(" ");
    format!(
        "#!/bin/sh\n\
         bb=/bin/busybox\n\
         $bb mount -t proc proc /proc; $bb mount -t sysfs sys /sys; $bb mount -t devtmpfs dev /dev\n\
         for m in {modules}; do $bb modprobe -q $m; done\n\
         $bb mount -t ext4 /dev/vda /newroot || $bb poweroff -f\n\
         $bb mount -t tmpfs -o mode=755 payload /newroot/mnt\n\
         $bb cp -a /payload/. /newroot/mnt/\n\
         $bb mkdir /newroot/mnt/modules\n\
         $bb cp -a /lib/modules/. /newroot/mnt/modules/\n\
         $bb umount /proc /sys /dev\n\
         exec $bb switch_root /newroot /mnt/run\n"
    )
}

/// Pid 1 of the Debian root: what an init would mount, then the program, then off.
fn second_stage(program: &[String]) -> String {
    let later = LATER_MODULES.join(" ");
    let quoted: Vec<String> = program
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    format!(
        "#!/bin/sh\n\
         export PATH=/payload:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm\n\
         mount -t tmpfs -o mode=755 run /run; mount -t tmpfs tmp /tmp; chmod 1777 /tmp\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t securityfs securityfs /sys/kernel/security\n\
         mkdir -p /payload /lib/modules; mount --move /mnt /payload; mount --bind /payload/modules /lib/modules\n\
         ip link set lo up; hostname guest; echo 127.0.0.1 localhost guest > /etc/hosts\n\
         for m in {later}; do modprobe -q $m; done\n\
         cd /payload\n\
         echo {START_MARK} > /dev/ttyS1\n\
         {} < /dev/null > /dev/ttyS1 2>&1\n\
         echo {END_MARK} $? > /dev/ttyS1\n\
         sync; echo o > /proc/sysrq-trigger\n\
         exec sleep 60\n",
        quoted.join(" ")
    )
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn copy_executable(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} for the guest", from.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

/// Copies the wanted modules, what they depend on, and the lists modprobe reads.
fn copy_modules(kernel: &Kernel, below: &Path) -> Result<()> {
    let release = kernel.modules.file_name().context("a release has a name")?;
    let target = below.join(release);
    fs::create_dir_all(&target)?;
    for entry in fs::read_dir(&kernel.modules)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("modules.") {
            fs::copy(entry.path(), target.join(entry.file_name()))?;
        }
    }
    let dependencies = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let wanted: Vec<&str> = MODULES.iter().chain(LATER_MODULES).copied().collect();
    for module in closure(&dependencies, &wanted) {
        let to = target.join(module);
        fs::create_dir_all(to.parent().context("a module lies in a folder")?)?;
        fs::copy(kernel.modules.join(module), to)?;
    }
    Ok(())
}

/// The paths in modules.dep of these modules and of all they depend on; built-in ones have none.
fn closure<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let mut paths: Vec<&str> = lines
        .filter(|(path, _)| {
            let file = path.rsplit('/').next().unwrap_or(path);
            let name = file.split('.').next().unwrap_or(file).replace('-', "_");
            wanted.contains(&name.as_str())
        })
        .flat_map(|(path, needs)| std::iter::once(path).chain(needs.split_whitespace()))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_depend_on() {
        let text = "kernel/a/virtio-blk.ko: kernel/a/virtio.ko\nkernel/a/virtio.ko:\nkernel/b/x.ko: kernel/b/y.ko\n";
        assert_eq!(
            closure(text, &["virtio_blk"]),
            ["kernel/a/virtio-blk.ko", "kernel/a/virtio.ko"]
        );
        assert_eq!(closure(text, &["ext4"]), [""; 0]);
    }

    #[test]
    fn the_program_reaches_the_guest_word_by_word() {
        let script = second_stage(&["./t".to_owned(), "it's a b".to_owned()]);
        assert!(
            script.contains("'./t' 'it'\\''s a b' < /dev/null"),
            "{script}"
        );
    }
}
