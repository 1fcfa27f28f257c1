//! Who changes a store in a bucket, where no kernel keeps a lock: everybody puts an object that says so, says it again and again, and looks
//! whether another one is in the way. Whoever is killed is heard of no more, and counts no more after a while. All times are the
//! bucket's own.
//!
//! ```text
//!  put adding/ID or removing/ID --look--> another is in the way: taken back, tried again later
//!                                \------> nobody is: ours, put again every 20 s, taken back at the end
//! ```
//!
//! Each puts before it looks, so of two who are in each other's way one sees the other at least.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use object_store::PutMode;

use super::{bucket::Bucket, key::random, objects::Objects};
use crate::error::{Error, Result};

/// Between two words of a process that lives.
const AGAIN: Duration = Duration::from_secs(20);

/// Between two tries after one that failed.
const SOONER: Duration = Duration::from_secs(2);

/// Who was not heard of for so long counts no more, unless it is said otherwise.
pub(super) const GRACE: Duration = Duration::from_secs(600);

/// Who could not make itself heard for so long has nothing any more, well before others think so.
const OWN: Duration = Duration::from_secs(300);

/// Between two looks while another is in the way; each waits for a time of its own, so that two do not meet for ever.
const PAUSE_MILLIS: u64 = 200;

/// What is done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Objects are put, and what is there is counted upon: by as many as there are.
    Adding,
    /// Objects go: by one alone.
    Removing,
}

impl Kind {
    fn directory(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::Removing => "removing",
        }
    }

    /// Who is in the way of it.
    fn against(self) -> &'static [Self] {
        match self {
            Self::Adding => &[Self::Removing],
            Self::Removing => &[Self::Adding, Self::Removing],
        }
    }
}

/// The right to change a store, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Lease {
    objects: Objects,
    path: String,
    /// When it was put last, in milliseconds that this machine runs.
    heard_at: Arc<AtomicU64>,
    ending: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One who has said that he changes the store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    bytes: u64,
    /// In milliseconds since 1970.
    at: i64,
}

/// Waits for it for so long.
///
/// # Errors
/// [`Error::Busy`], and what the bucket answers.
pub(super) fn take(
    objects: &Objects,
    bucket: &Bucket,
    kind: Kind,
    wait: Duration,
) -> Result<Lease> {
    let name = name()?;
    let path = format!("{}/{name}", kind.directory());
    let until = running() + wait;
    loop {
        let heard_at = running();
        objects.write(&path, Vec::new(), PutMode::Overwrite)?;
        // From here on it goes when this is dropped.
        let lease = Lease {
            objects: objects.clone(),
            heard_at: Arc::new(AtomicU64::new(millis(heard_at))),
            path: path.clone(),
            ending: None,
            thread: None,
        };
        let mut others = Vec::new();
        for against in kind.against() {
            others.extend(seen(objects, *against)?);
        }
        let ours = match kind {
            Kind::Removing => others.clone(),
            Kind::Adding => seen(objects, kind)?,
        };
        let Some(other) = in_the_way(&path, &ours, &others, bucket.grace) else {
            return lease.kept();
        };
        drop(lease);
        if running() >= until {
            return Err(Error::Busy {
                store: bucket.name.to_string(),
                way_out: format!(
                    " ({other}, which counts for {} seconds after its last word; --grace says for how long)",
                    bucket.grace.as_secs()
                ),
            });
        }
        let own = u64::from(random::<1>()?[0]);
        objects.pause(Duration::from_millis(PAUSE_MILLIS + own));
    }
}

/// Words of those who are heard of no more, with their lengths.
pub(super) fn left(objects: &Objects, grace: Duration) -> Result<Vec<(PathBuf, u64)>> {
    let mut all = seen(objects, Kind::Adding)?;
    all.extend(seen(objects, Kind::Removing)?);
    // Whoever asks has put his own just now.
    let now = all.iter().map(|one| one.at).max().unwrap_or_default();
    let gone = all.into_iter().filter(|one| !lives(one, now, grace));
    Ok(gone.map(|one| (one.path.into(), one.bytes)).collect())
}

fn seen(objects: &Objects, kind: Kind) -> Result<Vec<Seen>> {
    let listed = objects.list(kind.directory())?.into_iter();
    Ok(listed
        .map(|object| Seen {
            path: object.location.to_string(),
            bytes: object.size,
            at: object.last_modified.timestamp_millis(),
        })
        .collect())
}

