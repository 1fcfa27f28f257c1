//! Images that are converted when a host asks for one of their disks: once, whoever asks and however many do, a few at
//! once. How one ended is remembered for a while.
//!
//! ```text
//!  nothing --asked for--> Running (waits for its turn, then works) --> Ended --time--> nothing
//! ```

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Deserialize;
use snapshot_core::{daemon::config, one_line};
use tokio::sync::{Semaphore, watch};

use super::measured::Measured;
use crate::{
    error::{Error, Result},
    image::{Access, ImageName, Origin, Platform, Registry},
    store::{Place, Store},
};

/// `[convert]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConvertConfig {
    /// Whether images are converted at all.
    pub enabled: bool,
    /// What names of images begin with that may be: `REGISTRY`, `REGISTRY/TEAM`.
    pub images: Vec<String>,
    /// For which machines; this one's kind without it.
    pub platform: Option<String>,
    /// Credentials for registries, as `docker login` writes them.
    pub auth_file: Option<PathBuf>,
    /// Authorities of registries beside the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// Registries that are asked by HTTP without TLS.
    pub plain_http: Vec<String>,
    /// Conversions at once.
    pub conversions_max: usize,
    /// Conversions that run or wait for their turn.
    pub waiting_max: usize,
    /// How long a request waits for its disk before it is told to come again, in seconds.
    pub hold_seconds: u64,
    /// How long the end of a conversion is remembered, in seconds: what failed is not tried again before.
    pub remember_seconds: u64,
}

impl Default for ConvertConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            images: Vec::new(),
            platform: None,
            auth_file: None,
            ca_file: None,
            plain_http: Vec::new(),
            conversions_max: 2,
            waiting_max: 64,
            hold_seconds: 10,
            remember_seconds: 60,
        }
    }
}

impl ConvertConfig {
    /// Refuses what nobody could convert with.
    pub(super) fn check(&self, silence_seconds: u64) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("convert.{key}"), value, bounds);
        bounded("conversions_max", self.conversions_max as u64, 1..=64)?;
        let most = self.conversions_max as u64;
        bounded("waiting_max", self.waiting_max as u64, most..=65_536)?;
        if self.enabled {
            // Whoever waits longer is taken for dead.
            bounded("hold_seconds", self.hold_seconds, 0..=silence_seconds - 1)?;
        }
        bounded("remember_seconds", self.remember_seconds, 1..=86_400)?;
        self.platform()?;
        if self.enabled && self.images.is_empty() {
            return Err(Error::Setting(
                "no image may be converted: convert.images says what their names begin with, as in \
                 images = [\"registry.example/team\"]"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn platform(&self) -> Result<Platform> {
        let Some(platform) = &self.platform else {
            return Ok(Platform::host());
        };
        let parsed = platform.parse();
        parsed.map_err(|what| Error::Setting(format!("convert.platform is {platform:?}: {what}")))
    }

    fn access(&self, name: &ImageName) -> Access {
        let mut plain = self.plain_http.iter();
        Access {
            auth_file: self.auth_file.clone(),
            ca_file: self.ca_file.clone(),
            plain_http: plain.any(|registry| registry == name.registry()),
        }
    }
}

/// Where a conversion is.
#[derive(Debug)]
enum Life {
    /// It waits or works; who listens is told of each disk that is made, and of the end.
    Running(watch::Receiver<()>),
    /// It has ended and is remembered until then.
    Ended { until: Instant, is_made: bool },
}

/// Why an image is not converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its name is not one of those that may be.
    NotAllowed,
    /// It failed a short while ago.
    Failed,
    /// Too many wait.
    Busy,
}

impl Refused {
    /// For metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Failed => "failed",
            Self::Busy => "busy",
        }
    }
}

/// What comes of one that is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    /// It runs.
    Listen(watch::Receiver<()>),
    /// It was made, so what is not there now is no part of it.
    Made,
    /// Nothing.
    Refused(Refused),
}

/// What comes of a question; nothing where a conversion is to begin.
fn judge(life: Option<&Life>, running: usize, running_max: usize, now: Instant) -> Option<Asked> {
    match life {
        Some(Life::Running(listening)) => Some(Asked::Listen(listening.clone())),
        Some(Life::Ended { until, is_made }) if now < *until => Some(match is_made {
            true => Asked::Made,
            false => Asked::Refused(Refused::Failed),
        }),
        _ if running >= running_max => Some(Asked::Refused(Refused::Busy)),
        _ => None,
    }
}

/// All of a server.
#[derive(Debug)]
pub(super) struct Conversions {
    config: ConvertConfig,
    place: Place,
    platform: Platform,
    measured: Measured,
    turns: Arc<Semaphore>,
    /// By the name of the image, with its digest.
    lives: Mutex<HashMap<String, Life>>,
}

impl Conversions {
    /// Into the store there, which is made if there is none.
    ///
    /// # Errors
    /// A store that this process may not add to.
    pub(super) fn new(
        config: ConvertConfig,
        place: Place,
        measured: Measured,
    ) -> Result<Arc<Self>> {
        Store::create(&place)?;
        Ok(Arc::new(Self {
            turns: Arc::new(Semaphore::new(config.conversions_max)),
            platform: config.platform()?,
            lives: Mutex::default(),
            config,
            place,
            measured,
        }))
    }

