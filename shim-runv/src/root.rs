//! A mount namespace for a program that is confined: its root has the host's programs and libraries, read-only,
//! and nothing else of the host. It is made by a thread and ends with its last user; on the host nothing is mounted.
//!
//! ```text
//!   /            tmpfs, read-only at last
//!     usr        the host's, and bin, lib, lib64 and sbin: links into it, or directories of the host
//!     proc       of who asks, and of no process that it may not trace (Linux 5.8), or all of it
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::Builder;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use sys::Kernel;

use crate::{Error, Result};

const NONE: Option<&str> = None;

/// Names and links, and no contents.
const TMPFS: &str = "mode=0755,size=64k,nr_inodes=64";

/// A directory that all hosts have, over which the root is made in the namespace.
const PLACE: &str = "/proc";

/// What programs and the libraries they load are below.
const PROGRAMS: &str = "/usr";

/// Where they may be as well; links into [`PROGRAMS`] on most hosts.
const BESIDE: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Of what is there to be looked at.
const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// What of proc(5) a program sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Itself, from Linux 5.8 on; before, as the host.
    #[default]
    Itself,
    /// All of it.
    All,
}

/// What a program finds in its root beside the host's programs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Where the program is itself.
    pub(crate) program: PathBuf,
    /// Devices.
    pub(crate) devices: Vec<PathBuf>,
    /// Empty directories at the top, by their names.
    pub(crate) directories: Vec<&'static str>,
    /// Processes, and what the kernel tells beside them.
    pub(crate) seen: Seen,
}

/// Makes one. `fill` is called on a thread in it, whose root it is already, before that is read-only.
///
/// # Errors
/// What the kernel says against a step of it.
pub(crate) fn make<T: Send>(
    wanted: &Wanted,
    fill: impl FnOnce() -> io::Result<T> + Send,
) -> Result<(File, T)> {
    on_a_thread(|| {
        let made = || -> io::Result<(File, T)> {
            let namespace = enter(wanted)?;
            let filled = fill()?;
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(NONE, "/", NONE, flags | QUIET & !MsFlags::MS_NOEXEC, NONE)?;
            Ok((namespace, filled))
        };
        made().map_err(Error::io("make a root for a confined program"))
    })
}

/// Has the calling thread leave the host's mounts for a root of its own; gives the namespace.
fn enter(wanted: &Wanted) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let namespace = File::open("/proc/thread-self/ns/mnt")?;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    let root = Path::new(PLACE);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("root"), root, Some("tmpfs"), flags, Some(TMPFS))?;
    for name in &wanted.directories {
        fs::create_dir(root.join(name))?;
    }
    show_programs(root, &wanted.program)?;
    for device in &wanted.devices {
        let place = root.join(device.strip_prefix("/").unwrap_or(device));
        fs::create_dir_all(place.parent().unwrap_or(root))?;
        File::create(&place)?;
        mount(Some(device), &place, NONE, MsFlags::MS_BIND, NONE)?;
    }
    show_processes(&root.join("proc"), wanted.seen)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(namespace)
}

fn show_programs(root: &Path, program: &Path) -> io::Result<()> {
    show(root, Path::new(PROGRAMS))?;
    for name in BESIDE {
        let host = Path::new("/").join(name);
        match fs::read_link(&host) {
            Ok(target) => std::os::unix::fs::symlink(target, root.join(name))?,
            Err(_) if host.is_dir() => show(root, &host)?,
            Err(_) => {}
        }
    }
    // `/opt/NAME/bin/PROGRAM` brings what it needs below `/opt/NAME`.
    let prefix = program.parent().and_then(Path::parent);
    match prefix.filter(|it| it.parent().is_some() && !it.starts_with(PROGRAMS)) {
        Some(prefix) => show(root, prefix),
        None => Ok(()),
    }
}

/// Shows a directory of the host at its own path, and nothing of it can be written or is a device.
fn show(root: &Path, host: &Path) -> io::Result<()> {
    let place = root.join(host.strip_prefix("/").unwrap_or(host));
    fs::create_dir_all(&place)?;
    mount(Some(host), &place, NONE, MsFlags::MS_BIND, NONE)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(NONE, &place, NONE, flags, NONE).map_err(io::Error::from)
}

