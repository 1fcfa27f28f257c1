//! The command line as values.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::LazyLock};

use clap::{Args, Parser, Subcommand};
use disk::Digest;
use snapshot_core::daemon::MetricsAddress;

use crate::{
    error::{Error, Result},
    host::{detach, opener},
    image::{Access, ImageName, Platform, SCHEME},
    signature::digest,
    store::{BucketName, Place, S3Config, WordName},
};

/// What `--version` says; `build.rs` tells the commit.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("POUCH_REVISION").unwrap_or("unknown");
    format!("{}\ncommit: {commit}", env!("CARGO_PKG_VERSION"))
});

/// Images as shared read-only disks.
#[derive(Debug, Parser)]
#[command(name = "snapshotter-remote", version = VERSION.as_str())]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Convert images, once for all hosts, and look after what came of them.
    #[command(subcommand)]
    Store(Store),
    /// Serve containerd's snapshots on this host: layers that a store has are not pulled.
    Serve(HostServe),
    /// Pull an image into containerd without its layers, where `ctr` does not ask a snapshotter (1.6, 1.7).
    Pull(PullImage),
    /// List the disks of this host, and how much of each is here.
    Status(Host),
    /// Keep disks in this host's cache, whatever it is short of.
    Pin(Pins),
    /// Let disks go from the cache again when it is short of room.
    Unpin(Pins),
    /// Fetch disks whole, now.
    Warm(Warm),
    /// Read what is in this host's cache and compare it with its digests; what is damaged is fetched again.
    Verify(VerifyHost),
    /// Take out of this host's cache what no container uses and nobody has pinned.
    Gc(GcHost),
    /// Try what disks need on this host; fails when somebody must act.
    Doctor(Host),
    /// Open files of the daemon's FUSE connection: the daemon starts this, nobody else can.
    #[command(name = opener::WORD, hide = true)]
    OpenServed(OpenServed),
    /// Unmount a disk, whoever reads it: the daemon starts this.
    #[command(name = detach::WORD, hide = true)]
    UnmountServed(UnmountServed),
}

