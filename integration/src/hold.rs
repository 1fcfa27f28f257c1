//! Holds programs up where they open files (fanotify(7), permission events), so that who is to be killed at a step is
//! killed at exactly that step, in programs that know nothing of it.
//!
//! Whoever opens anything that is watched waits for the answer of [`Hold::serve`]; when the group ends, all go on.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::AT_FDCWD,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::fanotify::{
        EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
    },
};

use crate::wait::is_readable;

/// How often it is looked whether the end has come.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Somebody is about to open a file.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Who.
    pub pid: i32,
    /// Which.
    pub path: PathBuf,
}

/// A group of watched files.
#[derive(Debug)]
pub struct Hold(Fanotify);

impl Hold {
    /// One that watches nothing yet.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN or CONFIG_FANOTIFY_ACCESS_PERMISSIONS.
    pub fn new() -> Result<Self> {
        let flags = InitFlags::FAN_CLASS_CONTENT
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_UNLIMITED_QUEUE;
        let events = EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE;
        Ok(Self(
            Fanotify::init(flags, events).context("a group of fanotify")?,
        ))
    }

    fn mark(&self, flags: MarkFlags, mask: MaskFlags, path: &Path) -> Result<()> {
        let flags = flags | MarkFlags::FAN_MARK_ADD;
        let marked = self.0.mark(flags, mask, AT_FDCWD, Some(path));
        marked.with_context(|| format!("watching {}", path.display()))
    }

    /// Watches all that is on a mount.
    pub fn watch_mount(&self, path: &Path) -> Result<()> {
        let mask = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
        self.mark(MarkFlags::FAN_MARK_MOUNT, mask, path)
    }

    /// Watches the files in a directory.
    pub fn watch_directory(&self, path: &Path) -> Result<()> {
        let mask = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
        self.mark(MarkFlags::empty(), mask, path)
    }

    /// Watches who is about to become this program.
    pub fn watch_program(&self, path: &Path) -> Result<()> {
        self.mark(MarkFlags::empty(), MaskFlags::FAN_OPEN_EXEC_PERM, path)
    }

    /// Answers until it `is_over`; `look` sees each opening before it goes on. It must open nothing that is watched.
    ///
    /// # Errors
    /// What reading or answering says; nobody waits any more once this value is dropped.
    pub fn serve(&self, is_over: &AtomicBool, mut look: impl FnMut(&Opening)) -> Result<()> {
        while !is_over.load(Ordering::Acquire) {
            if !is_readable(self.0.as_fd(), LOOK_AGAIN)? {
                continue;
            }
            let events = match self.0.read_events() {
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                other => other.context("reading who opens files")?,
            };
            for event in &events {
                let Some(file) = event.fd() else { continue };
                // One that was removed meanwhile has a name that says so.
                let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
                look(&Opening {
                    pid: event.pid(),
                    path: path.unwrap_or_default(),
                });
                match self
                    .0
                    .write_response(FanotifyResponse::new(file, Response::FAN_ALLOW))
                {
                    // Who waited was killed.
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(error) => return Err(error).context("letting somebody go on"),
                }
            }
        }
        Ok(())
    }
}

/// A tmpfs where something is kept that is to be watched. Dropped, it is unmounted.
#[derive(Debug)]
pub struct Watched(PathBuf);

impl Watched {
    /// Mounts it, making the directory where it is missing.
    pub fn mount(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
        let none = None::<&str>;
        mount(Some("watched"), path, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("mounting a tmpfs at {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A test that already fails keeps its own message; the census finds what is left.
        let _left = umount2(&self.0, MntFlags::MNT_DETACH);
        let _left = fs::remove_dir(&self.0);
    }
}
