//! Reading what the census counts from /proc, /sys and /run. What vanishes while it is read was not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::tag::SHIM_SOCKETS;

/// Where runtimes and containerd keep files that outlive a process, and how deep the directories
/// lie that are shared by all containers (and so are no leak themselves).
const RUNTIME_DIRECTORIES: &[(&str, usize)] = &[
    ("/run/containerd/fifo", 0),
    ("/run/containerd/runc", 1),
    ("/run/containerd/runlxc", 1),
    ("/run/containerd/runv", 1),
    ("/run/lxc", 1),
    ("/run/netns", 0),
    ("/run/runc", 0),
    ("/run/runlxc", 0),
    ("/var/lib/cni/networks", 1),
    ("/var/lib/lxc", 0),
];

/// What a runtime keeps once for all containers of a namespace, as it keeps the directory.
const SHARED_FILES: &[&str] = &[".lxc-version"];

/// A process of user space that has not ended.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// The id of its parent.
    pub parent: i32,
    /// When it started, in clock ticks since boot: with the id it is unique.
    pub started: u64,
    /// Its command line, words joined by blanks, or its name in brackets.
    pub command: String,
    /// All that says whose it is: command line, cgroups, environment.
    pub owner: String,
}

impl Process {
    /// Id, start time and command line.
    pub(super) fn name(&self) -> String {
        format!("{} started {}: {}", self.pid, self.started, self.command)
    }
}

/// Every process but kernel threads and those that have ended.
pub fn processes() -> Result<BTreeMap<i32, Process>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            && let Some(process) = process(pid)
        {
            found.insert(pid, process);
        }
    }
    Ok(found)
}

fn process(pid: i32) -> Option<Process> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    if matches!(*fields.first()?, "Z" | "X") || flags & PF_KTHREAD != 0 {
        return None;
    }
    let words = |name: &str| {
        let bytes = fs::read(directory.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .replace('\0', " ")
            .trim_end()
            .to_owned()
    };
    let mut command = words("cmdline");
    if command.is_empty() {
        command = format!("[{}]", head.split_once('(')?.1);
    }
    let cgroups = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
    let owner = format!("{command}\n{cgroups}\n{}", words("environ"));
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        command,
        owner,
    })
}

/// A process with its ancestors and descendants.
pub(super) fn family(processes: &BTreeMap<i32, Process>, pid: i32) -> BTreeSet<i32> {
    let mut family = BTreeSet::from([pid]);
    let mut ancestor = processes.get(&pid).map(|process| process.parent);
    let mut ancestors = Vec::new();
    while let Some(process) = ancestor.and_then(|pid| processes.get(&pid)) {
        ancestors.push(process.pid);
        ancestor = Some(process.parent);
    }
    loop {
        let before = family.len();
        let children = processes
            .values()
            .filter(|process| family.contains(&process.parent));
        family.extend(children.map(|process| process.pid).collect::<Vec<_>>());
        if family.len() == before {
            break;
        }
    }
    family.extend(ancestors);
    family
}

/// The network namespace a process is in, as `net:[INODE]`.
pub(super) fn network_namespace(pid: i32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// `MOUNTPOINT (FSTYPE SOURCE) #N`, the number telling mounts on one point apart.
pub(super) fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut mounts = Vec::new();
    for (point, rest) in text.lines().filter_map(mount_of) {
        let name = format!("{point} ({rest})");
        let number = seen.entry(name.clone()).or_default();
        *number += 1;
        mounts.push(format!("{name} #{number}"));
    }
    Ok(mounts)
}

/// Mount point and `FSTYPE SOURCE` of a line of mountinfo.
fn mount_of(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(" - ")?;
    let point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    Some((
        unescape(point),
        format!("{} {}", right.next()?, right.next()?),
    ))
}

/// Undoes the octal escapes of mountinfo.
pub(crate) fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| {
            text.replace(escape, plain)
        })
}

/// Where hierarchies are mounted on the host.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    Ok(text
        .lines()
        .filter_map(mount_of)
        .filter(|(point, rest)| rest.starts_with("cgroup") && point.starts_with("/sys/fs/cgroup"))
        .map(|(point, _)| PathBuf::from(point))
        .collect())
}

/// Every directory of every hierarchy but the top ones.
pub(super) fn cgroups() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for top in hierarchies()? {
        below(&top, usize::MAX, &mut |path, is_directory| {
            if is_directory {
                found.push(path.display().to_string());
            }
        })?;
    }
    Ok(found)
}

/// `loopN BACKING_FILE` of loop devices in use.
pub(super) fn loop_devices() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in entries(Path::new("/sys/block"))? {
        if let Ok(file) = fs::read_to_string(path.join("loop/backing_file")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.push(format!("{name} {}", file.trim_end()));
        }
    }
    Ok(found)
}

/// Files below the shims' socket directory, and abstract sockets of shims and of LXC.
pub(super) fn sockets() -> Result<Vec<String>> {
    let mut found: Vec<String> = entries(Path::new(SHIM_SOCKETS))?
        .into_iter()
        .map(|path| path.display().to_string())
        .collect();
    let text = fs::read_to_string("/proc/net/unix").context("reading /proc/net/unix")?;
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    found.extend(
        names
            .filter(|name| name.starts_with('@'))
            .filter(|name| name.contains("containerd") || name.contains("lxc"))
            .map(str::to_owned),
    );
    Ok(found)
}

/// What the runtimes keep below `/run`.
pub(super) fn runtime_files() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (top, shared) in RUNTIME_DIRECTORIES {
        let top = Path::new(top);
        below(top, 4, &mut |path, _| {
            let is_below = path.components().count() - top.components().count() > *shared;
            let is_shared = SHARED_FILES.iter().any(|name| path.ends_with(name));
            if is_below && !is_shared {
                found.push(path.display().to_string());
            }
        })?;
    }
    Ok(found)
}

/// Visits what lies below a directory, itself left out, `depth` levels down.
pub(crate) fn below(
    directory: &Path,
    depth: usize,
    visit: &mut impl FnMut(&Path, bool),
) -> Result<()> {
    for path in entries(directory)? {
        let is_directory = fs::symlink_metadata(&path).is_ok_and(|data| data.is_dir());
        visit(&path, is_directory);
        if is_directory && depth > 1 {
            below(&path, depth - 1, visit)?;
        }
    }
    Ok(())
}

/// The entries of a directory, none when it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(directory) {
        Ok(read) => read,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("listing {}", directory.display()));
        }
    };
    // kernfs answers ENODEV for a directory that goes away while it is read.
    Ok(read
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect())
}
