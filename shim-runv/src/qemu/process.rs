//! QEMU as a process: found, started with the descriptors that its arguments name, and killed. It is nobody, in
//! namespaces of its own, and reaches nothing of the host but its programs and those descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cgroups::Cgroup;
use nix::sys::signal::Signal;
use sys::{Child, CloneFlags, Pid, Spawn, User};

use super::{
    AGENT_FD, Accelerator, Access, Arguments, CONSOLE_FD, INITRAMFS_FD, KERNEL_FD, LINK_FD,
    MEMORY_FD, MONITOR_FD, Memory, VOLUMES_FD,
};
use crate::root::{self, Wanted};
use crate::{Error, Result};

/// QEMU's program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Where it is looked for beside the PATH.
const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/local/bin"];

/// The end of a killed QEMU.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What QEMU may write to its console's file and to its log, in bytes each: they are in the host's memory, and a
/// guest whose agent is up says nothing there. What comes after is lost: writing it fails with EFBIG, and SIGXFSZ
/// does nothing to QEMU, the first process of its pid namespace.
const WRITTEN_BYTES_MAX: u64 = 1 << 20;

/// Users of QEMUs have this number and that of the process which starts one, so no two shims' are one where all shims
/// are in one pid namespace: above those that systemd gives containers (systemd.io/UIDS-GIDS), below those that some
/// programs take for negative.
const USER_BASE: u32 = 0x7000_0000;

/// The device of the accelerator.
const KVM: &str = "/dev/kvm";

/// One arena for all threads: QEMU's main thread does nearly all there is to do (mallopt(3)).
const ENVIRONMENT: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "1")];

/// The bit of a file's mode by which others read it.
const OTHERS_READ: u32 = 0o4;

/// How much of a log an error repeats, in bytes.
const TAIL_BYTES: usize = 1000;

/// QEMU's program on this host.
///
/// # Errors
/// [`Error::NoQemu`].
pub(crate) fn find() -> Result<PathBuf> {
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&search_path).chain(FOLDERS.map(PathBuf::from));
    let mut places = folders.map(|folder| folder.join(PROGRAM));
    let found = places.find(|path| path.is_absolute() && path.is_file());
    let path = found.ok_or(Error::NoQemu)?;
    // Links of the host lead nowhere in its root.
    std::fs::canonicalize(&path).map_err(Error::on("find", &path))
}

/// What of the host a machine is connected to.
#[derive(Debug)]
pub(crate) struct Wires {
    /// The network namespace that QEMU lives in: that of its links, so that who looks for it by QEMU's
    /// pid finds it.
    pub(crate) namespace: OwnedFd,
    /// The other ends of its links.
    pub(crate) taps: Vec<OwnedFd>,
}

impl Wires {
    /// The same ones, for another start of the same machine.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(Error::io("duplicate a descriptor"));
        Ok(Self {
            namespace: duplicate(&self.namespace)?,
            taps: self.taps.iter().map(duplicate).collect::<Result<_>>()?,
        })
    }
}

/// Descriptors that only some machines have.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The memory, where it is a file.
    pub(crate) memory: Option<OwnedFd>,
    /// Where volumes are served.
    pub(crate) volumes: Option<OwnedFd>,
}

/// The process. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Qemu(Arc<Mutex<Child>>);

