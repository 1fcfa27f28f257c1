//! A registry, asked for one image by the OCI distribution-spec. It gives bytes as they came, bounded: whoever asked
//! compares them with a digest. Its calls block, and must not be made on a thread of an asynchronous runtime.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use disk::Digest;
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError as Refused, OciErrorCode},
    secrets::RegistryAuth,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

use super::{credentials::Credentials, documents, download::Download};
use crate::{
    error::{Error, Result},
    signature::digest,
    tls,
};

/// What an image of a registry begins with on a command line.
pub const SCHEME: &str = "docker://";

/// Until a registry is connected to.
const CONNECT: Duration = Duration::from_secs(10);

/// Without a byte of an answer.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// For a whole document.
const DOCUMENT: Duration = Duration::from_secs(120);

/// How often a document is asked for while what is wrong may pass.
const ATTEMPTS: u32 = 4;

/// Before the second attempt; doubled for each one after.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// What a registry says of itself in a message.
const SAID_MAX: usize = 300;

/// Documents that lead to an image.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// The name of an image of a registry: `REGISTRY/NAME[:TAG][@DIGEST]`; without a registry docker's own, as docker
/// reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName(Reference);

/// How registries are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Credentials as docker's `config.json` has them; docker's own file if there is one, unless said.
    pub auth_file: Option<PathBuf>,
    /// Certificates (PEM) of authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// HTTP without TLS. A registry on this machine is asked so anyway, unless there is a `ca_file`.
    pub plain_http: bool,
}

/// A registry, for one image.
pub struct Registry {
    pub(super) client: Client,
    pub(super) runtime: Runtime,
    pub(super) name: ImageName,
    auth: RegistryAuth,
    /// What is said where it refuses us.
    hint: String,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ImageName {
    /// The registry: a host, perhaps with a port.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// The name without the registry and what is behind it: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// The digest that it names, if it names one.
    pub(crate) fn digest(&self) -> Option<Digest> {
        digest(self.0.digest()?.strip_prefix("sha256:")?)
    }

    /// Whether it begins with that, at the end of a part of it: `r.example/team` is the beginning of
    /// `r.example/team/x:1` and not of `r.example/teams/x:1`.
    #[must_use]
    pub fn is_below(&self, beginning: &str) -> bool {
        let name = format!("{}/{}", self.0.registry(), self.0.repository());
        let beginning = beginning.trim_end_matches('/');
        let rest = name.strip_prefix(beginning);
        !beginning.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The same image by that digest of a manifest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self(self.0.clone_with_digest(format!("sha256:{digest}")))
    }

    /// As the client takes it.
    pub(super) fn reference(&self) -> &Reference {
        &self.0
    }

    /// Whether its registry is on this machine.
    fn is_local(&self) -> bool {
        let host = self.registry();
        let host = host.rsplit_once(':').map_or(host, |(host, _port)| host);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback())
    }
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        let reference = name.parse::<Reference>();
        let reference = reference.map_err(|error| {
            format!("no image of a registry, REGISTRY/NAME[:TAG][@DIGEST]: {error}")
        })?;
        match reference.digest() {
            Some(digest) if !digest.starts_with("sha256:") => {
                Err("a digest that is not sha256:".to_owned())
            }
            _ => Ok(Self(reference)),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.whole())
    }
}

