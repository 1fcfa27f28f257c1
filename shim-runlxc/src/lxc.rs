//! The one place that runs LXC: finding it, its version, `lxc-start`, what it said, and what it
//! leaves behind.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use sys::{CloneFlags, Kernel, Signal, Spawn};

use crate::container::KILL_LIMIT;
use crate::lxc_config::Version;
use crate::process::{self, ProcessId};
use crate::{Error, Result, answer, mount_namespace, on_path, wait};

/// What AppArmor calls a process without a profile.
const UNCONFINED: &str = "unconfined";

/// Keeps the version of this host's LXC, for all state roots, until the program changes.
pub const VERSION_CACHE: &str = "/run/runlxc-lxc-version";

/// LXC's settings for the whole host; need not be there.
const GLOBAL_CONFIG: &str = "/etc/lxc/lxc.conf";

/// How long `lxc-start --version` may take.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Longest answer of it that is read.
const VERSION_BYTES_MAX: usize = 256;

/// LXCPATH: LXC names an abstract socket and a lock folder by it, and leaves the folder behind.
/// The same for all our containers, whose names are unique on the host.
const LXC_PATH: &str = "/run/lxc";

/// That lock folder, and the one above it; what is above belongs to LXC.
const LOCK_FOLDERS: [&str; 2] = ["/run/lxc/lock/run/lxc", "/run/lxc/lock/run"];

/// First LXC that needs a new kernel, and that kernel (its `README.md`).
const DEMANDING: (u32, (u32, u32)) = (7, (6, 12));

/// An installed LXC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lxc {
    /// Absolute path of `lxc-start`.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
}

/// What to start.
#[derive(Debug)]
pub struct Start<'a> {
    /// LXC's name of the container.
    pub name: &'a str,
    /// The configuration file.
    pub config: &'a Path,
    /// LXC's log file.
    pub log: &'a Path,
    /// Arguments from the configuration's dialect.
    pub arguments: &'a [String],
    /// argv of pid 1.
    pub init: &'a [String],
    /// The mount namespace it stands in.
    pub mounts: Mounts,
    /// Further namespaces to stand in.
    pub namespaces: Vec<(OwnedFd, CloneFlags)>,
    /// The offsets of a time namespace to be made for pid 1.
    pub time: Option<String>,
}

/// A mount namespace for lxc-start, never the host's: without `lxc.rootfs.path` LXC makes all
/// mounts of the namespace it stands in slaves (5.0, `lxc_storage_prepare`).
#[derive(Debug)]
pub enum Mounts {
    /// A copy of the host's.
    Copy,
    /// One where `/sys/fs/cgroup` is empty. LXC makes no cgroups then, moves nobody, and leaves
    /// nothing behind: of all it does for a container this is what takes longest.
    WithoutCgroups(OwnedFd),
}

impl Mounts {
    /// Hides cgroups if the kernel can (setns(2) and, from 3.8, `/proc/PID/ns/mnt`) and nobody told
    /// LXC to insist on some.
    #[must_use]
    pub fn without_cgroups() -> Self {
        if !sys::process::has_setns() {
            return Self::Copy;
        }
        let global = std::fs::read_to_string(GLOBAL_CONFIG).unwrap_or_default();
        if global.contains("lxc.cgroup.use") {
            return Self::Copy;
        }
        match mount_namespace::changed(cover_cgroups) {
            Ok((namespace, ())) => Self::WithoutCgroups(namespace),
            Err(error) => {
                let error = error.chain();
                tracing::debug!(error, "cgroups cannot be hidden from LXC");
                Self::Copy
            }
        }
    }
}

fn cover_cgroups() -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let at = Path::new("/sys/fs/cgroup");
    mount(Some("hidden"), at, Some("tmpfs"), flags, None::<&str>)
        .map_err(|errno| Error::on("mount a tmpfs at", at)(errno.into()))
}

