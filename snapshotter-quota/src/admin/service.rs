//! The service: each request is understood, done on a thread that may block, and answered.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::quota::{self as wire, Follow, Scope, quota_server};
use snapshot_core::{
    Error as CoreError, Field, Key, Kind, Names, Snapshot, Snapshots, Threads, daemon::Shutdown,
};
use tokio::sync::{broadcast, mpsc};
use tonic::{Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream};

use super::{
    acquaintance, changes, convert, doctor, find,
    lifts::{self, Lifted, Lifts},
};
use crate::{
    Result,
    backend::Record,
    containerd::{Containerd, LabelChanges},
    driver::QuotaDriver,
    events::{Event, Events, What},
    limit,
    watch::Auditor,
};

/// Messages of a stream that wait for the client.
const WAITING: usize = 64;

/// A client that takes no row of a list for so long has forgotten it.
const ROW_LIMIT: Duration = Duration::from_secs(60);

/// What the service works with.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// Directory of all snapshots.
    pub(crate) root: PathBuf,
    /// Its socket.
    pub(crate) address: PathBuf,
    /// What it serves.
    pub(crate) snapshots: Arc<Snapshots>,
    /// Who limits them.
    pub(crate) driver: Arc<QuotaDriver>,
    /// What happened.
    pub(crate) events: Arc<Events>,
    /// Who finds snapshots that left their account.
    pub(crate) auditor: Auditor,
    /// Where labels are kept, too.
    pub(crate) containerd: Option<Containerd>,
    /// Where requests may block.
    pub(crate) threads: Threads,
    /// When streams end.
    pub(crate) shutdown: Shutdown,
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    parts: Parts,
    lifts: Lifts,
}

impl Admin {
    /// Serves operators.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let lifts = Lifts {
            snapshots: Arc::clone(&parts.snapshots),
            driver: Arc::clone(&parts.driver),
            events: Arc::clone(&parts.events),
        };
        Self { parts, lifts }
    }

    /// Puts limits back that are lifted. Blocks.
    pub(crate) fn finish(&self) {
        self.lifts.end_all();
    }

    /// Looks at snapshots a few at a time, so that a client that takes none holds no thread.
    async fn give(
        self,
        mut found: Vec<Snapshot>,
        sender: mpsc::Sender<Result<wire::Snapshot, Status>>,
    ) {
        while !found.is_empty() {
            let rest = found.split_off(found.len().min(WAITING));
            let some = std::mem::replace(&mut found, rest);
            let rows = self.run(move |parts| Ok(parts.rows(&some))).await;
            let rows = match rows {
                Ok(rows) => rows.into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            };
            for row in rows {
                if sender.send_timeout(row, ROW_LIMIT).await.is_err() {
                    // The client has gone, or hangs.
                    return;
                }
            }
        }
    }

    /// Runs `call` where it may block.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Parts) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let parts = self.parts.clone();
        let done = self.parts.threads.run(move || call(&parts)).await;
        done.map_err(CoreError::into)
            .flatten()
            .map_err(|error| convert::status(&error))
    }

    async fn name(&self, key: &Key) -> Result<Names, Status> {
        let limit = self.parts.threads.limits().wait;
        let names = self.parts.snapshots.names(&[key], None, limit).await;
        names.map_err(|error| snapshot_core::status(&error))
    }
}

impl Parts {
    fn rows(&self, snapshots: &[Snapshot]) -> Vec<wire::Snapshot> {
        snapshots.iter().map(|one| self.row(one)).collect()
    }

    fn row(&self, snapshot: &Snapshot) -> wire::Snapshot {
        let mut row = convert::snapshot(snapshot);
        let record = Record::from_note(&snapshot.note);
        let backend = record.and_then(|record| Ok(self.driver.backends().of(&record)?.kind()));
        match backend {
            Ok(kind) => row.back_end = kind.to_string(),
            Err(error) => row.warnings.push(error.in_one_line()),
        }
        match self.snapshots.usage(&snapshot.info.name) {
            Ok(usage) => row.usage = Some(convert::usage(usage)),
            Err(error) => row.warnings.push(error.in_one_line()),
        }
        if let Some(writable) = self.driver.writables().get(snapshot.id) {
            row.limit = Some(convert::limit(&writable.limit));
            row.lifted_until = writable.lifted_until.map(Into::into);
        }
        if snapshot.info.kind == Kind::Active
            && let Err(error) = self.driver.limit_of(snapshot)
        {
            row.warnings.push(error.in_one_line());
        }
        row
    }

