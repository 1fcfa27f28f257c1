//! One daemon of ours that serves snapshots, with a root, a socket and a service manager of its own, and its end without traces.

use std::{
    collections::BTreeSet,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener},
    },
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags},
    sys::signal::Signal,
};

use crate::{
    census::{Census, Scope},
    conformance::Target,
    daemon::{Daemon, log_tail},
    process::command,
    proxy::Proxy,
    runtime::built,
    sweep::{sweep, sweep_abandoned},
    tag::{Directories, Tag},
    wait::{Deadline, SOON, Sources, process_end, until},
};

/// A message of the service manager's protocol is shorter.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Sets the umask `$0`, then starts what follows it.
const START: &str = r#"umask "$0" && exec "$@""#;

/// The same as the service manager starts it when it holds the socket (sd_listen_fds(3)): as
/// descriptor 3, which was passed as the input. The variables name the pid.
const START_ACTIVATED: &str = r#"exec 3<&0 </dev/null &&
export LISTEN_PID=$$ LISTEN_FDS=1 &&
umask "$0" && exec "$@""#;

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program. It understands `serve --root DIR --address SOCKET --config FILE`.
    pub program: PathBuf,
    /// What clients call it.
    pub name: String,
    /// The text of its configuration file.
    pub config: String,
    /// Its root, where that has to be on a certain file system; none: below the harness's directory.
    pub root: Option<PathBuf>,
    /// The umask it is started with.
    pub umask: u32,
    /// Whether the service manager holds its socket: requests wait while the daemon is away.
    pub is_activated: bool,
}

/// A running (or stopped) snapshotter.
#[derive(Debug)]
pub struct Snapshotter {
    setup: Setup,
    tag: Tag,
    directories: Directories,
    manager: UnixDatagram,
    socket: Option<UnixListener>,
    daemon: Daemon,
    is_clean: bool,
}

impl Setup {
    /// `snapshotter-quota` of this workspace with that configuration.
    pub fn quota(config: &str) -> Result<Self> {
        Self::of("quota", config)
    }

    /// `snapshotter-remote` of this workspace with that configuration.
    pub fn remote(config: &str) -> Result<Self> {
        Self::of("remote", config)
    }

    fn of(name: &str, config: &str) -> Result<Self> {
        Ok(Self {
            program: built(&format!("snapshotter-{name}"))?,
            name: name.to_owned(),
            config: config.to_owned(),
            root: None,
            umask: 0o022,
            is_activated: false,
        })
    }
}

impl Snapshotter {
    /// Starts one. Returns when it has said that it is ready.
    pub fn start(setup: Setup) -> Result<Self> {
        sweep_abandoned()?;
        let tag = Tag::fresh()?;
        let directories = Directories::claim(&tag)?;
        let manager = UnixDatagram::bind(directories.run.join("notify.sock"))?;
        manager.set_nonblocking(true)?;
        let mut this = Self {
            setup,
            tag,
            directories,
            manager,
            socket: None,
            daemon: Daemon::default(),
            is_clean: false,
        };
        if this.setup.is_activated {
            this.socket = Some(UnixListener::bind(this.address())?);
        }
        fs::create_dir(this.work())?;
        fs::write(this.config_file(), &this.setup.config)?;
        this.launch()?;
        Ok(this)
    }

    fn launch(&self) -> Result<()> {
        // What an earlier one said is not about this one.
        while self.manager.recv(&mut [0]).is_ok() {}
        let (start, input) = match &self.socket {
            Some(socket) => {
                let socket = OwnedFd::from(socket.try_clone()?);
                (START_ACTIVATED, Stdio::from(socket))
            }
            None => (START, Stdio::null()),
        };
        let mut command = command("/bin/sh");
        command
            .stdin(input)
            .args(["-c", start])
            .arg(format!("{:03o}", self.setup.umask))
            .arg(&self.setup.program)
            .arg("serve")
            .arg("--root")
            .arg(self.root())
            .arg("--address")
            .arg(self.address())
            .arg("--config")
            .arg(self.config_file())
            .env("NOTIFY_SOCKET", self.directories.run.join("notify.sock"))
            .env("TMPDIR", self.work());
        self.daemon.start(&mut command, &self.log_file())?;
        wait_until_ready(&self.manager, self.pid()?, SOON).with_context(|| self.log_tail())
    }

    /// Ends it by SIGTERM. It has to finish what it does and exit with 0.
    pub fn stop(&self) -> Result<()> {
        let status = self.daemon.end(Signal::SIGTERM)?;
        ensure!(
            status.is_none_or(|status| status.success()),
            "after SIGTERM it ended with {status:?}:\n{}",
            self.log_tail()
        );
        Ok(())
    }

    /// Ends it by SIGKILL.
    pub fn kill9(&self) -> Result<()> {
        self.daemon.end(Signal::SIGKILL).map(drop)
    }

    /// Starts it after `stop` or `kill9`.
    pub fn start_again(&self) -> Result<()> {
        self.launch()
    }

