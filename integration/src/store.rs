//! A store of disks with images of the harness in it, served by HTTP as hosts have it.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{
    images::Image,
    process::{Finished, Running, command, output_of},
    runtime::built,
    wait::SOON,
};

/// Converting a large image takes a while.
const ADD_LIMIT: Duration = Duration::from_secs(300);

/// The kernel chooses.
pub const FREE_PORT: &str = "127.0.0.1:0";

/// A machine that is busy elsewhere is no client that is silent.
const PATIENT: &str = "[server]\nsilence_seconds = 3600\n";

/// A store in a directory of its own.
#[derive(Debug)]
pub struct Store {
    directory: tempfile::TempDir,
    /// For each image the chainID of its last layer, `sha256:...`.
    pub chain_ids: Vec<String>,
}

/// A server of a store; it ends when this is dropped.
#[derive(Debug)]
pub struct Served {
    running: Running,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// The same for NBD clients, where they are served.
    pub nbd_address: Option<String>,
}

impl Store {
    /// One with these images.
    pub fn with_images(images: &[Image]) -> Result<Self> {
        let mut this = Self {
            directory: tempfile::tempdir()?,
            chain_ids: Vec::new(),
        };
        for image in images {
            let mut add = command(built("snapshotter-remote")?);
            add.args(["store", "add"]).arg(image.archive()?);
            add.arg("--dir").arg(this.path());
            let said = output_of(&mut add, ADD_LIMIT)?;
            let chain_id = said.split(' ').next().context("no chainID")?;
            this.chain_ids.push(chain_id.to_owned());
        }
        Ok(this)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// The key that hosts trust.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.path().join("key.pub")
    }

    /// Serves it at a port that is free.
    pub fn serve(&self) -> Result<Served> {
        self.serve_at(FREE_PORT)
    }

    /// Serves it there.
    pub fn serve_at(&self, address: &str) -> Result<Served> {
        Served::start(&self.path(), address)
    }

    /// All files of the store of that kind: `chunks`, `tables`, `layers`, `disks`, `traces`.
    pub fn objects(&self, kind: &str) -> Result<Vec<PathBuf>> {
        files(&self.path().join(kind))
    }

    /// What a host is told of it, before other tables of `[store]`.
    #[must_use]
    pub fn config(&self, address: &str) -> String {
        format!(
            "[store]\nurls = [\"http://{address}\"]\nkey_file = \"{}\"\n",
            self.key_file().display()
        )
    }
}

impl Served {
    /// Serves the store in a directory.
    pub fn start(directory: &Path, address: &str) -> Result<Self> {
        Self::start_with(directory, address, "")
    }

    /// The same; `more` are further tables of its configuration.
    pub fn start_with(directory: &Path, address: &str, more: &str) -> Result<Self> {
        let serve = command(built("snapshotter-remote")?);
        Self::launch(serve, directory, address, &format!("{PATIENT}{more}"))
    }

    /// The same for other machines in plain text, by a command that starts `snapshotter-remote`.
    pub fn start_by(serve: Command, directory: &Path, address: &str) -> Result<Self> {
        let config = format!("plaintext = true\n{PATIENT}");
        Self::launch(serve, directory, address, &config)
    }

    fn launch(mut serve: Command, directory: &Path, address: &str, text: &str) -> Result<Self> {
        let notify = tempfile::tempdir()?;
        let path = notify.path().join("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_read_timeout(Some(SOON * 6))?;
        let config = notify.path().join("config.toml");
        fs::write(&config, text)?;
        serve.args(["store", "serve", "--listen", address, "--dir"]);
        serve.arg(directory).arg("--config").arg(config);
        let running = Running::start(serve.env("NOTIFY_SOCKET", &path))?;
        let mut buffer = [0; 4096];
        let count = manager
            .recv(&mut buffer)
            .context("waiting until it is ready")?;
        let said = String::from_utf8_lossy(&buffer[..count]);
        let address = |scheme| {
            let behind = said.split_once(scheme)?.1;
            behind.split_whitespace().next().map(str::to_owned)
        };
        Ok(Self {
            address: address("http://")
                .or_else(|| address("https://"))
                .context("no address")?,
            nbd_address: address("nbd://").or_else(|| address("nbds://")),
            running,
        })
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.terminate()?;
        self.finish().map(drop)
    }

    /// Tells it to end.
    pub fn terminate(&self) -> Result<()> {
        self.running.signal(Signal::SIGTERM)
    }

    /// Waits for its end; gives what it has said.
    pub fn finish(self) -> Result<Finished> {
        self.running.finish(SOON * 6)?.success()
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