    /// Changes labels in our own store alone.
    fn set_here(&self, names: &Names, of: &Snapshot, changes: &LabelChanges) -> Result<()> {
        let key = &of.info.name;
        self.snapshots
            .with_held(names, key, |now, _| lifts::same(now, of.id))?;
        let fields: Result<Vec<_>, _> = changes
            .keys()
            .map(|label| Field::parse(&format!("labels.{label}")))
            .collect();
        let labels = changes
            .iter()
            .filter_map(|(label, value)| Some(((*label).to_owned(), value.clone()?)));
        let labels = labels.collect();
        self.snapshots.update_held(names, key, &fields?, &labels)?;
        Ok(())
    }

    /// The snapshot as it is after its limit was set, and what a person should know.
    fn after_set(&self, before: &Snapshot) -> Result<(wire::Snapshot, Vec<String>)> {
        let now = find::one(&self.snapshots, before.info.name.as_str())?;
        let row = self.row(&now);
        let mut warnings = Vec::new();
        let over = |used: Option<u64>, limit: Option<u64>| {
            Some((used?, limit?)).filter(|(used, limit)| used > limit)
        };
        let limit = row.limit.clone().unwrap_or_default();
        if let Some((used, limit)) = over(row.usage.map(|usage| usage.bytes), limit.bytes) {
            warnings.push(format!(
                "it holds {used} bytes, {} more than the limit: nothing more can be written, \
                 deleting works",
                used - limit
            ));
        }
        if let Some((used, limit)) = over(row.usage.and_then(|usage| usage.inodes), limit.inodes) {
            warnings.push(format!(
                "it holds {used} inodes, {} more than the limit: nothing new can be made, deleting \
                 works",
                used - limit
            ));
        }
        self.events.tell(Event {
            time: SystemTime::now(),
            what: What::Set,
            key: Some(now.info.name.clone()),
            usage: None,
            limit: self
                .driver
                .writables()
                .get(now.id)
                .map(|now| now.limit.clone()),
            text: format!("the limit was set: {}", convert::limit_text(&limit)),
        });
        Ok((row, warnings))
    }
}

/// Namespace and name in a key, when containerd's metadata layer made it.
fn in_containerd(snapshot: &Snapshot) -> Option<(String, String)> {
    let labels = BTreeMap::new();
    let request = limit::Request {
        key: snapshot.info.name.as_str(),
        parent: None,
        labels: &labels,
    };
    let namespace = request.namespace();
    (!namespace.is_empty()).then(|| (namespace.to_owned(), request.name().to_owned()))
}

#[tonic::async_trait]
impl quota_server::Quota for Admin {
    async fn status(
        &self,
        _request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let containerd = self.parts.containerd.as_ref();
        let containerd = containerd.map(|containerd| containerd.socket().display().to_string());
        let answer = self
            .run(move |parts| {
                Ok(wire::StatusResponse {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    root: parts.root.display().to_string(),
                    back_end: Some(convert::back_end(parts.driver.backends().chosen())),
                    containerd: containerd.unwrap_or_default(),
                    snapshots: parts.snapshots.count()?,
                    pid: std::process::id(),
                })
            })
            .await?;
        Ok(Response::new(answer))
    }

