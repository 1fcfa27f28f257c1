//! One stock containerd with a root, a state, sockets and a namespace of its own, and its end without traces.
//!
//! Any number of them run beside each other. Whatever an instance leaves behind is found by its tag.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};

use crate::{
    census::{Census, Scope, processes},
    config::Config,
    ctr::Ctr,
    daemon::{Daemon, log_tail},
    process::command,
    runtime::Runtime,
    sweep::{sweep, sweep_abandoned},
    tag::{Directories, Tag, shim_sockets},
    template,
    versions::{Installed, system_program},
    wait::{SOON, Sources, until},
};

/// How long things may take to go away after the last answer that concerns them.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// What containerd, the shims and LXC call by name. Nothing else is on their PATH.
const TOOLS: &[&str] = &[
    "ip",
    "ip6tables",
    "iptables",
    "kmod",
    "lxc-start",
    "modprobe",
    "mount",
    "nsenter",
    "sh",
    "umount",
];

/// A running (or stopped) containerd.
#[derive(Debug)]
pub struct Containerd {
    /// What it is.
    pub installed: Installed,
    /// Where its things are.
    pub directories: Directories,
    /// The name of all that is its own.
    pub tag: Tag,
    /// Its containerd namespace: the tag's text.
    pub namespace: String,
    environment: Vec<(String, String)>,
    network: Option<PathBuf>,
    launcher: Vec<OsString>,
    daemon: Daemon,
    ids: Mutex<BTreeSet<String>>,
    before: Census,
    is_clean: bool,
}

/// Where an instance is to be.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) tag: Tag,
    pub(crate) namespace: String,
    pub(crate) directories: Directories,
}

impl Containerd {
    /// Starts one. Returns when it answers.
    pub fn start(installed: &Installed, config: &Config) -> Result<Self> {
        sweep_abandoned()?;
        let tag = Tag::fresh()?;
        let directories = Directories::claim(&tag)?;
        if config.is_in_memory {
            mount_tmpfs(&directories.root())?;
        }
        if !config.images.is_empty() {
            template::copy(installed, config, &tag, &directories.root())?;
        }
        let namespace = tag.to_string();
        Self::start_in(
            installed,
            config,
            Place {
                tag,
                namespace,
                directories,
            },
        )
    }

    /// Starts one whose directories exist.
    pub(crate) fn start_in(installed: &Installed, config: &Config, place: Place) -> Result<Self> {
        let Place {
            tag,
            namespace,
            directories,
        } = place;
        let mut this = Self {
            installed: installed.clone(),
            directories,
            tag,
            namespace,
            environment: config.environment.clone(),
            network: config.network.clone(),
            launcher: config.launcher.clone(),
            daemon: Daemon::default(),
            ids: Mutex::new(BTreeSet::new()),
            before: Census::default(),
            is_clean: false,
        };
        this.prepare(config)?;
        this.launch()?;
        this.before = this.census()?;
        Ok(this)
    }

    fn prepare(&self, config: &Config) -> Result<()> {
        let text = config.text(self.installed.version, &self.directories);
        fs::write(self.config_file(), text)?;
        for directory in [
            self.fifos(),
            self.path(),
            self.work(),
            self.directories.data.join("temp"),
        ] {
            fs::create_dir(&directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        let Installed {
            containerd,
            ctr,
            shim_runc,
            runc,
            ..
        } = &self.installed;
        let mut programs = vec![
            containerd.clone(),
            ctr.clone(),
            shim_runc.clone(),
            runc.clone(),
        ];
        // Their absence fails the tests that need them, not the others.
        let ours = [Runtime::Runlxc, Runtime::Runv].map(Runtime::binaries);
        let ours = ours.into_iter().flatten().flatten().collect::<Vec<_>>();
        programs.extend(match &config.binaries {
            Some(directory) => within_directory(directory, &ours),
            None => ours,
        });
        programs.extend(TOOLS.iter().filter_map(|name| system_program(name).ok()));
        for program in programs {
            let name = program.file_name().context("a program has a name")?;
            symlink(&program, self.path().join(name))
                .with_context(|| format!("linking {}", program.display()))?;
        }
        Ok(())
    }

    fn launch(&self) -> Result<()> {
        // Each becomes the next by exec, so the process id is containerd's own.
        let mut words = self.launcher.clone();
        words.push(self.installed.containerd.clone().into());
        let mut command = match &self.network {
            Some(network) => within(network, Path::new(&words[0])),
            None => command(&words[0]),
        };
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.config_file())
            .stdin(Stdio::null())
            .env("PATH", self.path())
            .env("TMPDIR", self.directories.data.join("temp"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.daemon.start(&mut command, &self.log_file())?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> Result<()> {
        let pid = self.pid()?;
        let sources = Sources::none()
            .directory(&self.directories.run)?
            .process(pid)?;
        until("containerd answers", SOON, sources, || {
            if let Some(status) = self.daemon.ended()? {
                bail!("containerd ended at its start ({status})");
            }
            // A client costs more than a connection. The connection alone proves nothing: what a
            // killed daemon was starting holds its socket for a moment.
            if UnixStream::connect(self.address()).is_err() {
                return Ok(None);
            }
            Ok(Ctr::of(self).call(&["version"])?.success().ok())
        })
        .with_context(|| self.log_tail())
        .map(drop)
    }

    /// Ends it by SIGTERM and starts it again. Containers go on running.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Ends it by SIGKILL and starts it again.
    pub fn kill_and_restart(&self) -> Result<()> {
        self.kill9()?;
        self.launch()
    }

    /// Starts it after `stop` or `kill9`.
    pub fn start_again(&self) -> Result<()> {
        self.launch()
    }

    /// Ends it by SIGTERM.
    pub fn stop(&self) -> Result<()> {
        self.daemon.end(Signal::SIGTERM).map(drop)
    }

    /// Ends it by SIGKILL.
    pub fn kill9(&self) -> Result<()> {
        self.daemon.end(Signal::SIGKILL).map(drop)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Result<i32> {
        self.daemon.pid()
    }

    /// The path of its socket.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        self.directories.socket()
    }

    /// Where its clients make fifos.
    #[must_use]
    pub fn fifos(&self) -> PathBuf {
        self.directories.run.join("fifo")
    }

    /// A directory for a test's own files; it is removed with the instance.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.directories.data.join("work")
    }

    /// The one directory on its PATH.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directories.run.join("bin")
    }

    /// The bundle of a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundles().join(id)
    }

    fn bundles(&self) -> PathBuf {
        self.directories
            .state()
            .join("io.containerd.runtime.v2.task")
            .join(&self.namespace)
    }

    fn config_file(&self) -> PathBuf {
        self.directories.run.join("config.toml")
    }

    /// Where the daemon and the shims log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.directories.run.join("containerd.log")
    }

