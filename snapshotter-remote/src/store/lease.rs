//! Who changes a store in a bucket, where no kernel keeps a lock: everybody puts an object that says so, says it again and again, and looks
//! whether another one is in the way. Whoever is killed is heard of no more, and counts no more after a while.
//!
//! ```text
//!  put adding/ID or removing/ID --look--> another is in the way: taken back, tried again later
//!                                \------> nobody is: ours, said again every 20 s, taken back at the end
//!  ours --silent too long, by our clock or the bucket's, swept by another, or to end--> lapsed, for good
//! ```
//!
//! Each puts before it looks, so of two who are in each other's way one sees the other at least. Whoever was taken for dead may have been
//! stopped or paused with its whole machine, clock and all: so a word is only ever said again where it still lies, the bucket's own times
//! of it before and after are compared, and that is done right before each step that others must not undo.

use std::{
    fmt, fs,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use object_store::{PutMode, UpdateVersion};

use super::{bucket::Bucket, key::random, objects::Objects};
use crate::error::{Error, Result};

/// When who says what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between two words of a process that lives.
    again: Duration,
    /// Between two tries after one that failed.
    sooner: Duration,
    /// Who could not make itself heard for so long has nothing any more, well before others think so.
    own: Duration,
    /// Who was not heard of for so long counts no more.
    grace: Duration,
}

/// Of everybody who shares a bucket.
pub(super) const PACE: Pace = Pace {
    again: Duration::from_secs(20),
    sooner: Duration::from_secs(2),
    own: Duration::from_secs(300),
    grace: Duration::from_secs(600),
};

/// Whoever adds waits for one who removes, also for one that is killed just after its last word.
pub(super) const ADD_WAIT: Duration = Duration::from_secs(720);

const _: () = {
    let dead_by = PACE.grace.as_secs() + PACE.again.as_secs();
    assert!(ADD_WAIT.as_secs() > dead_by + 60, "who waits sees the end");
    // The longest request is in between.
    assert!(
        PACE.grace.as_secs() >= PACE.own.as_secs() + 180,
        "who is dead for others knows it long before"
    );
};

/// Between two looks while another is in the way; each waits for a time of its own, so that two do not meet for ever.
const PAUSE_MILLIS: u64 = 200;

/// The words of this process that may have to be taken back.
static WORDS: Mutex<Vec<Weak<Word>>> = Mutex::new(Vec::new());

/// Whether this process ends, and says nothing more.
static ENDING: AtomicBool = AtomicBool::new(false);

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

/// The name of somebody's word, `adding/ID` or `removing/ID`, as messages have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordName(String);

impl FromStr for WordName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kinds = [Kind::Adding, Kind::Removing];
        let mut ids = kinds.iter().filter_map(|kind| {
            let id = text.strip_prefix(kind.directory())?;
            id.strip_prefix('/')
        });
        match ids.next() {
            Some(id) if !id.is_empty() && id.chars().all(is_plain) => Ok(Self(text.to_owned())),
            _ => Err(
                "adding/ID or removing/ID is wanted, as the message has it that names who is in the way",
            ),
        }
    }
}

impl fmt::Display for WordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right to change a store, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Lease {
    word: Arc<Word>,
    ending: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is in the bucket for a lease.
#[derive(Debug)]
struct Word {
    objects: Objects,
    path: String,
    pace: Pace,
    /// By the bucket's clock when it was said last, in milliseconds since 1970. One says it at a time.
    said_at: Mutex<i64>,
    /// When the last one was begun that was heard, in milliseconds that this machine runs.
    heard_at: AtomicU64,
    /// Why it is ours no more; once said, for good.
    lapsed: OnceLock<String>,
    /// Whoever does what others must not undo reads it; whoever takes the word back waits for them.
    steps: RwLock<()>,
}

/// A step that others must not undo, or that would undo theirs, until it is done.
#[derive(Debug)]
#[must_use]
pub(super) struct Step<'l>(#[expect(dead_code, reason = "it is held")] RwLockReadGuard<'l, ()>);

/// One who has said that he changes the store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    /// In milliseconds since 1970.
    at: i64,
}

