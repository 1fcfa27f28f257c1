//! A proxy snapshotter that hands everything on to a containerd's overlayfs, and may do one thing wrong.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    thread::JoinHandle,
};

use integration::{
    conformance::{DirectoryRename, Target},
    containerd::Containerd,
    grpc,
};
use proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
    snapshots_client::SnapshotsClient,
    snapshots_server::{Snapshots, SnapshotsServer},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::oneshot,
};
use tonic::{
    Request, Response, Status,
    codegen::{
        BoxStream,
        tokio_stream::{Stream, StreamExt},
    },
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Server},
};

use super::faults::{Fault, Memory};

/// What the snapshotter behind is called.
const OVERLAYFS: &str = "overlayfs";

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    target: Target,
    clients: Arc<AtomicU32>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts one before the overlayfs of a containerd, with a socket beside its own.
    pub(crate) fn start(containerd: &Containerd, fault: Fault) -> Self {
        let socket = containerd.work().join(format!("{fault:?}.sock"));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let clients = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = oneshot::channel();
        let (address, count) = (containerd.address(), Arc::clone(&clients));
        let namespace = containerd.namespace.parse().unwrap();
        let serve = async move {
            let service = Service {
                behind: SnapshotsClient::new(grpc::channel(&address).await.unwrap()),
                namespace,
                fault,
                memory: Mutex::default(),
            };
            let incoming = Incoming {
                listener: UnixListener::from_std(listener).unwrap(),
                fault,
                clients: count,
            };
            let server = Server::builder().add_service(SnapshotsServer::new(service));
            tokio::select! {
                served = server.serve_with_incoming(incoming) => served.unwrap(),
                _ = stopped => {}
            }
        };
        let thread = std::thread::spawn(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(serve);
        });
        let target = Target {
            directory: containerd.work(),
            directory_rename: DirectoryRename::LeftOut,
            ..Target::proxy(socket, "relay")
        };
        Self {
            target,
            clients,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// What the suite is asked of.
    pub(crate) fn target(&self) -> Target {
        self.target.clone()
    }

    /// From here on the next client is the first one.
    pub(crate) fn forget_clients(&self) {
        self.clients.store(0, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let is_running = self.stop.take().unwrap().send(()).is_ok();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            assert!(is_running && ended.is_ok(), "the relay ended by itself");
        }
    }
}

struct Incoming {
    listener: UnixListener,
    fault: Fault,
    clients: Arc<AtomicU32>,
}

impl Stream for Incoming {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let accepted = ready!(self.listener.poll_accept(context));
            let is_first = self.clients.fetch_add(1, Ordering::Relaxed) == 0;
            if is_first || self.fault != Fault::OneClientIsServed {
                return Poll::Ready(Some(accepted.map(|(stream, _)| stream)));
            }
        }
    }
}

struct Service {
    behind: SnapshotsClient<Channel>,
    namespace: MetadataValue<Ascii>,
    fault: Fault,
    memory: Mutex<Memory>,
}

impl Service {
    fn behind(&self) -> SnapshotsClient<Channel> {
        self.behind.clone()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.clone();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    async fn mounts_of(&self, key: &str) -> Result<Vec<proto::types::Mount>, Status> {
        let request = MountsRequest {
            snapshotter: OVERLAYFS.to_owned(),
            key: key.to_owned(),
        };
        let answer = self.behind().mounts(self.request(request)).await?;
        Ok(answer.into_inner().mounts)
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        self.fault.before_making(&mut self.memory(), &message.key)?;
        let key = message.key.clone();
        let answer = self.behind().prepare(self.request(message)).await;
        let mut mounts = match answer {
            Err(status) if self.fault.accepts(&status) => self.mounts_of(&key).await?,
            answer => answer?.into_inner().mounts,
        };
        self.fault.prepared(&mut mounts)?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        self.fault.before_making(&mut self.memory(), &message.key)?;
        let key = message.key.clone();
        let answer = self.behind().view(self.request(message)).await;
        let mut mounts = match answer {
            Err(status) if self.fault.accepts(&status) => self.mounts_of(&key).await?,
            answer => answer?.into_inner().mounts,
        };
        self.fault.viewed(&mut mounts);
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let mounts = self.mounts_of(&request.into_inner().key).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        self.fault
            .before_making(&mut self.memory(), &message.name)?;
        let mounts = self.mounts_of(&message.key).await?;
        self.fault.before_commit(&mounts)?;
        let (key, name) = (message.key.clone(), message.name.clone());
        let answer = self.behind().commit(self.request(message)).await?;
        self.memory().commits.push((key, name));
        Ok(answer)
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        let key = message.key.clone();
        let answer = self.behind().remove(self.request(message)).await;
        self.memory().is_listing = false;
        self.memory().removed.insert(key);
        self.fault.removed(answer)
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        let is_listing = self.memory().is_listing;
        if self.fault == Fault::ListsHoldUpStats && is_listing {
            std::future::pending::<()>().await;
        }
        let asked = self.fault.stat_key(&self.memory(), &message.key);
        let key = std::mem::replace(&mut message.key, asked);
        let mut answer = self.behind().stat(self.request(message)).await?;
        if let Some(info) = &mut answer.get_mut().info {
            info.name = key;
            self.fault.stated(info);
        }
        Ok(answer)
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        self.fault.before_update(&mut message);
        let answer = self.behind().update(self.request(message)).await;
        let mut answer = answer.map_err(|status| self.fault.update_refused(status))?;
        if let Some(info) = &mut answer.get_mut().info {
            self.fault.updated(info);
        }
        Ok(answer)
    }

    type ListStream = BoxStream<ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        if self.fault == Fault::FiltersAreIgnored {
            message.filters.clear();
        }
        let answer = self.behind().list(self.request(message)).await?;
        self.memory().is_listing = true;
        let fault = self.fault;
        let parts = answer.into_inner().map(move |part| {
            part.map(|mut part| {
                for info in &mut part.info {
                    fault.listed(info);
                }
                part
            })
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let mut message = request.into_inner();
        OVERLAYFS.clone_into(&mut message.snapshotter);
        self.behind().usage(self.request(message)).await
    }

    /// Does nothing: containerd itself would collect garbage now, and takes all that has no name in
    /// it for that.
    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}