fn show_processes(place: &Path, seen: Seen) -> io::Result<()> {
    fs::create_dir(place)?;
    // Before, these options would be those of the host's own /proc. `invisible` would spare root's group (proc(5), gid).
    let is_apart = seen == Seen::Itself && Kernel::running()?.at_least(5, 8);
    let options = is_apart.then_some("hidepid=ptraceable,subset=pid");
    Ok(mount(Some("proc"), place, Some("proc"), QUIET, options)?)
}

/// A thread may leave the mount namespace of its process; this one ends with its work.
pub(crate) fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let panicked = |_panic| Error::io("work in a mount namespace")(io::Error::other("a panic"));
        // The cgroup of a shim may have no thread left to give.
        let thread = Builder::new().name("mounts".to_owned());
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(Error::io("start a thread"))?;
        thread.join().map_err(panicked)?
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use sys::{ExitStatus, Spawn, User};

    use super::*;

    const ROOT: (u32, &[u32]) = (0, &[]);
    const NOBODY: (u32, &[u32]) = (1_879_048_192, &[]);

    /// What a shell script prints in a root, by root or by nobody else, in these groups.
    fn output(namespace: &File, (uid, groups): (u32, &[u32]), script: &str) -> String {
        let (reader, writer) = sys::pipe_cloexec().unwrap();
        let namespace = OwnedFd::from(namespace.try_clone().unwrap());
        let user = User {
            uid,
            gid: uid,
            additional_gids: groups.to_vec(),
        };
        let mut child = Spawn::new(Path::new("/usr/bin/dash"))
            .args(["-c", script])
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .join_namespaces(vec![(namespace, CloneFlags::CLONE_NEWNS)])
            .new_pid_namespace()
            .user(user)
            .spawn()
            .unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Exited(0), "{text}");
        text
    }

    /// What the host has mounted where a root is made; others may come and go elsewhere.
    fn places() -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_place = |line: &&str| {
            let place = line.split(' ').nth(4);
            place.is_some_and(|it| ["/", PLACE].contains(&it))
        };
        mounts.lines().filter(is_place).map(str::to_owned).collect()
    }

    #[test]
    fn a_root_has_programs_and_nothing_of_the_host_that_can_be_written() {
        let before = places();
        let wanted = Wanted {
            program: "/usr/bin/dash".into(),
            devices: vec!["/dev/null".into()],
            directories: vec!["empty"],
            seen: Seen::Itself,
        };
        let count = || fs::read_dir("/").map(Iterator::count);
        let (namespace, filled) = make(&wanted, count).unwrap();
        assert!(filled >= 4);
        let listed = output(&namespace, ROOT, "ls /; ls /dev /empty; pwd");
        let names: Vec<_> = listed.lines().collect();
        for name in ["etc", "home", "root", "run", "tmp", "var"] {
            assert!(!names.contains(&name), "{listed}");
        }
        assert!(listed.ends_with("/dev:\nnull\n\n/empty:\n/\n"), "{listed}");
        let script = "for it in / /usr /usr/bin /proc /empty; do touch $it/x 2>/dev/null && echo $it; done; :";
        assert_eq!(output(&namespace, ROOT, script), "");
        // Of processes a user sees its own.
        let script =
            "ls /proc/self/fd > /dev/null && ls -d /proc/1 /proc/stat 2>&1 | grep -c 'No such'";
        assert_eq!(output(&namespace, NOBODY, script), "2\n");
        // Nor does root's group see more.
        assert_eq!(output(&namespace, (NOBODY.0, &[0]), script), "2\n");
        assert_eq!(places(), before);
    }

    #[test]
    fn what_is_elsewhere_brings_its_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("prefix");
        fs::create_dir_all(prefix.join("share")).unwrap();
        fs::write(prefix.join("share/file"), "there\n").unwrap();
        let wanted = Wanted {
            program: prefix.join("bin/program"),
            ..Wanted::default()
        };
        let (namespace, ()) = make(&wanted, || Ok(())).unwrap();
        let script = format!("cat {}", prefix.join("share/file").display());
        assert_eq!(output(&namespace, NOBODY, &script), "there\n");
    }
}
