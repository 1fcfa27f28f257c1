//! A server of a store as a process of its own, with a service manager that hears when it is ready; and a
//! client that says what it is told to say, right or wrong.

#![expect(
    clippy::disallowed_methods,
    reason = "the server is a process of its own, and the crate spawns nothing"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(120);

/// Its configuration.
const FILE: &str = "config.toml";

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// For NBD clients, where they are served.
    pub(crate) nbd_address: Option<SocketAddr>,
    directory: TempDir,
    child: Child,
    log: BufReader<ChildStderr>,
    manager: UnixDatagram,
}

impl Server {
    /// Of the store in that directory, with that configuration.
    pub(crate) fn start(store: &Path, config: &str) -> Self {
        Self::start_at(store, "127.0.0.1:0", config)
    }

    pub(crate) fn start_at(store: &Path, listen: &str, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(LIMIT)).unwrap();
        let mut child = command(directory.path(), store, config)
            .args(["--listen", listen])
            .env("NOTIFY_SOCKET", directory.path().join("notify"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut this = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            nbd_address: None,
            directory,
            child,
            log,
            manager,
        };
        let said = this.hears("READY=1");
        let mut addresses = said.split("://").skip(1);
        let mut address = || addresses.next()?.split_whitespace().next()?.parse().ok();
        this.address = address().unwrap();
        this.nbd_address = address();
        this
    }

    /// One that listens at all addresses, by one of them.
    pub(crate) fn reached_at(mut self, address: [u8; 4]) -> Self {
        self.address.set_ip(address.into());
        self
    }

    /// Another configuration, which it reads when it is told to.
    pub(crate) fn configure(&self, config: &str) {
        std::fs::write(self.directory.path().join(FILE), config).unwrap();
    }

    /// The next word of the server to its manager that has this in it.
    pub(crate) fn hears(&mut self, word: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let count = self.manager.recv(&mut buffer).unwrap();
            let said = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if said.contains(word) {
                return said;
            }
        }
    }

    /// Reads the log until a line has this in it.
    pub(crate) fn logs(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            let count = self.log.read_line(&mut line).unwrap();
            assert!(count > 0, "it ended before it said {word}");
        }
        line
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end; the exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// What comes back for these bytes, until the server closes.
    pub(crate) fn says(&self, bytes: &[u8]) -> Answer {
        let mut socket = self.connect();
        socket.write_all(bytes).unwrap();
        Answer::read(socket)
    }

    /// A GET of a path below /v1/.
    pub(crate) fn get(&self, name: &str, fields: &[&str]) -> Answer {
        self.ask("GET", &format!("/v1/{name}"), fields)
    }

    pub(crate) fn ask(&self, method: &str, path: &str, fields: &[&str]) -> Answer {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: store\r\nConnection: close\r\n{fields}\r\n");
        self.says(head.as_bytes())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The server's command, without an address.
pub(crate) fn command(directory: &Path, store: &Path, config: &str) -> Command {
    let file = directory.join(FILE);
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapshotter-remote"));
    command.args(["store", "serve"]).stdin(Stdio::null());
    command.arg("--dir").arg(store).arg("--config").arg(file);
    command
}

/// The server does not begin with this configuration, and says why in one line.
#[track_caller]
pub(crate) fn refuses(directory: &Path, store: &Path, config: &str, why: &str) {
    let output = command(directory, store, config).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains(why), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 0 when the connection was closed without an answer.
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// To the end of the connection, however it ends.
    pub(crate) fn read(mut source: impl Read) -> Self {
        let mut bytes = Vec::new();
        if let Err(error) = source.read_to_end(&mut bytes) {
            let kind = error.kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "{error}");
        }
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            let head = String::from_utf8_lossy(&bytes).into_owned();
            return Self {
                status: 0,
                head,
                body: Vec::new(),
            };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// A field's value, or nothing.
    pub(crate) fn field(&self, name: &str) -> &str {
        let lines = self.head.lines().skip(1);
        let mut fields = lines.filter_map(|line| line.split_once(": "));
        let found = fields.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