impl Qemu {
    /// It, in that cgroup from its first moment on, and our ends of its agent's port and its monitor. Without a
    /// cgroup it is in ours.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub(crate) fn start(
        arguments: &Arguments,
        wires: Wires,
        files: Files,
        (log, cgroup): (&Path, Option<&Cgroup>),
    ) -> Result<(Self, UnixStream, UnixStream)> {
        let program = find()?;
        let pair = || UnixStream::pair().map_err(Error::io("make a socket pair"));
        let ((port, its_port), (monitor, its_monitor)) = (pair()?, pair()?);
        let create = |path: &Path| File::create(path).map_err(Error::on("create", path));
        let (log, console) = (create(log)?, create(&arguments.console)?);
        let mut qemu = confined(&program, arguments, wires.namespace)?
            .fd(AGENT_FD, OwnedFd::from(its_port))
            .fd(MONITOR_FD, OwnedFd::from(its_monitor))
            .fd(CONSOLE_FD, OwnedFd::from(console))
            .stderr(OwnedFd::from(log));
        if let Some(cgroup) = cgroup {
            qemu = qemu.enter_cgroups(cgroup.open_entrances()?);
        }
        if arguments.memory == Memory::Template {
            // Its maker waits for it on the thread that starts it, and once the machine is stopped nobody
            // else could end it.
            qemu = qemu.pdeath_signal(Signal::SIGKILL);
        }
        if arguments.memory != Memory::Copy {
            let image = &arguments.image;
            qemu = qemu
                .fd(KERNEL_FD, of_image(&image.kernel)?)
                .fd(INITRAMFS_FD, of_image(&image.initramfs)?);
        }
        let files = [(MEMORY_FD, files.memory), (VOLUMES_FD, files.volumes)];
        for (number, file) in files {
            if let Some(file) = file {
                qemu = qemu.fd(number, file);
            }
        }
        for (number, tap) in (LINK_FD..).zip(wires.taps) {
            qemu = qemu.fd(number, tap);
        }
        let qemu = qemu.spawn().map_err(Error::on("start", &program))?;
        let this = Self(Arc::new(Mutex::new(qemu)));
        Ok((this, port, monitor))
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> Pid {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pid()
    }

    /// The process, for others who look after it.
    pub(crate) fn child(&self) -> &Arc<Mutex<Child>> {
        &self.0
    }

    /// Another handle of it, which kills it when it is dropped as this one does.
    pub(crate) fn handle(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Ends it, and waits until it has ended.
    pub(crate) fn kill(&self) {
        let mut qemu = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself; then it is only waited for.
        let _gone = qemu.kill(Signal::SIGKILL);
        if !matches!(qemu.wait_timeout(END_LIMIT), Ok(Some(_))) {
            tracing::warn!(pid = qemu.pid().as_raw(), "a killed QEMU does not end");
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// It with nothing yet: no descriptor, no rights, and nobody else to be seen.
fn confined(program: &Path, arguments: &Arguments, network: OwnedFd) -> Result<Spawn<'static>> {
    let (user, devices) = identity(arguments.accelerator);
    let wanted = Wanted {
        program: program.to_owned(),
        devices,
        ..Wanted::default()
    };
    let (mounts, ()) = root::make(&wanted, || Ok(()))?;
    let environment = ENVIRONMENT.map(|(name, value)| (name.into(), value.into()));
    let namespaces = vec![
        (network, CloneFlags::CLONE_NEWNET),
        (mounts.into(), CloneFlags::CLONE_NEWNS),
    ];
    let spawn = Spawn::new(program);
    let spawn = match arguments.accelerator {
        // Where it asks for them, for translated code and more, it has the memory of whole ones: 54.4 MiB of an
        // idle machine, and 52.2 without.
        Accelerator::Tcg => spawn.without_huge_pages(),
        Accelerator::Kvm => spawn,
    };
    Ok(spawn
        .args(arguments.render())
        .env_clear_set(environment.to_vec())
        .join_namespaces(namespaces)
        .new_pid_namespace()
        .unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .cwd(Path::new("/"))
        .limit_file_size(WRITTEN_BYTES_MAX)
        .user(user)
        .new_session())
}

/// Who QEMU is, and the devices it has: a user that nobody else is, with the group of the accelerator's where others
/// may not open it.
fn identity(accelerator: Accelerator) -> (User, Vec<PathBuf>) {
    let id = USER_BASE + std::process::id();
    let devices: &[&str] = match accelerator {
        Accelerator::Kvm => &[KVM],
        Accelerator::Tcg => &[],
    };
    // One that is gone, or closed by now, QEMU tells of.
    let access = |path: &&str| std::fs::metadata(path).map(|device| Access::of(&device));
    let group = |path: &&str| access(path).ok().and_then(Access::group);
    let user = User {
        uid: id,
        gid: id,
        additional_gids: devices.iter().filter_map(group).collect(),
    };
    (user, devices.iter().map(PathBuf::from).collect())
}

/// A file of a guest image, for QEMU to open once more.
fn of_image(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(Error::on("open", path))?;
    let metadata = file.metadata().map_err(Error::on("stat", path))?;
    if metadata.mode() & OTHERS_READ == 0 {
        let path = path.display();
        return Err(Error::Kernel(format!(
            "{path} has mode {:o} and QEMU, which is not root, cannot read it: build the guest image anew by \
             `runv image build`, or chmod 644",
            metadata.mode() & 0o7777
        )));
    }
    Ok(file.into())
}

/// The error of a machine that did not come up, with what virtiofsd, and it and QEMU in these files, said
/// last.
pub(crate) fn not_up(why: &str, virtiofsd: &str, log: &Path, console: &Path) -> Error {
    let mut why = why.to_owned();
    for (who, said) in [("QEMU", tail(log).as_str()), ("virtiofsd", virtiofsd)] {
        if !said.is_empty() {
            why = format!("{why}: {who} said: {said}");
        }
    }
    let console = match tail(console).as_str() {
        "" => String::new(),
        text => format!("; its console: {text}"),
    };
    Error::NotUp { why, console }
}

/// The end of a file as one line, without what a terminal would not show.
fn tail(path: &Path) -> String {
    // What is not there has nothing to say.
    let bytes = std::fs::read(path).unwrap_or_default();
    one_line(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..])
}

/// What somebody else says as one line, without what a terminal would not show.
pub(crate) fn one_line(said: &[u8]) -> String {
    lines(said).join(" | ")
}

/// Lines of what somebody else says, without what would do something to a terminal, and without empty ones.
pub(crate) fn lines(said: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(said);
    let lines = text.lines().map(|line| {
        let shown = line.chars().filter(|letter| !letter.is_control());
        shown.collect::<String>()
    });
    lines.filter(|line| !line.trim().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_qemu_cannot_read_is_told_before_it_tries() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = of_image(file.path()).unwrap_err().to_string();
        assert!(error.contains("has mode 600 and QEMU"), "{error}");
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).unwrap();
        of_image(file.path()).unwrap();
    }

    #[test]
    fn the_end_of_a_console_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        assert_eq!(tail(&path), "");
        std::fs::write(&path, "\x1b[0mone\r\n\r\ntwo\n").unwrap();
        assert_eq!(tail(&path), "[0mone | two");
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert_eq!(tail(&path).len(), TAIL_BYTES);
    }
}
