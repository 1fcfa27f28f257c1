//! From the kernel's hand-over to a system that containers can be made on, and its end.
//!
//! ```text
//!   /           initramfs: this program, /modules, /modules.order
//!   /newroot    tmpfs, with proc, sysfs, devtmpfs, devpts, cgroup2 on it: becomes / of this process,
//!               so that a container can leave it by pivot_root(2), which a ramfs does not allow
//! ```

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{chdir, chroot};

use crate::error::{Error, Result};

/// Names of module files below [`MODULES`], one a line, each after what it needs.
const ORDER: &str = "/modules.order";

/// Where the initramfs has modules.
const MODULES: &str = "/modules";

/// Where the root of this process is made.
const NEW_ROOT: &str = "/newroot";

/// proc(5): what the kernel writes to the console.
const CONSOLE_LEVEL: &str = "/proc/sys/kernel/printk";

const NONE: Option<&str> = None;

/// A file system that the guest has from its beginning.
struct Filesystem {
    at: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const NOTHING_SPECIAL: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// In the order in which they are mounted.
const FILESYSTEMS: [Filesystem; 8] = [
    filesystem("proc", "proc", NOTHING_SPECIAL, ""),
    filesystem("sys", "sysfs", NOTHING_SPECIAL, ""),
    filesystem("dev", "devtmpfs", MsFlags::MS_NOSUID, ""),
    filesystem(
        "dev/pts",
        "devpts",
        MsFlags::MS_NOSUID,
        "mode=0620,gid=5,ptmxmode=0666",
    ),
    filesystem("dev/shm", "tmpfs", MsFlags::MS_NOSUID, "mode=1777"),
    filesystem("run", "tmpfs", MsFlags::MS_NOSUID, "mode=0755"),
    filesystem("tmp", "tmpfs", MsFlags::MS_NOSUID, "mode=1777"),
    filesystem("sys/fs/cgroup", "cgroup2", NOTHING_SPECIAL, ""),
];

const fn filesystem(
    at: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
) -> Filesystem {
    Filesystem {
        at,
        kind,
        flags,
        options,
    }
}

/// Loads the modules and makes the root.
pub(crate) fn up() -> Result<()> {
    load_modules()?;
    let root = Path::new(NEW_ROOT);
    mount_at(root, "tmpfs", MsFlags::empty(), "mode=0755")?;
    for filesystem in FILESYSTEMS {
        mount_at(
            &root.join(filesystem.at),
            filesystem.kind,
            filesystem.flags,
            filesystem.options,
        )?;
    }
    enter(root)?;
    sys::loopback_up().map_err(Error::io("bring lo up"))?;
    // From here on the console has nothing to tell the shim, which keeps a bounded part of it. A panic
    // is told all the same.
    fs::write(CONSOLE_LEVEL, "1").map_err(Error::io(format!("write {CONSOLE_LEVEL}")))
}

fn load_modules() -> Result<()> {
    let order = match fs::read_to_string(ORDER) {
        Ok(order) => order,
        // A kernel that has everything built in.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("read {ORDER}"))(error)),
    };
    for name in order.lines() {
        let path = Path::new(MODULES).join(name);
        let file = File::open(&path).map_err(Error::on("open", &path))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            // One that another has brought along, or that this kernel has built in.
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(Error::on("load module", &path)(errno)),
        }
    }
    // They lie in memory that containers can use.
    fs::remove_dir_all(MODULES).map_err(Error::io(format!("remove {MODULES}")))
}

fn mount_at(path: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::on("create", path))?;
    mount(Some(kind), path, Some(kind), flags, Some(options))
        .map_err(Error::on(&format!("mount {kind} on"), path))
}

fn enter(root: &Path) -> Result<()> {
    let failed = || Error::on("enter", root);
    chdir(root).map_err(failed())?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE).map_err(failed())?;
    chroot(".").map_err(failed())?;
    chdir("/").map_err(failed())
}

/// Ends the machine. QEMU, told not to reboot, ends with it; to be turned off would take ACPI.
pub(crate) fn off() -> ExitCode {
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        // The kernel panics when pid 1 ends, and is told to reboot then.
        Err(_refused) => ExitCode::from(crate::EXIT_FAILED),
    }
}
