//! A server of S3 on a port of this machine: versitygw, whose buckets are directories and whose objects are files in them.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    cache,
    daemon::Ending,
    golang,
    process::command,
    versions::{Availability, NO_GO},
    wait::{SOON, Sources, until},
};

/// Who may ask.
pub const KEY_ID: &str = "pouch";
/// And what he knows.
pub const SECRET: &str = "pouch-secret";

/// The bucket that is there.
pub const BUCKET: &str = "disks";

/// How often a port is looked for that nobody takes meanwhile.
const PORTS_MAX: u32 = 5;

/// A server with one bucket, until it is dropped.
#[derive(Debug)]
pub struct S3Server {
    running: Ending,
    program: PathBuf,
    directory: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl S3Server {
    /// Starts one.
    pub fn start() -> Result<Availability<Self>> {
        let Some(go) = golang::compiler() else {
            return Ok(Availability::Absent(NO_GO.to_owned()));
        };
        let built = cache::entry("versitygw-1.8.0", |into| {
            golang::build_as_dependency(
                &go,
                into,
                "github.com/versity/versitygw v1.8.0",
                &["github.com/versity/versitygw/cmd/versitygw"],
            )
        })?;
        let mut this = Self {
            running: Ending::default(),
            program: built.join("versitygw"),
            directory: tempfile::tempdir()?,
            address: String::new(),
        };
        fs::create_dir_all(this.bucket())?;
        for _ in 0..PORTS_MAX {
            // Free at least now.
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            this.address = port.to_string();
            if this.listen()? {
                return Ok(Availability::Ready(this));
            }
        }
        bail!("versitygw does not listen: {}", this.log())
    }

    /// Where its objects are files.
    #[must_use]
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join("objects").join(BUCKET)
    }

    /// Ends it; what it has stays.
    pub fn stop(&self) -> Result<()> {
        self.running.end(Signal::SIGTERM).map(drop)
    }

    /// Starts it again where it was.
    pub fn start_again(&self) -> Result<()> {
        if self.listen()? {
            return Ok(());
        }
        bail!("versitygw does not listen again: {}", self.log())
    }

    /// Tells a `snapshotter-remote store` where the store below a prefix is, and who asks.
    pub fn reach<'c>(&self, store: &'c mut Command, prefix: &str) -> &'c mut Command {
        store
            .arg("--store")
            .arg(format!("s3://{BUCKET}/{prefix}"))
            .arg("--s3-endpoint")
            .arg(format!("http://{}", self.address))
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("NO_PROXY", "127.0.0.1")
    }

    /// Where the private key of the store below a prefix is kept.
    #[must_use]
    pub fn key_file(&self, prefix: &str) -> PathBuf {
        let name = prefix.replace('/', "-");
        self.directory.path().join(format!("{name}.key"))
    }

    /// Whether it listens now; not when another has taken its port.
    fn listen(&self) -> Result<bool> {
        let objects = self.bucket();
        let objects = objects.parent().context("a bucket is below something")?;
        let mut serve = command(&self.program);
        serve
            .args(["--port", &self.address, "--quiet", "posix"])
            .arg(objects)
            .env("ROOT_ACCESS_KEY", KEY_ID)
            .env("ROOT_SECRET_KEY", SECRET)
            .stdin(Stdio::null());
        self.running.start(&mut serve, &self.log_file())?;
        let sources = Sources::none().process(self.running.pid()?)?;
        let listens = until("versitygw does not listen", SOON, sources, || {
            if self.running.ended()?.is_some() {
                return Ok(Some(false));
            }
            let connected = TcpStream::connect(&self.address);
            Ok(connected.is_ok().then_some(true))
        })?;
        if !listens {
            // It has ended: nothing is sent to anybody.
            drop(self.running.end(Signal::SIGTERM));
        }
        Ok(listens)
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}