impl Registry {
    /// The registry of that image; it is not asked yet.
    ///
    /// # Errors
    /// Files of `access` that cannot be read, and a machine without certificates of authorities.
    pub fn of(name: ImageName, access: &Access) -> Result<Arc<Self>> {
        tls::for_clients()?;
        let credentials = Credentials::read(access.auth_file.as_deref())?;
        let reference = name.reference();
        let auth = credentials.of(reference)?;
        let is_plain = access.plain_http || (name.is_local() && access.ca_file.is_none());
        let hint = match (&auth, credentials.helper(reference)) {
            (RegistryAuth::Anonymous, Some(helper)) => format!(
                "credentials may be kept by docker-credential-{helper}, which is not asked: put them into a file \
                 for --auth-file"
            ),
            (RegistryAuth::Anonymous, None) => {
                "there are no credentials for it: `docker login` writes them, --auth-file names a file".to_owned()
            }
            _ => "its credentials are refused".to_owned(),
        };
        let config = ClientConfig {
            protocol: if is_plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            extra_root_certificates: access
                .ca_file
                .as_deref()
                .map_or(Ok(Vec::new()), authorities)?,
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            user_agent: concat!("snapshotter-remote/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let setting =
            |what: String| Error::Setting(format!("registry {}: {what}", name.registry()));
        let client = Client::try_from(config);
        let client = client.map_err(|error| setting(snapshot_core::one_line(&error)))?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| setting(error.to_string()))?;
        // Blobs are asked for by digest alone.
        runtime.block_on(client.store_auth_if_needed(reference.resolve_registry(), &auth));
        Ok(Arc::new(Self {
            client,
            runtime,
            name,
            auth,
            hint,
        }))
    }

    /// The image that it is asked for.
    #[must_use]
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// The manifest or index that the name names, or the one of that digest.
    ///
    /// # Errors
    /// [`Error::Registry`].
    pub fn manifest(&self, digest: Option<Digest>) -> Result<Vec<u8>> {
        let name = digest.map_or_else(|| self.name.clone(), |digest| self.name.with_digest(digest));
        let mut pause = PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let asked = async {
                // Credentials that are wrong are told as such.
                let pull = RegistryOperation::Pull;
                self.client.auth(name.reference(), &self.auth, pull).await?;
                let raw = self
                    .client
                    .pull_manifest_raw(name.reference(), &self.auth, &MANIFESTS);
                raw.await
            };
            let answered = self
                .runtime
                .block_on(async { timeout(DOCUMENT, asked).await });
            let what = match answered {
                Ok(Ok((bytes, _their_digest))) if bytes.len() as u64 <= documents::BYTES_MAX => {
                    return Ok(bytes.into());
                }
                Ok(Ok(_)) => "its manifest is longer than 4 MiB".to_owned(),
                Ok(Err(error)) if attempts < ATTEMPTS && may_pass(&error) => {
                    tracing::debug!(image = %name, why = self.said(&error), "asked for again");
                    self.pause(pause);
                    pause *= 2;
                    continue;
                }
                Ok(Err(error)) => self.said(&error),
                Err(_elapsed) => format!("no answer within {} seconds", DOCUMENT.as_secs()),
            };
            return Err(self.failed(&format!("image {name}"), what));
        }
    }

    /// A blob of that length; it is not asked for before it is read.
    #[must_use]
    pub(crate) fn blob(self: &Arc<Self>, digest: Digest, bytes: u64) -> Download {
        Download::new(Arc::clone(self), digest, bytes)
    }

    /// A registry that has much to do is left alone for a moment.
    pub(super) fn pause(&self, pause: Duration) {
        self.runtime.block_on(async { sleep(pause).await });
    }

    pub(super) fn failed(&self, object: &str, what: String) -> Error {
        Error::Registry {
            registry: self.name.registry().to_owned(),
            object: object.to_owned(),
            what,
        }
    }

    /// What went wrong, for people.
    pub(super) fn said(&self, error: &Refused) -> String {
        let what: String = match error {
            Refused::UnauthorizedError { .. } | Refused::AuthenticationFailure(_) => {
                return format!(
                    "it lets nobody in who does not say who it is, and {}",
                    self.hint
                );
            }
            Refused::RegistryError { envelope, .. } => {
                let said = envelope.errors.iter().map(|one| one.message.as_str());
                said.collect::<Vec<_>>().join("; ")
            }
            Refused::ServerError { code, message, .. } => format!("it answered {code}: {message}"),
            Refused::RequestError(error) => without_address(error),
            other => snapshot_core::one_line(other),
        };
        let shown = what.trim().escape_debug().to_string();
        shown.chars().take(SAID_MAX).collect()
    }
}

