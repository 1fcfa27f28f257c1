//! The configuration of the server: every key, its default, and what is refused.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use snapshot_core::daemon::{LogConfig, MetricsConfig, config};

use super::{convert::ConvertConfig, nbd::NbdConfig, tls::TlsConfig};
use crate::{
    error::{Error, Result},
    store::{BucketName, Place, S3Config},
};

/// Where the configuration is looked for.
pub const FILE: &str = "/etc/snapshotter-remote-store/config.toml";

/// Where the store is, unless it is said.
const DIRECTORY: &str = "/var/lib/snapshotter-remote-store";

/// Where it is served, unless it is said.
const PORT: u16 = 7070;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of the store.
    pub dir: PathBuf,
    /// A bucket that the store is in, in place of that directory.
    pub store: Option<BucketName>,
    /// `[s3]`
    pub s3: S3Config,
    /// Where hosts connect.
    pub listen: SocketAddr,
    /// Whether an address that others reach may be served without TLS.
    pub plaintext: bool,
    /// Hosts and their tokens; everybody may ask without it.
    pub token_file: Option<PathBuf>,
    /// `[tls]`
    pub tls: TlsConfig,
    /// `[convert]`
    pub convert: ConvertConfig,
    /// `[nbd]`
    pub nbd: NbdConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[server]`
    pub server: Limits,
}

/// How much, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once; others are refused, and told to come later.
    pub connections_max: usize,
    /// How long a connection may be silent, in seconds: before a request is whole, and in an answer
    /// that is not taken.
    pub silence_seconds: u64,
    /// Threads that read files.
    pub threads_max: usize,
    /// How long answers may take to end after SIGTERM, in seconds.
    pub drain_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from(DIRECTORY),
            store: None,
            s3: S3Config::default(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            plaintext: false,
            token_file: None,
            tls: TlsConfig::default(),
            convert: ConvertConfig::default(),
            nbd: NbdConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            server: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            silence_seconds: 30,
            threads_max: 32,
            drain_seconds: 30,
        }
    }
}

impl Config {
    /// Reads that file, or the one at the usual place if there is one.
    ///
    /// # Errors
    /// For a file that cannot be read, and for keys and values that are not known.
    pub fn read(file: Option<&Path>) -> Result<Self> {
        Ok(config::read(file, Path::new(FILE))?)
    }

    /// Where the store is.
    pub(super) fn place(&self) -> Place {
        match &self.store {
            Some(name) => Place::Bucket(name.clone(), Box::new(self.s3.clone())),
            None => Place::Directory(self.dir.clone()),
        }
    }

    /// The first address, of HTTP or NBD, that other hosts reach.
    pub(super) fn reached(&self) -> Option<SocketAddr> {
        let mut addresses = [Some(self.listen), self.nbd.listen].into_iter().flatten();
        addresses.find(|address| !address.ip().is_loopback())
    }

    /// Refuses what nobody could serve with, or would not want to.
    ///
    /// # Errors
    /// [`Error::Setting`] names the key.
    pub fn check(&self) -> Result<()> {
        self.tls.check()?;
        if self.plaintext && self.tls.is_on() {
            return Err(Error::Setting(
                "plain text and TLS are wanted at once: leave out --plaintext (plaintext), or the certificate"
                    .to_owned(),
            ));
        }
        let reached = self.reached();
        if let Some(address) = reached.filter(|_| !self.plaintext && !self.tls.is_on()) {
            return Err(Error::Setting(format!(
                "{address} can be reached from other hosts, and images and tokens would be sent there as plain \
                 text: give it a certificate (--tls-certificate, --tls-key), or say so with \
                 --plaintext (plaintext = true) where the network is trusted"
            )));
        }
        // Certificates of hosts need TLS, so only tokens say who asks here.
        let is_open =
            self.plaintext && !self.listen.ip().is_loopback() && self.token_file.is_none();
        if self.convert.enabled && is_open {
            return Err(Error::Setting(format!(
                "whoever reaches {} could have images converted, and read them, with the credentials for registries: say \
                 who may ask (--token-file), or use TLS with an authority of hosts (--client-ca) in place of --plaintext",
                self.listen
            )));
        }
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("server.{key}"), value, bounds);
        let limits = &self.server;
        bounded("connections_max", limits.connections_max as u64, 1..=65_536)?;
        bounded("silence_seconds", limits.silence_seconds, 1..=3600)?;
        bounded("threads_max", limits.threads_max as u64, 1..=512)?;
        bounded("drain_seconds", limits.drain_seconds, 0..=3600)?;
        self.nbd.check(self)?;
        self.convert.check(limits.silence_seconds)
    }
}

impl Limits {
    pub(super) fn silence(&self) -> Duration {
        Duration::from_secs(self.silence_seconds)
    }

    pub(super) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_served_without_a_word() {
        let check = |listen: &str, plaintext, expected| {
            let listen = listen.parse().unwrap();
            let config = Config {
                listen,
                plaintext,
                ..Config::default()
            };
            let checked = config.check();
            assert_eq!(checked.is_ok(), expected, "{listen}: {checked:?}");
        };
        check("127.0.0.1:1", false, true);
        check("[::1]:1", false, true);
        check("0.0.0.0:1", false, false);
        check("192.0.2.1:1", false, false);
        check("[::]:1", false, false);
        check("192.0.2.1:1", true, true);
        let tls = TlsConfig {
            certificate_file: Some("x".into()),
            key_file: Some("x".into()),
            ..TlsConfig::default()
        };
        let mut config = Config {
            listen: "192.0.2.1:1".parse().unwrap(),
            tls,
            ..Config::default()
        };
        config.check().unwrap();
        config.plaintext = true;
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("at once"), "{error}");
    }

    #[test]
    fn not_everybody_on_a_network_may_have_images_converted_by_plain_text() {
        let check = |listen: &str, enabled, token_file: Option<&str>, expected| {
            let convert = ConvertConfig {
                enabled,
                images: vec!["r.example".to_owned()],
                ..ConvertConfig::default()
            };
            let config = Config {
                listen: listen.parse().unwrap(),
                plaintext: true,
                token_file: token_file.map(PathBuf::from),
                convert,
                ..Config::default()
            };
            let checked = config.check();
            assert_eq!(checked.is_ok(), expected, "{listen}: {checked:?}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("--token-file"), "{error}");
            }
        };
        check("192.0.2.1:1", true, None, false);
        check("192.0.2.1:1", true, Some("tokens"), true);
        check("192.0.2.1:1", false, None, true);
        check("127.0.0.1:1", true, None, true);
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let example = include_str!("../../../packaging/remote-store.toml");
        let whole = example.replace("\n#: ", "\n");
        let text: String = example
            .lines()
            .filter(|line| !line.starts_with('#'))
            .fold(String::new(), |text, line| text + line + "\n");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        assert_eq!(Config::read(Some(&file)).unwrap(), Config::default());
        std::fs::write(&file, whole).unwrap();
        let config = Config::read(Some(&file)).unwrap();
        assert!(config.token_file.is_some() && config.metrics.address.is_some());
        assert!(config.convert.auth_file.is_some() && config.convert.ca_file.is_some());
        assert!(config.tls.is_on() && config.tls.client_ca_file.is_some());
        assert!(config.nbd.listen.is_some());
        let s3 = config.s3;
        assert!(config.store.is_some() && s3.endpoint.is_some() && s3.region.is_some());
        assert!(s3.ca_file.is_some() && s3.credentials_file.is_some() && s3.key_file.is_some());
        std::fs::write(&file, "lissten = 1").unwrap();
        let error = Config::read(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("listen"), "{error}");
    }

    #[test]
    fn limits_that_nobody_could_serve_with_are_named() {
        let server = Limits {
            silence_seconds: 0,
            ..Limits::default()
        };
        let config = Config {
            server,
            ..Config::default()
        };
        let error = config.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "server.silence_seconds is 0; from 1 to 3600 is taken"
        );
    }
}
