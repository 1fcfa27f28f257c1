//! The service as containerd calls it: by its socket.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use prometheus_client::{encoding::text::encode, registry::Registry};
use proto::snapshots::{
    self as wire, snapshots_client::SnapshotsClient, snapshots_server::Snapshots as _,
};
use snapshot_core::{Service, Snapshots, metrics};
use tokio::{net::UnixListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Server},
};

use crate::driver::{Step, TestDriver};

/// A server in this process and a client of it.
struct Served {
    folder: tempfile::TempDir,
    driver: Arc<TestDriver>,
    snapshots: Arc<Snapshots>,
    client: SnapshotsClient<Channel>,
    end: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

type Labels = BTreeMap<String, String>;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    crate::root::labels(pairs)
}

impl Served {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let driver = TestDriver::new();
        let opened = Snapshots::open(&folder.path().join("root"), Arc::clone(&driver) as _);
        let snapshots = Arc::new(opened.unwrap());
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let service = Service::new(Arc::clone(&snapshots), crate::root::threads(8)).into_server();
        let (end, ended) = oneshot::channel::<()>();
        let incoming = tonic::codegen::tokio_stream::wrappers::ReceiverStream::new({
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    if sender.send(Ok::<_, std::io::Error>(stream)).await.is_err() {
                        return;
                    }
                }
            });
            receiver
        });
        let server = tokio::spawn(async move {
            let until = async { drop(ended.await) };
            let server = Server::builder();
            let served = server.serve_with_incoming_shutdown(service, incoming, until);
            served.await.unwrap();
        });
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
        let client = SnapshotsClient::new(endpoint.connect().await.unwrap());
        Self {
            folder,
            driver,
            snapshots,
            client,
            end,
            server,
        }
    }

    async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<proto::types::Mount>, Status> {
        let request = wire::PrepareSnapshotRequest {
            snapshotter: "test".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        Ok(self
            .client
            .clone()
            .prepare(request)
            .await?
            .into_inner()
            .mounts)
    }

    async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        let request = wire::CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            ..wire::CommitSnapshotRequest::default()
        };
        self.client.clone().commit(request).await.map(drop)
    }

    async fn stat(&self, key: &str) -> Result<wire::Info, Status> {
        let request = wire::StatSnapshotRequest {
            key: key.to_owned(),
            ..wire::StatSnapshotRequest::default()
        };
        let answer = self.client.clone().stat(request).await?;
        Ok(answer.into_inner().info.unwrap())
    }

    async fn list(&self, filters: &[&str]) -> Result<Vec<wire::Info>, Status> {
        let request = wire::ListSnapshotsRequest {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..wire::ListSnapshotsRequest::default()
        };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(message) = stream.message().await? {
            assert!(message.info.len() <= 100);
            infos.extend(message.info);
        }
        Ok(infos)
    }

    async fn end(self) {
        drop(self.client);
        self.end.send(()).unwrap();
        self.server.await.unwrap();
    }
}

