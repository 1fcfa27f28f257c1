//! Debian's docker-registry on a port of this machine, with images of the harness: the registry that most others
//! descend from. It is filled by its files, as it lays them out itself.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result};

use crate::{
    apt::Suite,
    cache,
    daemon::Ending,
    images::{Image, Stored},
    process::command,
    wait::{SOON, Sources, until},
};

/// bcrypt of `secret`, the password of `user`.
const USERS: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Whom it lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lets {
    /// Everybody.
    Everybody,
    /// `user`, whose password is `secret`.
    User,
}

/// A running docker-registry; it ends when this is dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    _running: Ending,
    _directory: tempfile::TempDir,
    address: SocketAddr,
}

impl DockerRegistry {
    /// One with these images.
    pub fn with_images(images: &[Image], lets: Lets) -> Result<Self> {
        Self::start(images, lets, "")
    }

    /// One that is asked by HTTPS and shows this certificate.
    pub fn with_tls(images: &[Image], certificate: &Path, key: &Path) -> Result<Self> {
        let (certificate, key) = (certificate.display(), key.display());
        let tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
        Self::start(images, Lets::Everybody, &tls)
    }

    /// `more` are further lines of its table `http`.
    fn start(images: &[Image], lets: Lets, more: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let root = directory.path().join("root");
        for image in images {
            fill(&root, *image)?;
        }
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{more}",
            root.display()
        );
        if lets == Lets::User {
            let users = directory.path().join("users");
            fs::write(&users, USERS)?;
            config += &format!(
                "auth:\n  htpasswd:\n    realm: r\n    path: {}\n",
                users.display()
            );
        }
        let file = directory.path().join("config.yml");
        fs::write(&file, config)?;
        // What it says of each request would fill a pipe.
        let log = directory.path().join("log");
        let mut serve = command(program()?);
        serve.arg("serve").arg(&file);
        let this = Ending::default();
        this.start(serve.stdin(Stdio::null()), &log)?;
        let sources = Sources::none()
            .directory(directory.path())?
            .process(this.pid()?)?;
        let address = until("docker-registry does not listen", SOON, sources, || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let address = said.split("listening on ").nth(1);
            let address = address.and_then(|rest| rest.split(['"', ' ', ',']).next());
            Ok(address.and_then(|address| address.parse().ok()))
        })?;
        Ok(Self {
            _running: this,
            _directory: directory,
            address,
        })
    }

    /// What a client calls an image of it.
    #[must_use]
    pub fn reference(&self, image: Image) -> String {
        format!("{}/{}:1", self.address, image.name())
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The program, of Debian's package, which is not installed: it would bring a service.
fn program() -> Result<PathBuf> {
    let directory = cache::entry("docker-registry-of-bookworm", |into| {
        let lists = tempfile::tempdir()?;
        Suite::open("bookworm", lists.path())?.unpack("docker-registry", into)
    })?;
    Ok(directory.join("usr/bin/docker-registry"))
}

/// Puts the blobs of an image, and what says that they are of it.
fn fill(root: &Path, image: Image) -> Result<()> {
    let base = root.join("docker/registry/v2");
    let repository = base.join("repositories").join(image.name());
    let stored = Stored::of(&image.archive()?)?;
    for digest in stored.digests() {
        let contents = stored.blob(digest)?.context("it has its blobs")?;
        let digest = hexadecimal(digest)?;
        let two = digest.get(..2).context("a digest is long")?;
        let blob = base.join("blobs/sha256").join(two).join(digest);
        put(&blob.join("data"), &contents)?;
        link(&repository.join("_layers/sha256").join(digest), digest)?;
    }
    let digest = hexadecimal(&stored.manifest)?;
    let manifests = repository.join("_manifests");
    link(&manifests.join("revisions/sha256").join(digest), digest)?;
    link(&manifests.join("tags/1/current"), digest)?;
    link(&manifests.join("tags/1/index/sha256").join(digest), digest)
}

fn hexadecimal(digest: &str) -> Result<&str> {
    digest.strip_prefix("sha256:").context("another digest")
}

fn link(directory: &Path, digest: &str) -> Result<()> {
    put(
        &directory.join("link"),
        format!("sha256:{digest}").as_bytes(),
    )
}

fn put(path: &Path, contents: &[u8]) -> Result<()> {
    let directory = path.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory)?;
    Ok(fs::write(path, contents)?)
}
