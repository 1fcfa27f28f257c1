//! Disks that were mounted are fetched along the traces of their stores, and what is read first of them is told to these.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Instant,
};

use disk::Digest;
use snapshot_core::{Error, Result, one_line};
use sys::FileId;

use super::{faults::Faults, prefetch::Need, readers::Readers, state::Piece};
use crate::{
    host::{blob::Blob, files, metrics::TraceOutcome},
    trace::{self, Trace},
};

/// In the directory of a disk: the trace by which it was fetched, for `status`, and for a start without a store.
pub(in crate::host) const TRACE: &str = "trace";

/// The same: what was read of it first has been told.
const TOLD: &str = "trace-told";

/// A disk that was mounted. What goes meanwhile is not kept.
#[derive(Debug, Clone)]
pub(in crate::host) struct MountedDisk {
    chain_id: Digest,
    directory: PathBuf,
    /// In the order of its manifest.
    blobs: Vec<(FileId, Weak<Blob>)>,
}

/// What is done about one.
#[derive(Debug)]
pub(super) enum Job {
    /// Its trace is asked for, and what it leads to is fetched.
    Follow(MountedDisk),
    /// What was read of it is told.
    Tell(MountedDisk),
}

impl MountedDisk {
    /// In the directory of its manifest, with these blobs.
    ///
    /// # Errors
    /// What keeps a blob from being looked at.
    pub(in crate::host) fn new(
        chain_id: Digest,
        directory: PathBuf,
        blobs: &[Arc<Blob>],
    ) -> Result<Self> {
        let blobs = blobs.iter().map(|blob| {
            let id = FileId::of(blob.data()).map_err(Error::io("look at", blob.path()))?;
            Ok((id, Arc::downgrade(blob)))
        });
        Ok(Self {
            chain_id,
            directory,
            blobs: blobs.collect::<Result<_>>()?,
        })
    }

    /// What a trace leads to, as far as the disk has it.
    fn pieces(&self, trace: &Trace) -> Vec<Piece> {
        let steps = trace.steps().iter().filter_map(|step| {
            let (id, blob) = self.blobs.get(usize::try_from(step.device).ok()?)?;
            let piece = usize::try_from(step.piece).ok()?;
            (piece < blob.upgrade()?.pieces()).then_some((*id, piece))
        });
        steps.collect()
    }
}

impl Faults {
    /// A disk has just been mounted, and nobody has read of it yet: its trace is followed, and of one that is new here, who reads is
    /// noted for a while.
    pub(in crate::host) fn mounted(&self, disk: MountedDisk) {
        let shared = self.shared();
        let options = &shared.options;
        let is_told = disk.directory.join(TOLD).exists();
        if !options.record.is_zero() && !is_told {
            let devices = (0..).zip(&disk.blobs);
            let devices = devices.map(|(device, (id, _))| (*id, device));
            shared.lock().recordings.begin(disk.chain_id, devices);
            shared
                .jobs
                .push(Instant::now() + options.record, Job::Tell(disk.clone()));
        }
        let is_here = |(_, blob): &(_, Weak<Blob>)| blob.upgrade().is_none_or(|it| it.is_whole());
        if options.prefetch_bytes_per_second > 0 && !disk.blobs.iter().all(is_here) {
            shared.lock().prefetch.follow(disk.chain_id);
            shared.jobs.push(Instant::now(), Job::Follow(disk));
        }
    }

    /// Nobody uses a disk any more: nothing more of it is fetched ahead, and what was read of it is told.
    pub(in crate::host) fn unused(&self, chain_id: Digest) {
        let shared = self.shared();
        let mut state = shared.lock();
        let pieces = state.prefetch.cancel(chain_id);
        shared.measured.prefetching(state.prefetch.len());
        drop(state);
        shared
            .jobs
            .hurry(|job| matches!(job, Job::Tell(disk) if disk.chain_id == chain_id));
        if pieces > 0 {
            tracing::info!(%chain_id, pieces, "a trace is followed no further, as nobody uses the disk");
        }
    }
}

impl Readers {
    pub(super) fn work_on_traces(&self) {
        while let Some(job) = self.jobs.next() {
            match job {
                Job::Follow(disk) => self.follow(&disk),
                Job::Tell(disk) => self.tell(&disk),
            }
        }
    }

