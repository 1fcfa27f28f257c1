//! The configuration: every key, its default, and what is refused. Reads no file by itself.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;
use snapshot_core::daemon::{LogConfig, MetricsAddress, ServerConfig, Settings, config};

use crate::{
    Error, Result,
    backend::{Fs, ImageOptions, Kind, Options, PoolOptions, ProjectRange},
    limit::{Policy, PolicyText, Size},
};

/// Where the configuration is looked for.
pub const FILE: &str = "/etc/snapshotter-quota/config.toml";

/// Where snapshots are: below containerd's own directory, where the kubelet looks for free space
/// also under containerd before 1.6.32 and 1.7.16, which cannot be told another place.
pub const ROOT: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.quota";

/// Where clients connect.
pub const ADDRESS: &str = "/run/snapshotter-quota/snapshotter.sock";

/// The name under which containerd knows us, unless it is configured otherwise.
pub const NAME: &str = "quota";

/// More snapshots with series of their own are no use to anybody.
const SERIES_MAX: usize = 100_000;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of all snapshots.
    pub root: PathBuf,
    /// Socket that containerd and the commands connect to.
    pub address: PathBuf,
    /// containerd's own socket.
    pub containerd: Option<PathBuf>,
    /// The name in containerd's `proxy_plugins`.
    pub name: String,
    /// `[log]`
    pub log: LogConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[server]`
    pub server: ServerConfig,
    /// `[backend]`
    pub backend: BackendConfig,
    /// `[quota]`
    pub quota: PolicyText,
    /// `[events]`
    pub events: EventsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
            address: PathBuf::from(ADDRESS),
            containerd: None,
            name: NAME.to_owned(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            server: ServerConfig::default(),
            backend: BackendConfig::default(),
            quota: PolicyText::default(),
            events: EventsConfig::default(),
        }
    }
}

/// How limits are made to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendConfig {
    /// Which; the first that works when it is `auto`.
    pub kind: Choice,
    /// What becomes of a limit that cannot hold.
    pub on_unsupported: OnUnsupported,
    /// First of the project ids that nobody else uses.
    pub first_project: Option<u32>,
    /// Last of them.
    pub last_project: Option<u32>,
    /// File system of images; the one that can do what is asked without it.
    pub image_fs: Option<Fs>,
    /// What must be free on the host's disk for another image.
    pub image_reserve: Option<String>,
    /// Size of the pool, which may grow; nine tenths of what is free without it.
    pub pool_size: Option<String>,
}

impl BackendConfig {
    /// What back ends are opened with.
    ///
    /// # Errors
    /// [`Error::Setting`] names the key and what is taken.
    pub fn options(&self) -> Result<Options> {
        let size = |key: &'static str, text: &Option<String>| {
            let read = text.as_deref().map(str::parse::<Size>).transpose();
            let bytes = read.map(|size| size.map(|size| size.bytes().get()));
            bytes.map_err(|why| Error::Setting {
                key,
                why: why.to_string(),
            })
        };
        let default = Options::default();
        let first = self.first_project.unwrap_or(default.projects.first().0);
        let last = self.last_project.unwrap_or(default.projects.last().0);
        Ok(Options {
            projects: ProjectRange::new(first, last).map_err(|why| Error::Setting {
                key: "backend.first_project",
                why: why.to_string(),
            })?,
            image: ImageOptions {
                fs: self.image_fs,
                reserve_bytes: size("backend.image_reserve", &self.image_reserve)?
                    .unwrap_or(default.image.reserve_bytes),
            },
            pool: PoolOptions {
                bytes: size("backend.pool_size", &self.pool_size)?,
            },
        })
    }
}

/// A back end, or whichever works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Choice {
    /// The first that works.
    #[default]
    Auto,
    /// This one, or none at all.
    Only(Kind),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Only).map_err(|_unknown: String| {
                let names = Kind::ALL.map(Kind::name).join(", ");
                format!("{text:?} is no back end; there are auto, {names}")
            }),
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What becomes of a limit that was asked for and cannot hold here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnsupported {
    /// The container is refused.
    #[default]
    Fail,
    /// The container runs without a limit, and the log says so.
    Warn,
}

/// What is told to Prometheus, and where.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where; nowhere when it is missing.
    pub address: Option<MetricsAddress>,
    /// Snapshots that have series of their own.
    pub snapshots_max: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            address: None,
            snapshots_max: 1000,
        }
    }
}

/// How events are found and who hears of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// How long usage is not looked at, at most, where the kernel does not tell, in seconds; a tenth
    /// of that near a limit.
    pub poll_seconds: u64,
    /// How often it is looked whether snapshots are still counted where they should be, in seconds.
    pub audit_seconds: u64,
    /// Whether they go into containerd's event stream too; needs `containerd`.
    pub publish: bool,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            poll_seconds: 10,
            audit_seconds: 300,
            publish: true,
        }
    }
}

impl Config {
    /// Reads the named file, or the usual one if there is one, and what lies in `conf.d` beside it.
    ///
    /// # Errors
    /// Those of [`config::read`].
    pub fn read(file: Option<&Path>) -> Result<Self> {
        Ok(config::read(file, Path::new(FILE))?)
    }

    /// Refuses what no struct could, and gives the policy.
    ///
    /// # Errors
    /// [`Error::Setting`] names the key and what is taken.
    pub fn check(&self) -> Result<Policy> {
        let refuse = |key: &'static str, why: String| Err(Error::Setting { key, why });
        if !self.root.is_absolute() {
            return refuse(
                "root",
                format!("{} is no absolute path", self.root.display()),
            );
        }
        if let Some(path) = self.containerd.as_ref().filter(|path| !path.is_absolute()) {
            return refuse(
                "containerd",
                format!("{} is no absolute path", path.display()),
            );
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(is_name) {
            return refuse(
                "name",
                format!("{:?} is not 1 to 64 letters, digits, - and _", self.name),
            );
        }
        let seconds = |key, value: u64| match (1..=86_400).contains(&value) {
            true => Ok(()),
            false => Err(Error::Setting {
                key,
                why: format!("{value} is not from 1 to 86400 seconds"),
            }),
        };
        seconds("events.poll_seconds", self.events.poll_seconds)?;
        seconds("events.audit_seconds", self.events.audit_seconds)?;
        if self.metrics.snapshots_max > SERIES_MAX {
            return refuse(
                "metrics.snapshots_max",
                format!("{} is more than {SERIES_MAX}", self.metrics.snapshots_max),
            );
        }
        self.server.check()?;
        self.backend.options()?;
        Ok(Policy::new(&self.quota)?)
    }

    /// What the process around the service needs of it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            address: self.address.clone(),
            metrics: self.metrics.address.clone(),
            server: self.server,
        }
    }
}

#[cfg(test)]
mod tests {
    use snapshot_core::daemon::LogLevel;

    use super::*;

    fn read(text: &str) -> Result<Config> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Config::read(Some(&file))
    }

    #[test]
    fn packaged_file_shows_every_key_and_changes_no_default() {
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/quota.toml");
        let text = std::fs::read_to_string(packaged).unwrap();
        let expected = Config {
            containerd: Some(PathBuf::from("/run/containerd/containerd.sock")),
            ..Config::default()
        };
        assert_eq!(read(&text).unwrap(), expected);
        // With its examples taken for real, every key of every table is there and is understood.
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let config = read(&uncommented).unwrap();
        config.check().unwrap();
        for key in [
            "root",
            "address",
            "containerd",
            "name",
            "[log]",
            "level",
            "format",
            "[metrics]",
            "snapshots_max",
            "[server]",
            "connections_max",
            "connection_seconds",
            "requests_max",
            "threads_max",
            "wait_seconds",
            "request_seconds",
            "drain_seconds",
            "[backend]",
            "kind",
            "on_unsupported",
            "first_project",
            "last_project",
            "image_fs",
            "image_reserve",
            "pool_size",
            "[quota]",
            "default_size",
            "default_inodes",
            "default_warn",
            "accounting",
            "[[quota.rules]]",
            "namespace",
            "key",
            "parent",
            "size",
            "soft_size",
            "inodes",
            "warn",
            "group",
            "mode",
            "[events]",
            "poll_seconds",
            "audit_seconds",
            "publish",
        ] {
            let is_there = text.lines().any(|line| {
                let line = line.strip_prefix("#: ").unwrap_or(line);
                line == key || line.starts_with(&format!("{key} = "))
            });
            assert!(is_there, "{key}");
        }
    }

    #[test]
    fn values_are_closed_and_refused_by_their_key() {
        let config = read(
            "name = 'q'\n[log]\nlevel = 'debug'\n[backend]\nkind = 'btrfs'\non_unsupported = 'warn'\n\
             [quota]\ndefault_size = '10g'\n[[quota.rules]]\nnamespace = 'k8s.io'\nsize = '1g'",
        )
        .unwrap();
        assert_eq!(config.log.level, LogLevel::Debug);
        assert_eq!(config.backend.kind, Choice::Only(Kind::Btrfs));
        assert_eq!(config.backend.on_unsupported, OnUnsupported::Warn);
        assert_eq!(config.check().unwrap().rules.len(), 1);

        let check = |text: &str, expected: &[&str]| {
            let error = read(text).and_then(|config| config.check()).unwrap_err();
            let message = error.in_one_line();
            for word in expected {
                assert!(message.contains(word), "{word:?} is not in {message:?}");
            }
        };
        check("root = 'x'", &["root", "no absolute path"]);
        check("containerd = 'x'", &["containerd", "no absolute path"]);
        check("name = 'a.b'", &["name", "a.b"]);
        check(
            "[backend]\nkind = 'zfs'",
            &["backend.kind", "auto, prjquota, btrfs"],
        );
        check("[backend]\nkidn = 'none'", &["backend.kidn", "\"kind\""]);
        check(
            "[events]\npoll_seconds = 0",
            &["events.poll_seconds", "86400"],
        );
        check(
            "[metrics]\nsnapshots_max = 100001",
            &["metrics.snapshots_max", "100000"],
        );
        check("[server]\nrequests_max = 0", &["server.requests_max"]);
        check(
            "[server]\nwait_seconds = 0",
            &["server.wait_seconds", "3600"],
        );
        check(
            "[backend]\nfirst_project = 0",
            &["backend.first_project", "everybody's"],
        );
        check(
            "[backend]\npool_size = 'big'",
            &["backend.pool_size", "big"],
        );
        check(
            "[backend]\nimage_fs = 'zfs'",
            &["backend.image_fs", "ext4, xfs"],
        );
        check(
            "[quota]\ndefault_size = 'big'",
            &["config.toml: quota.default_size: \"big\""],
        );
        check(
            "[quota]\ndefault_inodes = 0",
            &["config.toml: quota.default_inodes: "],
        );
        check(
            "[[quota.rules]]\nsize = '1g'\n[[quota.rules]]\nsize = '-1'",
            &["config.toml: quota.rules[1].size: ", "negative"],
        );
        check(
            "[[quota.rules]]\nsiez = '1g'",
            &["quota.rules[0].siez", "\"size\""],
        );
    }
}
