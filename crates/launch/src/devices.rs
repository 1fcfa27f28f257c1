//! The nodes and links of `/dev`, made under the new root while the host's tree is still there.
//!
//! Must not touch a `/dev` that is the host's, bound into the container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use mounts::{Kind, LastLink, RootDir};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, fstat, fstatat, major, makedev, minor, mknodat, umask,
};
use nix::unistd::{
    Gid, Uid, UnlinkatFlags, dup2_stderr, dup2_stdin, dup2_stdout, fchownat, symlinkat, unlinkat,
};

use crate::error::{Error, Result, host};
use crate::masks::is_null_device;
use crate::plan::{DeviceKind, DeviceNode, InitPlan, PlannedMount};
use crate::procfs::{self, Proc};

/// What every container has (config-linux.md, Default Devices): name, major, minor.
const DEFAULT_NODES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links, as most distributions have them.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Where `/dev/ptmx` points: the devpts of the container, never the host's.
const PTMX_LINK: &str = "pts/ptmx";

/// The nodes of a container; none when its `/dev` is a bind.
#[derive(Debug)]
pub(crate) struct Devices {
    nodes: Option<Vec<DeviceNode>>,
}

impl Devices {
    /// Those of a plan, and the default ones it does not name itself.
    pub(crate) fn of(plan: &InitPlan) -> Self {
        if plan.mounts.iter().any(is_bind_on_dev) {
            return Self { nodes: None };
        }
        let mut nodes: Vec<_> = plan
            .devices
            .iter()
            // Whatever it is to be, it is the link to the container's own.
            .filter(|node| Path::new(&node.path) != Path::new("/dev/ptmx"))
            .cloned()
            .collect();
        for (path, major, minor) in DEFAULT_NODES {
            if !nodes
                .iter()
                .any(|node| Path::new(&node.path) == Path::new(path))
            {
                nodes.push(default_node(path, major, minor));
            }
        }
        Self { nodes: Some(nodes) }
    }

    /// Makes nodes and links.
    pub(crate) fn make(&self, root: &RootDir, proc: &Proc) -> Result<()> {
        let Some(nodes) = &self.nodes else {
            return Ok(());
        };
        proc.make_working_directory()?;
        // The modes are meant to the letter.
        let before = umask(Mode::empty());
        let made = nodes.iter().try_for_each(|node| make_node(root, node));
        umask(before);
        made?;
        make_links(root, proc)
    }

    /// Standard streams on the host's null device become the container's; inside the new root.
    pub(crate) fn replace_null_streams(&self) -> Result<()> {
        if self.nodes.is_none() {
            return Ok(());
        }
        let step = || "reopen /dev/null inside the container".to_owned();
        let null = open_null(step)?;
        if is_null_device(io::stdin()) {
            dup2_stdin(&null).map_err(host(step))?;
        }
        if is_null_device(io::stdout()) {
            dup2_stdout(&null).map_err(host(step))?;
        }
        if is_null_device(io::stderr()) {
            dup2_stderr(&null).map_err(host(step))?;
        }
        Ok(())
    }
}

/// Makes the null device of the container all three standard streams.
pub(crate) fn all_streams_to_null() -> Result<()> {
    let step = || "open /dev/null inside the container".to_owned();
    let null = open_null(step)?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(host(step))
}

fn open_null(step: impl Fn() -> String) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let null = open("/dev/null", flags, Mode::empty()).map_err(host(step))?;
    if is_null_device(&null) {
        return Ok(null);
    }
    let step = "/dev/null of the container is not the null device".to_owned();
    Err(Error::Request { step, errno: 0 })
}

fn is_bind_on_dev(planned: &PlannedMount) -> bool {
    match planned {
        PlannedMount::Plain(mount) => {
            mount.is_bind() && Path::new(&mount.target) == Path::new("/dev")
        }
        PlannedMount::Cgroup { .. } => false,
    }
}

fn default_node(path: &str, major: u64, minor: u64) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        kind: DeviceKind::Char,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    }
}

fn file_type(node: &DeviceNode) -> SFlag {
    match node.kind {
        DeviceKind::Char => SFlag::S_IFCHR,
        DeviceKind::Block => SFlag::S_IFBLK,
        DeviceKind::Fifo => SFlag::S_IFIFO,
    }
}