    fn follow(&self, disk: &MountedDisk) {
        let (trace, outcome) = self.trace_of(disk);
        if let Some(trace) = trace {
            let pieces = disk.pieces(&trace);
            let steps = pieces.len();
            let mut state = self.lock();
            let chain_id = disk.chain_id;
            match state.prefetch.push(chain_id, pieces) {
                true => tracing::info!(%chain_id, steps, "a disk is fetched along its trace"),
                false => tracing::info!(
                    %chain_id,
                    pieces = steps,
                    "a trace is followed no further, as nobody uses the disk"
                ),
            }
            self.measured.prefetching(state.prefetch.len());
            drop(state);
            self.changed.notify_all();
        }
        // Last, so that who sees it sees what came of it, too.
        self.measured.trace(outcome);
    }

    /// That of a store, else the one that was followed before; and how the store answered.
    fn trace_of(&self, disk: &MountedDisk) -> (Option<Trace>, TraceOutcome) {
        let chain_id = disk.chain_id;
        let path = disk.directory.join(TRACE);
        let object = format!("traces/{chain_id}");
        let (outcome, why) = match self.source.trace(chain_id) {
            Ok(Some(bytes)) => match Trace::decode(&object, &bytes) {
                Ok(trace) => {
                    // The disk may go meanwhile; it is for `status` alone.
                    if let Err(error) = files::replace(&path, &bytes) {
                        let why = error.in_one_line();
                        tracing::debug!(%chain_id, why, "a trace is not kept");
                    }
                    return (Some(trace), TraceOutcome::Received);
                }
                Err(error) => (TraceOutcome::Refused, one_line(&error)),
            },
            Ok(None) => (TraceOutcome::Absent, "the stores have none".to_owned()),
            Err(error) => (TraceOutcome::Unreachable, error.in_one_line()),
        };
        tracing::debug!(%chain_id, why, "a disk has no trace of a store");
        let kept = files::read(&path, trace::BYTES_MAX).ok().flatten();
        let kept = kept.and_then(|kept| Trace::decode(&object, &kept).ok());
        (kept, outcome)
    }

    fn tell(&self, disk: &MountedDisk) {
        let chain_id = disk.chain_id;
        let trace = self.lock().recordings.end(chain_id);
        // They stayed watched for that.
        for blob in disk.blobs.iter().filter_map(|(_, blob)| blob.upgrade()) {
            if blob.is_whole() {
                self.completed(&blob);
            }
        }
        let Some(trace) = trace.filter(|trace| !trace.steps().is_empty()) else {
            return;
        };
        match self.source.put_trace(chain_id, trace.encode()) {
            Ok(()) => {
                let steps = trace.steps().len();
                tracing::info!(%chain_id, steps, "the store was told what is read first of a disk");
                // Without it, it is told once more after the next mount.
                drop(files::replace(&disk.directory.join(TOLD), b""));
                self.measured.trace(TraceOutcome::Told);
            }
            Err(error) => {
                self.measured.trace(TraceOutcome::NotTold);
                let why = error.in_one_line();
                tracing::warn!(%chain_id, why, "no store takes what is read first of a disk");
            }
        }
    }

    /// A piece that a trace leads to was fetched, or could not be: the rest of that disk is left then to those who read it.
    pub(super) fn prefetched(&self, chain_id: Digest, bytes: u64, filled: Result<()>) {
        let mut state = self.lock();
        match filled {
            Ok(()) => {
                state.prefetch.ended(bytes);
                self.measured.prefetched(bytes);
            }
            Err(error) => {
                state.prefetch.ended(0);
                let pieces = state.prefetch.cancel(chain_id);
                let why = error.in_one_line();
                tracing::warn!(%chain_id, pieces, why, "a trace is followed no further");
            }
        }
        self.measured.prefetching(state.prefetch.len());
        drop(state);
        self.changed.notify_all();
    }
}

/// What a trace's piece needs, as far as its blob is here.
pub(super) fn need_of(blob: Option<&Arc<Blob>>, index: usize) -> Need {
    match blob {
        None => Need::Nothing,
        Some(blob) if blob.first_missing(index..index + 1).is_none() => Need::Nothing,
        Some(blob) if !blob.has_writer() => Need::Later,
        Some(_) => Need::Missing,
    }
}