fn remove(key: &str) -> wire::RemoveSnapshotRequest {
    wire::RemoveSnapshotRequest {
        key: key.to_owned(),
        ..wire::RemoveSnapshotRequest::default()
    }
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> Code {
    let status = outcome.unwrap_err();
    assert!(!status.message().contains('\n'), "{status:?}");
    status.code()
}

#[tokio::test]
async fn a_life_over_the_socket_with_containerds_codes() {
    let served = Served::new().await;
    let mut client = served.client.clone();
    let mounts = served
        .prepare("a", "", labels(&[("l", "1")]))
        .await
        .unwrap();
    assert_eq!(
        (mounts[0].r#type.as_str(), mounts[0].target.as_str()),
        ("bind", "")
    );
    let info = served.stat("a").await.unwrap();
    assert_eq!(info.kind(), wire::Kind::Active);
    assert_eq!(
        (info.created_at, &info.labels),
        (info.updated_at, &labels(&[("l", "1")]))
    );
    served.commit("layer", "a").await.unwrap();
    assert_eq!(code(served.stat("a").await), Code::NotFound);
    served.prepare("b", "layer", Labels::new()).await.unwrap();

    for (key, parent, expected) in [
        ("b", "layer", Code::AlreadyExists),
        ("c", "b", Code::InvalidArgument),
        ("c", "none", Code::NotFound),
        ("", "", Code::InvalidArgument),
    ] {
        let refused = served.prepare(key, parent, Labels::new()).await;
        assert_eq!(code(refused), expected, "{key} {parent}");
    }
    assert_eq!(
        code(served.commit("x", "layer").await),
        Code::FailedPrecondition
    );
    let refused = client.remove(remove("layer")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("remove"));
    let update = |paths: &[&str]| wire::UpdateSnapshotRequest {
        info: Some(wire::Info {
            name: "b".to_owned(),
            parent: "nonsense that is not looked at".to_owned(),
            labels: labels(&[("m", "2")]),
            ..wire::Info::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
        ..wire::UpdateSnapshotRequest::default()
    };
    assert_eq!(
        code(client.update(update(&["parent"])).await),
        Code::InvalidArgument
    );
    let updated = client
        .update(update(&["labels.m"]))
        .await
        .unwrap()
        .into_inner()
        .info
        .unwrap();
    assert_eq!(updated, served.stat("b").await.unwrap());
    assert_eq!(
        (updated.parent.as_str(), updated.labels),
        ("layer", labels(&[("m", "2")]))
    );
    let nothing = wire::UpdateSnapshotRequest::default();
    assert_eq!(code(client.update(nothing).await), Code::InvalidArgument);

    served.driver.fail(Step::Create);
    let full = served.prepare("x", "", Labels::new()).await;
    assert_eq!(code(full), Code::ResourceExhausted);
    served.end().await;
}

#[tokio::test]
async fn a_layer_is_measured_viewed_and_removed_over_the_socket() {
    let served = Served::new().await;
    let mut client = served.client.clone();
    served.prepare("a", "", Labels::new()).await.unwrap();
    served.commit("layer", "a").await.unwrap();
    served.prepare("b", "layer", Labels::new()).await.unwrap();
    let usage = wire::UsageRequest {
        key: "layer".to_owned(),
        ..wire::UsageRequest::default()
    };
    assert_eq!(client.usage(usage).await.unwrap().into_inner().inodes, 1);
    let view = wire::ViewSnapshotRequest {
        key: "v".to_owned(),
        parent: "layer".to_owned(),
        ..wire::ViewSnapshotRequest::default()
    };
    let viewed = client.view(view).await.unwrap().into_inner().mounts;
    let again = wire::MountsRequest {
        key: "v".to_owned(),
        ..wire::MountsRequest::default()
    };
    assert_eq!(
        client.mounts(again).await.unwrap().into_inner().mounts,
        viewed
    );
    for key in ["v", "b", "layer"] {
        client.remove(remove(key)).await.unwrap();
    }
    client
        .cleanup(wire::CleanupRequest::default())
        .await
        .unwrap();
    assert_eq!(
        fs::read_dir(served.folder.path().join("root/snapshots"))
            .unwrap()
            .count(),
        0
    );
    served.end().await;
}

#[tokio::test]
async fn lists_come_in_chunks_and_hold_up_nobody() {
    let served = Served::new().await;
    let many = 730;
    for number in 0..many {
        let key = crate::root::key(&format!("{number:04}"));
        served
            .snapshots
            .view(&key, None, labels(&[("n", &number.to_string())]))
            .unwrap();
    }
    assert_eq!(served.list(&[]).await.unwrap().len(), many);
    assert_eq!(
        served
            .list(&["labels.n==7", "name==0008"])
            .await
            .unwrap()
            .len(),
        2
    );
    assert_eq!(served.list(&["name==none"]).await.unwrap().len(), 0);
    let refused = served.list(&["name=~x"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("byte 4"), "{refused:?}");

    // A client that takes one message and no more.
    let mut client = served.client.clone();
    let request = wire::ListSnapshotsRequest::default();
    let mut stream = client.list(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().info;
    assert_eq!(first.len(), 100);
    served.stat("0700").await.unwrap();
    served.prepare("new", "", Labels::new()).await.unwrap();
    client.remove(remove("0729")).await.unwrap();
    // What comes is as it was when the list began.
    let mut names: Vec<String> = first.into_iter().map(|info| info.name).collect();
    while let Some(message) = stream.message().await.unwrap() {
        names.extend(message.info.into_iter().map(|info| info.name));
    }
    assert_eq!(names.len(), many);
    assert!(names.contains(&"0729".to_owned()) && !names.contains(&"new".to_owned()));
    drop(stream);
    served.end().await;
}

#[tokio::test]
async fn a_list_of_the_largest_snapshots_fits_the_clients_messages() {
    let served = Served::new().await;
    let large: Labels = (0..250)
        .map(|number| (format!("label{number}"), "v".repeat(4000)))
        .collect();
    for name in ["a", "b", "c", "d"] {
        served.prepare(name, "", large.clone()).await.unwrap();
    }
    assert_eq!(served.list(&[]).await.unwrap().len(), 4);
    let too_large: Labels = (0..1100)
        .map(|number| (format!("label{number}"), "v".repeat(4000)))
        .collect();
    let refused = code(served.prepare("e", "", too_large).await);
    assert_eq!(refused, Code::OutOfRange);
    served.end().await;
}

#[tokio::test]
async fn commit_is_answered_when_it_is_stored_and_tidied_up_behind_that() {
    let served = Served::new().await;
    served
        .prepare("a", "", labels(&[("containerd.io/snapshot/x", "1")]))
        .await
        .unwrap();
    served.driver.hold(Step::Committed);
    served.commit("layer", "a").await.unwrap();
    assert_eq!(
        served.stat("layer").await.unwrap().kind,
        wire::Kind::Committed as i32
    );
    let is_held = |name: &str| {
        let key = crate::root::key(name);
        let taken = served.snapshots.take_names(&[&key], None, Duration::ZERO);
        taken.is_err()
    };
    assert!(is_held("a") && is_held("layer"), "it is not tidied up");
    assert!(!is_held("b"));
    served.driver.let_go(Step::Committed);
    // It waits for the name that the commit may still hold.
    served.prepare("b", "layer", Labels::new()).await.unwrap();
    assert!(!is_held("a") && !is_held("layer"));
    assert_eq!(served.driver.ended().0.len(), 1);
    served.end().await;
}

#[tokio::test]
async fn a_commit_for_which_nobody_waits_is_not_stored() {
    let served = Served::new().await;
    served.prepare("a", "", Labels::new()).await.unwrap();
    served.driver.hold(Step::Commit);
    let service = Service::new(Arc::clone(&served.snapshots), crate::root::threads(8));
    let hung = tokio::spawn(async move {
        let request = wire::CommitSnapshotRequest {
            name: "layer".to_owned(),
            key: "a".to_owned(),
            ..wire::CommitSnapshotRequest::default()
        };
        service.commit(Request::new(request)).await
    });
    let driver = Arc::clone(&served.driver);
    tokio::task::spawn_blocking(move || driver.wait_for(Step::Commit))
        .await
        .unwrap();
    hung.abort();
    assert!(hung.await.unwrap_err().is_cancelled());
    served.driver.let_go(Step::Commit);
    // It waits for the names that the commit holds.
    served.commit("other", "a").await.unwrap();
    assert_eq!(code(served.stat("layer").await), Code::NotFound);
    assert_eq!(served.driver.ended().1.len(), 1);
    served.end().await;
}

#[tokio::test]
async fn what_is_left_to_tidy_up_is_no_error_of_the_commit() {
    let served = Served::new().await;
    served.prepare("a", "", Labels::new()).await.unwrap();
    served.driver.fail(Step::Committed);
    served.commit("layer", "a").await.unwrap();
    served.prepare("b", "layer", Labels::new()).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn a_hung_request_holds_up_nobody_and_is_done_when_its_client_has_gone() {
    let served = Served::new().await;
    served.driver.hold(Step::Create);
    let service = Service::new(Arc::clone(&served.snapshots), crate::root::threads(8));
    let hung = tokio::spawn(async move {
        let request = wire::PrepareSnapshotRequest {
            key: "hung".to_owned(),
            ..wire::PrepareSnapshotRequest::default()
        };
        service.prepare(Request::new(request)).await
    });
    let driver = Arc::clone(&served.driver);
    tokio::task::spawn_blocking(move || driver.wait_for(Step::Create))
        .await
        .unwrap();
    assert_eq!(code(served.stat("hung").await), Code::NotFound);
    assert_eq!(served.list(&[]).await.unwrap().len(), 0);
    hung.abort();
    assert!(hung.await.unwrap_err().is_cancelled());
    served.driver.let_go(Step::Create);
    let there = async {
        while served.stat("hung").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), there)
        .await
        .unwrap();
    served.end().await;
}

#[tokio::test]
async fn what_the_store_costs_can_be_read() {
    let served = Served::new().await;
    let mut registry = Registry::default();
    metrics::register(&mut registry, &served.snapshots);
    served.prepare("a", "", Labels::new()).await.unwrap();
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for expected in [
        "snapshots 1\n",
        "unswept_directories 0\n",
        "store_commits_total ",
        "store_syncs_total ",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    served.end().await;
}
