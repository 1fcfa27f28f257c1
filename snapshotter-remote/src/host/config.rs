//! The configuration of the daemon on hosts: every key, its default, and what is refused.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use snapshot_core::daemon::{LogConfig, MetricsConfig, ServerConfig, Settings, config};

use super::{attach::Choice, conversion::ConvertConfig, files, lazy, room::Limits, tls::TlsConfig};
use crate::{
    error::{Error, Result},
    signature::PublicKey,
};

/// Where the configuration is looked for.
pub const FILE: &str = "/etc/snapshotter-remote/config.toml";

/// Where snapshots and the cache are: below containerd's own directory, where the kubelet looks for free
/// space also under versions that cannot be told another place.
const ROOT: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.remote";

/// Where containerd connects.
const ADDRESS: &str = "/run/snapshotter-remote/snapshotter.sock";

/// Keys and tokens are lines.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Less would hold no chunk.
const MAX_BYTES_MIN: u64 = 16 << 20;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of all snapshots and of the cache.
    pub root: PathBuf,
    /// Socket that containerd connects to.
    pub address: PathBuf,
    /// `[log]`
    pub log: LogConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[server]`
    pub server: ServerConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[attach]`
    pub attach: AttachConfig,
    /// `[prefetch]`
    pub prefetch: PrefetchConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[verify]`
    pub verify: VerifyConfig,
}

/// Where disks come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Stores with the same disks, `http://HOST:PORT` or `https://HOST:PORT`; the one that answered last is asked first.
    pub urls: Vec<String>,
    /// An HTTP proxy by which they are asked, `http://HOST:PORT`; they are asked directly when it fails.
    pub proxy: Option<String>,
    /// A file with the public keys that are trusted, one a line.
    pub key_file: Option<PathBuf>,
    /// A file with this host's token.
    pub token_file: Option<PathBuf>,
    /// How long a store may take to be connected to, in seconds.
    pub connect_seconds: u64,
    /// How long a store may take for an object, in seconds.
    pub object_seconds: u64,
    /// How long a chunk is tried for before whoever waits for it is told that it failed, in seconds.
    pub deadline_seconds: u64,
    /// Chunks that are fetched at once: `copy`: for each disk; `lazy`: for all who read.
    pub fetches_max: usize,
    /// `[store.convert]`
    pub convert: ConvertConfig,
    /// `[store.tls]`
    pub tls: TlsConfig,
}

/// How disks become directories.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttachConfig {
    /// Which back end; the first that works when it is `auto`.
    pub kind: Choice,
    /// `lazy`, `fuse`: chunks that are fetched before who reads one after the other asks for them.
    pub read_ahead_chunks: usize,
    /// `lazy`, `fuse`: when a disk that was mounted begins to be fetched whole, in seconds.
    pub complete_after_seconds: u64,
    /// `lazy`, `fuse`: how fast, in MiB a second; 0: what nobody reads is not fetched.
    pub complete_mebibytes: u64,
}

/// What is fetched before anybody reads it, as others read it first; `lazy` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefetchConfig {
    /// How long it is noted what is read first of a disk that is mounted for the first time, in seconds; 0: it is not, and no store
    /// is told.
    pub record_seconds: u64,
    /// How fast is fetched along a trace, in MiB a second; 0: nothing is.
    pub mebibytes: u64,
    /// Chunks that are fetched so at once, of `store.fetches_max`, of which one stays for who reads.
    pub fetches_max: usize,
}

/// How much of the host's disk it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// How much blobs and metadata may take; 0: what the disk has.
    pub max_bytes: u64,
    /// From how much of that on something goes, in percent.
    pub high_percent: u64,
    /// Until how much of it is left, in percent.
    pub low_percent: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
            address: PathBuf::from(ADDRESS),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            server: ServerConfig::default(),
            store: StoreConfig::default(),
            attach: AttachConfig::default(),
            prefetch: PrefetchConfig::default(),
            cache: CacheConfig::default(),
            verify: VerifyConfig::default(),
        }
    }
}

/// When the cache is read and compared with its digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyConfig {
    /// How long it is left alone, in hours; 0: it is read when somebody asks for it, and else never.
    pub every_hours: u64,
    /// How fast it is read, in MiB a second.
    pub mebibytes: u64,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self {
            every_hours: 168,
            mebibytes: 8,
        }
    }
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        Self {
            record_seconds: 30,
            mebibytes: 64,
            fetches_max: 4,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_bytes: 0,
            high_percent: 95,
            low_percent: 85,
        }
    }
}