/// Waits for it for so long.
///
/// # Errors
/// [`Error::Busy`], [`Error::Lapsed`] where this process ends, and what the bucket answers.
pub(super) fn take(
    objects: &Objects,
    bucket: &Bucket,
    kind: Kind,
    wait: Duration,
) -> Result<Lease> {
    for word in &bucket.forget {
        objects.delete(&word.0)?;
    }
    let path = format!("{}/{}", kind.directory(), name()?);
    let until = running() + wait;
    loop {
        let word = Word::begin(objects, &path, bucket.pace);
        // From here on it goes when this is dropped.
        let lease = Lease {
            word,
            ending: None,
            thread: None,
        };
        lease.word.say_first()?;
        let mut others = Vec::new();
        for against in kind.against() {
            others.extend(seen(objects, *against)?);
        }
        let ours = match kind {
            Kind::Removing => others.clone(),
            Kind::Adding => seen(objects, kind)?,
        };
        match judge(&path, &ours, &others, bucket.pace.grace) {
            Judged::Ours { now, dead } => {
                // Should one of them wake up, it finds that out.
                for dead in dead {
                    objects.delete(&dead)?;
                }
                *lock(&lease.word.said_at) = now;
                return lease.kept();
            }
            Judged::InTheWay(other) => {
                drop(lease);
                if running() >= until {
                    return Err(busy(bucket, &other));
                }
            }
        }
        let own = u64::from(random::<1>()?[0]);
        objects.pause(Duration::from_millis(PAUSE_MILLIS + own));
    }
}

fn busy(bucket: &Bucket, other: &str) -> Error {
    Error::Busy {
        store: bucket.name.to_string(),
        way_out: format!(
            " ({other}, which counts until it was silent for {} seconds; if that process is dead for certain, `store gc \
             --forget {other}` gives it up)",
            bucket.pace.grace.as_secs()
        ),
    }
}

/// Takes back all words of this process, which ends, and waits for so long at most; what was not done by then is not done.
pub fn take_words_back(limit: Duration) {
    ENDING.store(true, Ordering::SeqCst);
    let words: Vec<_> = lock(&WORDS).iter().filter_map(Weak::upgrade).collect();
    if words.is_empty() {
        return;
    }
    for word in &words {
        word.lapse(|| "this process is to end".to_owned());
    }
    let (done, all) = channel();
    let thread = std::thread::Builder::new().name("store-words".to_owned());
    let taking = thread.spawn(move || {
        for word in words {
            word.take_back();
        }
        // Nobody may be waiting any more.
        let _late = done.send(());
    });
    if taking.is_err() || all.recv_timeout(limit).is_err() {
        tracing::warn!("the store is not told that it is not being changed any more");
    }
}

fn seen(objects: &Objects, kind: Kind) -> Result<Vec<Seen>> {
    let listed = objects.list(kind.directory())?.into_iter();
    Ok(listed
        .map(|object| Seen {
            path: object.location.to_string(),
            at: object.last_modified.timestamp_millis(),
        })
        .collect())
}

/// What comes of a look.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// Nobody who lives is in the way.
    Ours {
        /// By the bucket's clock, in milliseconds since 1970.
        now: i64,
        /// Words of those who live no more.
        dead: Vec<String>,
    },
    /// The first of those who are.
    InTheWay(String),
}

/// Without our own word, nobody knows what time it is.
fn judge(path: &str, ours: &[Seen], others: &[Seen], grace: Duration) -> Judged {
    let Some(own) = ours.iter().find(|one| one.path == path) else {
        return Judged::InTheWay(path.to_owned());
    };
    let others = others.iter().filter(|one| one.path != path);
    let (living, dead): (Vec<_>, Vec<_>) = others.partition(|one| lives(one, own.at, grace));
    match living.first() {
        Some(other) => Judged::InTheWay(other.path.clone()),
        None => Judged::Ours {
            now: own.at,
            dead: dead.into_iter().map(|one| one.path.clone()).collect(),
        },
    }
}

fn lives(one: &Seen, now: i64, grace: Duration) -> bool {
    between(one.at, now) <= grace
}