impl Lxc {
    /// The LXC of this host. Its version is asked once for each program file and kept in `cache`,
    /// because a process per container would cost 3 ms.
    ///
    /// # Errors
    /// [`Error::LxcMissing`], or [`Error::Unsupported`] for an LXC that this kernel is too old for.
    pub fn find(cache: &Path) -> Result<Self> {
        let (program, file) = program()?;
        let version = match cached_version(cache, &program, &file) {
            Some(version) => version,
            None => {
                let version = ask_version(&program, VERSION_LIMIT)?;
                remember(cache, &cache_line(&program, &file, version));
                version
            }
        };
        let lxc = Self { program, version };
        lxc.check_kernel(Kernel::running().map_err(Error::io("uname"))?)?;
        Ok(lxc)
    }

    fn check_kernel(&self, kernel: Kernel) -> Result<()> {
        let (demanding, (major, minor)) = DEMANDING;
        if self.version.major >= demanding && !kernel.at_least(major, minor) {
            return Err(Error::unsupported(
                format!("LXC {} on this kernel", self.version),
                format!("it needs Linux {major}.{minor}; install LXC 3.0 to 6.x"),
            ));
        }
        Ok(())
    }

    /// `lxc-start` in the foreground, ready to be given descriptors. It dies with the thread that
    /// spawns it; what it starts does not.
    ///
    /// # Errors
    /// LXC's folder of run-time files cannot be made; [`Error::Unsupported`] for a time namespace
    /// on a kernel without.
    pub fn spawn(&self, start: Start<'_>) -> Result<Spawn<'static>> {
        make_lxc_path()?;
        let text = |path: &Path| path.as_os_str().to_owned();
        let mut arguments = vec![
            "-q".into(),
            "-F".into(),
            "-n".into(),
            start.name.into(),
            "-P".into(),
            LXC_PATH.into(),
            "-f".into(),
            text(start.config),
            "-o".into(),
            text(start.log),
            "-l".into(),
            "ERROR".into(),
        ];
        arguments.extend(start.arguments.iter().map(Into::into));
        arguments.push("--".into());
        arguments.extend(start.init.iter().map(Into::into));
        let mut spawn = Spawn::new(&self.program)
            .args(arguments)
            .env_clear_set(environment())
            .new_session()
            .pdeath_signal(Signal::SIGKILL);
        if is_unconfined() {
            // Debian's package attaches a profile to lxc-start, under which it may mount only what
            // its own containers need, and init would inherit it.
            spawn = spawn.apparmor_profile(UNCONFINED);
        }
        if let Some(offsets) = start.time {
            if !Path::new("/proc/self/ns/time").exists() {
                let why = "this kernel has no time namespaces; Linux 5.6 has";
                return Err(Error::unsupported("linux.namespaces: time", why));
            }
            spawn = spawn.time_namespace(&offsets);
        }
        let mut namespaces = start.namespaces;
        Ok(match start.mounts {
            Mounts::Copy => spawn
                .join_namespaces(namespaces)
                .unshare(CloneFlags::CLONE_NEWNS),
            Mounts::WithoutCgroups(mounts) => {
                namespaces.push((mounts, CloneFlags::CLONE_NEWNS));
                spawn.join_namespaces(namespaces)
            }
        })
    }
}

/// lxc-start refuses an LXCPATH that is not there, and on a host where LXC never ran it is not.
fn make_lxc_path() -> Result<()> {
    // Hosts of the time of Linux 2.6.32 have no /run either.
    std::fs::create_dir_all(LXC_PATH).map_err(Error::on("create", Path::new(LXC_PATH)))
}

/// Whether AppArmor is there and leaves this process alone; a runtime that is confined itself, in
/// a container say, cannot get out of its profile.
fn is_unconfined() -> bool {
    let own = [
        "/proc/self/attr/apparmor/current",
        "/proc/self/attr/current",
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok());
    own.is_some_and(|label| label.trim_end_matches('\n') == UNCONFINED)
}

/// LXC takes newuidmap(1) when its PATH has one, and then demands /etc/subuid entries even of
/// root. Without a PATH it writes the maps itself, as runc does.
fn environment() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    vec![
        ("PATH".into(), "/nonexistent".into()),
        ("LC_ALL".into(), "C".into()),
    ]
}