impl Default for AttachConfig {
    fn default() -> Self {
        Self {
            kind: Choice::Auto,
            read_ahead_chunks: 4,
            complete_after_seconds: 60,
            complete_mebibytes: 32,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            proxy: None,
            key_file: None,
            token_file: None,
            connect_seconds: 3,
            object_seconds: 30,
            deadline_seconds: 60,
            fetches_max: 8,
            convert: ConvertConfig::default(),
            tls: TlsConfig::default(),
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

    /// Refuses what nobody could serve with.
    ///
    /// # Errors
    /// [`Error::Setting`] names the key.
    pub fn check(&self) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("store.{key}"), value, bounds);
        let store = &self.store;
        bounded("connect_seconds", store.connect_seconds, 1..=600)?;
        bounded("object_seconds", store.object_seconds, 1..=3600)?;
        bounded("deadline_seconds", store.deadline_seconds, 1..=3600)?;
        bounded("fetches_max", store.fetches_max as u64, 1..=256)?;
        // Who waits longer is told that the request took too long.
        let most = self.server.request_seconds.saturating_sub(1);
        bounded("convert.wait_seconds", store.convert.wait_seconds, 0..=most)?;
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("attach.{key}"), value, bounds);
        let attach = &self.attach;
        bounded("read_ahead_chunks", attach.read_ahead_chunks as u64, 0..=64)?;
        bounded(
            "complete_after_seconds",
            attach.complete_after_seconds,
            0..=86_400,
        )?;
        bounded("complete_mebibytes", attach.complete_mebibytes, 0..=65_536)?;
        self.prefetch.check()?;
        self.cache.check()?;
        self.verify.check()?;
        if store.urls.is_empty() {
            return Err(Error::Setting(
                "no store is named: --store http://HOST:PORT, or store.urls in the configuration"
                    .to_owned(),
            ));
        }
        Ok(self.server.check()?)
    }

    /// How readers of blobs are answered.
    pub(super) fn lazy(&self) -> lazy::Options {
        // One place stays for who reads.
        let others = self.store.fetches_max.saturating_sub(1);
        let prefetch_mebibytes = match others {
            0 => 0,
            _ => self.prefetch.mebibytes,
        };
        lazy::Options {
            deadline: self.store.deadline(),
            fetches_max: self.store.fetches_max,
            read_ahead: self.attach.read_ahead_chunks,
            complete_after: Duration::from_secs(self.attach.complete_after_seconds),
            complete_bytes_per_second: self.attach.complete_mebibytes << 20,
            record: Duration::from_secs(self.prefetch.record_seconds),
            prefetch_bytes_per_second: prefetch_mebibytes << 20,
            prefetch_fetches_max: self.prefetch.fetches_max.min(others),
        }
    }

    /// What the daemon is made of.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            address: self.address.clone(),
            metrics: self.metrics.address.clone(),
            server: self.server,
        }
    }
}

impl VerifyConfig {
    fn check(self) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("verify.{key}"), value, bounds);
        bounded("every_hours", self.every_hours, 0..=8_784)?;
        Ok(bounded("mebibytes", self.mebibytes, 1..=65_536)?)
    }

    pub(super) fn bytes_per_second(self) -> u64 {
        self.mebibytes << 20
    }

    /// How long it may still be left alone, by when that file was written; a cache that was never read is as one that is new.
    pub(super) fn left(self, mark: &Path) -> Duration {
        let every = Duration::from_secs(self.every_hours * 3600);
        let written = std::fs::metadata(mark).and_then(|about| about.modified());
        let Ok(written) = written else {
            // From now on it counts; a root that cannot be written is left alone.
            drop(files::replace(mark, b""));
            return every;
        };
        // A clock that was set back makes it no longer than it may be.
        let age = written.elapsed().unwrap_or_default();
        every.saturating_sub(age)
    }
}

impl PrefetchConfig {
    fn check(self) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("prefetch.{key}"), value, bounds);
        bounded("record_seconds", self.record_seconds, 0..=3600)?;
        bounded("mebibytes", self.mebibytes, 0..=65_536)?;
        Ok(bounded("fetches_max", self.fetches_max as u64, 1..=256)?)
    }
}

impl CacheConfig {
    fn check(self) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("cache.{key}"), value, bounds);
        if self.max_bytes > 0 {
            bounded("max_bytes", self.max_bytes, MAX_BYTES_MIN..=u64::MAX)?;
        }
        bounded("high_percent", self.high_percent, 2..=100)?;
        bounded("low_percent", self.low_percent, 1..=self.high_percent - 1)?;
        Ok(())
    }

    /// When something goes, if there is a limit.
    pub(super) fn limits(self) -> Option<Limits> {
        let part = |percent| self.max_bytes / 100 * percent;
        (self.max_bytes > 0).then(|| Limits {
            high_bytes: part(self.high_percent),
            low_bytes: part(self.low_percent),
        })
    }
}