    type ListStream = ReceiverStream<Result<wire::Snapshot, Status>>;

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let request = request.into_inner();
        let scope = Scope::try_from(request.scope).unwrap_or_default();
        let found = self
            .run(move |parts| {
                let wanted = |kind| scope == Scope::All || kind == Kind::Active;
                find::all(&parts.snapshots, &request.name, wanted)
            })
            .await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(self.clone().give(found, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn set(
        &self,
        request: Request<wire::SetRequest>,
    ) -> Result<Response<wire::SetResponse>, Status> {
        let request = request.into_inner();
        let (snapshot, changes) = self
            .run(move |parts| {
                let snapshot = find::one(&parts.snapshots, &request.name)?;
                let changes = changes::of(&request, &snapshot.info.labels)?;
                // Refused here, before containerd writes anything.
                let mut after = snapshot.clone();
                after.info.labels = changes::applied(&snapshot.info.labels, &changes);
                parts.driver.limit_of(&after)?;
                Ok((snapshot, changes))
            })
            .await?;
        let mut warnings = Vec::new();
        match (&self.parts.containerd, in_containerd(&snapshot)) {
            (Some(containerd), Some((namespace, name))) => containerd
                .change_labels(&namespace, &name, &changes)
                .await
                .map_err(|error| convert::status(&error))?,
            (containerd, _) => {
                warnings.push(match containerd {
                    Some(_) => "containerd did not make this snapshot and was not told".to_owned(),
                    None => "containerd was not told and goes on showing the old label; name its \
                             socket as `containerd` in the configuration"
                        .to_owned(),
                });
                let key = &snapshot.info.name;
                let names = self.name(key).await?;
                let of = snapshot.clone();
                self.run(move |parts| parts.set_here(&names, &of, &changes))
                    .await?;
            }
        }
        let (row, more) = self.run(move |parts| parts.after_set(&snapshot)).await?;
        warnings.extend(more);
        Ok(Response::new(wire::SetResponse {
            snapshot: Some(row),
            warnings,
        }))
    }

    async fn lift(
        &self,
        request: Request<wire::LiftRequest>,
    ) -> Result<Response<wire::LiftResponse>, Status> {
        const DAY: Duration = Duration::from_secs(86_400);
        let request = request.into_inner();
        let duration = request
            .duration
            .and_then(|duration| Duration::try_from(duration).ok())
            .filter(|duration| (Duration::from_secs(1)..=DAY).contains(duration))
            .ok_or_else(|| {
                Status::invalid_argument("a limit is lifted for one second to one day")
            })?;
        let snapshot = self
            .run(move |parts| find::one(&parts.snapshots, &request.name))
            .await?;
        let names = self.name(&snapshot.info.name).await?;
        let lifts = self.lifts.clone();
        let lifted = self
            .run(move |_| {
                let lifted = Lifted {
                    key: snapshot.info.name,
                    id: snapshot.id,
                    until: SystemTime::now() + duration,
                };
                lifts.begin(&names, &lifted)?;
                Ok(lifted)
            })
            .await?;
        tokio::spawn(self.lifts.clone().end(lifted.clone(), duration));
        Ok(Response::new(wire::LiftResponse {
            key: lifted.key.to_string(),
            until: Some(lifted.until.into()),
        }))
    }

    type EventsStream = ReceiverStream<Result<wire::Event, Status>>;

    async fn events(
        &self,
        request: Request<wire::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        let only = match request.name.as_str() {
            "" => None,
            name => {
                let name = name.to_owned();
                let found = self
                    .run(move |parts| find::all(&parts.snapshots, &name, |_| true))
                    .await?;
                // What happened to a snapshot that is gone can still be asked for by its key.
                let mut keys: Vec<_> = found.into_iter().map(|s| s.info.name.to_string()).collect();
                keys.push(request.name.clone());
                Some(keys)
            }
        };
        let (past, future) = self.parts.events.listen();
        let (sender, receiver) = mpsc::channel(WAITING);
        let stream = EventStream {
            sender,
            only,
            shutdown: self.parts.shutdown.clone(),
        };
        let follow = Follow::try_from(request.follow).unwrap_or_default();
        tokio::spawn(stream.run(past, (follow == Follow::PastAndFuture).then_some(future)));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn doctor(
        &self,
        _request: Request<wire::DoctorRequest>,
    ) -> Result<Response<wire::DoctorResponse>, Status> {
        let own = acquaintance::Own {
            root: &self.parts.root,
            address: &self.parts.address,
        };
        let containerd = self.parts.containerd.as_ref();
        let mut findings = acquaintance::findings(containerd, own).await;
        findings.extend(self.run(|parts| Ok(doctor::findings(parts))).await?);
        Ok(Response::new(wire::DoctorResponse { findings }))
    }
}

/// Events on their way to one client.
struct EventStream {
    sender: mpsc::Sender<Result<wire::Event, Status>>,
    only: Option<Vec<String>>,
    shutdown: Shutdown,
}

impl EventStream {
    async fn run(self, past: Vec<Event>, future: Option<broadcast::Receiver<Event>>) {
        for event in past {
            if self.send(&event).await.is_err() {
                return;
            }
        }
        let Some(mut future) = future else {
            return;
        };
        loop {
            let event = tokio::select! {
                event = future.recv() => event,
                () = self.sender.closed() => return,
                () = self.shutdown.clone().wait() => return,
            };
            let sent = match event {
                Ok(event) => self.send(&event).await,
                Err(broadcast::error::RecvError::Lagged(count)) => self.send(&lost(count)).await,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// An error is that the client has gone.
    async fn send(&self, event: &Event) -> Result<(), ()> {
        let key = event.key.as_ref();
        let is_wanted = match (&self.only, key) {
            (Some(only), Some(key)) => only.iter().any(|wanted| wanted == key.as_str()),
            (Some(_), None) => event.what == What::Lost,
            (None, _) => true,
        };
        if !is_wanted {
            return Ok(());
        }
        let sent = self.sender.send(Ok(convert::event(event))).await;
        sent.map_err(drop)
    }
}

fn lost(count: u64) -> Event {
    Event {
        time: SystemTime::now(),
        what: What::Lost,
        key: None,
        usage: None,
        limit: None,
        text: format!("this client was too slow for {count} events"),
    }
}
