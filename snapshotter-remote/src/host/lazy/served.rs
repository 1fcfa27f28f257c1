//! Readers who ask for bytes themselves: the kernel reads blobs as files of a FUSE connection, and several threads here answer it.
//!
//! ```text
//!  reader --read--> EROFS --read, past the kernel's memory of files--> FUSE connection
//!                                        | request                             fd-holder
//!                                   these threads --its pieces are here--> bytes   keeps connection, journal, mount,
//!                                        |                                         whatever becomes of this process
//!                                   fetchers --verified, written--> bytes
//!                                        +----the deadline is over--> EIO
//! ```
//!
//! A read is answered whole or not at all: of less, EROFS would take the rest for zeros.
//!
//! This process never waits for itself: names are looked up by another one (opener.rs), opening and closing need no answer from then on, and
//! what was looked up is known for ever; another one unmounts disks, too (detach.rs). Else, killed between a request and its answer, it would not end before its successor answers, which waits for its end.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use disk::{BLOCK_BYTES, Digest};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use snapshot_core::{Error, Result};
use sys::{FileId, FuseDevice, RequestJournal};

use super::{
    connection,
    faults::SLOTS,
    fuse::{self, Asked, EIO, Message, Node},
    holder::Holder,
    opener,
    readers::Readers,
    requests::{Answer, Outcome},
    state::{Asker, ReadBy, Request},
};
use crate::{host::blob::Blob, signature::digest};

/// What a holder keeps: connection, journal, mount.
const KEPT: usize = 3;

/// Threads that answer.
pub(super) const THREADS: usize = 4;

/// Where no holder could be started, it is tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// A request whose pieces go whenever they have come fails after so many rounds: each is a call within the one before.
const ROUNDS_MAX: u8 = 16;

/// Requests that the kernel has on their way at once.
const WAITING_MAX: u16 = 960;

/// A connection, mounted nowhere: who has its files open has them by descriptors.
#[derive(Debug)]
pub(super) struct Served {
    device: FuseDevice,
    journal: RequestJournal,
    mount: OwnedFd,
    holder: Mutex<Holder<KEPT>>,
    /// Slots of the journal without a request.
    free: Mutex<Vec<usize>>,
    freed: Condvar,
    /// Files that were opened, by their blobs' names.
    files: Mutex<HashMap<[u8; 32], File>>,
    /// All threads end when this does.
    end: UnixStream,
    ended: UnixStream,
}

