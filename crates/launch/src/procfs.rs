//! The kernel's own procfs, held open while the root directory changes under us.
//!
//! Writes and magic links go through this handle alone, never through a `/proc` that the image or
//! its mounts could have replaced (CVE-2025-52881 and its kin). It must be dropped before the
//! program is looked up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{AccessFlags, faccessat, fchdir, write};

use crate::error::{Error, Result, host};

/// The root directory of a real procfs.
#[derive(Debug)]
pub(crate) struct Proc {
    root: OwnedFd,
}

impl Proc {
    /// Opens `/proc` as it stands now, and refuses anything but a procfs.
    pub(crate) fn open() -> Result<Self> {
        let step = || "open /proc".to_owned();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/proc", flags, Mode::empty()).map_err(host(step))?;
        require_procfs(root.as_fd()).map_err(host(step))?;
        Ok(Self { root })
    }

    /// A second handle of it.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let root = self.root.try_clone();
        root.map(|root| Self { root })
            .map_err(host(|| "duplicate a descriptor".to_owned()))
    }

    /// Makes this procfs the working directory, so that [`fd_path`] can be resolved.
    pub(crate) fn make_working_directory(&self) -> Result<()> {
        fchdir(&self.root).map_err(host(|| "change directory to the procfs".to_owned()))
    }

    /// Writes one value to a file below this procfs.
    pub(crate) fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_TRUNC;
        let file = openat(&self.root, path, flags, Mode::empty())?;
        require_procfs(file.as_fd())?;
        // The kernel parses each write on its own, so a short one is an error.
        let written = write(&file, value.as_bytes())?;
        if written < value.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Whether a file exists below this procfs.
    pub(crate) fn has(&self, path: &str) -> bool {
        faccessat(&self.root, path, AccessFlags::F_OK, AtFlags::empty()).is_ok()
    }

    /// Sets `oom_score_adj` of this process, or its forerunner `oom_adj` (before 2.6.36).
    pub(crate) fn set_oom_score_adj(&self, score: i32) -> Result<()> {
        let step = || format!("write oom_score_adj {score}");
        match self.write("self/oom_score_adj", &score.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let old = old_oom_adj(score).to_string();
                self.write("self/oom_adj", &old).map_err(host(step))
            }
            result => result.map_err(host(step)),
        }
    }

    /// Sets a kernel parameter by its dotted name.
    pub(crate) fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name).ok_or_else(|| Error::Request {
            step: format!("sysctl \"{name}\": not the name of a kernel parameter"),
            errno: 0,
        })?;
        self.write(&path, value)
            .map_err(host(|| format!("write sysctl {name} = \"{value}\"")))
    }
}

/// The name of a descriptor of ours, relative to a procfs.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("self/fd/{}", fd.as_raw_fd())
}

/// Binds what one descriptor names onto what another does, with no name looked up in between; the
/// working directory is a procfs ([`Proc::make_working_directory`]).
pub(crate) fn bind(source: impl AsFd, target: impl AsFd) -> nix::Result<()> {
    let (source, target) = (fd_path(source.as_fd()), fd_path(target.as_fd()));
    let none: Option<&str> = None;
    mount(
        Some(source.as_str()),
        target.as_str(),
        none,
        MsFlags::MS_BIND,
        none,
    )
}

fn require_procfs(fd: BorrowedFd<'_>) -> io::Result<()> {
    if fstatfs(fd)?.filesystem_type() == PROC_SUPER_MAGIC {
        Ok(())
    } else {
        Err(Errno::EXDEV.into())
    }
}

/// The old scale went from -17 (never kill) and -16 to 15.
fn old_oom_adj(score: i32) -> i32 {
    if score <= -1000 {
        -17
    } else {
        (score * 15 / 1000).clamp(-16, 15)
    }
}

/// `a.b/c.d` means `a/b.c/d` when a dot comes first, as for sysctl(8): names of network devices
/// may hold dots. A name whose first separator is a slash is a path already. The path is relative to a
/// procfs; none for what is no name of a kernel parameter.
#[must_use]
pub fn sysctl_path(name: &str) -> Option<String> {
    let first = name.find(['.', '/']);
    let dotted = first.is_some_and(|at| name.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dotted {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let sound = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (sound && !path.contains('\0')).then(|| format!("sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_paths_that_stay_below_sys() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(sysctl_path(name).as_deref(), expected, "{name}");
        };
        check("net.ipv4.ip_forward", Some("sys/net/ipv4/ip_forward"));
        check(
            "net.ipv4.conf.eth0/100.forwarding",
            Some("sys/net/ipv4/conf/eth0.100/forwarding"),
        );
        check(
            "net/ipv4/conf/eth0.100/forwarding",
            Some("sys/net/ipv4/conf/eth0.100/forwarding"),
        );
        check("kernel", Some("sys/kernel"));
        check("", None);
        check("net..ipv4", None);
        check("net/../../self/attr/exec", None);
        check("kernel.//.x", None);
    }

    #[test]
    fn old_kernels_get_their_own_oom_scale() {
        for (score, old) in [(-1000, -17), (-999, -14), (0, 0), (500, 7), (1000, 15)] {
            assert_eq!(old_oom_adj(score), old);
        }
    }

    #[test]
    fn parameters_are_written_to_the_real_procfs() {
        let proc = Proc::open().unwrap();
        assert!(proc.has("self/status"));
        assert!(!proc.has("self/no-such-file"));
        proc.write("self/comm", "launch-test").unwrap();
        assert_eq!(
            std::fs::read_to_string("/proc/self/comm").unwrap(),
            "launch-test\n"
        );
        let missing = proc
            .set_sysctl("kernel.no_such_parameter", "1")
            .unwrap_err();
        assert_eq!(missing.failure().errno, nix::libc::ENOENT);
        assert!(
            missing.to_string().contains("kernel.no_such_parameter"),
            "{missing}"
        );
    }
}
