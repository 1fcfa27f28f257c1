//! Chunks on their way into the store: several threads compress and put them, so that one sync does not
//! wait for another. All of them are on the disk when it ends well.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use super::{name::Name, objects::Objects};
use crate::{
    chunk::{self, ChunkId},
    cut::cut,
    error::Result,
    table::Table,
};

/// Threads that compress and wait for the disk, and chunks that wait for them.
const WRITERS: usize = 16;

/// Objects that are worth a thread to look for them.
const LOOKS: usize = 16;

/// What a chunk needs on its way.
type Waiting = (ChunkId, Vec<u8>);

/// Cuts what is in a file, from its beginning, and puts the chunks that the store does not have.
pub(super) fn put(objects: &Objects, source: &File, blocks: u32) -> Result<Table> {
    let failure = Mutex::new(None);
    let found = Mutex::new(BTreeMap::new());
    let (sender, receiver) = sync_channel(WRITERS);
    let receiver = Mutex::new(receiver);
    let table = std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while let Some((id, contents)) = next(&receiver) {
                    match put_one(objects, id, &contents) {
                        Ok(Put::Made) => {}
                        Ok(Put::Found) => {
                            lock(&found).insert(id.0[0], id);
                        }
                        Err(error) => {
                            lock(&failure).get_or_insert(error);
                        }
                    }
                }
            });
        }
        cut_and_send(source, blocks, sender, &failure)
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            // One of each directory.
            for &id in lock(&found).values() {
                objects.sync_directory_of(Name::Chunk(id))?;
            }
            table
        }
    }
}

/// How a chunk came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    Made,
    /// By somebody who may still be at it.
    Found,
}

/// The sender ends with it, and so do the writers.
fn cut_and_send(
    source: &File,
    blocks: u32,
    sender: SyncSender<Waiting>,
    failure: &Mutex<Option<crate::Error>>,
) -> Result<Table> {
    let mut seen = HashSet::new();
    let table = cut(source, blocks, |id, contents| {
        if let Some(error) = lock(failure).take() {
            return Err(error);
        }
        if seen.insert(id) {
            let sent = sender.send((id, contents.to_owned()));
            sent.expect("the writers go on until there is no sender");
        }
        Ok(())
    });
    drop(sender);
    table
}

fn put_one(objects: &Objects, id: ChunkId, contents: &[u8]) -> Result<Put> {
    let name = Name::Chunk(id);
    if objects.has(name)? {
        return Ok(Put::Found);
    }
    objects.put(name, chunk::seal(contents)?)?;
    Ok(Put::Made)
}

/// Does it to each, to several at once, because a bucket takes its time to answer; when one has failed no other is begun.
pub(super) fn each<T: Sync>(items: &[T], work: &(dyn Fn(&T) -> Result<()> + Sync)) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let go_on = || {
        while lock(&failure).is_none()
            && let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed))
        {
            if let Err(error) = work(item) {
                lock(&failure).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        let others = (items.len() / LOOKS).min(WRITERS - 1);
        for _ in 0..others {
            scope.spawn(go_on);
        }
        go_on();
    });
    let failure = failure.into_inner();
    failure
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

/// Whether the store has all of these.
pub(super) fn are_there(objects: &Objects, ids: &[ChunkId]) -> Result<bool> {
    let is_missing = AtomicBool::new(false);
    each(ids, &|id| {
        if !is_missing.load(Ordering::Relaxed) && !objects.has(Name::Chunk(*id))? {
            is_missing.store(true, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok(!is_missing.into_inner())
}

/// Waits while another waits: only one at a time is given something.
fn next(receiver: &Mutex<Receiver<Waiting>>) -> Option<Waiting> {
    lock(receiver).recv().ok()
}

/// A thread that panics ends the whole, so what it left is not looked at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