impl Served {
    /// A new connection, kept by a new holder.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let failed = || Error::io("serve blobs below", root);
        let device = FuseDevice::open().map_err(failed())?;
        let journal = RequestJournal::new(SLOTS).map_err(failed())?;
        let mount = connection::mount(&device).map_err(failed())?;
        let this = Self::of(root, (device, journal, mount, holder(root)))?;
        this.lock_holder().ensure(this.kept())?;
        Ok(this)
    }

    /// That of a daemon that was before this one, if there is one.
    ///
    /// # Errors
    /// For a holder that is none of ours.
    pub(super) fn take_over(root: &Path) -> Result<Option<Self>> {
        let mut holder = holder(root);
        let Some([device, journal, mount]) = holder.take()? else {
            return Ok(None);
        };
        let failed = || Error::io("take over the FUSE connection of", root);
        if has_ended(&device).map_err(failed())? {
            // As if there had been none: nobody can be answered by it.
            tracing::error!(
                "the FUSE connection was aborted, by an operator or the kernel: there is a new one"
            );
            holder.end();
            return Ok(None);
        }
        let journal = RequestJournal::open(journal);
        let journal = journal.map_err(Error::io("take over the journal of", root))?;
        let parts = (FuseDevice::from(device), journal, mount, holder);
        Self::of(root, parts).map(Some)
    }

    fn of(
        root: &Path,
        (device, journal, mount, holder): (FuseDevice, RequestJournal, OwnedFd, Holder<KEPT>),
    ) -> Result<Self> {
        let (end, ended) =
            UnixStream::pair().map_err(Error::io("start answering readers of", root))?;
        let is_free = |slot: &usize| journal.request(*slot).is_none();
        let free = (0..journal.slots()).rev().filter(is_free).collect();
        Ok(Self {
            device,
            mount,
            holder: Mutex::new(holder),
            free: Mutex::new(free),
            freed: Condvar::new(),
            files: Mutex::default(),
            journal,
            end,
            ended,
        })
    }

    fn kept(&self) -> [BorrowedFd<'_>; KEPT] {
        [
            self.device.as_fd(),
            self.journal.as_fd(),
            self.mount.as_fd(),
        ]
    }

    /// Ends all threads; who waits goes on waiting.
    pub(super) fn finish(&self) {
        // Both ends are here, so it is connected.
        drop(self.end.shutdown(Shutdown::Both));
        drop(lock(&self.free));
        self.freed.notify_all();
    }

    pub(super) fn lock_holder(&self) -> MutexGuard<'_, Holder<KEPT>> {
        lock(&self.holder)
    }

    /// The blob has gone.
    pub(super) fn forget(&self, name: [u8; 32]) {
        lock(&self.files).remove(&name);
    }

    /// The files of these blobs, opened anew.
    ///
    /// # Errors
    /// What keeps one from being opened.
    pub(super) fn open(&self, blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
        // Held while others are opened, too: what two need is opened once.
        let mut files = lock(&self.files);
        let unknown = blobs.iter().map(|blob| blob.name());
        let unknown: Vec<[u8; 32]> = unknown.filter(|name| !files.contains_key(name)).collect();
        let names: Vec<String> = unknown
            .iter()
            .map(|name| Digest(*name).to_string())
            .collect();
        if !names.is_empty() {
            let opened = opener::open(&self.mount, &names);
            let opened = opened.map_err(Error::io("open by FUSE", names.join(" ")))?;
            files.extend(unknown.into_iter().zip(opened));
        }
        let file = |blob: &Arc<Blob>| {
            let file = files[&blob.name()].try_clone();
            file.map_err(Error::io("open by FUSE", blob.path()))
        };
        blobs.iter().map(file).collect()
    }

    fn free(&self, slot: usize) {
        self.journal.clear(slot);
        lock(&self.free).push(slot);
        self.freed.notify_one();
    }
}

