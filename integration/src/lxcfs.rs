//! An lxcfs of a test's own, that can be killed and started again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use crate::{
    daemon::{Daemon, log_tail},
    process::command,
    wait::{SOON, Sources, until},
};

/// The daemon, on a directory of its own.
#[derive(Debug)]
pub struct Lxcfs {
    daemon: Daemon,
    directory: PathBuf,
}

impl Lxcfs {
    /// Starts one that works in `directory`, which is made.
    pub fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let lxcfs = Self {
            daemon: Daemon::default(),
            directory: directory.to_owned(),
        };
        fs::create_dir(lxcfs.root())?;
        fs::write(
            lxcfs.options(),
            format!("LxcfsRoot = \"{}\"\n", lxcfs.root().display()),
        )?;
        lxcfs.start_again()?;
        Ok(lxcfs)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// The file with the runtime's options that name it.
    #[must_use]
    pub fn options(&self) -> PathBuf {
        self.directory.join("options.toml")
    }

    /// Starts it after [`Lxcfs::kill9`]; the dead mount is taken away first, as its unit does.
    pub fn start_again(&self) -> Result<()> {
        self.unmount()?;
        let mut lxcfs = command("lxcfs");
        lxcfs
            .args([
                "--foreground",
                "--enable-loadavg",
                "--enable-cfs",
                "--pidfile",
            ])
            .arg(self.directory.join("pid"))
            .arg(self.root())
            .stdin(Stdio::null());
        let log = self.directory.join("log");
        self.daemon.start(&mut lxcfs, &log)?;
        let sources = Sources::none().mounts()?;
        until("lxcfs answers", SOON, sources, || {
            if let Some(status) = self.daemon.ended()? {
                bail!("lxcfs ended at its start ({status}): {}", log_tail(&log));
            }
            Ok(fs::read(self.root().join("proc/meminfo")).ok().map(drop))
        })
    }

    /// Kills it; its mount is left behind, and whoever reads there is told that nobody answers.
    pub fn kill9(&self) -> Result<()> {
        self.daemon.end(Signal::SIGKILL).map(drop)
    }

    /// Ends it and takes its mount away.
    pub fn stop(&self) -> Result<()> {
        self.daemon.end(Signal::SIGTERM)?;
        self.unmount()
    }

    fn unmount(&self) -> Result<()> {
        match umount2(&self.root(), MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => {
                Err(errno).with_context(|| format!("unmounting {}", self.root().display()))
            }
        }
    }
}

impl Drop for Lxcfs {
    #[expect(clippy::print_stderr, reason = "the person at the test is told")]
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("ending lxcfs: {error:#}");
        }
    }
}
