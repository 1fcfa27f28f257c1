//! A folder with fifos, a process's ends, and clients. What every test of copying needs.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses its part"
)]

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode as FileMode;
use stdio::{Copier, Drained, Ends, Identity, Mode, Owner, Request, Streams, Uri};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};

/// Longer than anything here takes; a test that waits that long has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
}

/// A process with pipes, played by the test.
pub(crate) struct Process {
    pub(crate) copier: Copier,
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, FileMode::S_IRWXU).unwrap();
        path
    }
}

/// A place as a client names it.
pub(crate) fn uri(place: impl AsRef<Path>) -> Uri {
    Uri::parse(place.as_ref().to_str().unwrap()).unwrap()
}

pub(crate) const IDENTITY: Identity<'_> = Identity {
    id: "some-id",
    namespace: "some-namespace",
};

pub(crate) fn open(uris: [&Uri; 3], mode: Mode) -> Result<(Streams, Ends), stdio::Error> {
    let [stdin, stdout, stderr] = uris;
    Streams::open(&Request {
        stdin,
        stdout,
        stderr,
        mode,
        identity: IDENTITY,
    })
}

/// Opens pipes and starts copying.
pub(crate) fn process(uris: [&Uri; 3]) -> Process {
    let (streams, ends) = open(uris, Mode::Pipes(Owner::default())).unwrap();
    let [stdin, stdout, stderr] = pipes(ends);
    Process {
        copier: streams.copy(None).unwrap(),
        stdin: stdin.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

/// Standard input, output and errors of a process with pipes.
pub(crate) fn pipes(ends: Ends) -> [OwnedFd; 3] {
    match ends {
        Ends::Pipes {
            stdin,
            stdout,
            stderr,
        } => [stdin, stdout, stderr],
        Ends::Terminal => panic!("not pipes"),
    }
}

impl Process {
    /// Writes a line, each third one as an error; gives what it has written.
    pub(crate) fn write_to_either(&mut self, number: usize) -> String {
        let line = format!("{number}\n");
        let stream = if number.is_multiple_of(3) {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        stream.write_all(line.as_bytes()).unwrap();
        line
    }

    /// The process ends: all its descriptors close.
    pub(crate) fn exit(self) -> Copier {
        self.copier
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("in time")
}

pub(crate) async fn drain(copier: &Copier) -> Drained {
    copier.drain(Instant::now() + LIMIT).await
}

/// A client that opens a fifo when it likes and reads to its end.
pub(crate) fn client_reads(path: &Path) -> JoinHandle<Vec<u8>> {
    let path = path.to_owned();
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// What waits in a fifo, without waiting for more.
pub(crate) fn waiting_in(path: &Path) -> Vec<u8> {
    let mut fifo = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .unwrap();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // EAGAIN or the end.
    while let Ok(count @ 1..) = fifo.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    bytes
}

/// Writes all of it on a thread of its own and gives the file back.
pub(crate) fn write_all(mut file: File, bytes: Vec<u8>) -> JoinHandle<File> {
    spawn_blocking(move || {
        file.write_all(&bytes).unwrap();
        file
    })
}

/// Reads exactly that much.
pub(crate) fn read_exact(mut file: File, count: usize) -> JoinHandle<(File, Vec<u8>)> {
    spawn_blocking(move || {
        let mut bytes = vec![0; count];
        file.read_exact(&mut bytes).unwrap();
        (file, bytes)
    })
}

/// Reads to the end.
pub(crate) fn read_to_end(mut file: File) -> JoinHandle<Vec<u8>> {
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Bytes that look random and are the same each time (xorshift64).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }

    /// Fewer than `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap() % bound
    }
}

pub(crate) fn null() -> Uri {
    Uri::Null
}

/// A copy of a descriptor, as a child would inherit it.
pub(crate) fn inherited(file: &impl AsFd) -> OwnedFd {
    file.as_fd().try_clone_to_owned().unwrap()
}
