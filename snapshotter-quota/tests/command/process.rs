//! A daemon in a directory of its own, and the command beside it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest, snapshots_client::SnapshotsClient,
};
use serde_json::Value;
use sys::{Child, ExitStatus, Signal, Spawn};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

const PROGRAM: &str = env!("CARGO_BIN_EXE_snapshotter-quota");

/// A command that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the command.
pub(crate) fn command(words: &[&str]) -> Finished {
    let (stdout, stdout_writer) = std::io::pipe().unwrap();
    let (stderr, stderr_writer) = std::io::pipe().unwrap();
    let mut child = Spawn::new(Path::new(PROGRAM))
        .args(words)
        .env_clear_set(Vec::new())
        .stdout(OwnedFd::from(stdout_writer))
        .stderr(OwnedFd::from(stderr_writer))
        .spawn()
        .unwrap();
    let read = |mut pipe: std::io::PipeReader| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        })
    };
    let (stdout, stderr) = (read(stdout), read(stderr));
    let ended = child.wait_timeout(PATIENCE).unwrap();
    let ended = ended.expect("a command ends");
    Finished {
        code: ended.code(),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// A daemon. It is killed when the test fails.
pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    root: PathBuf,
    manager: UnixDatagram,
    child: Mutex<Child>,
    runtime: tokio::runtime::Runtime,
}

impl Daemon {
    /// Starts one with that configuration, and waits until it is ready.
    pub(crate) fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        Self::start_in(directory, root, config)
    }

    /// The same with a root elsewhere.
    pub(crate) fn start_at(root: PathBuf, config: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), root, config)
    }

    fn start_in(directory: tempfile::TempDir, root: PathBuf, config: &str) -> Self {
        let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::write(directory.path().join("config.toml"), config).unwrap();
        let child = spawn(directory.path(), &root);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let this = Self {
            directory,
            root,
            manager,
            child: Mutex::new(child),
            runtime: runtime.unwrap(),
        };
        this.until_told("READY=1");
        this
    }

    pub(crate) fn start_again(&mut self) {
        *self.child.get_mut().unwrap() = spawn(self.directory.path(), &self.root);
        self.until_told("READY=1");
    }

    fn until_told(&self, word: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = self.manager.recv(&mut buffer).expect("the daemon tells");
            let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if told.lines().any(|line| line == word) {
                return;
            }
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The writable directory of a snapshot.
    pub(crate) fn contents(&self, id: u64) -> PathBuf {
        self.root().join(format!("snapshots/{id}/fs"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.lock().unwrap().pid().as_raw()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.lock().unwrap().kill(signal).unwrap();
    }

    pub(crate) fn ended(&self) -> ExitStatus {
        let ended = self.child.lock().unwrap().wait_timeout(PATIENCE).unwrap();
        ended.expect("a daemon ends")
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.ended(), ExitStatus::Exited(0), "{}", self.log());
    }

    /// Gives it another configuration.
    pub(crate) fn reload(&self, config: &str) {
        fs::write(self.directory().join("config.toml"), config).unwrap();
        self.signal(Signal::SIGHUP);
        self.until_told("RELOADING=1");
        self.until_told("READY=1");
    }

    /// Runs the command against it.
    pub(crate) fn run(&self, words: &[&str]) -> Finished {
        let address = self.directory().join("d.sock");
        let config = self.directory().join("config.toml");
        let everywhere = [
            "--address",
            address.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
        ];
        command(&[words, &everywhere].concat())
    }

    /// `events --follow`, in JSON.
    pub(crate) fn follow(&self) -> Follower {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = Spawn::new(Path::new(PROGRAM))
            .args(["events", "--follow", "--output", "json", "--address"])
            .args([self.directory().join("d.sock")])
            .env_clear_set(Vec::new())
            .stdout(OwnedFd::from(writer))
            .spawn();
        Follower {
            child: Mutex::new(child.unwrap()),
            lines: Mutex::new(BufReader::new(File::from(OwnedFd::from(reader)))),
        }
    }

    pub(crate) fn prepare(&self, key: &str, labels: &[(&str, &str)]) {
        self.try_prepare(key, labels).unwrap();
    }

    pub(crate) fn try_prepare(&self, key: &str, labels: &[(&str, &str)]) -> Result<(), Status> {
        let labels = labels.iter();
        let request = PrepareSnapshotRequest {
            snapshotter: "quota".to_owned(),
            key: key.to_owned(),
            parent: String::new(),
            labels: labels
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect(),
        };
        self.runtime
            .block_on(async { self.client().await.prepare(request).await.map(drop) })
    }

    /// Makes a layer of it.
    pub(crate) fn commit(&self, key: &str, name: &str) {
        let request = CommitSnapshotRequest {
            snapshotter: "quota".to_owned(),
            key: key.to_owned(),
            name: name.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        let committed = self
            .runtime
            .block_on(async { self.client().await.commit(request).await.map(drop) });
        committed.unwrap();
    }

    pub(crate) fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            snapshotter: "quota".to_owned(),
            key: key.to_owned(),
        };
        self.runtime
            .block_on(async { self.client().await.remove(request).await.map(drop) })
    }

    /// Waits until what was removed is gone.
    pub(crate) fn clean_up(&self) {
        let request = CleanupRequest {
            snapshotter: "quota".to_owned(),
        };
        let answer = self
            .runtime
            .block_on(async { self.client().await.cleanup(request).await });
        answer.unwrap();
    }

    /// A label as containerd's service tells it.
    pub(crate) fn label(&self, key: &str, label: &str) -> Option<String> {
        let request = StatSnapshotRequest {
            snapshotter: "quota".to_owned(),
            key: key.to_owned(),
        };
        let answer = self
            .runtime
            .block_on(async { self.client().await.stat(request).await });
        let info = answer.unwrap().into_inner().info.unwrap();
        info.labels.get(label).cloned()
    }

    async fn client(&self) -> SnapshotsClient<Channel> {
        let address = format!("unix:{}", self.directory().join("d.sock").display());
        let endpoint = Endpoint::from_shared(address).unwrap();
        SnapshotsClient::new(endpoint.connect().await.unwrap())
    }

    /// The page for Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let mut socket = UnixStream::connect(self.directory().join("m.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        socket.read_to_string(&mut page).unwrap();
        page
    }
}

