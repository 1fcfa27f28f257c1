//! What the command asks of a daemon that runs: only it may write blobs that are watched, and knows who uses what.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use disk::Digest;
use proto::remote::{
    GcRequest, GcResponse, VerifyProgress, VerifyRequest, WarmProgress, WarmRequest, remote_server,
};
use snapshot_core::{Error, Key, Kind, Result, Snapshot, Snapshots, Threads, overlay, status};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream};

use super::{
    attach,
    disks::{Checked, Disks, Heard, Sweep},
    driver::disk_of,
};
use crate::signature::digest;

/// Disks that are fetched or verified at once; each has threads of its own.
const LONG_MAX: usize = 4;

/// How often somebody who waits hears how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Whoever works on a disk for so long keeps it.
const NAME_LIMIT: Duration = Duration::from_secs(5);

/// Messages that wait for the client.
const WAITING: usize = 16;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    disks: Arc<Disks>,
    snapshots: Arc<Snapshots>,
    threads: Threads,
    long: Arc<Semaphore>,
}

impl Operator {
    /// Over these.
    pub(super) fn new(disks: Arc<Disks>, snapshots: Arc<Snapshots>, threads: Threads) -> Self {
        Self {
            disks,
            snapshots,
            threads,
            long: Arc::new(Semaphore::new(LONG_MAX)),
        }
    }

    /// The server for it.
    pub(super) fn into_server(self) -> remote_server::RemoteServer<Self> {
        remote_server::RemoteServer::new(self)
    }

    /// Runs what takes long on a thread of its own; it ends when its client has gone.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disks, &mut Teller<T>) -> Result<()> + Send + 'static,
    ) -> Result<Response<Stream<T>>, Status> {
        let place = Arc::clone(&self.long).try_acquire_owned();
        let place = place.map_err(|_taken| {
            status(&Error::Exhausted(format!(
                "{LONG_MAX} disks are being fetched or verified already: try again later"
            )))
        })?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let disks = Arc::clone(&self.disks);
        let work = move || {
            let mut teller = Teller {
                sender,
                told: Instant::now(),
            };
            if let Err(error) = work(&disks, &mut teller) {
                // Who has gone has nothing to be told.
                drop(teller.sender.blocking_send(Err(status(&error))));
            }
            drop(place);
        };
        let spawned = std::thread::Builder::new()
            .name("operator".to_owned())
            .spawn(work);
        spawned.map_err(|error| status(&Error::io("start a thread of", "the daemon")(error)))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Tells a client how far it is, now and then.
struct Teller<T> {
    sender: mpsc::Sender<Result<T, Status>>,
    told: Instant,
}

impl<T> Teller<T> {
    fn tell(&mut self, message: impl FnOnce() -> T) -> Heard {
        if self.told.elapsed() >= TELL_EVERY {
            return self.tell_now(message());
        }
        match self.sender.is_closed() {
            true => Heard::NoMore,
            false => Heard::Still,
        }
    }

    fn tell_now(&mut self, message: T) -> Heard {
        self.told = Instant::now();
        match self.sender.blocking_send(Ok(message)) {
            Ok(()) => Heard::Still,
            Err(_gone) => Heard::NoMore,
        }
    }
}

#[tonic::async_trait]
impl remote_server::Remote for Operator {
    type WarmStream = Stream<WarmProgress>;
    type VerifyStream = Stream<VerifyProgress>;

    async fn warm(
        &self,
        request: Request<WarmRequest>,
    ) -> Result<Response<Self::WarmStream>, Status> {
        let chain_id = chain_id(&request.into_inner().chain_id)?;
        self.run(move |disks, teller| {
            let mut last = (0, 0);
            disks.warm(chain_id, |all, here| {
                last = (all as u64, here as u64);
                teller.tell(|| progress(last))
            })?;
            let _heard = teller.tell_now(progress(last));
            Ok(())
        })
    }

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let only = request.into_inner().chain_ids;
        let only = only
            .iter()
            .map(|text| chain_id(text))
            .collect::<Result<Vec<_>, _>>()?;
        self.run(move |disks, teller| {
            if let Some(unknown) = only.iter().find(|chain_id| !disks.has(**chain_id)) {
                let text = format!("disk sha256:{unknown} is not on this host");
                return Err(Error::Precondition(text));
            }
            let checked = disks.verify(&only, |checked| teller.tell(|| checked_so_far(checked)))?;
            let _heard = teller.tell_now(checked_so_far(&checked));
            Ok(())
        })
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        let sweep = match request.into_inner().dry_run {
            true => Sweep::Count,
            false => Sweep::Remove,
        };
        let this = self.clone();
        let done = self.threads.run(move || this.collect(sweep)).await;
        let done = done.flatten().map_err(|error| status(&error))?;
        Ok(Response::new(done))
    }
}

