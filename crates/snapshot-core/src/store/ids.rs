//! Numbers that are never given twice: reserved in durable blocks, given from memory. What is left
//! of a block when the process ends is given up.
//!
//! The end of the reserved numbers stands in the store and, should that be lost, in a file beside
//! it, so that a store made anew from the directories does not begin with numbers of snapshots that
//! were removed.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use super::{
    tables::META_IDS_END,
    writer::{Durability, Writer},
};
use crate::{Error, Result, SnapshotId};

const BLOCK: u64 = 1024;

/// The file's name below the root.
const IDS_FILE: &str = "ids";

/// A number has at most 20 digits and a line ends it.
const FILE_BYTES_MAX: u64 = 32;

#[derive(Debug)]
pub(super) struct Ids {
    root: PathBuf,
    writer: Arc<Writer>,
    reserved: Arc<Reserved>,
}

#[derive(Debug)]
struct Reserved {
    block: Mutex<Block>,
    changed: Condvar,
}

#[derive(Debug)]
struct Block {
    next: u64,
    end: u64,
    /// The next block is being reserved.
    asked: bool,
    /// Why it could not be.
    failure: Option<Error>,
}

impl Ids {
    /// Reserves the first block from `begin` on, without waiting for it.
    pub(super) fn new(writer: Arc<Writer>, root: &Path, begin: u64) -> Self {
        let block = Block {
            next: begin,
            end: begin,
            asked: true,
            failure: None,
        };
        let this = Self {
            root: root.to_owned(),
            writer,
            reserved: Arc::new(Reserved {
                block: Mutex::new(block),
                changed: Condvar::new(),
            }),
        };
        this.reserve(begin);
        this
    }

    /// Waits only when all reserved numbers are given, for one attempt to reserve more.
    pub(super) fn next(&self) -> Result<SnapshotId> {
        let lock = self.reserved.block.lock();
        let mut block = lock.unwrap_or_else(PoisonError::into_inner);
        let mut has_asked = false;
        loop {
            if block.next < block.end {
                let id = SnapshotId(block.next);
                block.next += 1;
                let more_is_due = block.end - block.next <= BLOCK / 2 && !block.asked;
                block.asked |= more_is_due;
                let end = block.end;
                drop(block);
                if more_is_due {
                    self.reserve(end);
                }
                return Ok(id);
            }
            if !block.asked {
                // An older failure may be over: a full disk has room again.
                if has_asked && let Some(failure) = &block.failure {
                    let why = failure.in_one_line();
                    return Err(failure.again(format!(
                        "no numbers for new snapshots could be reserved: {why}"
                    )));
                }
                has_asked = true;
                block.asked = true;
                block.failure = None;
                let end = block.end;
                drop(block);
                self.reserve(end);
                let lock = self.reserved.block.lock();
                block = lock.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let woken = self.reserved.changed.wait(block);
            block = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn reserve(&self, end: u64) {
        let end = end + BLOCK;
        let root = self.root.clone();
        let reserved = Answered(Arc::clone(&self.reserved));
        self.writer.ask(
            Durability::Disk,
            move |tables| {
                // It concerns nobody else in the transaction.
                note(&root, end).map_err(|error| error.again(error.in_one_line()))?;
                tables.set_meta(META_IDS_END, end)
            },
            move |outcome| match outcome {
                Ok(()) => reserved.answer(|block| {
                    block.end = end;
                    block.failure = None;
                }),
                Err(error) => reserved.answer(|block| block.failure = Some(error)),
            },
        );
    }
}

/// Who waits for numbers hears of it, even when the writer gave the job up.
struct Answered(Arc<Reserved>);

impl Answered {
    fn answer(&self, change: impl FnOnce(&mut Block)) {
        let lock = self.0.block.lock();
        change(&mut lock.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        let lock = self.0.block.lock();
        let mut block = lock.unwrap_or_else(PoisonError::into_inner);
        block.asked = false;
        if block.next == block.end && block.failure.is_none() {
            block.failure = Some(Error::Unavailable("the snapshot store gave up".to_owned()));
        }
        drop(block);
        self.0.changed.notify_all();
    }
}

/// Writes the end of the reserved numbers beside the store.
fn note(root: &Path, end: u64) -> Result<()> {
    let unfinished = root.join("ids.new");
    let noted = File::create(&unfinished).and_then(|mut file| {
        writeln!(file, "{end}")?;
        file.sync_data()?;
        fs::rename(&unfinished, root.join(IDS_FILE))
    });
    noted.map_err(Error::io("write", unfinished))
}

/// The end of the reserved numbers, as the file beside the store has it; none when there is none
/// or it is torn.
pub(super) fn read(root: &Path) -> Result<Option<u64>> {
    let path = root.join(IDS_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let mut text = String::new();
    match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
        Ok(_bytes) => Ok(text
            .strip_suffix('\n')
            .and_then(|number| number.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
