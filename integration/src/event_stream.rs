//! containerd's events as they are sent, for those of others that `ctr events` cannot print.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use prost_types::{Any, Struct};
use proto::{
    Message,
    events::{Envelope, PublishRequest, SubscribeRequest, events_client::EventsClient},
};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{grpc::Connection, wait::SOON};

/// Sent until it comes back.
const PROOF: &str = "/proof/of-subscription";

/// How long one may take to come back before the next is sent.
const PROOF_LIMIT: Duration = Duration::from_millis(100);

/// A subscription to the events of one topic.
#[derive(Debug)]
pub struct EventStream {
    connection: Connection,
    topic: String,
    events: Streaming<Envelope>,
}

impl EventStream {
    /// Subscribes at that socket of containerd. Returns when the subscription is proved to work, so
    /// that nothing after that is missed.
    pub fn of_topic(socket: &Path, topic: &str) -> Result<Self> {
        let connection = Connection::open(socket)?;
        let client = EventsClient::new(connection.channel());
        let filters = [topic, PROOF].map(|topic| format!("topic=={topic:?}"));
        let events = connection.call(SOON, subscribe(client, filters.to_vec()))?;
        Ok(Self {
            connection,
            topic: topic.to_owned(),
            events,
        })
    }

    /// The next one.
    pub fn wait_for_next(&mut self) -> Result<Envelope> {
        loop {
            let event = self.connection.wait(SOON, self.events.message())?;
            let event = event.context("containerd ended its stream of events")?;
            if event.topic == self.topic {
                return Ok(event);
            }
        }
    }
}

/// containerd answers a subscription with its first event.
async fn subscribe(
    client: EventsClient<Channel>,
    filters: Vec<String>,
) -> Result<Response<Streaming<Envelope>>, Status> {
    let mut subscriber = client.clone();
    let mut subscription = Box::pin(subscriber.subscribe(SubscribeRequest { filters }));
    loop {
        match tokio::time::timeout(PROOF_LIMIT, &mut subscription).await {
            Ok(answer) => return answer,
            Err(_) => prove(client.clone()).await?,
        }
    }
}

async fn prove(mut client: EventsClient<Channel>) -> Result<(), Status> {
    let mut request = Request::new(PublishRequest {
        topic: PROOF.to_owned(),
        event: Some(Any {
            type_url: "google.protobuf.Struct".to_owned(),
            value: Struct::default().encode_to_vec(),
        }),
    });
    let namespace = "proof".parse().expect("it is ASCII");
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    client.publish(request).await.map(drop)
}