    /// How long a request waits whose client would wait so long, if it said so.
    pub(super) fn hold(&self, patience: Option<Duration>) -> Duration {
        let hold = Duration::from_secs(self.config.hold_seconds);
        patience.map_or(hold, |patience| hold.min(patience))
    }

    /// Has an image converted, if it is not being so and may be. On the server's runtime.
    pub(super) fn ask(self: &Arc<Self>, name: ImageName) -> Asked {
        let mut allowed = self.config.images.iter();
        if !allowed.any(|beginning| name.is_below(beginning)) {
            return self.refuse(&name, Refused::NotAllowed);
        }
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        lives.retain(|_, life| match life {
            Life::Running(_) => true,
            Life::Ended { until, .. } => now < *until,
        });
        let running = lives
            .values()
            .filter(|life| matches!(life, Life::Running(_)));
        let running = running.count();
        let key = name.to_string();
        match judge(lives.get(&key), running, self.config.waiting_max, now) {
            Some(Asked::Refused(why)) => {
                drop(lives);
                self.refuse(&name, why)
            }
            Some(asked) => asked,
            None => {
                let (told, listening) = watch::channel(());
                tokio::spawn(Arc::clone(self).run(name, told));
                lives.insert(key, Life::Running(listening.clone()));
                Asked::Listen(listening)
            }
        }
    }

    fn refuse(&self, name: &ImageName, why: Refused) -> Asked {
        tracing::debug!(image = %name, why = why.name(), "an image is not converted");
        self.measured.conversion_refused(why);
        Asked::Refused(why)
    }

    /// Waits for its turn, converts, and notes how that ended.
    async fn run(self: Arc<Self>, name: ImageName, told: watch::Sender<()>) {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let running = self.measured.conversion_begins();
        tracing::info!(image = %name, "an image is converted");
        let (this, image, told) = (Arc::clone(&self), name.clone(), Arc::new(told));
        let tell = Arc::clone(&told);
        let worked = tokio::task::spawn_blocking(move || this.convert(image, &tell)).await;
        let failure = match worked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(one_line(&error)),
            Err(error) => Some(one_line(&error)),
        };
        let is_made = failure.is_none();
        match failure {
            None => tracing::info!(image = %name, "an image was converted"),
            Some(why) => tracing::warn!(image = %name, why, "an image cannot be converted"),
        }
        running.ends(is_made);
        let until = Instant::now() + Duration::from_secs(self.config.remember_seconds);
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.insert(name.to_string(), Life::Ended { until, is_made });
        drop(lives);
        // Who listens sees the end when the last of these goes.
        drop((told, turn));
    }

    /// On a thread that may block.
    fn convert(&self, name: ImageName, told: &watch::Sender<()>) -> Result<()> {
        let access = self.config.access(&name);
        let origin = Origin::of_registry(Registry::of(name, &access)?)?;
        let store = Store::open(&self.place)?;
        for image in &origin.images(&self.platform)? {
            store.add_telling(image, &|_chain_id| told.send_replace(()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_conversion_is_begun_and_its_end_is_remembered() {
        let now = Instant::now();
        let (_told, listening) = watch::channel(());
        let running = Life::Running(listening);
        let ended = |is_made, seconds| Life::Ended {
            until: now + Duration::from_secs(seconds),
            is_made,
        };
        let judged = |life: Option<&Life>, running| judge(life, running, 2, now);
        let busy = |asked| matches!(asked, Some(Asked::Refused(Refused::Busy)));
        let failed = |asked| matches!(asked, Some(Asked::Refused(Refused::Failed)));
        assert!(judged(None, 0).is_none());
        assert!(busy(judged(None, 2)));
        assert!(matches!(judged(Some(&running), 2), Some(Asked::Listen(_))));
        let made = judged(Some(&ended(true, 1)), 2);
        assert!(matches!(made, Some(Asked::Made)));
        assert!(failed(judged(Some(&ended(false, 1)), 0)));
        assert!(judged(Some(&ended(false, 0)), 0).is_none());
        assert!(busy(judged(Some(&ended(true, 0)), 2)));
    }

    #[test]
    fn what_nobody_could_convert_with_is_named() {
        let check = |change: fn(&mut ConvertConfig), expected: &str| {
            let mut config = ConvertConfig {
                enabled: true,
                images: vec!["r.example".to_owned()],
                ..ConvertConfig::default()
            };
            config.check(30).unwrap();
            change(&mut config);
            let error = config.check(30).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        // Who converts nothing waits for nothing.
        ConvertConfig::default().check(1).unwrap();
        check(|config| config.images.clear(), "convert.images");
        check(
            |config| config.conversions_max = 0,
            "convert.conversions_max",
        );
        check(|config| config.waiting_max = 1, "convert.waiting_max");
        check(|config| config.hold_seconds = 30, "convert.hold_seconds");
        check(
            |config| config.remember_seconds = 0,
            "convert.remember_seconds",
        );
        check(
            |config| config.platform = Some("amd64".to_owned()),
            "convert.platform",
        );
    }
}
