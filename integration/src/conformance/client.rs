//! The snapshots service as its callers see it: one blocking call for each request, nothing retried.

use std::{cell::RefCell, collections::BTreeMap, future::Future, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use prost_types::FieldMask;
use proto::{
    snapshots::{
        CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, ListSnapshotsResponse,
        MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
        UpdateSnapshotRequest, UsageRequest, UsageResponse, ViewSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::Target;
use crate::grpc::Connection;

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// A connection to a snapshotter. It remembers the snapshots made through it that still exist.
#[derive(Debug)]
pub struct Snapshots {
    connection: Connection,
    client: SnapshotsClient<Channel>,
    snapshotter: String,
    namespace: Option<MetadataValue<Ascii>>,
    limit: Duration,
    made: RefCell<Vec<String>>,
}

/// The answer to List as it comes.
pub(crate) type Listing = Streaming<ListSnapshotsResponse>;

impl Snapshots {
    /// Connects.
    pub fn connect(target: &Target) -> Result<Self> {
        let connection = Connection::open(&target.socket)?;
        let client = SnapshotsClient::new(connection.channel());
        let namespace = target
            .namespace
            .as_ref()
            .map(|name| {
                name.parse()
                    .with_context(|| format!("{name:?} is no namespace"))
            })
            .transpose()?;
        Ok(Self {
            connection,
            client,
            snapshotter: target.snapshotter.clone(),
            namespace,
            limit: target.limit,
            made: RefCell::new(Vec::new()),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(namespace) = &self.namespace {
            request
                .metadata_mut()
                .insert("containerd-namespace", namespace.clone());
        }
        request
    }

    fn call<T>(
        &self,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.connection.call(self.limit, future)
    }

    /// Makes a writable snapshot.
    pub fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        });
        let answer = self.call(self.client.clone().prepare(request))?;
        self.made.borrow_mut().push(key.to_owned());
        Ok(answer.mounts)
    }

    /// Makes a read-only snapshot.
    pub fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let request = self.request(ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        });
        let answer = self.call(self.client.clone().view(request))?;
        self.made.borrow_mut().push(key.to_owned());
        Ok(answer.mounts)
    }

    /// How a snapshot is mounted.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(MountsRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        Ok(self.call(self.client.clone().mounts(request))?.mounts)
    }

    /// Turns an active snapshot into a committed one.
    pub fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Status> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            parent: String::new(),
        });
        self.call(self.client.clone().commit(request))?;
        for made in self.made.borrow_mut().iter_mut() {
            if made == key {
                name.clone_into(made);
            }
        }
        Ok(())
    }

    /// Removes a snapshot.
    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        self.call(self.client.clone().remove(request))?;
        self.made.borrow_mut().retain(|made| made != key);
        Ok(())
    }

    /// What a snapshot is.
    pub fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        let answer = self.call(self.client.clone().stat(request))?;
        answer
            .info
            .ok_or_else(|| Status::data_loss("the answer to Stat has no info"))
    }

    /// Changes what `paths` name, or all that may change when they name nothing.
    pub fn update(&self, info: Info, paths: &[&str]) -> Result<Info, Status> {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        let request = self.request(UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: Some(info),
            // The mask is always there, as in what containerd sends; empty means everything.
            update_mask: Some(FieldMask { paths }),
        });
        let answer = self.call(self.client.clone().update(request))?;
        answer
            .info
            .ok_or_else(|| Status::data_loss("the answer to Update has no info"))
    }

    /// What a snapshot takes without its parents.
    pub fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = self.request(UsageRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        self.call(self.client.clone().usage(request))
    }

    /// Waits until what removed snapshots held is freed.
    pub fn cleanup(&self) -> Result<(), Status> {
        let request = self.request(CleanupRequest {
            snapshotter: self.snapshotter.clone(),
        });
        self.call(self.client.clone().cleanup(request))
    }

    /// Starts to list.
    pub(crate) fn open_list(&self, filters: &[String]) -> Result<Listing, Status> {
        let request = self.request(ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            filters: filters.to_vec(),
        });
        self.call(self.client.clone().list(request))
    }

    /// The next part of a list; none at its end.
    pub(crate) fn next_of(&self, listing: &mut Listing) -> Result<Option<Vec<Info>>, Status> {
        let part = self.connection.wait(self.limit, listing.message())?;
        Ok(part.map(|part| part.info))
    }

    /// Every snapshot that one of the filters matches; all when there is no filter.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>, Status> {
        let mut listing = self.open_list(filters)?;
        let mut all = Vec::new();
        while let Some(part) = self.next_of(&mut listing)? {
            all.extend(part);
        }
        Ok(all)
    }

    /// Removes what was made through this connection and still exists, children before parents.
    pub fn remove_made(&self) -> Result<()> {
        let made = self.made.borrow().clone();
        let mut failures = Vec::new();
        for key in made.iter().rev() {
            if let Err(status) = self.remove(key) {
                failures.push(format!("{key}: {}", status.message()));
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}

/// Demands that the snapshotter refused. No answer at all is not a refusal.
pub(crate) fn refused<T>(what: &str, answer: Result<T, Status>) -> Result<Status> {
    match answer {
        Ok(_) => bail!("{what} must be refused, and was done"),
        Err(status)
            if matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unimplemented
            ) =>
        {
            Err(status).with_context(|| format!("{what} must be refused"))
        }
        Err(status) => Ok(status),
    }
}