/// What a request failed for. Where it went is left out: a registry may have sent it on to an address that lets in who knows it.
fn without_address(error: &dyn std::error::Error) -> String {
    let why = error.source().map(snapshot_core::one_line);
    why.unwrap_or_else(|| "a request failed".to_owned())
}

/// Whether the same question may be answered in a moment. A registry that is not there is told at once.
pub(super) fn may_pass(error: &Refused) -> bool {
    match error {
        Refused::RequestError(error) => !error.is_connect() && !error.is_builder(),
        Refused::IoError(_) => true,
        Refused::ServerError { code, .. } => matches!(code, 408 | 429 | 500..),
        Refused::RegistryError { envelope, .. } => {
            let mut codes = envelope.errors.iter().map(|one| &one.code);
            codes.any(|code| *code == OciErrorCode::Toomanyrequests)
        }
        _ => false,
    }
}

/// What the file has is compared when somebody is connected to.
fn authorities(path: &Path) -> Result<Vec<Certificate>> {
    let certificates = tls::certificates(path)?;
    let certificates = certificates.into_iter().map(|certificate| Certificate {
        encoding: CertificateEncoding::Der,
        data: certificate.to_vec(),
    });
    Ok(certificates.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let check = |text: &str, expected: &str| {
            let name = text.parse::<ImageName>().map(|name| name.to_string());
            assert_eq!(name.as_deref(), Ok(expected), "{text}");
        };
        let digest = format!("sha256:{}", "ab".repeat(32));
        check("docker://busybox", "docker.io/library/busybox:latest");
        check("r.example:5000/a/b:1", "r.example:5000/a/b:1");
        check(
            &format!("r.example/a@{digest}"),
            &format!("r.example/a@{digest}"),
        );
        check(
            &format!("docker://r.example/a:1@{digest}"),
            &format!("r.example/a:1@{digest}"),
        );
        for wrong in [
            "",
            "docker://",
            "r.example/A",
            "r.example/a:",
            "r.example/a@sha256:1",
            "a b",
        ] {
            let error = wrong.parse::<ImageName>().unwrap_err();
            assert!(error.contains("REGISTRY/NAME"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_beginning_ends_where_a_part_of_the_name_ends() {
        let name: ImageName = "r.example/team/x:1".parse().unwrap();
        for beginning in [
            "r.example",
            "r.example/",
            "r.example/team",
            "r.example/team/x",
        ] {
            assert!(name.is_below(beginning), "{beginning}");
        }
        for other in [
            "",
            "/",
            "r.exam",
            "r.example/tea",
            "r.example/team/x:1",
            "other.example",
        ] {
            assert!(!name.is_below(other), "{other}");
        }
    }

    #[test]
    fn addresses_are_not_told() {
        let directory = tempfile::tempdir().unwrap();
        let auth_file = directory.path().join("auth.json");
        std::fs::write(&auth_file, "{}").unwrap();
        let access = Access {
            auth_file: Some(auth_file),
            ..Access::default()
        };
        let registry = Registry::of("127.0.0.1:1/image:1".parse().unwrap(), &access).unwrap();
        let error = registry.manifest(None).unwrap_err().to_string();
        assert!(error.contains("Connection refused"), "{error}");
        assert!(!error.contains("/v2/") && !error.contains("://"), "{error}");
    }

    #[test]
    fn registries_of_this_machine_are_known() {
        let is_local = |text: &str| text.parse::<ImageName>().unwrap().is_local();
        assert!(is_local("localhost:5000/x"));
        assert!(is_local("127.0.0.1:5000/x"));
        assert!(is_local("127.8.0.1/x"));
        assert!(!is_local("busybox"));
        assert!(!is_local("r.example:5000/x"));
        assert!(!is_local("10.0.0.1:5000/x"));
    }
}
