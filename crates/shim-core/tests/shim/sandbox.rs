//! containerd's sandbox service: a pod without a sandbox container, beside containers in the same shim.

use std::fs::OpenOptions;
use std::path::Path;

use containerd_shim_protos::sandbox_api as wire;
use containerd_shim_protos::sandbox_async::SandboxClient;
use ttrpc::Code;

use crate::containerd::{Containerd, Shim, context, message, mkfifo};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_sandbox_lives_as_a_container_does,
    an_id_that_is_taken_is_refused_before_anything_is_written,
];

fn sandboxes(shim: &Shim) -> SandboxClient {
    SandboxClient::new(shim.client.clone())
}

fn to_create(bundle: &Path, id: &str) -> wire::CreateSandboxRequest {
    wire::CreateSandboxRequest {
        sandbox_id: id.to_owned(),
        bundle_path: bundle.to_str().unwrap().to_owned(),
        ..Default::default()
    }
}

async fn a_sandbox_lives_as_a_container_does() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("pod", &["/bin/false"], &[]);
    let shim = containerd.start(&bundle, "pod").await;
    let client = sandboxes(&shim);
    let create = to_create(&bundle, "pod");
    client.create_sandbox(context(), &create).await.unwrap();
    let start = wire::StartSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    let started = client.start_sandbox(context(), &start).await.unwrap();
    assert!(started.pid > 0);
    let ask = wire::SandboxStatusRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    let status = client.sandbox_status(context(), &ask).await.unwrap();
    assert_eq!(
        (status.state.as_str(), status.pid),
        ("SANDBOX_READY", started.pid)
    );
    let stop = wire::StopSandboxRequest {
        sandbox_id: "pod".to_owned(),
        timeout_secs: 10,
        ..Default::default()
    };
    // The second finds it stopped.
    for _ in 0..2 {
        client.stop_sandbox(context(), &stop).await.unwrap();
    }
    let wait = wire::WaitSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    let exit = client.wait_sandbox(context(), &wait).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    let end = wire::ShutdownSandboxRequest {
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    };
    // The shim may go before its answer has arrived.
    let _gone = client.shutdown_sandbox(context(), &end).await;
    drop(client);
    shim.ended(0).await;
}

async fn an_id_that_is_taken_is_refused_before_anything_is_written() {
    let containerd = Containerd::new().await;
    let gate = [("fake.create-gate", "gate")];
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &gate);
    mkfifo(&bundle.join("gate"));
    let before = std::fs::read(bundle.join("config.json")).unwrap();
    let shim = containerd.start(&bundle, "c").await;
    let client = sandboxes(&shim);
    let create = to_create(&bundle, "c");
    let is_refused = async || {
        let refused = client.create_sandbox(context(), &create).await;
        assert_eq!(message(refused).0, Code::ALREADY_EXISTS);
        let now = std::fs::read(bundle.join("config.json")).unwrap();
        assert_eq!(now, before);
    };
    let beside = async {
        let gate = bundle.join("gate");
        let open = move || OpenOptions::new().write(true).open(gate).unwrap();
        // It is open once the runtime makes the container.
        let gate = tokio::task::spawn_blocking(open).await.unwrap();
        is_refused().await;
        drop(gate);
    };
    let (created, ()) = tokio::join!(shim.create(&bundle, "c"), beside);
    created.unwrap();
    is_refused().await;
    shim.start("c", "").await.unwrap();
    shim.end(&["c"]).await;
}