/// Nothing where a clock was set back.
fn between(before: i64, after: i64) -> Duration {
    Duration::from_millis(u64::try_from(after.saturating_sub(before)).unwrap_or(0))
}

fn is_plain(sign: char) -> bool {
    sign.is_ascii_alphanumeric() || sign == '-'
}

/// Of this machine and process, and of no other one.
fn name() -> Result<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().chars().filter(|sign| is_plain(*sign));
    let host: String = host.collect();
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Word {
    /// Nothing is said yet.
    fn begin(objects: &Objects, path: &str, pace: Pace) -> Arc<Self> {
        let word = Arc::new(Self {
            objects: objects.clone(),
            path: path.to_owned(),
            pace,
            said_at: Mutex::new(0),
            heard_at: AtomicU64::new(millis(running())),
            lapsed: OnceLock::new(),
            steps: RwLock::new(()),
        });
        let mut words = lock(&WORDS);
        words.retain(|word| word.strong_count() > 0);
        words.push(Arc::downgrade(&word));
        if ENDING.load(Ordering::SeqCst) {
            word.lapse(|| "this process is to end".to_owned());
        }
        word
    }

    fn say_first(&self) -> Result<()> {
        let said_at = lock(&self.said_at);
        self.is_ours()?;
        self.objects
            .write(&self.path, Vec::new(), PutMode::Overwrite)?;
        drop(said_at);
        Ok(())
    }

    /// Says it again, if it is there still, and not later than it may be.
    fn say_again(&self) -> Result<()> {
        let mut said_at = lock(&self.said_at);
        self.is_ours()?;
        let began = running();
        let swept = || "another took it for dead, and its word away".to_owned();
        let Some(before) = self.objects.look(&self.path)? else {
            return Err(self.lapse(swept));
        };
        let mode = match before.e_tag {
            Some(tag) => PutMode::Update(UpdateVersion {
                e_tag: Some(tag),
                version: None,
            }),
            None => PutMode::Overwrite,
        };
        if !self.objects.write(&self.path, Vec::new(), mode)? {
            return Err(self.lapse(swept));
        }
        let Some(now) = self.objects.look(&self.path)? else {
            return Err(self.lapse(swept));
        };
        let now = now.last_modified.timestamp_millis();
        let silent = between(*said_at, now);
        if silent > self.pace.own {
            return Err(self.lapse(|| too_late(silent)));
        }
        *said_at = now;
        self.heard_at.store(millis(began), Ordering::Release);
        Ok(())
    }

    fn is_ours(&self) -> Result<()> {
        let heard_at = self.heard_at.load(Ordering::Acquire);
        let silent = Duration::from_millis(millis(running()).saturating_sub(heard_at));
        if silent > self.pace.own {
            return Err(self.lapse(|| too_late(silent)));
        }
        match self.lapsed.get() {
            Some(why) => Err(self.error(why)),
            None => Ok(()),
        }
    }

    /// For good; the first reason counts.
    fn lapse(&self, why: impl FnOnce() -> String) -> Error {
        self.error(self.lapsed.get_or_init(why))
    }

    fn error(&self, why: &str) -> Error {
        Error::Lapsed {
            store: self.objects.shown(),
            why: why.to_owned(),
        }
    }

    /// When steps that have begun are done, and nobody says it any more.
    fn take_back(&self) {
        let steps = self.steps.write().unwrap_or_else(PoisonError::into_inner);
        let said_at = lock(&self.said_at);
        if let Err(error) = self.objects.delete(&self.path) {
            tracing::warn!(%error, "the store is told later that it is not being changed any more");
        }
        drop((said_at, steps));
    }
}

fn too_late(silent: Duration) -> String {
    format!(
        "it could not say for {} seconds that it is alive",
        silent.as_secs()
    )
}

