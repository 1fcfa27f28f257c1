//! Hides and write-protects paths of the container, from inside, after its root was entered.
//!
//! Everything goes over descriptors: what was checked is what is covered, and a name that is a link
//! covers the file it leads to inside the container, never the link's other names.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};

use crate::error::{Error, Result, host};
use crate::labels::with_context;
use crate::procfs::{Proc, bind, fd_path};
use crate::rootfs::remount_readonly;

const NONE: Option<&str> = None;

/// Binds each path onto itself, read-only; missing ones are passed over.
pub(crate) fn protect(proc: &Proc, paths: &[String]) -> Result<()> {
    proc.make_working_directory()?;
    for path in paths {
        protect_one(path).map_err(host(|| format!("make {path} read-only")))?;
    }
    Ok(())
}

fn protect_one(path: &str) -> nix::Result<()> {
    let Some(below) = open_path(path)? else {
        return Ok(());
    };
    let at = fd_path(below.as_fd());
    mount(
        Some(at.as_str()),
        at.as_str(),
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )?;
    // The descriptor still names what is now covered.
    let above = open_path(path)?.ok_or(Errno::ENOENT)?;
    let (was, is) = (fstat(&below)?, fstat(&above)?);
    if (was.st_dev, was.st_ino) != (is.st_dev, is.st_ino) {
        return Err(Errno::ESTALE);
    }
    remount_readonly(&fd_path(above.as_fd()))
}

/// Makes what is mounted at each target read-only.
pub(crate) fn remount_all_readonly(proc: &Proc, targets: &[String]) -> Result<()> {
    proc.make_working_directory()?;
    for target in targets {
        let step = || format!("remount {target} read-only");
        let top = open_path(target).map_err(host(step))?;
        let top = top.ok_or(Errno::ENOENT).map_err(host(step))?;
        remount_readonly(&fd_path(top.as_fd())).map_err(host(step))?;
    }
    Ok(())
}

/// Covers each path: a directory by an empty read-only tmpfs, anything else by `/dev/null`.
/// Missing ones are passed over. The tmpfs has the SELinux label of the container's files.
pub(crate) fn mask(proc: &Proc, paths: &[String], label: Option<&str>) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    proc.make_working_directory()?;
    let mut masks = Masks {
        null: None,
        empty: None,
        label,
    };
    let mut done: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        let clean = clean(path);
        if done.contains(&clean) {
            continue;
        }
        masks.cover(path)?;
        done.push(clean);
    }
    Ok(())
}

/// What paths are covered with, made when first needed.
struct Masks<'a> {
    null: Option<OwnedFd>,
    /// One tmpfs for all directories.
    empty: Option<OwnedFd>,
    label: Option<&'a str>,
}

impl Masks<'_> {
    fn cover(&mut self, path: &str) -> Result<()> {
        let step = || format!("mask {path}");
        let Some(target) = open_path(path).map_err(host(step))? else {
            return Ok(());
        };
        let mode = fstat(&target).map_err(host(step))?.st_mode;
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            self.cover_directory(path, &target).map_err(host(step))
        } else {
            let null = match self.null.take() {
                Some(null) => null,
                None => open_null().map_err(|why| Error::Request {
                    step: format!("mask {path}: /dev/null of the container {why}"),
                    errno: 0,
                })?,
            };
            bind(self.null.insert(null), &target).map_err(host(step))
        }
    }

    fn cover_directory(&mut self, path: &str, target: &OwnedFd) -> nix::Result<()> {
        if let Some(empty) = &self.empty {
            return bind(empty, target);
        }
        mount_empty(target, self.label)?;
        self.empty = open_path(path)?;
        Ok(())
    }
}

fn mount_empty(target: &OwnedFd, label: Option<&str>) -> nix::Result<()> {
    let target = fd_path(target.as_fd());
    let tmpfs = |size: &str| {
        let data = label.map_or_else(|| size.to_owned(), |label| with_context(size, label));
        mount(
            Some("tmpfs"),
            target.as_str(),
            Some("tmpfs"),
            MsFlags::MS_RDONLY,
            Some(data.as_str()),
        )
    };
    // Ubuntu's 5.4 refuses a tmpfs of one inode.
    tmpfs("nr_blocks=1,nr_inodes=1").or_else(|_| tmpfs("nr_blocks=1,nr_inodes=2"))
}

/// Opens `/dev/null` and makes sure that it is the null device and not something the image or a
/// mount put there (CVE-2025-31133).
fn open_null() -> std::result::Result<OwnedFd, String> {
    let null = open_path("/dev/null").map_err(|errno| errno.desc().to_owned())?;
    let null = null.ok_or("is missing")?;
    if is_null_device(&null) {
        Ok(null)
    } else {
        Err("is not the null device".to_owned())
    }
}

/// Whether a descriptor is open on the null device, 1:3.
pub(crate) fn is_null_device(file: impl AsFd) -> bool {
    fstat(file).is_ok_and(|about| {
        SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
            && (major(about.st_rdev), minor(about.st_rdev)) == (1, 3)
    })
}

/// Opens a path without touching what is there; none when it does not exist.
fn open_path(path: &str) -> nix::Result<Option<OwnedFd>> {
    // Before 2.6.39 O_PATH is ignored and the file is really opened, hence the other two.
    let flags = OFlag::O_PATH | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The path without doubled slashes and single dots, to know doubles by.
fn clean(path: &str) -> String {
    let parts: Vec<_> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    parts.join("/")
}
