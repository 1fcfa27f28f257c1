//! Events in containerd's stream, where whoever listens to containerd sees them, under the topic
//! `/snapshotter-quota/limit`, as a `google.protobuf.Struct`: JSON in the encoding that clients of
//! containerd know without us. It waits for nobody: what containerd does not take is counted, and
//! is in our own log and stream all the same.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost_types::{Any, Struct, Value, value::Kind};
use proto::Message;
use snapshot_core::daemon::Shutdown;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::timeout,
};

use super::Figures;
use crate::{containerd::Containerd, events::Event, limit::Request};

/// The topic.
const TOPIC: &str = "/snapshotter-quota/limit";

/// As containerd's own events are named: without a host.
const TYPE_URL: &str = "google.protobuf.Struct";

/// Most time for one event. Those that come meanwhile wait, as many as are remembered.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who tells containerd.
#[derive(Debug)]
pub(super) struct Publisher {
    containerd: Containerd,
    figures: Arc<Figures>,
    patience: Duration,
    is_reached: bool,
}

impl Publisher {
    pub(super) fn new(containerd: Containerd, figures: Arc<Figures>) -> Self {
        Self {
            containerd,
            figures,
            patience: PATIENCE,
            is_reached: true,
        }
    }

    /// Tells of each event until the daemon ends.
    pub(super) async fn run(mut self, mut events: Receiver<Event>, shutdown: Shutdown) {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = shutdown.clone().wait() => return,
            };
            match event {
                Ok(event) => self.publish(&event).await,
                Err(RecvError::Lagged(count)) => self.figures.add_unpublished(count),
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub(super) async fn publish(&mut self, event: &Event) {
        let Some((namespace, packed)) = pack(event) else {
            return;
        };
        let published = self.containerd.publish(&namespace, TOPIC, packed);
        let refusal = match timeout(self.patience, published).await {
            Ok(Ok(())) => {
                self.figures.add_published();
                self.is_reached = true;
                return;
            }
            Ok(Err(error)) => error.in_one_line(),
            Err(_) => format!("it did not answer within {:?}", self.patience),
        };
        self.figures.add_unpublished(1);
        // Once, not for every event.
        if std::mem::replace(&mut self.is_reached, false) {
            tracing::warn!(error = refusal, "containerd does not take events");
        }
    }
}

/// `None` for what is about no snapshot, or about one that containerd did not make: every event of
/// containerd is in a namespace.
fn pack(event: &Event) -> Option<(String, Any)> {
    let key = event.key.as_ref()?.as_str();
    let labels = BTreeMap::new();
    let request = Request {
        key,
        parent: None,
        labels: &labels,
    };
    let namespace = Some(request.namespace()).filter(|namespace| !namespace.is_empty())?;
    let any = Any {
        type_url: TYPE_URL.to_owned(),
        value: fields(key, event).encode_to_vec(),
    };
    Some((namespace.to_owned(), any))
}

/// What is not known is left out.
fn fields(key: &str, event: &Event) -> Struct {
    let text = |text: &str| Kind::StringValue(text.to_owned());
    #[expect(
        clippy::cast_precision_loss,
        reason = "numbers of JSON are exact up to 2^53"
    )]
    let number = |number: u64| Kind::NumberValue(number as f64);
    let (usage, limit) = (event.usage, event.limit.as_ref());
    let bytes = limit.and_then(|limit| Some(limit.bytes?.bytes().get()));
    let inodes = limit.and_then(|limit| Some(limit.inodes?.count().get()));
    let fields = [
        ("what", Some(text(event.what.word()))),
        ("key", Some(text(key))),
        ("text", Some(text(&event.text))),
        ("used_bytes", usage.map(|usage| number(usage.bytes))),
        ("used_inodes", usage.map(|usage| number(usage.inodes))),
        ("limit_bytes", bytes.map(number)),
        ("limit_inodes", inodes.map(number)),
    ];
    let fields = fields.into_iter().filter_map(|(name, kind)| {
        let value = Value { kind: Some(kind?) };
        Some((name.to_owned(), value))
    });
    Struct {
        fields: fields.collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{path::Path, time::SystemTime};

    use proto::events::{Envelope, PublishRequest, SubscribeRequest, events_server};
    use snapshot_core::{Key, Usage};
    use tokio::{net::UnixListener, sync::mpsc};
    use tonic::{
        Request as GrpcRequest, Response, Status,
        codegen::tokio_stream::wrappers::UnixListenerStream, transport::Server,
    };

    use super::*;
    use crate::{
        events::{Events, What},
        limit::{Limit as Decided, Size},
    };

    /// Takes events, or never answers.
    struct Taker {
        taken: Option<mpsc::UnboundedSender<(String, PublishRequest)>>,
    }

    #[tonic::async_trait]
    impl events_server::Events for Taker {
        type SubscribeStream = tonic::codegen::BoxStream<Envelope>;

        async fn subscribe(
            &self,
            _request: GrpcRequest<SubscribeRequest>,
        ) -> Result<Response<Self::SubscribeStream>, Status> {
            Err(Status::unimplemented("nobody listens here"))
        }

        async fn publish(
            &self,
            request: GrpcRequest<PublishRequest>,
        ) -> Result<Response<()>, Status> {
            let Some(taken) = &self.taken else {
                return std::future::pending().await;
            };
            let namespace = request.metadata().get("containerd-namespace").unwrap();
            let namespace = namespace.to_str().unwrap().to_owned();
            taken.send((namespace, request.into_inner())).unwrap();
            Ok(Response::new(()))
        }
    }

    /// A containerd that takes everything.
    pub(in crate::watch) fn serve_taker(
        socket: &Path,
    ) -> mpsc::UnboundedReceiver<(String, PublishRequest)> {
        let (sender, taken) = mpsc::unbounded_channel();
        let taker = Taker {
            taken: Some(sender),
        };
        serve(socket, taker);
        taken
    }

    fn serve(socket: &Path, taker: Taker) {
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = events_server::EventsServer::new(taker);
        tokio::spawn(Server::builder().serve_with_incoming(server, listener));
    }

    fn event(key: &str) -> Event {
        Event {
            time: SystemTime::UNIX_EPOCH,
            what: What::Near,
            key: Key::new(key).ok(),
            usage: Some(Usage {
                bytes: 9,
                inodes: 2,
            }),
            limit: Some(Decided {
                bytes: Size::from_bytes(10),
                ..Decided::counted()
            }),
            text: "80% of the limit of bytes are used".to_owned(),
        }
    }

    fn publisher(socket: &Path, patience: Duration) -> Publisher {
        let containerd = Containerd::new(socket, "quota").unwrap();
        Publisher {
            patience,
            ..Publisher::new(containerd, Arc::default())
        }
    }

    #[tokio::test]
    async fn an_event_is_published_in_its_namespace_with_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("c.sock");
        let mut taken = serve_taker(&socket);
        let mut publisher = publisher(&socket, PATIENCE);
        // Keys that containerd did not make have no namespace.
        publisher.publish(&event("alone")).await;
        publisher.publish(&event("k8s.io/7/web")).await;
        let (namespace, request) = taken.recv().await.unwrap();
        assert_eq!(
            (namespace.as_str(), request.topic.as_str()),
            ("k8s.io", TOPIC)
        );
        let event = request.event.unwrap();
        assert_eq!(event.type_url, "google.protobuf.Struct");
        let fields = Struct::decode(event.value.as_slice()).unwrap().fields;
        let text = |text: &str| Kind::StringValue(text.to_owned());
        let expected = [
            ("key", text("k8s.io/7/web")),
            ("limit_bytes", Kind::NumberValue(10.0)),
            ("text", text("80% of the limit of bytes are used")),
            ("used_bytes", Kind::NumberValue(9.0)),
            ("used_inodes", Kind::NumberValue(2.0)),
            ("what", text("near")),
        ];
        let found: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.kind.clone().unwrap()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(publisher.figures.published(), 1);
        assert_eq!(publisher.figures.unpublished(), 0);
    }

    #[tokio::test]
    async fn what_containerd_does_not_take_is_counted_and_the_next_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("c.sock");
        let mut publisher = publisher(&socket, PATIENCE);
        for _ in 0..3 {
            publisher.publish(&event("ns/1/web")).await;
        }
        assert_eq!(publisher.figures.unpublished(), 3);
        let mut taken = serve_taker(&socket);
        publisher.publish(&event("ns/1/web")).await;
        assert!(taken.recv().await.is_some());
        assert_eq!(publisher.figures.published(), 1);
    }

    #[tokio::test]
    async fn a_containerd_that_hangs_costs_a_moment_and_events_that_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("c.sock");
        serve(&socket, Taker { taken: None });
        let mut publisher = publisher(&socket, Duration::from_millis(20));
        publisher.publish(&event("ns/1/web")).await;
        assert_eq!(publisher.figures.unpublished(), 1);

        // Who tells never waits, and what does not fit is counted.
        let events = Events::default();
        let (_, future) = events.listen();
        let figures = Arc::clone(&publisher.figures);
        for _ in 0..1500 {
            events.tell(event("ns/1/web"));
        }
        drop(events);
        let (_trigger, shutdown) = Shutdown::channel();
        publisher.patience = Duration::ZERO;
        publisher.run(future, shutdown).await;
        assert_eq!(figures.unpublished(), 1501);
    }
}
