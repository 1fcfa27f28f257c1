//! containerd as seen from the other side: it keeps labels in its own store, and has an event
//! stream. Nothing here is needed to hold a limit.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    events::{PublishRequest, events_client::EventsClient},
    introspection::{PluginsRequest, introspection_client::IntrospectionClient},
    snapshots::{Info, UpdateSnapshotRequest, snapshots_client::SnapshotsClient},
};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{Error, Result};

/// containerd answers in milliseconds; one that hangs must not hold up others for long.
const LIMIT: Duration = Duration::from_secs(10);

/// A client of containerd.
#[derive(Debug, Clone)]
pub struct Containerd {
    socket: PathBuf,
    /// Our name there.
    snapshotter: String,
    channel: Channel,
}

/// What containerd has under the name of a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Nothing.
    Missing,
    /// A snapshotter of its own.
    BuiltIn,
    /// What answers at a socket.
    Proxy(PathBuf),
}

/// What labels become; `None` takes one away.
pub type LabelChanges = BTreeMap<&'static str, Option<String>>;

impl Containerd {
    /// Connects at the first call, and again when containerd was restarted. To be made inside a
    /// runtime.
    ///
    /// # Errors
    /// [`Error::Setting`] for a path that is no text.
    pub fn new(socket: &Path, snapshotter: &str) -> Result<Self> {
        Ok(Self {
            socket: socket.to_owned(),
            snapshotter: snapshotter.to_owned(),
            channel: endpoint(socket)?.connect_lazy(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Changes labels of a snapshot in containerd's store; containerd calls our own Update for it
    /// before it answers.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when it does not run, [`Error::Answered`] when it refuses.
    pub async fn change_labels(
        &self,
        namespace: &str,
        name: &str,
        changes: &LabelChanges,
    ) -> Result<()> {
        let paths = changes.keys().map(|label| format!("labels.{label}"));
        let kept = changes.iter().filter_map(|(label, value)| {
            let value = value.clone()?;
            Some(((*label).to_owned(), value))
        });
        let message = UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: Some(Info {
                name: name.to_owned(),
                labels: kept.collect(),
                ..Info::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.collect(),
            }),
        };
        let request = in_namespace(namespace, message)?;
        SnapshotsClient::new(self.channel.clone())
            .update(request)
            .await
            .map(drop)
            .map_err(|status| self.failed(&status))
    }

    /// What it has registered under our name. This is what runs, whatever its files say by now.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when it does not run.
    pub async fn registration(&self) -> Result<Registration> {
        let message = PluginsRequest {
            filters: vec!["type==io.containerd.snapshotter.v1".to_owned()],
        };
        let answer = IntrospectionClient::new(self.channel.clone())
            .plugins(message)
            .await
            .map_err(|status| self.failed(&status))?;
        let plugins = answer.into_inner().plugins;
        let mut named = plugins
            .into_iter()
            .filter(|plugin| plugin.id == self.snapshotter);
        Ok(match named.next() {
            None => Registration::Missing,
            Some(plugin) => match plugin.exports.get("address") {
                None => Registration::BuiltIn,
                Some(address) => {
                    let path = address.strip_prefix("unix://").unwrap_or(address);
                    Registration::Proxy(PathBuf::from(path))
                }
            },
        })
    }

    /// Our name there.
    #[must_use]
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    /// Puts an event into containerd's stream.
    ///
    /// # Errors
    /// As [`Self::change_labels`].
    pub async fn publish(
        &self,
        namespace: &str,
        topic: &str,
        event: prost_types::Any,
    ) -> Result<()> {
        let message = PublishRequest {
            topic: topic.to_owned(),
            event: Some(event),
        };
        let request = in_namespace(namespace, message)?;
        EventsClient::new(self.channel.clone())
            .publish(request)
            .await
            .map(drop)
            .map_err(|status| self.failed(&status))
    }

    fn failed(&self, status: &Status) -> Error {
        match status.code() {
            Code::Unavailable => Error::Unreachable {
                who: "containerd",
                address: self.socket.clone(),
                advice: "start it, or take `containerd` out of the configuration",
                source: status.message().into(),
            },
            _ => Error::Answered(format!("containerd answered: {}", status.message())),
        }
    }
}

/// A unix socket as tonic wants it.
pub(crate) fn endpoint(socket: &Path) -> Result<Endpoint> {
    let refuse = |why: String| Error::Setting {
        key: "address",
        why,
    };
    let path = socket
        .to_str()
        .ok_or_else(|| refuse(format!("{} is no UTF-8 text", socket.display())))?;
    Endpoint::from_shared(format!("unix:{path}"))
        .map(|endpoint| endpoint.timeout(LIMIT).connect_timeout(LIMIT))
        .map_err(|error| refuse(format!("{path}: {error}")))
}

fn in_namespace<T>(namespace: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(namespace).map_err(|error| {
        Error::Answered(format!(
            "{namespace:?} is no namespace of containerd: {error}"
        ))
    })?;
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}