fn chain_id(text: &str) -> Result<Digest, Status> {
    digest(text).ok_or_else(|| {
        status(&Error::Invalid(format!(
            "{text:?} is no chainID: 64 hexadecimal digits"
        )))
    })
}

fn progress((chunks, chunks_here): (u64, u64)) -> WarmProgress {
    WarmProgress {
        chunks,
        chunks_here,
    }
}

fn checked_so_far(checked: &Checked) -> VerifyProgress {
    VerifyProgress {
        chunks: checked.chunks,
        bytes: checked.bytes,
        damaged: checked.damaged,
        repaired: checked.repaired,
        why: checked.why.clone().unwrap_or_default(),
    }
}

/// What stands on what.
struct Standing {
    /// Snapshots that are disks, and their disks.
    disks: Vec<(Key, Digest)>,
    /// Names of those on which something stands that is no disk: a container, or a layer that was unpacked.
    used: BTreeSet<Key>,
}

impl Operator {
    /// Unmounts disks on which no snapshot stands, and takes away what nobody uses then.
    fn collect(&self, sweep: Sweep) -> Result<GcResponse> {
        let mut unmounted = 0;
        let standing = self.standing()?;
        let mut used: BTreeMap<Digest, bool> = BTreeMap::new();
        for (key, chain_id) in &standing.disks {
            let is_used = standing.used.contains(key);
            let now_used = used.entry(*chain_id).or_default();
            *now_used |= is_used;
            if is_used || sweep == Sweep::Count {
                continue;
            }
            match self.unmount(key, *chain_id) {
                Ok(true) => unmounted += 1,
                Ok(false) => {}
                Err(error) => {
                    let why = error.in_one_line();
                    tracing::warn!(%chain_id, why, "a disk that nobody uses stays mounted");
                    *now_used = true;
                }
            }
        }
        let used: BTreeSet<Digest> = used
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(id, _)| id)
            .collect();
        let gone = self.disks.take_unused(&used, sweep)?;
        if sweep == Sweep::Remove {
            tracing::info!(
                bytes = gone.bytes,
                disks = gone.disks,
                unmounted,
                "what nobody uses went from the cache"
            );
        }
        Ok(GcResponse {
            bytes: gone.bytes,
            chunks: gone.chunks,
            unmounted,
            disks: gone.disks,
        })
    }

    fn standing(&self) -> Result<Standing> {
        let mut disks = Vec::new();
        let mut used = BTreeSet::new();
        self.snapshots.each(|snapshot: Snapshot| {
            match (disk_of(&snapshot.note), snapshot.info.kind) {
                (Some(chain_id), Kind::Committed) => disks.push((snapshot.info.name, chain_id)),
                _ => used.extend(snapshot.info.parent),
            }
            ControlFlow::Continue(())
        })?;
        Ok(Standing { disks, used })
    }

    /// Unmounts a disk, unless something has come to stand on it: nothing can, as long as its name is held.
    fn unmount(&self, key: &Key, chain_id: Digest) -> Result<bool> {
        let names = self.snapshots.take_names(&[key], None, NAME_LIMIT)?;
        self.snapshots.with_held(&names, key, |_, directory| {
            let target = directory.join(overlay::CONTENTS);
            if !attach::is_mounted(&target)? {
                return Ok(false);
            }
            if self.standing()?.used.contains(key) {
                return Err(Error::Precondition("it has come to be used".to_owned()));
            }
            self.disks.detach(Some(chain_id), &target)?;
            Ok(true)
        })
    }
}