impl StoreConfig {
    /// Who is trusted.
    ///
    /// # Errors
    /// [`Error::Setting`] without a file; [`Error::Key`] for one that has something else.
    pub fn keys(&self) -> Result<Vec<PublicKey>> {
        let Some(path) = &self.key_file else {
            return Err(Error::Setting(
                "no key is trusted: --key-file FILE (store.key_file), a copy of the store's key.pub"
                    .to_owned(),
            ));
        };
        let text = read(path, "reading the keys in")?;
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(str::parse).collect::<Result<Vec<PublicKey>, _>>();
        let path = path.clone();
        match keys {
            Ok(keys) if keys.is_empty() => Err(Error::Key {
                path,
                what: "it has no key",
            }),
            Ok(keys) => Ok(keys),
            Err(what) => Err(Error::Key { path, what }),
        }
    }

    /// What this host says to be let in.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn token(&self) -> Result<Option<String>> {
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let text = read(path, "reading the token in")?;
        let token = text.trim();
        let is_one = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_one {
            let path = path.clone();
            let what = "it is no token: one word of 32 to 512 characters";
            return Err(Error::Key { path, what });
        }
        Ok(Some(token.to_owned()))
    }

    pub(super) fn connect(&self) -> Duration {
        Duration::from_secs(self.connect_seconds)
    }

    pub(super) fn object(&self) -> Duration {
        Duration::from_secs(self.object_seconds)
    }

    pub(super) fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds)
    }
}

fn read(path: &Path, doing: &'static str) -> Result<String> {
    let failed = |source| Error::File {
        doing,
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversion_is_waited_for_no_longer_than_a_request_may_take() {
        let check = |wait_seconds, request_seconds, expected| {
            let mut config = Config::default();
            config.store.urls.push("http://store:7070".to_owned());
            config.store.convert.wait_seconds = wait_seconds;
            config.server.request_seconds = request_seconds;
            let checked = config.check();
            assert_eq!(checked.is_ok(), expected, "{wait_seconds}: {checked:?}");
            if let Err(error) = checked {
                let said = error.to_string();
                assert!(said.contains("store.convert.wait_seconds"), "{said}");
            }
        };
        check(0, 1, true);
        check(599, 600, true);
        check(600, 600, false);
        check(3599, 3600, true);
    }

    #[test]
    fn traces_leave_a_place_to_who_reads() {
        let check = |all: usize, wanted: usize, expected: (usize, u64)| {
            let mut config = Config::default();
            config.store.fetches_max = all;
            config.prefetch.fetches_max = wanted;
            let options = config.lazy();
            let found = (
                options.prefetch_fetches_max,
                options.prefetch_bytes_per_second >> 20,
            );
            assert_eq!(found, expected, "{wanted} of {all}");
        };
        check(8, 4, (4, 64));
        check(4, 4, (3, 64));
        check(2, 256, (1, 64));
        check(1, 4, (0, 0));
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let example = include_str!("../../../packaging/remote.toml");
        let whole = example.replace("\n#: ", "\n");
        let text: String = example
            .lines()
            .filter(|line| !line.starts_with('#'))
            .fold(String::new(), |text, line| text + line + "\n");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, &text).unwrap();
        assert_eq!(Config::read(Some(&file)).unwrap(), Config::default());
        std::fs::write(&file, whole).unwrap();
        let mut config = Config::read(Some(&file)).unwrap();
        config.store.urls.push("http://store:7070".to_owned());
        assert!(config.store.tls.ca_file.is_some() && config.store.tls.certificate_file.is_some());
        assert!(config.store.proxy.is_some() && config.store.token_file.is_some());
        assert!(config.store.key_file.is_some());
        assert!(config.metrics.address.is_some());
        config.check().unwrap();
        std::fs::write(&file, "[store]\nurl = 1").unwrap();
        let error = Config::read(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("urls"), "{error}");
    }

    #[test]
    fn a_daemon_without_store_or_key_says_what_is_missing() {
        let error = Config::default().check().unwrap_err().to_string();
        assert!(error.contains("--store http://HOST:PORT"), "{error}");
        let error = StoreConfig::default().keys().unwrap_err().to_string();
        assert!(error.contains("--key-file"), "{error}");
    }
}