fn program() -> Result<(PathBuf, Metadata)> {
    on_path::find("lxc-start").ok_or(Error::LxcMissing)
}

fn cache_key(program: &Path, file: &Metadata) -> String {
    let (mtime, nanoseconds) = (file.mtime(), file.mtime_nsec());
    format!(
        "{} {} {} {mtime}.{nanoseconds:09}",
        program.display(),
        file.ino(),
        file.size()
    )
}

fn cache_line(program: &Path, file: &Metadata, version: Version) -> String {
    format!("{version} {}\n", cache_key(program, file))
}

/// A cache that cannot be written costs time only.
fn remember(cache: &Path, line: &str) {
    let new = cache.with_extension(std::process::id().to_string());
    if let Err(error) = std::fs::write(&new, line).and_then(|()| std::fs::rename(&new, cache)) {
        tracing::debug!(path = %cache.display(), %error, "cannot be written");
    }
}

fn cached_version(cache: &Path, program: &Path, file: &Metadata) -> Option<Version> {
    let text = std::fs::read_to_string(cache).ok()?;
    let (version, key) = text.strip_suffix('\n')?.split_once(' ')?;
    (key == cache_key(program, file)).then(|| Version::parse(version))?
}

fn ask_version(program: &Path, limit: Duration) -> Result<Version> {
    let spawn = Spawn::new(program)
        .args(["--version"])
        .env_clear_set(environment());
    let line = answer::first_line(spawn, "lxc-start --version", limit, VERSION_BYTES_MAX)?;
    Version::parse(&line).ok_or_else(|| Error::Lxc {
        said: format!("--version says {line:?}"),
    })
}

/// The reason LXC gives: the first of its error lines that is not about the consequences, without
/// the prefix of time and source line.
#[must_use]
pub fn reason(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    reason_in(&String::from_utf8_lossy(&text))
}

fn reason_in(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(" ERROR "))?;
    // `lxc-start NAME TIME ERROR    conf - ../src/lxc/conf.c:lxc_map_ids:3708 - TEXT`
    let text = line.splitn(3, " - ").nth(2).unwrap_or(line);
    Some(text.trim().to_owned())
}

/// Ends what a killed lxc-start left behind. Its child asks for a signal at its parent's death, but
/// when that died first it cannot kill itself, being pid 1 of a pid namespace, and waits for ever
/// (5.0, `lxc_set_death_signal`). It has its parent's command line, with the unique name in it.
///
/// # Errors
/// When one cannot be killed.
pub fn kill_strays(name: &str) -> Result<()> {
    for pid in process::all()? {
        let Ok(process) = ProcessId::of(pid) else {
            continue;
        };
        // Gone meanwhile, or it is a kernel thread.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        if names(&line, name) {
            process.kill()?;
            wait::until_ended(process, KILL_LIMIT)?;
        }
    }
    Ok(())
}

/// Whether a command line has `-n NAME`.
fn names(line: &[u8], name: &str) -> bool {
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair == [b"-n", name.as_bytes()])
}

/// Keeps [`remove_locks`] of other processes from taking folders away between LXC's making them
/// and its using them.
#[derive(Debug)]
pub struct LockFolders {
    _held: Option<Flock<File>>,
}

impl LockFolders {
    /// Held while an lxc-start comes up.
    #[must_use]
    pub fn in_use() -> Self {
        Self {
            _held: hold(FlockArg::LockShared),
        }
    }
}

/// None when it cannot be had: then folders are not removed, and a start does without the guard.
fn hold(how: FlockArg) -> Option<Flock<File>> {
    Flock::lock(File::open("/run").ok()?, how).ok()
}