/// The first of the others who lives; without our own word, nobody knows what time it is.
fn in_the_way(path: &str, ours: &[Seen], others: &[Seen], grace: Duration) -> Option<String> {
    let Some(own) = ours.iter().find(|one| one.path == path) else {
        return Some(path.to_owned());
    };
    let mut others = others.iter().filter(|one| one.path != path);
    let other = others.find(|one| lives(one, own.at, grace))?;
    Some(other.path.clone())
}

fn lives(one: &Seen, now: i64, grace: Duration) -> bool {
    let age = u64::try_from(now.saturating_sub(one.at)).unwrap_or(0);
    u128::from(age) <= grace.as_millis()
}

/// Of this machine and process, and of no other one.
fn name() -> Result<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_plain = |sign: &char| sign.is_ascii_alphanumeric() || *sign == '-';
    let host: String = host.trim().chars().filter(is_plain).collect();
    let [a, b, c, d] = random::<4>()?;
    let process = std::process::id();
    Ok(format!("{host}-{process}-{a:02x}{b:02x}{c:02x}{d:02x}"))
}

/// How long this machine runs, also while it sleeps.
fn running() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    now.map(Duration::from)
        .expect("Linux has had this clock since 2.6.39")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Lease {
    /// Has a thread put it again and again.
    fn kept(mut self) -> Result<Self> {
        let (ending, ended) = channel();
        let (objects, path) = (self.objects.clone(), self.path.clone());
        let heard_at = Arc::clone(&self.heard_at);
        let keep = move || {
            let mut pause = AGAIN;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let now = running();
                pause = match objects.write(&path, Vec::new(), PutMode::Overwrite) {
                    Ok(_) => {
                        heard_at.store(millis(now), Ordering::Release);
                        AGAIN
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the store is not told that it is still being changed");
                        SOONER
                    }
                };
            }
        };
        let thread = std::thread::Builder::new().name("store-lease".to_owned());
        let thread = thread.spawn(keep).map_err(|source| Error::File {
            doing: "starting the thread that keeps",
            path: self.path.clone().into(),
            source,
        })?;
        self.ending = Some(ending);
        self.thread = Some(thread);
        Ok(self)
    }

    /// Whether it is still ours: asked before each step that others must not undo, or that would undo theirs.
    ///
    /// # Errors
    /// [`Error::Lapsed`].
    pub(super) fn check(&self) -> Result<()> {
        let heard_at = self.heard_at.load(Ordering::Acquire);
        let silent = millis(running()).saturating_sub(heard_at);
        if u128::from(silent) <= OWN.as_millis() {
            return Ok(());
        }
        Err(Error::Lapsed {
            store: self.objects.shown(),
            seconds: silent / 1000,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            // Its panic was told when it happened.
            drop(thread.join());
        }
        if let Err(error) = self.objects.delete(&self.path) {
            tracing::warn!(%error, "the store is told later that it is not being changed any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str, at: i64) -> Seen {
        Seen {
            path: path.to_owned(),
            bytes: 0,
            at,
        }
    }

    #[test]
    fn who_lives_is_in_the_way_and_who_is_silent_too_long_is_not() {
        let grace = Duration::from_secs(10);
        let own = seen("removing/own", 100_000);
        let check = |others: &[Seen], expected: Option<&str>| {
            let found = in_the_way(&own.path, std::slice::from_ref(&own), others, grace);
            assert_eq!(found.as_deref(), expected, "{others:?}");
        };
        check(&[], None);
        check(std::slice::from_ref(&own), None);
        check(&[seen("adding/a", 90_000)], Some("adding/a"));
        check(&[seen("adding/a", 89_999)], None);
        check(
            &[seen("adding/a", 1), seen("adding/b", 100_000)],
            Some("adding/b"),
        );
        // Who came after us.
        check(&[seen("removing/b", 200_000)], Some("removing/b"));
    }

    #[test]
    fn who_does_not_find_the_own_word_does_not_go_on() {
        let others = [seen("adding/a", 0)];
        let found = in_the_way("removing/own", &[], &others, Duration::ZERO);
        assert_eq!(found.as_deref(), Some("removing/own"));
    }
}
