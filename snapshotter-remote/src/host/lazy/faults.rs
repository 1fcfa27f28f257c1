//! Blobs that are watched: from when they are mounted until they are whole, by this daemon or by one before it.

use std::{
    fs,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use snapshot_core::{Error, Result};
use sys::{EventJournal, FileId, PreContent};

use super::{
    background::Queue, holder::Holder, prefetch::Prefetch, readers::Readers, state::State,
};
use crate::host::{
    blob::{Blob, Hidden, Source},
    disks::{BLOBS, directories},
    metrics::Measured,
};

/// Readers that may wait at once, each with a descriptor of this process, and slots for the next daemon; one more reader waits
/// until another is answered.
pub(in crate::host) const SLOTS: usize = 1024;

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub(in crate::host) struct Options {
    /// How long a reader waits.
    pub(in crate::host) deadline: Duration,
    /// Chunks that are fetched at once.
    pub(in crate::host) fetches_max: usize,
    /// Chunks that are fetched before who reads one after the other asks for them.
    pub(in crate::host) read_ahead: usize,
    /// When a blob begins to be completed.
    pub(in crate::host) complete_after: Duration,
    /// And how fast; 0: what nobody reads is not fetched.
    pub(in crate::host) complete_bytes_per_second: u64,
    /// How long it is noted what is read first of a disk; zero: it is not.
    pub(in crate::host) record: Duration,
    /// How fast is fetched along a trace; 0: nothing is.
    pub(in crate::host) prefetch_bytes_per_second: u64,
    /// Chunks that are fetched along traces at once.
    pub(in crate::host) prefetch_fetches_max: usize,
}

/// What it is done with.
#[derive(Debug)]
pub(in crate::host) struct Means {
    /// Where chunks come from.
    pub(in crate::host) source: Arc<dyn Source + Send>,
    /// How.
    pub(in crate::host) options: Options,
    /// What is counted.
    pub(in crate::host) measured: Measured,
}

/// All blobs of a host that are watched, and who waits for them.
#[derive(Debug)]
pub(in crate::host) struct Faults {
    shared: Arc<Readers>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Until somebody else has them: what is deleted takes room as long as it is open.
    opened: Mutex<Vec<Arc<Blob>>>,
}

impl Faults {
    /// Nobody waits yet, and nothing is watched.
    ///
    /// # Errors
    /// What keeps it from watching at all.
    pub(in crate::host) fn new(root: &Path, means: Means) -> Result<Self> {
        let failed = || Error::io("watch blobs below", root);
        let group = PreContent::new().map_err(failed())?;
        let journal = EventJournal::new(SLOTS).map_err(failed())?;
        let holder = Holder::at(root);
        Self::start(root, (group, journal, holder), means, Vec::new())
    }

    /// Goes on for a daemon that was killed, if there was one that had watched something.
    ///
    /// # Errors
    /// For a holder that is none of ours, and what keeps the cache from being read.
    pub(in crate::host) fn take_over(root: &Path, means: Means) -> Result<Option<Self>> {
        let mut holder = Holder::at(root);
        let Some((group, journal)) = holder.take()? else {
            return Ok(None);
        };
        let blobs = blobs(&root.join(BLOBS))?;
        let parts = (group, journal, holder);
        Self::start(root, parts, means, blobs).map(Some)
    }

    fn start(
        root: &Path,
        (group, journal, holder): (PreContent, EventJournal, Holder),
        means: Means,
        opened: Vec<Arc<Blob>>,
    ) -> Result<Self> {
        let failed = || Error::io("start answering readers of", root);
        let (waker, woken) = UnixStream::pair().map_err(failed())?;
        for end in [&waker, &woken] {
            end.set_nonblocking(true).map_err(failed())?;
        }
        let mut state = State::new(journal.slots());
        let options = &means.options;
        let rate = options.prefetch_bytes_per_second;
        state.prefetch = Prefetch::new(options.prefetch_fetches_max, rate);
        for blob in &opened {
            let id = FileId::of(blob.data()).map_err(failed())?;
            state.blobs.insert(id, Arc::clone(blob));
        }
        let shared = Arc::new(Readers {
            group,
            journal,
            holder: Mutex::new(holder),
            source: means.source,
            options: means.options,
            measured: means.measured,
            state: Mutex::new(state),
            changed: Condvar::new(),
            background: Queue::default(),
            jobs: Queue::default(),
            waker,
            is_ending: AtomicBool::new(false),
            knows_watched: AtomicBool::new(opened.is_empty()),
        });
        // Before anything new is read: an answer to one of these must not reach another.
        shared.take_debts();
        let this = Self {
            threads: Mutex::default(),
            opened: Mutex::new(opened.clone()),
            shared,
        };
        this.spawn_all(woken, opened).map_err(failed())?;
        Ok(this)
    }

    fn spawn_all(&self, woken: UnixStream, opened: Vec<Arc<Blob>>) -> std::io::Result<()> {
        let mut threads = Vec::new();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
        };
        let shared = Arc::clone(&self.shared);
        threads.push(spawn("faults", Box::new(move || shared.dispatch(&woken)))?);
        for _ in 0..self.shared.options.fetches_max {
            let shared = Arc::clone(&self.shared);
            threads.push(spawn("fetch", Box::new(move || shared.fetch()))?);
        }
        let shared = Arc::clone(&self.shared);
        threads.push(spawn("complete", Box::new(move || shared.complete()))?);
        let shared = Arc::clone(&self.shared);
        threads.push(spawn("traces", Box::new(move || shared.work_on_traces()))?);
        if !opened.is_empty() {
            let shared = Arc::clone(&self.shared);
            // Nobody joins it: it may wait for a piece that the next daemon will fetch.
            spawn("knock", Box::new(move || shared.knock(&opened)))?;
        }
        self.lock_threads().extend(threads);
        Ok(())
    }

    /// Blobs that an earlier daemon may have watched, whole or not; told once.
    pub(in crate::host) fn opened(&self) -> Vec<Arc<Blob>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut opened)
    }

    /// Sees to it that who opens the blob's file from now on reads what is right, or waits. Also one that is whole is watched while it
    /// is mounted: only of those who opened it then the kernel tells when something of it has gone.
    ///
    /// # Errors
    /// What keeps it from being watched, or the holder from being started.
    pub(in crate::host) fn watch(&self, blob: &Arc<Blob>) -> Result<()> {
        let shared = &self.shared;
        let failed = || Error::io("watch", blob.path());
        let id = FileId::of(blob.data()).map_err(failed())?;
        if !blob.is_whole() {
            shared.ensure_holder()?;
        }
        let mut state = shared.lock();
        if shared.is_ending() {
            return Err(Error::Unavailable("the daemon ends".to_owned()));
        }
        state.blobs.insert(id, Arc::clone(blob));
        if state.watched.contains(&id) {
            return Ok(());
        }
        shared.group.watch(blob.data()).map_err(failed())?;
        shared.note_watched(&mut state, id);
        if !blob.is_whole() {
            shared.complete_later(id);
        }
        Ok(())
    }

    /// Hides these chunks of a blob from readers, who are told of from before that; none when that cannot be now.
    ///
    /// # Errors
    /// What keeps it from being watched, or the holder from being started.
    pub(in crate::host) fn hide<'a>(
        &self,
        blob: &'a Arc<Blob>,
        pieces: &[usize],
        mountings: u64,
    ) -> Result<Option<Hidden<'a>>> {
        let shared = &self.shared;
        if !shared.knows_watched.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let failed = || Error::io("watch", blob.path());
        let id = FileId::of(blob.data()).map_err(failed())?;
        match shared.ensure_holder() {
            Err(_) if shared.is_ending() => return Ok(None),
            ensured => ensured?,
        }
        let mut state = shared.lock();
        // The holder may have ended since.
        if shared.is_ending() {
            return Ok(None);
        }
        // It has gone from the cache meanwhile.
        if blob.data().metadata().map_err(failed())?.nlink() == 0 {
            return Ok(None);
        }
        state.blobs.entry(id).or_insert_with(|| Arc::clone(blob));
        if !state.watched.contains(&id) {
            shared.group.watch(blob.data()).map_err(failed())?;
            shared.note_watched(&mut state, id);
        }
        // With the state locked: who is answered before reads what is here still, and has it in memory before it reads.
        Ok(blob.hide(pieces, mountings))
    }

    /// Whoever made the blob whole calls this: it need not be watched any more.
    pub(in crate::host) fn completed(&self, blob: &Blob) {
        self.shared.completed(blob);
    }

    /// The blob goes from the cache, perhaps from under overlays that have its disk still. So one that is not whole stays
    /// watched until its file is gone: who reads of it is told that it fails.
    pub(in crate::host) fn forget(&self, blob: &Blob) {
        let Ok(id) = FileId::of(blob.data()) else {
            return;
        };
        let mut state = self.shared.lock();
        state.recordings.forget(id);
        for answer in state.forget(id) {
            self.shared.answer(&mut state, answer);
        }
        if blob.is_whole() {
            self.shared.unwatch(&mut state, blob, id);
        } else if state.watched.remove(&id) {
            self.shared.measured.watched(state.watched.len());
        }
    }

    /// Ends all threads. Who waits goes on waiting, for the next daemon.
    pub(in crate::host) fn finish(&self) {
        let shared = &self.shared;
        shared.is_ending.store(true, Ordering::SeqCst);
        shared.source.close();
        shared.background.end();
        shared.jobs.end();
        // So that nobody is between looking and waiting.
        drop(shared.lock());
        shared.changed.notify_all();
        shared.wake();
        for thread in std::mem::take(&mut *self.lock_threads()) {
            // A panic was reported when it happened.
            drop(thread.join());
        }
        // Until the holder has ended nothing more is watched, and after that nothing is.
        let state = shared.lock();
        let readers = state.requests.len();
        // Also those that an earlier daemon watched, and those that were removed from under overlays.
        match shared.group.watched() {
            Ok(0) => shared.lock_holder().end(),
            Ok(blobs) => tracing::info!(readers, blobs, "readers wait for the next daemon"),
            Err(error) => tracing::warn!(%error, "fd-holder stays, as it is not known who reads"),
        }
    }

    pub(super) fn shared(&self) -> &Readers {
        &self.shared
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All blobs of a cache.
fn blobs(directory: &Path) -> Result<Vec<Arc<Blob>>> {
    if !fs::exists(directory).map_err(Error::io("look at", directory))? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (path, name) in directories(directory)? {
        let missing = || Err(Error::DataLoss("its table is damaged".to_owned()));
        match Blob::open_watched(directory, name.0, missing) {
            Ok(blob) => found.push(Arc::new(blob)),
            Err(error) => {
                let why = error.in_one_line();
                tracing::error!(path = %path.display(), why, "who reads of a blob is told that it fails");
            }
        }
    }
    Ok(found)
}
