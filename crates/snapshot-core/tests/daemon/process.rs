//! One daemon process with its directory, its log, and a service manager's socket.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use proto::events::{PublishRequest, events_client::EventsClient};
use sys::{Child, ExitStatus, Signal, Spawn};
use tonic::{Code, transport::Endpoint};

use crate::serving::WORD;

/// Nothing here takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where things of a test are.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    manager: UnixDatagram,
}

/// How a daemon is started.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) connections_max: u32,
    pub(crate) connection_seconds: u32,
    pub(crate) requests_max: u32,
    pub(crate) wait_seconds: u32,
    pub(crate) drain_seconds: u32,
    pub(crate) watchdog_usec: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 64,
            connection_seconds: 600,
            requests_max: 16,
            wait_seconds: 60,
            drain_seconds: 20,
            watchdog_usec: None,
        }
    }
}

/// A running daemon. It is killed when the test fails.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: BufReader<File>,
}

/// A request that runs until it is released.
pub(crate) struct Held {
    fifo: File,
    pub(crate) answer: JoinHandle<Code>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, manager }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("d.sock")
    }

    /// Starts one and does not wait for it.
    pub(crate) fn start(&self, options: Options) -> Process {
        let program = std::env::current_exe().unwrap();
        self.spawn(Spawn::new(&program).args(self.arguments(options)), options)
    }

    /// Starts one with a socket as the service manager would. A shell is in between because the
    /// variables name the pid.
    pub(crate) fn start_activated(&self, socket: UnixListener) -> Process {
        let program = std::env::current_exe().unwrap();
        let options = Options::default();
        let spawn = Spawn::new(Path::new("/bin/sh"))
            .args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"", "sh"])
            .args([program])
            .args(self.arguments(options))
            .fd(3, OwnedFd::from(socket));
        self.spawn(spawn, options)
    }

    fn arguments(&self, options: Options) -> [String; 9] {
        [
            WORD.to_owned(),
            self.socket().display().to_string(),
            options.connections_max.to_string(),
            options.connection_seconds.to_string(),
            options.requests_max.to_string(),
            options.wait_seconds.to_string(),
            options.drain_seconds.to_string(),
            format!("unix:{}", self.path("m.sock").display()),
            self.path("reloaded").display().to_string(),
        ]
    }

    fn spawn(&self, spawn: Spawn<'_>, options: Options) -> Process {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut environment: Vec<(OsString, OsString)> =
            vec![("NOTIFY_SOCKET".into(), self.path("notify").into())];
        if let Some(limit) = options.watchdog_usec {
            environment.push(("WATCHDOG_USEC".into(), limit.to_string().into()));
        }
        let child = spawn
            .env_clear_set(environment)
            .stderr(OwnedFd::from(writer))
            .spawn()
            .unwrap();
        Process {
            child,
            log: BufReader::new(File::from(OwnedFd::from(reader))),
        }
    }

    /// What the service manager is told next.
    pub(crate) fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Waits until the service manager is told `word`.
    pub(crate) fn until_told(&self, word: &str) -> String {
        loop {
            let told = self.told();
            if told.lines().any(|line| line == word) {
                return told;
            }
        }
    }

    /// A request that is running when this returns.
    pub(crate) fn hold(&self, name: &str) -> Held {
        let (fifo, answer) = self.send_held(name);
        // Opening waits for the daemon to read.
        let fifo = File::options().write(true).open(fifo).unwrap();
        Held { fifo, answer }
    }

    /// A request that may have to wait for its place; the fifo tells.
    pub(crate) fn send_held(&self, name: &str) -> (PathBuf, JoinHandle<Code>) {
        let fifo = self.path(name);
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        (fifo.clone(), self.send(&fifo.display().to_string()))
    }

    /// A request, answered on a thread of its own.
    pub(crate) fn send(&self, topic: &str) -> JoinHandle<Code> {
        let address = format!("unix:{}", self.socket().display());
        let topic = topic.to_owned();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let endpoint = Endpoint::from_shared(address).unwrap().timeout(PATIENCE);
                let channel = endpoint.connect().await;
                let Ok(channel) = channel else {
                    return Code::Unavailable;
                };
                let request = PublishRequest { topic, event: None };
                match EventsClient::new(channel).publish(request).await {
                    Ok(_) => Code::Ok,
                    Err(status) => status.code(),
                }
            })
        })
    }

    /// A connection that has sent the greeting of HTTP/2 and empty settings (RFC 9113, 3.4).
    pub(crate) fn greet(&self) -> UnixStream {
        let mut connection = UnixStream::connect(self.socket()).unwrap();
        let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        connection.write_all(greeting).unwrap();
        connection
    }

    /// A connection with so many requests that have a header and no message.
    pub(crate) fn open_halves(&self, count: u8) -> UnixStream {
        const PATH: &[u8] = b"/containerd.services.events.v1.Events/Publish";
        // Indexed are `:method: POST` and `:scheme: http`; then, by the index of their names,
        // `:path` and `content-type` (RFC 7541, 6.2.2 and appendix A).
        let length = u8::try_from(PATH.len()).unwrap();
        let block = [
            &[0x83, 0x86, 0x04, length],
            PATH,
            b"\x0f\x10\x10application/grpc",
        ]
        .concat();
        let length = u8::try_from(block.len()).unwrap();
        let mut connection = self.greet();
        for number in 0..count {
            // HEADERS, the last of this block, more of the stream to come.
            let frame = [0, 0, length, 0x01, 0x04, 0, 0, 0, 2 * number + 1];
            connection.write_all(&frame).unwrap();
            connection.write_all(&block).unwrap();
        }
        connection
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> String {
        self.http("GET /metrics")
    }

    /// Asks for the metrics page until it has that line.
    pub(crate) fn until_metrics_say(&self, line: &str) {
        let begun = Instant::now();
        while !self.metrics().contains(line) {
            assert!(begun.elapsed() < PATIENCE, "{line}");
        }
    }

    /// A whole answer over HTTP/1.1.
    pub(crate) fn http(&self, request: &str) -> String {
        let mut socket = UnixStream::connect(self.path("m.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let text = format!("{request} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        socket.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What is in its directory, the test's own things apart.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("sock"))
            .collect();
        names.sort();
        names
    }
}

impl Held {
    /// Lets it end.
    pub(crate) fn release(self) -> Code {
        drop(self.fifo);
        self.answer.join().unwrap()
    }
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        self.child.kill(signal).unwrap();
    }

    /// Waits for a line of the log with this message.
    pub(crate) fn until_logged(&mut self, message: &str) -> String {
        let mut all = String::new();
        loop {
            let start = all.len();
            let length = self.log.read_line(&mut all).unwrap();
            assert!(length > 0, "{message:?} was never logged: {all}");
            if all[start..].contains(message) {
                return all[start..].to_owned();
            }
        }
    }

    /// What it logged since, to its end.
    pub(crate) fn rest_of_log(&mut self) -> String {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        log
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let ended = self.child.wait_timeout(PATIENCE).unwrap();
        ended.expect("a daemon ends when it is asked to")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill(Signal::SIGKILL).unwrap();
            self.child.wait().unwrap();
        }
    }
}
