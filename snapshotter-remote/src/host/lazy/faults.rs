//! Blobs that are watched, from when they are mounted until they are whole, and those that are served, by this daemon or by one before it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use disk::Digest;
use snapshot_core::{Error, Result};
use sys::FileId;

use super::{
    background::Queue,
    events::Events,
    prefetch::Prefetch,
    readers::Readers,
    served::{self, Served},
    state::State,
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

/// All blobs of a host that are watched or served, and who waits for them.
#[derive(Debug)]
pub(in crate::host) struct Faults {
    shared: Arc<Readers>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Until somebody else has them: what is deleted takes room as long as it is open.
    opened: Mutex<Vec<Arc<Blob>>>,
}

impl Faults {
    /// Nobody waits yet, and the kernel tells of nobody: see [`Faults::watch_events`] and [`Faults::serve`].
    ///
    /// # Errors
    /// What keeps threads from being started.
    pub(in crate::host) fn new(root: &Path, means: Means) -> Result<Self> {
        Self::start(root, (None, None), means, Vec::new())
    }

    /// Goes on for a daemon that was before this one, if somebody may wait for that.
    ///
    /// # Errors
    /// For a holder that is none of ours, and what keeps the cache from being read.
    pub(in crate::host) fn take_over(root: &Path, means: Means) -> Result<Option<Self>> {
        let parts = (Events::take_over(root)?, Served::take_over(root)?);
        if matches!(parts, (None, None)) {
            return Ok(None);
        }
        let blobs = blobs(&root.join(BLOBS))?;
        if parts.0.is_none() {
            // Nobody watches them.
            blobs.iter().try_for_each(|blob| blob.write_by_own())?;
        }
        Self::start(root, parts, means, blobs).map(Some)
    }

    fn start(
        root: &Path,
        (events, served): (Option<Events>, Option<Served>),
        means: Means,
        opened: Vec<Arc<Blob>>,
    ) -> Result<Self> {
        let failed = || Error::io("start answering readers of", root);
        let mut state = State::new(events.as_ref().map_or(SLOTS, Events::slots));
        let options = &means.options;
        let rate = options.prefetch_bytes_per_second;
        state.prefetch = Prefetch::new(options.prefetch_fetches_max, rate);
        for blob in &opened {
            let id = FileId::of(blob.data()).map_err(failed())?;
            state.blobs.insert(id, Arc::clone(blob));
        }
        if served.is_some() {
            let all = state.blobs.iter();
            let all: Vec<_> = all.map(|(id, blob)| (Arc::clone(blob), *id)).collect();
            for name in state.note_nodes_of_before(all) {
                let blob = Digest(name);
                tracing::error!(%blob, "who reads of a blob is told that it fails: another has its number");
            }
        }
        let is_watching = events.is_some() && !opened.is_empty();
        let shared = Arc::new(Readers {
            events: OnceLock::new(),
            served: OnceLock::new(),
            source: means.source,
            options: means.options,
            measured: means.measured,
            state: Mutex::new(state),
            changed: Condvar::new(),
            background: Queue::default(),
            jobs: Queue::default(),
            is_ending: AtomicBool::new(false),
            are_silent: AtomicBool::new(false),
            knows_watched: AtomicBool::new(!is_watching),
        });
        let this = Self {
            threads: Mutex::default(),
            opened: Mutex::new(opened.clone()),
            shared,
        };
        if let Some(events) = events {
            this.begin_events(events).map_err(failed())?;
        }
        if let Some(served) = served {
            this.begin_served(served).map_err(failed())?;
            for blob in opened.iter().filter(|blob| blob.is_served()) {
                let id = FileId::of(blob.data()).map_err(failed())?;
                this.shared.complete_later(id);
            }
        }
        this.spawn_all(is_watching.then_some(opened))
            .map_err(failed())?;
        Ok(this)
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Readers) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || work(&shared))?;
        self.lock_threads().push(thread);
        Ok(())
    }

    fn spawn_all(&self, watched: Option<Vec<Arc<Blob>>>) -> io::Result<()> {
        for _ in 0..self.shared.options.fetches_max {
            self.spawn("fetch", Readers::fetch)?;
        }
        self.spawn("complete", Readers::complete)?;
        self.spawn("traces", Readers::work_on_traces)?;
        if let Some(blobs) = watched {
            let shared = Arc::clone(&self.shared);
            let knock = std::thread::Builder::new().name("knock".to_owned());
            // Nobody joins it: it may wait for a piece that the next daemon will fetch.
            knock.spawn(move || shared.knock(&blobs))?;
        }
        Ok(())
    }

    fn begin_events(&self, events: Events) -> io::Result<()> {
        let events = self.shared.events.get_or_init(|| events);
        // Before anything new is read: an answer to one of these must not reach another.
        self.shared.take_debts(events);
        self.spawn("faults", |shared| {
            if let Some(events) = shared.events.get() {
                shared.dispatch(events);
            }
        })
    }

    fn begin_served(&self, served: Served) -> io::Result<()> {
        let served = self.shared.served.get_or_init(|| served);
        self.shared.take_requests(served);
        for _ in 0..served::THREADS {
            self.spawn("serve", |shared| {
                if let Some(served) = shared.served.get() {
                    shared.serve(served);
                }
            })?;
        }
        Ok(())
    }

    /// From now on blobs can be watched, if they could not before.
    ///
    /// # Errors
    /// What keeps the kernel from telling of reads.
    pub(in crate::host) fn watch_events(&self, root: &Path) -> Result<()> {
        if self.has_events() {
            return Ok(());
        }
        let begun = self.begin_events(Events::new(root)?);
        begun.map_err(Error::io("start answering readers of", root))
    }

    /// From now on blobs can be served, if they could not before.
    ///
    /// # Errors
    /// What keeps the kernel from asking.
    pub(in crate::host) fn serve(&self, root: &Path) -> Result<()> {
        if self.is_serving() {
            return Ok(());
        }
        let begun = self.begin_served(Served::new(root)?);
        begun.map_err(Error::io("start answering readers of", root))
    }

    /// Whether the kernel tells of reads.
    pub(in crate::host) fn has_events(&self) -> bool {
        self.shared.events.get().is_some()
    }

    /// Whether readers ask.
    pub(in crate::host) fn is_serving(&self) -> bool {
        self.shared.served.get().is_some()
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
        let events = self.events()?;
        let failed = || Error::io("watch", blob.path());
        let id = FileId::of(blob.data()).map_err(failed())?;
        if !blob.is_whole() {
            shared.ensure_holder(events)?;
        }
        let mut state = shared.lock();
        if shared.is_ending() {
            return Err(Error::Unavailable("the daemon ends".to_owned()));
        }
        state.blobs.insert(id, Arc::clone(blob));
        if state.watched.contains(&id) {
            return Ok(());
        }
        events.group.watch(blob.data()).map_err(failed())?;
        shared.note_watched(&mut state, id);
        if !blob.is_whole() {
            shared.complete_later(id);
        }
        Ok(())
    }

    /// The files by which these blobs are read, whose readers ask.
    ///
    /// # Errors
    /// What keeps one from being opened.
    pub(in crate::host) fn files(&self, blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
        let served = self.shared.served.get();
        let served = served.ok_or_else(|| Error::Precondition("nothing is served".to_owned()))?;
        self.shared.serve_blobs(served, blobs)
    }

    fn events(&self) -> Result<&Events> {
        let events = self.shared.events.get();
        events.ok_or_else(|| Error::Precondition("the kernel tells of no reads".to_owned()))
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
        let Some(events) = shared.events.get() else {
            return Ok(None);
        };
        if !shared.knows_watched.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let failed = || Error::io("watch", blob.path());
        let id = FileId::of(blob.data()).map_err(failed())?;
        match shared.ensure_holder(events) {
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
            events.group.watch(blob.data()).map_err(failed())?;
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
        if let Some(served) = self.shared.served.get() {
            served.forget(blob.name());
        }
        let mut state = self.shared.lock();
        state.recordings.forget(id);
        let answers = state.forget(id);
        self.shared.answer_all(state, answers);
        let mut state = self.shared.lock();
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
        if let Some(events) = shared.events.get() {
            events.wake();
        }
        if let Some(served) = shared.served.get() {
            served.finish();
        }
        for thread in std::mem::take(&mut *self.lock_threads()) {
            // A panic was reported when it happened.
            drop(thread.join());
        }
        // Until the holders have ended nothing more is watched or served, and after that nothing is.
        let state = shared.lock();
        let readers = state.requests.len();
        if let Some(events) = shared.events.get() {
            // Also those that an earlier daemon watched, and those that were removed from under overlays.
            match events.group.watched() {
                Ok(0) => events.lock_holder().end(),
                Ok(blobs) => tracing::info!(readers, blobs, "readers wait for the next daemon"),
                Err(error) => {
                    tracing::warn!(%error, "fd-holder stays, as it is not known who reads");
                }
            }
        }
        if let Some(served) = shared.served.get() {
            // Those that were removed from under overlays fail without anybody as well.
            match state.blobs.values().filter(|blob| blob.is_served()).count() {
                0 => served.lock_holder().end(),
                blobs => tracing::info!(readers, blobs, "readers wait for the next daemon"),
            }
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
