//! What happened to limits: remembered for those who ask later, told to those who listen now.
//! It finds nothing by itself.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use snapshot_core::{Key, Usage};
use tokio::sync::broadcast;

use crate::limit::Limit;

/// Events that are remembered, and that a slow listener may be behind.
const REMEMBERED: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// The limit is reached.
    Full,
    /// A threshold or a soft limit is reached.
    Near,
    /// The usage is below it again.
    Below,
    /// The limit was changed.
    Set,
    /// The limit was taken away for a while.
    Lifted,
    /// That while is over.
    LimitedAgain,
    /// A snapshot was not counted any more where it should be.
    Escaped,
    /// The kernel told more than could be heard.
    Lost,
}

impl What {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Full,
        Self::Near,
        Self::Below,
        Self::Set,
        Self::Lifted,
        Self::LimitedAgain,
        Self::Escaped,
        Self::Lost,
    ];

    /// One word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Near => "near",
            Self::Below => "below",
            Self::Set => "set",
            Self::Lifted => "lifted",
            Self::LimitedAgain => "limited-again",
            Self::Escaped => "escaped",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When it was heard of.
    pub time: SystemTime,
    /// What.
    pub what: What,
    /// To which snapshot; `None` when it is about no one.
    pub key: Option<Key>,
    /// What it held then.
    pub usage: Option<Usage>,
    /// What it may hold.
    pub limit: Option<Limit>,
    /// A sentence for people.
    pub text: String,
}

/// All events of this daemon.
#[derive(Debug)]
pub struct Events {
    past: Mutex<VecDeque<Event>>,
    listeners: broadcast::Sender<Event>,
    counts: [AtomicU64; What::ALL.len()],
}

impl Default for Events {
    fn default() -> Self {
        Self {
            past: Mutex::default(),
            listeners: broadcast::Sender::new(REMEMBERED),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Events {
    /// Logs it, remembers it and tells the listeners.
    pub fn tell(&self, event: Event) {
        log(&event);
        self.counts[event.what as usize].fetch_add(1, Ordering::Relaxed);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Under the lock, so that a new listener gets each event once. An error is that nobody
        // listens.
        let _unheard = self.listeners.send(event);
    }

    /// How often each has happened.
    pub fn counts(&self) -> impl Iterator<Item = (What, u64)> {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        What::ALL.into_iter().zip(counts)
    }

    /// What is remembered, and everything from then on.
    #[must_use]
    pub fn listen(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.listeners.subscribe())
    }
}

fn log(event: &Event) {
    let snapshot = event.key.as_ref().map_or("", Key::as_str);
    let bytes = event.usage.map(|usage| usage.bytes);
    let what = event.what.word();
    let text = &event.text;
    match event.what {
        What::Full | What::Near | What::Escaped | What::Lost => {
            tracing::warn!(what, snapshot, bytes, text, "limit");
        }
        What::Below | What::Set | What::Lifted | What::LimitedAgain => {
            tracing::info!(what, snapshot, bytes, text, "limit");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Event {
        Event {
            time: SystemTime::UNIX_EPOCH,
            what: What::Near,
            key: None,
            usage: None,
            limit: None,
            text: number.to_string(),
        }
    }

    #[tokio::test]
    async fn a_listener_gets_the_past_and_the_future_once_each() {
        let events = Events::default();
        events.tell(event(0));
        let (past, mut future) = events.listen();
        events.tell(event(1));
        assert_eq!(past, [event(0)]);
        assert_eq!(future.recv().await.unwrap(), event(1));
        assert!(future.try_recv().is_err());
    }

    #[test]
    fn only_the_latest_are_remembered() {
        let events = Events::default();
        for number in 0..REMEMBERED + 5 {
            events.tell(event(number));
        }
        let (past, _) = events.listen();
        assert_eq!(past.len(), REMEMBERED);
        assert_eq!(past[0], event(5));
        let counts: Vec<_> = events.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(What::Near, REMEMBERED as u64 + 5)]);
    }

    #[tokio::test]
    async fn a_slow_listener_hears_that_it_missed_some() {
        let events = Events::default();
        let (_, mut future) = events.listen();
        for number in 0..REMEMBERED + 3 {
            events.tell(event(number));
        }
        let error = future.recv().await.unwrap_err();
        assert_eq!(error, broadcast::error::RecvError::Lagged(3));
        assert_eq!(future.recv().await.unwrap(), event(3));
    }
}