#[derive(Debug, Clone, Args)]
pub(super) struct Host {
    /// The configuration of the daemon [default: /etc/snapshotter-remote/config.toml].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Directory of its snapshots and cache, if it is not that of the configuration.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Its socket, if it is not that of the configuration.
    #[arg(long, value_name = "SOCKET")]
    pub(super) address: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct OpenServed {
    /// Their names there.
    pub(super) names: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct UnmountServed {
    /// Where it is mounted.
    pub(super) target: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Pins {
    /// The disks, as `status` names them: sha256:...
    #[arg(value_name = "CHAINID", required = true)]
    pub(super) chain_ids: Vec<ChainId>,
    #[command(flatten)]
    pub(super) host: Host,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Warm {
    /// The disks, as `status` and `pull` name them (sha256:...), or images that containerd has.
    #[arg(value_name = "CHAINID|IMAGE", required = true)]
    pub(super) disks: Vec<String>,
    #[command(flatten)]
    pub(super) containerd: Containerd,
    #[command(flatten)]
    pub(super) host: Host,
}

#[derive(Debug, Clone, Args)]
pub(super) struct VerifyHost {
    /// These disks alone, as `status` names them: sha256:...
    #[arg(value_name = "CHAINID")]
    pub(super) chain_ids: Vec<ChainId>,
    #[command(flatten)]
    pub(super) host: Host,
}

#[derive(Debug, Clone, Args)]
pub(super) struct GcHost {
    /// Only say how much would go.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) host: Host,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Containerd {
    /// containerd's socket.
    #[arg(
        long = "containerd",
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(super) containerd: PathBuf,
    /// Its namespace: that of CRI is k8s.io.
    #[arg(short, long, default_value = "default")]
    pub(super) namespace: String,
    /// For which machines: OS/ARCHITECTURE. This machine's, unless said.
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct PullImage {
    /// The image: REGISTRY/NAME[:TAG][@DIGEST]; of docker.io without a registry.
    #[arg(value_name = "IMAGE")]
    pub(super) image: ImageName,
    #[command(flatten)]
    pub(super) containerd: Containerd,
    /// The name under which containerd has this daemon as a proxy plug-in.
    #[arg(long, value_name = "NAME", default_value = "remote")]
    pub(super) snapshotter: String,
    #[command(flatten)]
    pub(super) registries: Registries,
}

#[derive(Debug, Clone, Args)]
pub(super) struct HostServe {
    /// Directory of all snapshots and of the cache.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Socket that containerd connects to.
    #[arg(long, value_name = "SOCKET")]
    pub(super) address: Option<PathBuf>,
    /// A store, http://HOST:PORT or https://HOST:PORT; several with the same disks if given again.
    #[arg(long = "store", value_name = "URL")]
    pub(super) stores: Vec<String>,
    /// The public keys that are trusted: a file with a line for each, copied from the stores' key.pub.
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
    /// This host's token, in a file.
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Where metrics are: unix:/PATH or a loopback address.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics: Option<MetricsAddress>,
    /// Everything else, and all of this [default: /etc/snapshotter-remote/config.toml].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Store {
    /// Add an image: its layers as chunks, a disk for each prefix of them.
    Add(Add),
    /// List disks.
    Ls(Where),
    /// Read every byte and compare it with its name; fails if something is damaged or missing.
    Verify(Verify),
    /// Remove disks; `gc` then frees what only they needed.
    Rm(Rm),
    /// Remove what no disk needs, and what a killed `add` left half.
    Gc(Gc),
    /// Serve it to hosts by HTTP, read-only.
    Serve(Serve),
    /// Write a disk to a new file, which `mount -t erofs -o loop,ro` takes.
    Export(Export),
}

/// Where a store is.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// Directory of the store.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "store",
        conflicts_with = "store"
    )]
    dir: Option<PathBuf>,
    /// A bucket of S3 that the store is in, in place of a directory: s3://BUCKET[/PREFIX].
    #[arg(long, value_name = "URL")]
    store: Option<BucketName>,
    #[command(flatten)]
    s3: S3,
}

impl Where {
    /// What was said as one value.
    ///
    /// # Errors
    /// Where a directory is named, and how a bucket is reached.
    pub(super) fn place(&self) -> Result<Place> {
        match (&self.store, &self.dir) {
            (Some(name), _) => Ok(Place::Bucket(
                name.clone(),
                Box::new(self.s3.over(S3Config::default())),
            )),
            (None, dir) => {
                self.s3.only_of_a_bucket()?;
                let dir = dir.clone().expect("one of both is required");
                Ok(Place::Directory(dir))
            }
        }
    }

    /// The same for who waits.
    ///
    /// # Errors
    /// As [`Where::place`].
    pub(super) fn place_for(&self, wait: &Wait) -> Result<Place> {
        let mut place = self.place()?;
        match &mut place {
            Place::Bucket(_, config) => config.forget.clone_from(&wait.forget),
            Place::Directory(_) if wait.forget.is_empty() => {}
            Place::Directory(_) => return Err(of_a_bucket("--forget")),
        }
        Ok(place)
    }
}

/// How a bucket is reached.
#[derive(Debug, Clone, Args)]
pub(super) struct S3 {
    /// Another server of S3 than Amazon's: https://HOST[:PORT] [default: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL].
    #[arg(long, value_name = "URL", help_heading = S3_HEADING)]
    s3_endpoint: Option<String>,
    /// Its region [default: AWS_REGION, or us-east-1].
    #[arg(long, value_name = "NAME", help_heading = S3_HEADING)]
    s3_region: Option<String>,
    /// Buckets of that server are hosts, BUCKET.HOST, and not HOST/BUCKET.
    #[arg(long, help_heading = S3_HEADING)]
    s3_virtual_hosts: bool,
    /// Ask a server on another machine by http://, although everything is plain text then.
    #[arg(long, help_heading = S3_HEADING)]
    s3_plain_http: bool,
    /// Certificates (PEM) of authorities that vouch for that server, in place of the system's.
    #[arg(long, value_name = "FILE", help_heading = S3_HEADING)]
    s3_ca: Option<PathBuf>,
    /// Credentials as Amazon's own command keeps them [default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or
    /// ~/.aws/credentials].
    #[arg(long, value_name = "FILE", help_heading = S3_HEADING)]
    s3_credentials: Option<PathBuf>,
    /// The private key of the store, for who adds: it is not in the bucket. A new store's is made there.
    #[arg(long, value_name = "FILE", help_heading = S3_HEADING)]
    key_file: Option<PathBuf>,
}

const S3_HEADING: &str = "Options for --store";

/// Whoever says it would be wrong about what it does.
fn of_a_bucket(flag: &str) -> Error {
    Error::Setting(format!(
        "{flag} is for a store in a bucket, and this one is in a directory: leave it out, or say --store s3://BUCKET in place \
         of --dir"
    ))
}

impl S3 {
    /// Refuses what says nothing of a directory.
    pub(super) fn only_of_a_bucket(&self) -> Result<()> {
        let said = [
            ("--s3-endpoint", self.s3_endpoint.is_some()),
            ("--s3-region", self.s3_region.is_some()),
            ("--s3-virtual-hosts", self.s3_virtual_hosts),
            ("--s3-plain-http", self.s3_plain_http),
            ("--s3-ca", self.s3_ca.is_some()),
            ("--s3-credentials", self.s3_credentials.is_some()),
            ("--key-file", self.key_file.is_some()),
        ];
        match said.iter().find(|(_, is_said)| *is_said) {
            Some((flag, _)) => Err(of_a_bucket(flag)),
            None => Ok(()),
        }
    }

    /// Puts what the flags say over a configuration.
    pub(super) fn over(&self, mut config: S3Config) -> S3Config {
        let texts = [
            (&self.s3_endpoint, &mut config.endpoint),
            (&self.s3_region, &mut config.region),
        ];
        for (said, text) in texts {
            if said.is_some() {
                text.clone_from(said);
            }
        }
        let files = [
            (&self.s3_ca, &mut config.ca_file),
            (&self.s3_credentials, &mut config.credentials_file),
            (&self.key_file, &mut config.key_file),
        ];
        for (said, file) in files {
            if said.is_some() {
                file.clone_from(said);
            }
        }
        config.virtual_hosts |= self.s3_virtual_hosts;
        config.plain_http |= self.s3_plain_http;
        config
    }
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// An OCI image layout: IMAGE.tar, oci-archive:IMAGE.tar, a directory or oci:DIR. Or an image of a registry:
    /// docker://REGISTRY/NAME[:TAG][@DIGEST].
    #[arg(value_name = "IMAGE")]
    pub(super) image: Image,
    #[command(flatten)]
    pub(super) place: Where,
    #[command(flatten)]
    pub(super) registries: Registries,
    /// For which machines: OS/ARCHITECTURE. This machine's, unless said.
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
}

/// How registries are asked.
#[derive(Debug, Clone, Args)]
pub(super) struct Registries {
    /// Credentials for registries, as `docker login` writes them [default: docker's own file].
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// Certificates (PEM) of authorities that vouch for registries, beside the system's.
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
    /// Ask registries by HTTP without TLS; those on this machine are asked so without it, unless --registry-ca is there.
    #[arg(long)]
    plain_http: bool,
}

impl Registries {
    pub(super) fn access(&self) -> Access {
        Access {
            auth_file: self.auth_file.clone(),
            ca_file: self.registry_ca.clone(),
            plain_http: self.plain_http,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    pub(super) place: Where,
    /// Take away what is damaged; `store add` of its image makes it again.
    #[arg(long)]
    pub(super) remove_damaged: bool,
    #[command(flatten)]
    pub(super) wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The disk, as `ls` and `add` name it: sha256:...
    #[arg(value_name = "CHAINID")]
    pub(super) chain_id: ChainId,
    /// The file to make.
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) place: Where,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The disks, as `ls` and `add` name them: sha256:...
    #[arg(value_name = "CHAINID", required = true)]
    pub(super) chain_ids: Vec<ChainId>,
    #[command(flatten)]
    pub(super) place: Where,
    /// The disks of their lower layers, too, as far as no other disk stands on them.
    #[arg(long)]
    pub(super) prefixes: bool,
    #[command(flatten)]
    pub(super) wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    pub(super) place: Where,
    /// Only say what would go.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Name each object, too.
    #[arg(long)]
    pub(super) names: bool,
    #[command(flatten)]
    pub(super) wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// How long to wait until nobody adds; without it, a store that is busy is left alone.
    #[arg(long = "wait", value_name = "SECONDS", default_value_t = 0)]
    pub(super) seconds: u32,
    /// In a bucket: one who is in the way by the message that says so, and is dead for certain; who lives loses what he does.
    #[arg(long, value_name = "WORD", help_heading = S3_HEADING)]
    forget: Vec<WordName>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Serve {
    /// Directory of the store.
    #[arg(long = "dir", value_name = "DIR", conflicts_with = "store")]
    pub(super) path: Option<PathBuf>,
    /// A bucket of S3 that the store is in, in place of a directory: s3://BUCKET[/PREFIX].
    #[arg(long, value_name = "URL")]
    pub(super) store: Option<BucketName>,
    #[command(flatten)]
    pub(super) s3: S3,
    /// Where hosts connect: ADDRESS:PORT; port 0 is one that is free.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// Also serve disks as NBD exports, read-only, each by its name sha256:CHAINID: ADDRESS:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen_nbd: Option<SocketAddr>,
    /// Serve an address that other hosts reach, although everything on it is plain text.
    #[arg(long)]
    pub(super) plaintext: bool,
    /// Who may ask: a file with a line for each host, its name and its token.
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Convert images that hosts ask for and the store does not have, as far as convert.images of the configuration allows.
    #[arg(long)]
    pub(super) convert: bool,
    /// Speak TLS, with this certificate and those between it and its authority (PEM).
    #[arg(long, value_name = "FILE")]
    pub(super) tls_certificate: Option<PathBuf>,
    /// The private key of that certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
    /// Let in only hosts with a certificate of these authorities (PEM).
    #[arg(long, value_name = "FILE")]
    pub(super) client_ca: Option<PathBuf>,
    /// Where metrics are: unix:/PATH or a loopback address.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics: Option<MetricsAddress>,
    /// Everything else, and all of this [default: /etc/snapshotter-remote-store/config.toml].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

/// Where an image is.
#[derive(Debug, Clone)]
pub(super) enum Image {
    Layout(PathBuf),
    Registry(ImageName),
}

/// A disk's name.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChainId(pub(super) Digest);

impl FromStr for Image {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(SCHEME) {
            return text.parse().map(Self::Registry);
        }
        let prefixes = ["oci:", "oci-archive:"];
        let path = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix));
        Ok(Self::Layout(path.unwrap_or(text).into()))
    }
}

impl FromStr for ChainId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let found = digest(digits).ok_or("no chainID: sha256: and 64 hexadecimal digits")?;
        Ok(Self(found))
    }
}