/// Removes LXC's lock folders, unless an lxc-start is coming up: its container will do it.
///
/// # Errors
/// When a folder is empty and yet cannot be removed.
pub fn remove_locks() -> Result<()> {
    let Some(_alone) = hold(FlockArg::LockExclusiveNonblock) else {
        return Ok(());
    };
    for folder in LOCK_FOLDERS {
        match std::fs::remove_dir(folder) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Err(Error::on("remove", Path::new(folder))(e));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_error_without_its_prefix() {
        let log = "lxc-start t1 20261124151200.183 ERROR    conf - ../src/lxc/conf.c:lxc_map_ids:3708 - newuidmap failed to write mapping \"x - y\": newuidmap 1\n\
                   lxc-start t1 20261124151200.183 ERROR    start - ../src/lxc/start.c:lxc_spawn:1788 - Failed to set up id mapping.\n";
        assert_eq!(
            reason_in(log).unwrap(),
            "newuidmap failed to write mapping \"x - y\": newuidmap 1"
        );
        assert_eq!(reason_in("lxc-start t1 1 WARN  conf - a - b\n"), None);
        assert_eq!(reason_in("x ERROR y"), Some("x ERROR y".to_owned()));
    }

    #[test]
    fn a_stray_is_known_by_its_name() {
        assert!(names(b"lxc-start\0-q\0-n\0runlxc-1\0-P\0", "runlxc-1"));
        assert!(!names(b"lxc-start\0-q\0-n\0runlxc-12\0", "runlxc-1"));
        assert!(!names(b"grep\0runlxc-1\0", "runlxc-1"));
        assert!(!names(b"", "runlxc-1"));
    }

    #[test]
    fn a_version_is_remembered_for_one_file_only() {
        let temp = tempfile::tempdir().unwrap();
        let (cache, program) = (temp.path().join("cache"), temp.path().join("lxc-start"));
        std::fs::write(&program, "a").unwrap();
        let file = program.metadata().unwrap();
        let version = Version { major: 5, minor: 0 };
        assert_eq!(cached_version(&cache, &program, &file), None);
        std::fs::write(&cache, cache_line(&program, &file, version)).unwrap();
        assert_eq!(cached_version(&cache, &program, &file), Some(version));
        std::fs::write(&program, "ab").unwrap();
        assert_eq!(
            cached_version(&cache, &program, &program.metadata().unwrap()),
            None
        );
    }

    #[test]
    fn an_answer_is_read_whatever_the_program_does_besides() {
        let temp = tempfile::tempdir().unwrap();
        let ask = |script: &str, limit| {
            let path = temp.path().join("lxc-start");
            // Written by another process: none of ours may hold it open when it is executed.
            let write = format!("printf '%s' \"$0\" > {0}; chmod 755 {0}", path.display());
            let text = format!("#!/bin/sh\n{script}\n");
            let writer = Spawn::new("/bin/sh".as_ref()).args(["-c", &write, &text]);
            assert_eq!(writer.spawn().unwrap().wait().unwrap().code(), 0);
            ask_version(&path, limit)
        };
        let soon = Duration::from_secs(20);
        let five = Version { major: 5, minor: 0 };
        assert_eq!(ask("echo 5.0.2", soon).unwrap(), five);
        // It goes on, with its standard output open.
        assert_eq!(ask("echo 5.0.2; exec /bin/sleep 1000", soon).unwrap(), five);
        let endless = ask("exec /bin/cat /dev/zero", soon)
            .unwrap_err()
            .to_string();
        assert!(endless.len() < 2000, "{endless}");
        let other = ask("echo none; exec /usr/bin/yes", soon)
            .unwrap_err()
            .to_string();
        assert_eq!(other, "lxc-start failed: --version says \"none\"");
        let silent = ask("exec /bin/sleep 1000", Duration::from_millis(50));
        assert!(matches!(silent, Err(Error::Timeout { .. })), "{silent:?}");
    }

    #[test]
    fn lxc_7_is_refused_on_an_old_kernel() {
        let lxc = Lxc {
            program: "/x".into(),
            version: Version { major: 7, minor: 0 },
        };
        let kernel = |release| Kernel::parse(release).unwrap();
        lxc.check_kernel(kernel("6.12.1")).unwrap();
        let error = lxc
            .check_kernel(kernel("6.1.0-18-amd64"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("needs Linux 6.12"), "{error}");
    }
}