    /// Starts it after `stop` or `kill9`, with another configuration.
    pub fn start_again_with(&mut self, config: &str) -> Result<()> {
        fs::write(self.config_file(), config)?;
        config.clone_into(&mut self.setup.config);
        self.launch()
    }

    /// Ends it by SIGTERM and starts it again.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Ends it by SIGKILL and starts it again.
    pub fn kill_and_restart(&self) -> Result<()> {
        self.kill9()?;
        self.launch()
    }

    /// Its process id.
    pub fn pid(&self) -> Result<i32> {
        self.daemon.pid()
    }

    /// Its socket.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        self.directories.run.join("s.sock")
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        let root = self.setup.root.clone();
        root.unwrap_or_else(|| self.directories.root())
    }

    /// A directory for a test's own files; it is removed with the daemon.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.directories.data.join("work")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directories.run.join("config.toml")
    }

    /// Where it logs.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.directories.run.join("log")
    }

    /// The end of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log_file())
    }

    /// What containerd is told of it.
    #[must_use]
    pub fn proxy(&self) -> Proxy {
        Proxy {
            name: self.setup.name.clone(),
            address: self.address(),
            root: self.root(),
            maps_layers: true,
        }
    }

    /// What the conformance suite is told of it.
    #[must_use]
    pub fn target(&self) -> Target {
        Target {
            directory: self.work(),
            ..Target::proxy(self.address(), &self.setup.name)
        }
    }

    /// What is left of it on the machine: processes, mounts, loop devices.
    pub fn census(&self) -> Result<Census> {
        Census::of_instance(&Scope {
            tag: self.tag.clone(),
            sockets: BTreeSet::new(),
            directories: Vec::new(),
            apart: self.pid().into_iter().collect(),
        })
    }

    /// Ends it, and fails when anything of it is left. Its snapshots were removed before.
    pub fn finish(mut self) -> Result<()> {
        self.until_nothing_is_watched()?;
        self.stop()?;
        let left = Census::settle(&Census::default(), SOON, || self.census())?;
        let log = self.log_tail();
        self.remove()?;
        ensure!(left.is_empty(), "left behind:\n{left}the log ends:\n{log}");
        Ok(())
    }

    /// A mount namespace that somebody else on the machine has just made has also what the daemon unmounts, until it is gone:
    /// files that were deleted, and are watched, are open as long.
    fn until_nothing_is_watched(&self) -> Result<()> {
        let Ok(pid) = self.pid() else {
            return Ok(());
        };
        until("the daemon watches no file", SOON, Sources::none(), || {
            Ok((watched(pid)? == 0).then_some(()))
        })
    }

    fn remove(&mut self) -> Result<()> {
        self.is_clean = true;
        self.kill9()?;
        sweep(&self.tag, &BTreeSet::new())
    }
}

/// How many files a process watches by fanotify(7), as proc_pid_fdinfo(5) lists them.
fn watched(pid: i32) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // It may have been closed since.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let lines = text.lines();
        count += lines
            .filter(|line| line.starts_with("fanotify ino:"))
            .count();
    }
    Ok(count)
}

impl Drop for Snapshotter {
    #[expect(
        clippy::print_stderr,
        reason = "a test that failed shows the daemon's last words"
    )]
    fn drop(&mut self) {
        if self.is_clean {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{} said:\n{}", self.setup.name, self.log_tail());
        }
        if let Err(error) = self.remove() {
            eprintln!("cleaning up after {}: {error:#}", self.tag);
        }
    }
}

/// Waits until somebody tells the service manager that it is ready, and fails when the process ends
/// before that.
fn wait_until_ready(manager: &UnixDatagram, pid: i32, limit: Duration) -> Result<()> {
    let deadline = Deadline::after(limit);
    let end = process_end(pid)?.context("it ended at its start")?;
    loop {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        while let Ok(length) = manager.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..length]);
            if message.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        }
        let mut fds = [manager.as_fd(), end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if !deadline.poll(&mut fds)? {
            bail!("it did not say that it is ready within {limit:?}");
        }
        let [has_message, has_ended] = fds.map(|fd| fd.any().unwrap_or_default());
        ensure!(has_message || !has_ended, "it ended at its start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Running;

    #[test]
    fn the_word_ready_is_waited_for_and_the_end_of_the_process_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let tell = |text: &str| {
            let client = UnixDatagram::unbound().unwrap();
            client.send_to(text.as_bytes(), &path).unwrap();
        };
        let program = Running::start(command("sleep").arg("600")).unwrap();
        tell("STATUS=READY=1 comes");
        tell("STATUS=here\nREADY=1\n");
        wait_until_ready(&manager, program.pid(), SOON).unwrap();
        tell("STATUS=no more");
        let said = wait_until_ready(&manager, program.pid(), Duration::ZERO).unwrap_err();
        assert!(said.to_string().contains("did not say"), "{said}");

        let program = Running::start(&mut command("true")).unwrap();
        let said = wait_until_ready(&manager, program.pid(), SOON).unwrap_err();
        assert!(said.to_string().contains("ended at its start"), "{said}");
    }
}
