//! containerd's snapshots service. Each request is translated, waits for its names without a
//! thread, is done on one that may block, and answered, Commit as soon as it is stored; all that
//! with limits. Nothing is decided here.

use std::{sync::Arc, time::Duration};

use proto::{
    snapshots::{self as wire, snapshots_server},
    types,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tonic::{Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream};

use crate::{
    Error, Filter, Key, Kind, Names, Result, Snapshots, Threads, convert, snapshots::Creation,
    status::status,
};

/// Largest request: as many labels as are taken are far below.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// A client that takes no message of List for so long has forgotten it.
const MESSAGE_LIMIT: Duration = Duration::from_secs(60);

/// Lists that are read at once: each has a page or two in memory. Others wait, with nothing.
const LISTS_MAX: usize = 32;

/// Cleanups that wait for the sweeper at once, each on a thread of its own. containerd asks for one.
const CLEANUPS_MAX: usize = 2;

/// What is served.
#[derive(Clone, Debug)]
pub struct Service {
    snapshots: Arc<Snapshots>,
    threads: Threads,
    lists: Arc<Semaphore>,
    cleanups: Threads,
}

/// The service with its bounds, for a server.
pub type Server = snapshots_server::SnapshotsServer<Service>;

impl Service {
    /// Serves these snapshots, on these threads.
    #[must_use]
    pub fn new(snapshots: Arc<Snapshots>, threads: Threads) -> Self {
        Self {
            snapshots,
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
            cleanups: Threads::few(CLEANUPS_MAX, threads.limits()),
            threads,
        }
    }

    /// With its bounds.
    #[must_use]
    pub fn into_server(self) -> Server {
        Server::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// Runs `call` where it may block. It goes on when the client leaves.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Snapshots) -> Result<T> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let snapshots = Arc::clone(&self.snapshots);
        let ended = self.threads.run(move || call(&snapshots)).await;
        ended.flatten().map(Response::new).map_err(refused)
    }

    async fn names(&self, changed: &[&Key], stood_on: Option<&Key>) -> Result<Names, Status> {
        let limit = self.threads.limits().wait;
        let names = self.snapshots.names(changed, stood_on, limit).await;
        names.map_err(refused)
    }

    async fn create(
        &self,
        kind: Kind,
        asked: Result<Creation>,
    ) -> Result<Response<Vec<types::Mount>>, Status> {
        let asked = asked.map_err(refused)?;
        let parent = asked.parent.as_ref();
        let names = self.names(&[&asked.key], parent).await?;
        self.run(move |snapshots| {
            let mounts = snapshots.create(&names, kind, asked)?;
            Ok(convert::mounts(mounts))
        })
        .await
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: Error) -> Status {
    status(&error)
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        let asked = convert::creation(request.key, request.parent, request.labels);
        let mounts = self.create(Kind::Active, asked).await?;
        Ok(mounts.map(|mounts| wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let asked = convert::creation(request.key, request.parent, request.labels);
        let mounts = self.create(Kind::View, asked).await?;
        Ok(mounts.map(|mounts| wire::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<wire::MountsRequest>,
    ) -> Result<Response<wire::MountsResponse>, Status> {
        let key = Key::new(request.into_inner().key).map_err(refused)?;
        let names = self.names(&[&key], None).await?;
        self.run(move |snapshots| {
            let mounts = convert::mounts(snapshots.mounts_held(&names, &key)?);
            Ok(wire::MountsResponse { mounts })
        })
        .await
    }

    async fn commit(
        &self,
        request: Request<wire::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let asked = convert::commit(request.into_inner()).map_err(refused)?;
        let changed = [&asked.key, &asked.name];
        let names = self.names(&changed, asked.parent.as_ref()).await?;
        let snapshots = Arc::clone(&self.snapshots);
        let told = self
            .threads
            .run_and_go_on(move |teller| snapshots.commit_held(&names, asked, teller));
        told.await.flatten().map(Response::new).map_err(refused)
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let key = Key::new(request.into_inner().key).map_err(refused)?;
        let names = self.names(&[&key], None).await?;
        self.run(move |snapshots| snapshots.remove_held(&names, &key))
            .await
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        self.run(move |snapshots| {
            let info = convert::info(snapshots.stat(&Key::new(key)?)?);
            Ok(wire::StatSnapshotResponse { info: Some(info) })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let asked = convert::change(request.into_inner()).map_err(refused)?;
        let names = self.names(&[&asked.key], None).await?;
        self.run(move |snapshots| {
            let info = snapshots.update_held(&names, &asked.key, &asked.fields, &asked.to)?;
            let info = Some(convert::info(info));
            Ok(wire::UpdateSnapshotResponse { info })
        })
        .await
    }

    type ListStream = ReceiverStream<Result<wire::ListSnapshotsResponse, Status>>;

    async fn list(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let filter = Filter::parse(&filters).map_err(refused)?;
        let (client, receiver) = mpsc::channel(1);
        let list = List {
            client,
            message_limit: MESSAGE_LIMIT,
        };
        // It ends with the client.
        tokio::spawn(list.give(self.clone(), filter));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn usage(
        &self,
        request: Request<wire::UsageRequest>,
    ) -> Result<Response<wire::UsageResponse>, Status> {
        let key = request.into_inner().key;
        self.run(move |snapshots| Ok(convert::usage(snapshots.usage(&Key::new(key)?)?)))
            .await
    }

    async fn cleanup(
        &self,
        _request: Request<wire::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        let snapshots = Arc::clone(&self.snapshots);
        let limit = self.cleanups.limits().run;
        // A little less, so that it is the sweeper that says what is left.
        let limit = limit.saturating_sub(limit / 50);
        let ended = self.cleanups.run(move || snapshots.cleanup_within(limit));
        ended.await.flatten().map(Response::new).map_err(refused)
    }
}

/// A message of List.
type Message = Result<wire::ListSnapshotsResponse, Status>;

/// A client that lists.
struct List {
    client: mpsc::Sender<Message>,
    message_limit: Duration,
}

impl List {
    async fn give(self, service: Service, filter: Filter) {
        let limits = service.threads.limits();
        let place = timeout(limits.wait, service.lists.acquire());
        let place = tokio::select! {
            place = place => place,
            () = self.client.closed() => return,
        };
        let given = match place {
            // What it has read is the store of its beginning, which nobody can overwrite meanwhile.
            Ok(_place) => match timeout(limits.run, self.pages(&service, filter)).await {
                Ok(given) => given,
                Err(_elapsed) => Err(Error::TimedOut(format!(
                    "the list was not read to its end within {} seconds",
                    limits.run.as_secs_f32()
                ))),
            },
            Err(_elapsed) => Err(Error::Unavailable(format!(
                "{LISTS_MAX} other lists are read already; try again later"
            ))),
        };
        if let Err(error) = given {
            // Whoever does not take the last message has gone.
            let _either = self.takes(Err(refused(error))).await;
        }
    }

    /// Gives page by page, until the client takes no more.
    async fn pages(&self, service: &Service, filter: Filter) -> Result<()> {
        let snapshots = Arc::clone(&service.snapshots);
        let listing = service.threads.run(move || snapshots.listing(filter)).await;
        let mut listing = listing.flatten()?;
        loop {
            let page = service.threads.run(move || (listing.next(), listing));
            let (page, rest) = page.await?;
            let Some(page) = page else {
                return Ok(());
            };
            listing = rest;
            let info = page?.into_iter().map(convert::info).collect();
            if !self.takes(Ok(wire::ListSnapshotsResponse { info })).await {
                return Ok(());
            }
        }
    }

    async fn takes(&self, message: Message) -> bool {
        let taken = timeout(self.message_limit, self.client.send(message)).await;
        matches!(taken, Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (client, mut taker) = mpsc::channel(1);
        let list = List {
            client,
            message_limit: Duration::ZERO,
        };
        let message = || Ok(wire::ListSnapshotsResponse::default());
        assert!(list.takes(message()).await);
        assert!(!list.takes(message()).await, "there is no place for it");
        assert!(taker.recv().await.unwrap().is_ok());
        assert!(list.takes(message()).await);
    }
}
