//! containerd's services in one namespace, under a lease. Wire types stop here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use disk::Digest;
use prost_types::FieldMask;
use proto::{
    content::{
        Info, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
        content_client::ContentClient,
    },
    diff::{ApplyRequest, diff_client::DiffClient},
    images::{
        CreateImageRequest, GetImageRequest, Image, UpdateImageRequest, images_client::ImagesClient,
    },
    leases::{CreateRequest, DeleteRequest, leases_client::LeasesClient},
    snapshots::{
        CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    types::{Descriptor as WireDescriptor, Mount},
};
use snapshot_core::TARGET_LABEL;
use tonic::{
    Code, Request, Status, Streaming,
    codegen::tokio_stream::{Stream, once},
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    error::{Error, Result},
    image::{DOCUMENT_BYTES_MAX, Descriptor},
};

/// How long a containerd may take to be connected to.
const CONNECT: Duration = Duration::from_secs(10);

/// A lease of a pull that was killed goes after that, as that of containerd's own client.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// Labels of containerd's garbage collector, and others.
pub(super) type Labels = BTreeMap<String, String>;

/// A client of containerd.
#[derive(Debug, Clone)]
pub(super) struct Containerd {
    channel: Channel,
    address: PathBuf,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

/// What Prepare said.
#[derive(Debug)]
pub(super) enum Prepared {
    /// The snapshotter has the layer.
    Ready,
    /// It is to be unpacked here.
    Mounts(Vec<Mount>),
}

impl Containerd {
    /// The one at that socket.
    pub(super) async fn connect(address: &Path, namespace: &str) -> Result<Self> {
        let refused = |what: String| Error::Setting(what);
        let path = address.display();
        let endpoint = Endpoint::from_shared(format!("unix:{path}"));
        let endpoint = endpoint.map_err(|error| refused(format!("{path}: {error}")))?;
        let channel = endpoint.connect_timeout(CONNECT).connect().await;
        let channel = channel.map_err(|error| {
            let why = snapshot_core::one_line(&error);
            refused(format!(
                "containerd does not answer at {path} ({why}): start it, or name its socket by --containerd"
            ))
        })?;
        let namespace = metadata(namespace)
            .ok_or_else(|| refused(format!("{namespace:?} is no namespace of containerd")))?;
        Ok(Self {
            channel,
            address: address.to_owned(),
            namespace,
            lease: None,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let fields = request.metadata_mut();
        fields.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            fields.insert("containerd-lease", lease.clone());
        }
        request
    }

    fn failed(&self, doing: &str, status: &Status) -> Error {
        let containerd = self.address.display();
        let (code, why) = (status.code(), status.message());
        Error::Setting(format!(
            "containerd at {containerd} did not {doing}: {code:?}: {why}"
        ))
    }

    /// The same client; what it makes from now on stays until [`Containerd::end_lease`].
    pub(super) async fn with_lease(mut self, id: &str) -> Result<Self> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let end = humantime::format_rfc3339_seconds(UNIX_EPOCH + now + LEASE).to_string();
        let message = CreateRequest {
            id: id.to_owned(),
            labels: [("containerd.io/gc.expire".to_owned(), end)].into(),
        };
        let made = LeasesClient::new(self.channel.clone())
            .create(self.request(message))
            .await;
        made.map_err(|status| self.failed("make a lease", &status))?;
        self.lease = metadata(id);
        Ok(self)
    }

    /// What was made under it, and nothing refers to, may be collected.
    pub(super) async fn end_lease(&self, id: &str) -> Result<()> {
        let message = DeleteRequest {
            id: id.to_owned(),
            sync: false,
        };
        let ended = LeasesClient::new(self.channel.clone())
            .delete(self.request(message))
            .await;
        ended
            .map(drop)
            .map_err(|status| self.failed("end the lease", &status))
    }

    /// Puts short content, with labels; those are added to what is there. It is put also where it is there: that is what keeps it
    /// for the lease.
    pub(super) async fn put(&self, digest: Digest, bytes: Vec<u8>, labels: Labels) -> Result<()> {
        let total = i64::try_from(bytes.len()).expect("documents are short");
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total,
            data: bytes,
            labels: labels.clone(),
            ..begin_of(digest)
        };
        match self.write(once(message)).await {
            Err(status) if status.code() == Code::AlreadyExists => self.label(digest, labels).await,
            written => written.map_err(|status| self.failed("take content", &status)),
        }
    }

    /// Puts content as it comes; it is compared with its digest there.
    pub(super) async fn put_stream(
        &self,
        messages: impl Stream<Item = WriteContentRequest> + Send + 'static,
    ) -> Result<()> {
        match self.write(messages).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            written => written.map_err(|status| self.failed("take a layer", &status)),
        }
    }

    async fn write(
        &self,
        messages: impl Stream<Item = WriteContentRequest> + Send + 'static,
    ) -> Result<(), Status> {
        let mut client = ContentClient::new(self.channel.clone());
        let answers = client.write(self.request(messages)).await?;
        let mut answers: Streaming<_> = answers.into_inner();
        let mut is_committed = false;
        while let Some(answer) = answers.message().await? {
            is_committed = answer.action == i32::from(WriteAction::Commit);
        }
        if is_committed {
            return Ok(());
        }
        Err(Status::aborted("it ended before all of it was there"))
    }

    /// Adds labels to content.
    pub(super) async fn label(&self, digest: Digest, labels: Labels) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let message = UpdateRequest {
            info: Some(Info {
                digest: named(digest),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        };
        let changed = ContentClient::new(self.channel.clone())
            .update(self.request(message))
            .await;
        changed
            .map(drop)
            .map_err(|status| self.failed("label content", &status))
    }

    /// A short document; none when it is not there.
    pub(super) async fn document(&self, digest: Digest) -> Result<Option<Vec<u8>>> {
        let failed = |status: &Status| self.failed("give content", status);
        let message = ReadContentRequest {
            digest: named(digest),
            ..ReadContentRequest::default()
        };
        let mut client = ContentClient::new(self.channel.clone());
        let mut parts = match client.read(self.request(message)).await {
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            parts => parts.map_err(|status| failed(&status))?.into_inner(),
        };
        let mut bytes = Vec::new();
        loop {
            match parts.message().await {
                Ok(Some(part)) => bytes.extend_from_slice(&part.data),
                Ok(None) => return Ok(Some(bytes)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(failed(&status)),
            }
            if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
                let what = "a document that is longer than 4 MiB";
                return Err(Error::damaged(named(digest), what));
            }
        }
    }

    /// Whether a snapshotter has a snapshot of that name here.
    pub(super) async fn has_snapshot(&self, snapshotter: &str, key: &str) -> Result<bool> {
        let message = StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let found = SnapshotsClient::new(self.channel.clone())
            .stat(self.request(message))
            .await;
        match found {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) if status.code() == Code::InvalidArgument => Err(Error::Setting(format!(
                "containerd at {} has no snapshotter {snapshotter:?} ({}): add it as a proxy plug-in \
                 (packaging/containerd), or name it by --snapshotter",
                self.address.display(),
                status.message()
            ))),
            Err(status) => Err(self.failed("look for a snapshot", &status)),
        }
    }

    /// Asks for a snapshot to unpack a layer into, as containerd's unpacker does.
    pub(super) async fn prepare(
        &self,
        snapshotter: &str,
        (key, parent): (&str, &str),
        chain_id: Digest,
    ) -> Result<Prepared> {
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: [(TARGET_LABEL.to_owned(), named(chain_id))].into(),
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        match client.prepare(self.request(message)).await {
            Ok(answer) => Ok(Prepared::Mounts(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Ready),
            Err(status) => Err(self.failed("prepare a snapshot", &status)),
        }
    }

    /// Unpacks a layer, which is content: its diffID.
    pub(super) async fn apply(&self, layer: &Descriptor, mounts: Vec<Mount>) -> Result<String> {
        let message = ApplyRequest {
            diff: Some(wire(layer)),
            mounts,
        };
        let applied = DiffClient::new(self.channel.clone())
            .apply(self.request(message))
            .await;
        let applied = applied.map_err(|status| self.failed("unpack a layer", &status))?;
        Ok(applied.into_inner().applied.unwrap_or_default().digest)
    }

    /// Gives a snapshot that was unpacked the name of its chain; somebody else may have been quicker.
    pub(super) async fn commit(
        &self,
        snapshotter: &str,
        key: &str,
        chain_id: Digest,
    ) -> Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: named(chain_id),
            key: key.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        match client.commit(self.request(message)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove(snapshotter, key).await
            }
            Err(status) => Err(self.failed("commit a snapshot", &status)),
        }
    }

    /// Removes a snapshot, if it is there.
    pub(super) async fn remove(&self, snapshotter: &str, key: &str) -> Result<()> {
        let message = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        match client.remove(self.request(message)).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(self.failed("remove a snapshot", &status))
            }
            _ => Ok(()),
        }
    }

    /// Gives an image its name, which another may have had.
    pub(super) async fn name_image(&self, name: &str, target: &Descriptor) -> Result<()> {
        let image = Image {
            name: name.to_owned(),
            target: Some(wire(target)),
            labels: Labels::new(),
        };
        let mut client = ImagesClient::new(self.channel.clone());
        let message = CreateImageRequest {
            image: Some(image.clone()),
        };
        match client.create(self.request(message)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(self.failed("name the image", &status)),
        }
        let message = UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask {
                paths: vec!["target".to_owned()],
            }),
        };
        let changed = client.update(self.request(message)).await;
        changed
            .map(drop)
            .map_err(|status| self.failed("name the image", &status))
    }

    /// What an image's name stands for, as media type and digest.
    pub(super) async fn image(&self, name: &str) -> Result<Option<(String, String)>> {
        let message = GetImageRequest {
            name: name.to_owned(),
        };
        match ImagesClient::new(self.channel.clone())
            .get(self.request(message))
            .await
        {
            Ok(answer) => {
                let image = answer.into_inner().image.unwrap_or_default();
                let target = image.target.unwrap_or_default();
                Ok(Some((target.media_type, target.digest)))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed("look for an image", &status)),
        }
    }
}

/// The first message of whoever writes that content, by a reference of this process: two cannot write by one.
pub(super) fn begin_of(digest: Digest) -> WriteContentRequest {
    WriteContentRequest {
        r#ref: format!("pull-sha256:{digest}-{}", std::process::id()),
        expected: named(digest),
        ..WriteContentRequest::default()
    }
}

/// As containerd writes digests.
pub(super) fn named(digest: Digest) -> String {
    format!("sha256:{digest}")
}

fn wire(descriptor: &Descriptor) -> WireDescriptor {
    WireDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: named(descriptor.digest),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        ..WireDescriptor::default()
    }
}

fn metadata(text: &str) -> Option<MetadataValue<Ascii>> {
    MetadataValue::try_from(text)
        .ok()
        .filter(|_| !text.is_empty())
}
