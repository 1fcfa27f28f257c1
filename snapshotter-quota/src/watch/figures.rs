//! What the watch counts of its own work. It decides nothing.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use snapshot_core::SnapshotId;

/// Numbers for the metrics; each only grows but for those that say otherwise.
#[derive(Debug, Default)]
pub struct Figures {
    hears: AtomicBool,
    refused: AtomicU64,
    looks: AtomicU64,
    looks_failed: AtomicU64,
    published: AtomicU64,
    unpublished: AtomicU64,
    suspects: Mutex<BTreeSet<SnapshotId>>,
}

impl Figures {
    /// Whether the kernel tells of limits.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.hears.load(Ordering::Relaxed)
    }

    /// Refused writes in our projects that the kernel told of.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How often usage was looked at.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// How often that did not work.
    #[must_use]
    pub fn looks_failed(&self) -> u64 {
        self.looks_failed.load(Ordering::Relaxed)
    }

    /// Events that containerd took.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Events that containerd did not take.
    #[must_use]
    pub fn unpublished(&self) -> u64 {
        self.unpublished.load(Ordering::Relaxed)
    }

    /// Writable snapshots of which some file was found outside of its account; goes down when they
    /// are removed or committed.
    #[must_use]
    pub fn suspects(&self) -> usize {
        self.suspects_now().len()
    }

    /// Remembers one more of them.
    pub fn suspect(&self, id: SnapshotId) {
        self.suspects_now().insert(id);
    }

    pub(super) fn suspects_are_among(&self, is_there: impl Fn(SnapshotId) -> bool) {
        self.suspects_now().retain(|id| is_there(*id));
    }

    pub(super) fn set_hearing(&self, hears: bool) {
        self.hears.store(hears, Ordering::Relaxed);
    }

    pub(super) fn add_refused(&self, count: u64) {
        self.refused.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn add_look(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_failed_look(&self) {
        self.looks_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_unpublished(&self, count: u64) {
        self.unpublished.fetch_add(count, Ordering::Relaxed);
    }

    fn suspects_now(&self) -> MutexGuard<'_, BTreeSet<SnapshotId>> {
        // Each change is one insertion or removal: a panic elsewhere leaves it whole.
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