impl Lease {
    /// Has a thread say it again and again.
    fn kept(mut self) -> Result<Self> {
        let (ending, ended) = channel();
        let word = Arc::clone(&self.word);
        let keep = move || {
            let mut pause = word.pace.again;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pause = match word.say_again() {
                    Ok(()) => word.pace.again,
                    Err(error) => {
                        tracing::warn!(%error, "the store is not told that it is still being changed");
                        if word.lapsed.get().is_some() {
                            return;
                        }
                        word.pace.sooner
                    }
                };
            }
        };
        let thread = std::thread::Builder::new().name("store-lease".to_owned());
        let thread = thread.spawn(keep).map_err(|source| Error::File {
            doing: "starting the thread that keeps",
            path: self.word.path.clone().into(),
            source,
        })?;
        self.ending = Some(ending);
        self.thread = Some(thread);
        Ok(self)
    }

    /// Whether it is still ours, as far as this machine knows: asked before each of many steps.
    ///
    /// # Errors
    /// [`Error::Lapsed`].
    pub(super) fn check(&self) -> Result<Step<'_>> {
        let step = self.word.steps.read();
        let step = step.unwrap_or_else(PoisonError::into_inner);
        self.word.is_ours()?;
        Ok(Step(step))
    }

    /// The same, asking the bucket: before what leads to others, and before the first of many steps.
    ///
    /// # Errors
    /// [`Error::Lapsed`], and what the bucket answers.
    pub(super) fn confirm(&self) -> Result<Step<'_>> {
        self.word.say_again()?;
        self.check()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            // Its panic was told when it happened.
            drop(thread.join());
        }
        self.word.take_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        lock::{adding, removing},
        objects::Ground,
    };

    fn seen(path: &str, at: i64) -> Seen {
        Seen {
            path: path.to_owned(),
            at,
        }
    }

    /// Nobody says anything again by himself, and nobody dies.
    const SLOW: Pace = Pace {
        again: Duration::from_secs(3600),
        ..PACE
    };

    #[test]
    fn who_lives_is_in_the_way_and_who_is_silent_too_long_is_not() {
        let grace = Duration::from_secs(10);
        let own = seen("removing/own", 100_000);
        let check = |others: &[Seen], expected: Result<&[&str], &str>| {
            let found = judge(&own.path, std::slice::from_ref(&own), others, grace);
            let expected = match expected {
                Ok(dead) => Judged::Ours {
                    now: own.at,
                    dead: dead.iter().map(|path| (*path).to_owned()).collect(),
                },
                Err(other) => Judged::InTheWay(other.to_owned()),
            };
            assert_eq!(found, expected, "{others:?}");
        };
        check(&[], Ok(&[]));
        check(std::slice::from_ref(&own), Ok(&[]));
        check(&[seen("adding/a", 90_000)], Err("adding/a"));
        check(&[seen("adding/a", 89_999)], Ok(&["adding/a"]));
        check(
            &[seen("adding/a", 1), seen("adding/b", 100_000)],
            Err("adding/b"),
        );
        // Who came after us.
        check(&[seen("removing/b", 200_000)], Err("removing/b"));
    }

    #[test]
    fn who_does_not_find_the_own_word_does_not_go_on() {
        let others = [seen("adding/a", 0)];
        let found = judge("removing/own", &[], &others, Duration::ZERO);
        assert_eq!(found, Judged::InTheWay("removing/own".to_owned()));
    }

    #[test]
    fn only_words_are_forgotten() {
        for word in ["adding/a-1-00ff", "removing/-1-00ff"] {
            assert_eq!(word.parse::<WordName>().unwrap().to_string(), word);
        }
        for other in [
            "",
            "adding",
            "adding/",
            "disks/1/00",
            "adding/../key.pub",
            "adding/a/b",
        ] {
            other.parse::<WordName>().unwrap_err();
        }
    }

    #[test]
    fn a_word_that_another_took_away_is_not_said_again() {
        let objects = Objects::in_memory(SLOW);
        let held = adding(&objects).unwrap();
        drop(held.confirm().unwrap());
        let words = super::seen(&objects, Kind::Adding).unwrap();
        let [word] = words.as_slice() else {
            panic!("{words:?}");
        };
        let busy = removing(&objects, Duration::ZERO).unwrap_err().to_string();
        assert!(busy.contains(&format!("--forget {}", word.path)), "{busy}");
        let forgetting = objects.forgetting(&word.path);
        drop(removing(&forgetting, Duration::ZERO).unwrap());
        let lapsed = held.confirm().unwrap_err();
        assert!(matches!(lapsed, Error::Lapsed { .. }), "{lapsed}");
        // And that stays so.
        held.check().unwrap_err();
        assert_eq!(super::seen(&objects, Kind::Adding).unwrap(), []);
    }

    #[test]
    fn who_was_silent_too_long_by_the_buckets_clock_has_nothing_any_more() {
        // The clock of this machine stood still.
        let objects = Objects::in_memory(SLOW);
        let Ground::Bucket(bucket) = objects.ground() else {
            panic!("it is a bucket");
        };
        let lease = take(&objects, bucket, Kind::Removing, Duration::ZERO).unwrap();
        drop(lease.confirm().unwrap());
        let own = i64::try_from(PACE.own.as_millis()).unwrap();
        *lock(&lease.word.said_at) -= own + 1;
        let lapsed = lease.confirm().unwrap_err().to_string();
        assert!(lapsed.contains("could not say for 300 seconds"), "{lapsed}");
        lease.check().unwrap_err();
    }

    #[test]
    fn who_was_silent_too_long_by_its_own_clock_does_not_recover() {
        let objects = Objects::in_memory(SLOW);
        let Ground::Bucket(bucket) = objects.ground() else {
            panic!("it is a bucket");
        };
        let lease = take(&objects, bucket, Kind::Adding, Duration::ZERO).unwrap();
        drop(lease.check().unwrap());
        let own = u64::try_from(PACE.own.as_millis()).unwrap();
        let heard_at = &lease.word.heard_at;
        // Less than it runs, perhaps, just after a start.
        let before = heard_at.load(Ordering::Acquire);
        heard_at.store(before.saturating_sub(own + 1000), Ordering::Release);
        if before > own + 1000 {
            lease.word.say_again().unwrap_err();
            heard_at.store(millis(running()), Ordering::Release);
            lease.check().unwrap_err();
        }
    }

    #[test]
    fn the_keeper_says_it_again_until_it_is_swept() {
        let pace = Pace {
            again: Duration::from_millis(5),
            ..PACE
        };
        let objects = Objects::in_memory(pace);
        let held = adding(&objects).unwrap();
        let said = || super::seen(&objects, Kind::Adding).unwrap();
        let first = said();
        let until = running() + Duration::from_secs(60);
        while said() == first {
            assert!(running() < until, "it is not said again");
            std::thread::yield_now();
        }
        objects.delete(&first[0].path).unwrap();
        while held.check().is_ok() {
            assert!(running() < until, "it does not find out");
            std::thread::yield_now();
        }
        assert_eq!(said(), []);
    }

    #[test]
    fn who_is_dead_is_swept_by_who_removes() {
        let pace = Pace {
            grace: Duration::ZERO,
            ..SLOW
        };
        let objects = Objects::in_memory(pace);
        let dead = adding(&objects).unwrap();
        // It waits until the clock has gone on.
        let alone = removing(&objects, Duration::from_secs(60)).unwrap();
        assert_eq!(super::seen(&objects, Kind::Adding).unwrap(), []);
        dead.confirm().unwrap_err();
        drop(alone.confirm().unwrap());
    }

    #[test]
    fn a_word_is_taken_back_when_steps_are_done_and_nothing_is_done_after_it() {
        let objects = Objects::in_memory(SLOW);
        let Ground::Bucket(bucket) = objects.ground() else {
            panic!("it is a bucket");
        };
        let lease = take(&objects, bucket, Kind::Adding, Duration::ZERO).unwrap();
        let step = lease.check().unwrap();
        let word = Arc::clone(&lease.word);
        word.lapse(|| "this process is to end".to_owned());
        let taking = std::thread::spawn(move || word.take_back());
        assert_eq!(super::seen(&objects, Kind::Adding).unwrap().len(), 1);
        drop(step);
        taking.join().unwrap();
        assert_eq!(super::seen(&objects, Kind::Adding).unwrap(), []);
        let lapsed = lease.confirm().unwrap_err().to_string();
        assert!(lapsed.contains("is to end"), "{lapsed}");
    }
}
