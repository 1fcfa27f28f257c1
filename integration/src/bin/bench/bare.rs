//! A QEMU that boots the guest image's kernel to a first program, without containerd or a shim.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use integration::{
    process::{command, output_of},
    runtime::Home,
    wait::SOON,
};

use crate::milliseconds;

/// What the first program says.
const UP: &str = "bare-guest-is-up";

/// A machine; killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// How long that takes, in milliseconds.
pub(crate) fn boot(home: &Home) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let initramfs = pack(directory.path())?;
    let kernel = Path::new(&home.variable().1).join("guest/kernel");
    let khz = fs::read_to_string("/proc/cpuinfo")?;
    let khz = khz.lines().find_map(|line| line.strip_prefix("cpu MHz"));
    let khz = khz.and_then(|line| line.trim_matches([' ', '\t', ':']).parse::<f64>().ok());
    let khz = khz.context("the rate of the processor")? * 1000.0;
    // Without it, some of those that are emulated never come up.
    let words =
        format!("console=ttyS0 quiet panic=-1 no_timer_check tsc_early_khz={khz:.0} tsc=reliable");
    let started = Instant::now();
    let mut qemu = command("qemu-system-x86_64");
    qemu.args([
        "-M",
        "microvm",
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max",
    ])
    .args(["-m", "512", "-smp", "1", "-nodefaults", "-no-reboot"])
    .args(["-display", "none", "-serial", "stdio"])
    .arg("-kernel")
    .arg(kernel)
    .arg("-initrd")
    .arg(initramfs)
    .args(["-append", &words])
    .stdin(Stdio::null())
    .stdout(Stdio::piped());
    let mut qemu = Qemu(qemu.spawn().context("starting qemu-system-x86_64")?);
    let console = qemu.0.stdout.take().context("its console is a pipe")?;
    for line in BufReader::new(console).split(b'\n') {
        if String::from_utf8_lossy(&line?).contains(UP) {
            return Ok(milliseconds(started));
        }
    }
    bail!("a bare QEMU has ended before its kernel was up")
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
