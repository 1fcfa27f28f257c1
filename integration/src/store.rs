//! A store of disks with images of the harness in it, served by HTTP as hosts have it.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{
    images::Image,
    process::{Finished, Running, command, output_of},
    runtime::built,
    s3::S3Server,
    wait::SOON,
};

/// Converting a large image takes a while.
const ADD_LIMIT: Duration = Duration::from_secs(300);

/// The kernel chooses.
pub const FREE_PORT: &str = "127.0.0.1:0";

/// A machine that is busy elsewhere is no client that is silent.
const PATIENT: &str = "[server]\nsilence_seconds = 3600\n";

/// A store of its own.
#[derive(Debug)]
pub struct Store {
    directory: tempfile::TempDir,
    place: Place,
    /// For each image the chainID of its last layer, `sha256:...`.
    pub chain_ids: Vec<String>,
}

/// Where a store is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// In the bucket of a server, below that prefix.
    Bucket(Arc<S3Server>, String),
}

impl Place {
    /// Tells a `snapshotter-remote store` of it.
    pub fn tell<'c>(&self, store: &'c mut Command) -> &'c mut Command {
        match self {
            Self::Directory(path) => store.arg("--dir").arg(path),
            Self::Bucket(server, prefix) => {
                let store = server.reach(store, prefix);
                store.arg("--key-file").arg(server.key_file(prefix))
            }
        }
    }

    /// Where its objects are files.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Bucket(server, prefix) => server.bucket().join(prefix),
        }
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::Directory(path.to_owned())
    }
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
    /// One in a directory with these images.
    pub fn with_images(images: &[Image]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let place = Place::Directory(directory.path().join("store"));
        Self::filled(directory, place, images)
    }

    /// One in a bucket with these images.
    pub fn in_bucket(server: &Arc<S3Server>, prefix: &str, images: &[Image]) -> Result<Self> {
        let place = Place::Bucket(Arc::clone(server), prefix.to_owned());
        Self::filled(tempfile::tempdir()?, place, images)
    }

    fn filled(directory: tempfile::TempDir, place: Place, images: &[Image]) -> Result<Self> {
        let mut this = Self {
            directory,
            place,
            chain_ids: Vec::new(),
        };
        for image in images {
            let mut add = command(built("snapshotter-remote")?);
            add.args(["store", "add"]).arg(image.archive()?);
            let said = output_of(this.place.tell(&mut add), ADD_LIMIT)?;
            let chain_id = said.split(' ').next().context("no chainID")?;
            this.chain_ids.push(chain_id.to_owned());
        }
        Ok(this)
    }

    /// Where its objects are files.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.path()
    }

    /// Where it is, for its commands.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A directory beside it that goes with it.
    #[must_use]
    pub fn beside(&self) -> &Path {
        self.directory.path()
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
        Served::of(&self.place, address, "")
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
        Self::of(&directory.into(), address, more)
    }

    /// The same of a store anywhere.
    pub fn of(place: &Place, address: &str, more: &str) -> Result<Self> {
        let serve = command(built("snapshotter-remote")?);
        Self::launch(serve, place, address, &format!("{PATIENT}{more}"))
    }

    /// The same for other machines in plain text, by a command that starts `snapshotter-remote`.
    pub fn start_by(serve: Command, directory: &Path, address: &str) -> Result<Self> {
        let config = format!("plaintext = true\n{PATIENT}");
        Self::launch(serve, &directory.into(), address, &config)
    }

    fn launch(mut serve: Command, place: &Place, address: &str, text: &str) -> Result<Self> {
        let notify = tempfile::tempdir()?;
        let path = notify.path().join("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_read_timeout(Some(SOON * 6))?;
        let config = notify.path().join("config.toml");
        fs::write(&config, text)?;
        serve.args(["store", "serve", "--listen", address]);
        place.tell(&mut serve).arg("--config").arg(config);
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