fn holder(root: &Path) -> Holder<KEPT> {
    Holder::at(root.join("fuse"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readers {
    /// What a killed daemon had read and not answered, as far as is known.
    pub(super) fn take_requests(&self, served: &Served) {
        let owed = (0..served.journal.slots()).filter_map(|slot| {
            let request = served.journal.request(slot)?;
            Some((slot, Message::parse(&request)))
        });
        let owed: Vec<(usize, Message)> = owed.collect();
        if !owed.is_empty() {
            let readers = owed.len();
            tracing::info!(readers, "who waited for the daemon before this is answered");
        }
        for (slot, message) in owed {
            self.asked(served, (slot, &message), ReadBy::Killed);
        }
    }

    /// Answers requests, until it is time to end, or nobody can ask any more.
    pub(super) fn serve(&self, served: &Served) {
        while !self.is_ending() {
            match wait(served) {
                Ok(Woken::Ended(number)) => self.restart_served_holder(served, number),
                Ok(Woken::Asked) => {}
                Err(errno) => {
                    tracing::error!(%errno, "requests cannot be waited for");
                    return;
                }
            }
            loop {
                let Some(slot) = self.take_slot(served) else {
                    return;
                };
                match served.device.read(&served.journal, slot) {
                    Ok(true) => {
                        let request = served.journal.request(slot);
                        match request.map(|request| Message::parse(&request)) {
                            Some(message) => self.asked(served, (slot, &message), ReadBy::This),
                            None => served.free(slot),
                        }
                    }
                    Ok(false) => {
                        served.free(slot);
                        break;
                    }
                    Err(error) => {
                        served.free(slot);
                        self.serve_no_more(&error);
                        return;
                    }
                }
            }
        }
    }

    /// The connection was aborted, or cannot be read: who comes after this daemon finds out, and makes another.
    fn serve_no_more(&self, error: &io::Error) {
        if self.is_ending() {
            return;
        }
        tracing::error!(%error, "requests of the FUSE connection cannot be read, so this daemon ends: the next one makes another");
        if let Err(errno) = kill(Pid::this(), Signal::SIGTERM) {
            tracing::error!(%errno, "it cannot end");
        }
    }

    fn take_slot(&self, served: &Served) -> Option<usize> {
        let mut free = lock(&served.free);
        loop {
            if self.is_ending() {
                return None;
            }
            if let Some(slot) = free.pop() {
                return Some(slot);
            }
            let woken = served.freed.wait(free);
            free = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn restart_served_holder(&self, served: &Served, ended: u64) {
        // Who is at it already does it.
        let mut holder = match served.holder.try_lock() {
            Ok(holder) => holder,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        holder.has_ended(ended);
        if self.is_ending() || !holder.is_due(AGAIN) {
            return;
        }
        match holder.ensure(served.kept()) {
            Ok(()) => tracing::warn!("fd-holder had ended and was started again"),
            Err(error) => {
                let why = error.in_one_line();
                tracing::error!(
                    why,
                    "fd-holder has ended: readers are not protected from the end of this daemon"
                );
            }
        }
    }

    fn asked(&self, served: &Served, (slot, message): (usize, &Message), read_by: ReadBy) {
        if let Asked::Read { node, at, bytes } = message.asked {
            let range = (at, u64::from(bytes));
            self.measured.fault();
            let request = Request {
                number: Asker::Served(message.unique),
                wants: None,
                slot,
                keeps_number: None,
                read_by,
                since: Instant::now(),
                bytes: 0,
                rounds: 0,
            };
            return self.read(node, range, request);
        }
        let by_name = |name: &[u8]| {
            let name = digest(str::from_utf8(name).ok()?)?;
            self.node(Node::number_of(name.0)?, Some(name.0))
        };
        let by_number = |number| self.node(number, None);
        let answer = message.answer(WAITING_MAX, by_name, by_number);
        if let Some(answer) = answer {
            self.tell_asker(served, (&answer, &[]), read_by);
        }
        served.free(slot);
    }

    fn node(&self, number: u64, name: Option<[u8; 32]>) -> Option<Node> {
        let (_, blob) = self.lock().node(number)?;
        let bytes = u64::from(blob.blocks()) * BLOCK_BYTES;
        let is_it = name.is_none_or(|name| name == blob.name());
        is_it.then_some(Node { number, bytes })
    }

    fn read(&self, node: u64, (at, bytes): (u64, u64), mut request: Request) {
        let mut state = self.lock();
        let Some((id, blob)) = state.node(node) else {
            drop(state);
            let requests = vec![request];
            let (number, outcome) = (requests[0].number, Outcome::Failed);
            return self.give(Answer {
                number,
                outcome,
                requests,
            });
        };
        let length = u64::from(blob.blocks()) * BLOCK_BYTES;
        let end = at.saturating_add(bytes).min(length);
        request.wants = Some((id, at));
        request.bytes = end.saturating_sub(at);
        let pieces = blob.pieces_in(&(at..end));
        state.recordings.touched(id, pieces);
        let needs = state.needs_of(Some(id), Some((at, request.bytes)));
        if let [first, ..] = needs.1[..] {
            let ahead = self.options.read_ahead;
            state.read_ahead(id, first.1, needs.1.len(), ahead);
        }
        let answer = self.arrive(&mut state, request, needs);
        drop(state);
        if let Some(answer) = answer {
            self.give(answer);
        }
    }

    /// Gives who asked what is here now, or tells them that it cannot be had.
    pub(super) fn give(&self, answer: Answer<Asker, Request>) {
        let (Asker::Served(unique), Some(served)) = (answer.number, self.served.get()) else {
            return;
        };
        for request in answer.requests {
            let contents = match answer.outcome {
                Outcome::Here => self.contents(&request),
                Outcome::Failed => Err(Error::Unavailable("it could not be had".to_owned())),
            };
            match contents {
                Ok(Some(contents)) => {
                    let head = fuse::head(unique, contents.len(), 0);
                    self.tell_asker(served, (&head, &contents), request.read_by);
                    self.measured.served(request.bytes, request.since.elapsed());
                }
                // Some of it has gone since it was here.
                Ok(None) if request.rounds < ROUNDS_MAX => {
                    self.read_again(request);
                    continue;
                }
                Ok(None) | Err(_) => {
                    self.tell_asker(served, (&fuse::head(unique, 0, EIO), &[]), request.read_by);
                    self.measured.fault_failed();
                }
            }
            served.free(request.slot);
        }
    }

    fn read_again(&self, mut request: Request) {
        request.rounds += 1;
        let node = request.wants.and_then(|(id, at)| {
            let state = self.lock();
            let name = state.blobs.get(&id)?.name();
            Some((Node::number_of(name)?, at))
        });
        // One that has gone meanwhile has no number any more, and fails.
        let (node, at) = node.unwrap_or_default();
        let bytes = request.bytes;
        self.read(node, (at, bytes), request);
    }

    /// None when not all of it is here.
    fn contents(&self, request: &Request) -> Result<Option<Vec<u8>>> {
        let gone = || Error::Precondition("its blob has gone".to_owned());
        let (id, at) = request.wants.ok_or_else(gone)?;
        let blob = self.lock().blobs.get(&id).cloned().ok_or_else(gone)?;
        let bytes = usize::try_from(request.bytes).map_err(|_too_many| gone())?;
        let mut contents = vec![0; bytes];
        let is_here = blob.read_here(at, &mut contents);
        let is_here = is_here.inspect_err(|error| {
            let why = error.in_one_line();
            tracing::error!(
                why,
                "readers are told that a piece of an image cannot be read"
            );
        })?;
        Ok(is_here.then_some(contents))
    }

    fn tell_asker(&self, served: &Served, (head, contents): (&[u8], &[u8]), read_by: ReadBy) {
        match served.device.answer(head, contents) {
            Ok(()) => {}
            // A daemon that was killed had answered it already, or who asked was killed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::debug!(%error, ?read_by, "nobody waits for an answer");
            }
            Err(error) => tracing::error!(%error, "a reader cannot be answered"),
        }
    }

    /// Sees to it that these blobs are files of the connection, and opens them.
    pub(super) fn serve_blobs(&self, served: &Served, blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
        // It may have ended, and none could be started then.
        served.lock_holder().ensure(served.kept())?;
        for blob in blobs {
            let id = FileId::of(blob.data()).map_err(Error::io("look at", blob.path()))?;
            let mut state = self.lock();
            if self.is_ending() {
                return Err(Error::Unavailable("the daemon ends".to_owned()));
            }
            if !state.note_node(blob, id) {
                let name = Digest(blob.name());
                return Err(Error::Precondition(format!(
                    "blob {name} cannot be told from another one by its number: remove the image of that, or set attach.kind = \"copy\""
                )));
            }
            drop(state);
            if !blob.is_whole() {
                self.complete_later(id);
            }
        }
        served.open(blobs)
    }
}

/// Why a thread that answers was woken.
enum Woken {
    /// By a request, perhaps, or to end.
    Asked,
    /// There is no holder: that of this number has ended.
    Ended(u64),
}

/// Whether nobody can ask any more: the mount is there, so it was aborted.
fn has_ended(device: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let seen = fds[0].revents().unwrap_or(PollFlags::empty());
    Ok(seen.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}

/// Until there is something to do.
fn wait(served: &Served) -> nix::Result<Woken> {
    let (connection, number) = {
        let holder = served.lock_holder();
        let connection = holder.connection().map(|one| one.try_clone_to_owned());
        (connection.and_then(io::Result::ok), holder.number())
    };
    let limit = match &connection {
        Some(_) => PollTimeout::NONE,
        None => PollTimeout::try_from(AGAIN).unwrap_or(PollTimeout::MAX),
    };
    let readable = PollFlags::POLLIN;
    let mut fds = vec![
        PollFd::new(served.device.as_fd(), readable),
        PollFd::new(served.ended.as_fd(), readable),
    ];
    if let Some(connection) = &connection {
        fds.push(PollFd::new(connection.as_fd(), readable));
    }
    match poll(&mut fds, limit) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Woken::Asked),
        Err(errno) => return Err(errno),
    }
    let has_none = fds.get(2).is_none_or(|fd| fd.any().unwrap_or_default());
    Ok(match has_none {
        true => Woken::Ended(number),
        false => Woken::Asked,
    })
}