fn describe(node: &DeviceNode) -> String {
    let letter = match node.kind {
        DeviceKind::Char => 'c',
        DeviceKind::Block => 'b',
        DeviceKind::Fifo => 'p',
    };
    format!(
        "device {} ({letter} {}:{})",
        node.path, node.major, node.minor
    )
}

fn make_node(root: &RootDir, node: &DeviceNode) -> Result<()> {
    let path = Path::new(&node.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Request {
            step: describe(node),
            errno: Errno::EINVAL as i32,
        });
    };
    let parent = root.make(parent, Kind::Directory, LastLink::Follow)?;
    let step = || format!("make {}", describe(node));
    let mode = Mode::from_bits_truncate(node.mode);
    match mknodat(
        &parent,
        name,
        file_type(node),
        mode,
        makedev(node.major, node.minor),
    ) {
        Ok(()) => {}
        // The devices cgroup or a user namespace: the host's own node will do.
        Err(Errno::EPERM) if node.kind != DeviceKind::Fifo => {
            return bind_node(&parent, name, node);
        }
        Err(Errno::EEXIST) => return accept_existing(&parent, name, node),
        Err(errno) => return Err(host(step)(errno)),
    }
    let made = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(host(step))?;
    if !is_the_device(&made, node) {
        return Err(host(step)(Errno::ESTALE));
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    fchownat(
        &parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(host(step))
}

fn is_the_device(about: &FileStat, node: &DeviceNode) -> bool {
    let same_type = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == file_type(node);
    let number = (major(about.st_rdev), minor(about.st_rdev));
    same_type && (node.kind == DeviceKind::Fifo || number == (node.major, node.minor))
}

/// "If a file already exists at path that does not match the requested device, the runtime MUST
/// generate an error" (config-linux.md, Devices).
fn accept_existing(parent: impl AsFd, name: &std::ffi::OsStr, node: &DeviceNode) -> Result<()> {
    let step = || format!("look at {}", describe(node));
    let about = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(host(step))?;
    if is_the_device(&about, node) {
        return Ok(());
    }
    let step = format!("make {}: another file is there", describe(node));
    Err(Error::Request {
        step,
        errno: Errno::EEXIST as i32,
    })
}

/// Binds the host's node onto an empty file; the working directory is a procfs.
fn bind_node(parent: impl AsFd, name: &std::ffi::OsStr, node: &DeviceNode) -> Result<()> {
    let source = host_node(node).ok_or_else(|| Error::Host {
        step: format!("make {}, or find it on the host", describe(node)),
        source: Errno::EPERM.into(),
    })?;
    let step = || format!("bind {}", describe(node));
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let target = match openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::EEXIST) => return accept_existing(parent, name, node),
        result => result.map_err(host(step))?,
    };
    procfs::bind(source, target).map_err(host(step))
}

/// The device on the host: by the same path, or by the name that sysfs has for its number.
fn host_node(node: &DeviceNode) -> Option<OwnedFd> {
    let same_path = PathBuf::from(&node.path);
    [Some(same_path), name_in_sysfs(node)]
        .into_iter()
        .flatten()
        .find_map(|path| {
            let flags = OFlag::O_PATH | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let file = open(&path, flags, Mode::empty()).ok()?;
            let about = fstat(&file).ok()?;
            is_the_device(&about, node).then_some(file)
        })
}

fn name_in_sysfs(node: &DeviceNode) -> Option<PathBuf> {
    let class = if node.kind == DeviceKind::Block {
        "block"
    } else {
        "char"
    };
    let uevent = format!("/sys/dev/{class}/{}:{}/uevent", node.major, node.minor);
    let text = std::fs::read_to_string(uevent).ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

fn make_links(root: &RootDir, proc: &Proc) -> Result<()> {
    let dev = root.make(Path::new("/dev"), Kind::Directory, LastLink::Follow)?;
    // Not every kernel has it.
    let core = proc.has("kcore").then_some(("core", "/proc/kcore"));
    for (name, target) in LINKS.into_iter().chain(core) {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(host(|| format!("link /dev/{name}"))(errno)),
        }
    }
    if readlinkat(&dev, "ptmx").is_ok_and(|target| target == PTMX_LINK) {
        return Ok(());
    }
    match unlinkat(&dev, "ptmx", UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(host(|| "remove /dev/ptmx of the image".to_owned())(errno)),
    }
    symlinkat(PTMX_LINK, &dev, "ptmx").map_err(host(|| "link /dev/ptmx".to_owned()))
}
