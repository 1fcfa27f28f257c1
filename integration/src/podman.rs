//! podman with `runlxc` as its OCI runtime: its own storage, configuration and cgroup parent, and no
//! containerd anywhere.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    census::{Census, Scope},
    images::Image,
    process::{Finished, Running, command},
    runtime::built,
    tag::{Directories, Tag},
};

/// Everything podman is asked takes well under a second.
const LIMIT: Duration = Duration::from_secs(60);

/// For what goes behind the answer: conmon, and the clean-up that it starts.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// Where apt puts it.
const PROGRAM: &str = "/usr/bin/podman";

/// A podman with one image; what its containers leave behind is told by [`Podman::finish`].
#[derive(Debug)]
pub struct Podman {
    tag: Tag,
    directories: Directories,
    runtime: PathBuf,
    before: Census,
}

impl Podman {
    /// Loads the busybox image. Needs the package podman.
    pub fn start() -> Result<Self> {
        let tag = Tag::fresh()?;
        let directories = Directories::claim(&tag)?;
        let mut podman = Self {
            tag,
            directories,
            runtime: built("runlxc")?,
            before: Census::default(),
        };
        fs::write(podman.config(), podman.configuration())?;
        let archive = Image::Busybox.archive()?;
        let archive = archive.to_str().context("a path that is text")?;
        podman.call(&["load", "--input", archive])?.success()?;
        // What podman makes once and keeps is no leak.
        podman.run(&["--rm"], &["true"])?.success()?;
        podman.before = podman.census()?;
        Ok(podman)
    }

    /// No signatures, no network, limits that need no privilege, nothing outside the directories
    /// (locks would lie in /dev/shm).
    fn configuration(&self) -> String {
        format!(
            "[containers]\nnetns = \"none\"\nlog_driver = \"k8s-file\"\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             lock_type = \"file\"\nruntime = \"runlxc\"\n\
             [engine.runtimes]\nrunlxc = [\"{}\"]\n",
            self.runtime.display()
        )
    }

    fn config(&self) -> PathBuf {
        self.directories.run.join("containers.conf")
    }

    /// Runs `podman ARGUMENTS`.
    pub fn call<W: AsRef<OsStr>>(&self, arguments: &[W]) -> Result<Finished> {
        let mut podman = command(PROGRAM);
        podman
            .arg("--root")
            .arg(self.directories.root())
            .arg("--runroot")
            .arg(self.directories.state())
            .arg("--tmpdir")
            .arg(self.directories.run.join("tmp"))
            // It mounts its storage over itself, and would forget that at times.
            .args(["--storage-driver", "overlay"])
            .args(["--storage-opt", "overlay.skip_mount_home=true"])
            .args(arguments)
            .env("CONTAINERS_CONF", self.config());
        Running::start(&mut podman)?.finish(LIMIT)
    }

    /// `podman run FLAGS IMAGE PROGRAM`.
    pub fn run(&self, flags: &[&str], program: &[&str]) -> Result<Finished> {
        let image = Image::Busybox.reference();
        let parent = format!("/{}", self.tag);
        let begin = ["run", "--cgroup-parent", &parent];
        self.call(&[&begin, flags, &[&image], program].concat())
    }

    /// `podman ps --all --format FORMAT`, a line each.
    pub fn list(&self, format: &str) -> Result<String> {
        let ended = self.call(&["ps", "--all", "--format", format])?;
        Ok(ended.success()?.stdout())
    }

    /// The containers that the runtime itself knows of.
    pub fn known_to_runtime(&self) -> Result<BTreeSet<String>> {
        let mut list = command(&self.runtime);
        list.args(["list", "--quiet"]);
        let listed = Running::start(&mut list)?.finish(LIMIT)?.success()?;
        Ok(listed.stdout().lines().map(str::to_owned).collect())
    }

    fn census(&self) -> Result<Census> {
        Census::of_instance(&Scope {
            tag: self.tag.clone(),
            sockets: BTreeSet::new(),
            directories: Vec::new(),
            apart: Vec::new(),
        })
    }

    /// Fails when there is a container, or when anything of one was left.
    pub fn finish(self) -> Result<()> {
        let containers = self.list("{{.Names}}")?;
        ensure!(containers.is_empty(), "still there:\n{containers}");
        let left = Census::settle(&self.before, SETTLE_LIMIT, || self.census())?;
        ensure!(left.is_empty(), "left behind:\n{left}");
        Ok(())
    }

    /// Every hierarchy's cgroups of ours: podman leaves the parent, and conmon's.
    fn remove_cgroups(&self) {
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
            return;
        };
        let mut tops = vec![PathBuf::from("/sys/fs/cgroup")];
        tops.extend(hierarchies.flatten().map(|entry| entry.path()));
        for top in tops {
            remove_tree(&top.join(self.tag.as_str()));
        }
    }
}

/// A tree of cgroups, from its leaves; what is busy stays, and is found by the next run's sweep.
fn remove_tree(cgroup: &Path) {
    let Ok(entries) = fs::read_dir(cgroup) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _busy = fs::remove_dir(cgroup);
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _gone = self.call(&["rm", "--all", "--force", "--time", "0"]);
        let _gone = self.call(&["pod", "rm", "--all", "--force"]);
        let _unmounted = self.call(&["system", "prune", "--all", "--force"]);
        self.remove_cgroups();
        for directory in [&self.directories.data, &self.directories.run] {
            let _kept = fs::remove_dir_all(directory);
        }
    }
}
