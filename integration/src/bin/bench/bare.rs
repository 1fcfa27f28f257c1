//! A QEMU that boots the guest image's kernel to a first program, without containerd or a shim.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Instant};

use anyhow::{Context, Result};
use integration::{
    process::{Running, command, output_of},
    runtime::{BOOT, Home},
    wait::SOON,
};
use sys::TimeStampCounter;

use crate::milliseconds;

/// What the first program says.
const UP: &str = "bare-guest-is-up";

/// How long that takes, in milliseconds.
pub(crate) fn boot(home: &Home) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let initramfs = pack(directory.path())?;
    let kernel = Path::new(&home.variable().1).join("guest/kernel");
    // As runv has it here.
    let accelerator = match home.runv(&["doctor"])?.contains("accelerator  kvm:") {
        true => ["-accel", "kvm", "-cpu", "host"],
        false => ["-accel", "tcg,thread=single", "-cpu", "max"],
    };
    let khz = TimeStampCounter::watch().and_then(TimeStampCounter::khz);
    let khz = khz.context("the rate of the time stamp counter")?;
    // Without it, some of those that are emulated never come up.
    let words =
        format!("console=ttyS0 quiet panic=-1 no_timer_check tsc_early_khz={khz} tsc=reliable");
    let started = Instant::now();
    let mut qemu = command("qemu-system-x86_64");
    qemu.args(["-M", "microvm"])
        .args(accelerator)
        .args(["-m", "512", "-smp", "1", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &words]);
    // Killed when dropped.
    let mut qemu = Running::start(&mut qemu)?;
    qemu.wait_for_output(BOOT, |text| text.contains(UP).then_some(()))?;
    Ok(milliseconds(started))
}

/// An initramfs that says it is up, and turns the machine off.
fn pack(directory: &Path) -> Result<std::path::PathBuf> {
    let (tree, archive) = (directory.join("tree"), directory.join("initramfs"));
    for name in ["bin", "dev"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\necho {UP} > /dev/ttyS0\n\
         /bin/busybox poweroff -f\n"
    );
    fs::write(tree.join("init"), init)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let pack = "cd \"$1\" && find . | cpio --quiet -o -H newc -R 0:0 > \"$2\"";
    let mut shell = command("sh");
    shell.args(["-c", pack, "sh"]).arg(&tree).arg(&archive);
    output_of(&mut shell, SOON)?;
    Ok(archive)
}