fn spawn(directory: &Path, root: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .unwrap();
    let environment: Vec<(OsString, OsString)> =
        vec![("NOTIFY_SOCKET".into(), directory.join("notify").into())];
    let metrics = format!("unix:{}", directory.join("m.sock").display());
    Spawn::new(Path::new(PROGRAM))
        .args([
            "serve",
            "--log-format",
            "json",
            "--metrics",
            &metrics,
            "--root",
        ])
        .args([root])
        .args(["--address"])
        .args([directory.join("d.sock")])
        .args(["--config"])
        .args([directory.join("config.toml")])
        .env_clear_set(environment)
        .stderr(OwnedFd::from(log))
        .spawn()
        .unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(self.child.get_mut().unwrap());
    }
}

/// Who listens to events.
pub(crate) struct Follower {
    child: Mutex<Child>,
    lines: Mutex<BufReader<File>>,
}

impl Follower {
    /// The next events.
    pub(crate) fn lines(&self, count: usize) -> Vec<Value> {
        let mut lines = self.lines.lock().unwrap();
        let mut next = || {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            serde_json::from_str(&line).unwrap()
        };
        (0..count).map(|_| next()).collect()
    }

    /// What it ended with.
    pub(crate) fn end(&self) -> i32 {
        let ended = self.child.lock().unwrap().wait_timeout(PATIENCE).unwrap();
        ended.expect("it ends with the daemon").code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        end(self.child.get_mut().unwrap());
    }
}

fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        // A test that failed need not fail again here.
        let _killed = child.kill(Signal::SIGKILL);
        let _ended = child.wait();
    }
}