    /// The end of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log_file())
    }

    /// Notes that a container of that id will be made, so that its socket can be found, by this
    /// program or by the one that sweeps for it.
    pub fn expect_container(&self, id: &str) -> Result<()> {
        let mut ids = self.ids.lock().expect("nobody panics while holding it");
        if ids.insert(id.to_owned()) {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(self.directories.ids())?;
            writeln!(file, "{id}")?;
        }
        Ok(())
    }

    fn sockets(&self) -> BTreeSet<PathBuf> {
        let ids = self.ids.lock().expect("nobody panics while holding it");
        shim_sockets(&self.address(), &self.tag, &ids)
    }

    /// The process id of a container's shim.
    pub fn shim_of(&self, id: &str) -> Result<Option<i32>> {
        let address = self.address().display().to_string();
        Ok(processes()?
            .values()
            .find(|process| is_shim_of(&process.command, &address, id))
            .map(|process| process.pid))
    }

    /// What belongs to it now, the daemon apart.
    pub fn census(&self) -> Result<Census> {
        Census::of_instance(&Scope {
            tag: self.tag.clone(),
            sockets: self.sockets(),
            directories: vec![
                self.bundles(),
                self.directories
                    .root()
                    .join("io.containerd.runtime.v2.task")
                    .join(&self.namespace),
            ],
            apart: self.pid().into_iter().collect(),
        })
    }

    /// What containers left behind and does not go away by itself.
    pub fn leaks(&self) -> Result<Census> {
        self.leaks_since(&self.before, SETTLE_LIMIT)
    }

    /// What came after `before` and does not go away by itself within `limit`.
    pub fn leaks_since(&self, before: &Census, limit: Duration) -> Result<Census> {
        Census::settle(before, limit, || self.census())
    }

    /// Ends it, and fails when its containers left anything behind.
    pub fn finish(mut self) -> Result<()> {
        let leaks = self.leaks()?;
        let log = self.log_tail();
        self.remove()?;
        ensure!(
            leaks.is_empty(),
            "left behind:\n{leaks}the log ends:\n{log}"
        );
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        self.is_clean = true;
        self.stop()?;
        sweep(&self.tag, &self.sockets())
    }
}

impl Drop for Containerd {
    #[expect(
        clippy::print_stderr,
        reason = "a test that failed shows the daemon's last words"
    )]
    fn drop(&mut self) {
        if self.is_clean {
            return;
        }
        if std::thread::panicking() {
            eprintln!(
                "containerd {} said:\n{}",
                self.installed.version,
                self.log_tail()
            );
        }
        if let Err(error) = self.remove() {
            eprintln!("cleaning up after {}: {error:#}", self.tag);
        }
    }
}

fn mount_tmpfs(at: &Path) -> Result<()> {
    fs::create_dir(at).with_context(|| format!("making {}", at.display()))?;
    let none = None::<&str>;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), none)
        .with_context(|| format!("mounting a tmpfs at {}", at.display()))
}

/// The same file names in another directory.
fn within_directory(directory: &Path, programs: &[PathBuf]) -> Vec<PathBuf> {
    let names = programs.iter().filter_map(|program| program.file_name());
    names.map(|name| directory.join(name)).collect()
}

/// A program in a network namespace, in this mount namespace.
fn within(network: &Path, program: &Path) -> Command {
    let mut inside = command("nsenter");
    inside
        .arg(format!("--net={}", network.display()))
        .arg(program);
    inside
}

/// `.../containerd-shim-NAME -namespace NS -id ID -address ADDRESS`, in any order.
fn is_shim_of(command: &str, address: &str, id: &str) -> bool {
    let words: Vec<&str> = command.split(' ').collect();
    let has = |flag: &str, value: &str| {
        words
            .windows(2)
            .any(|pair| pair[0].trim_start_matches('-') == flag && pair[1] == value)
    };
    words[0].contains("containerd-shim-") && has("address", address) && has("id", id)
}
