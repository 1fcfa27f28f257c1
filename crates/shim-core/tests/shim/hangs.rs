//! What hangs in one container holds up no other, nor what its clients ask beside it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use tokio::task::JoinSet;
use ttrpc::Code;

use crate::containerd::{Containerd, context, message, mkfifo};
use crate::{Test, fake, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_hung_create_holds_up_nobody,
    a_hung_start_holds_up_no_kill,
    a_container_whose_calls_hang_holds_up_nobody,
    a_hung_deletion_is_joined_and_not_begun_again,
    a_log_binary_that_does_not_die_holds_up_nobody,
];

/// Lets go whoever blocks on a gate, and who will come.
fn open_gate(bundle: &Path) -> File {
    let gate = bundle.join("gate");
    OpenOptions::new().write(true).open(gate).unwrap()
}

async fn a_hung_create_holds_up_nobody() {
    let containerd = Containerd::new().await;
    let gate = [("fake.create-gate", "gate")];
    let hung = containerd.bundle("hung", &["/bin/sleep", "1000"], &gate);
    mkfifo(&hung.join("gate"));
    let shim = containerd.start(&hung, "hung").await;
    let creating = shim.create(&hung, "hung");
    let others = async {
        let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
        shim.create(&bundle, "c").await.unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(message(shim.state("hung", "").await).0, Code::NOT_FOUND);
        assert_eq!(
            message(shim.create(&hung, "hung").await).0,
            Code::ALREADY_EXISTS
        );
        // Not while something is being made.
        shim.shut_down("c").await;
        shim.kill("c", "", 9).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap(), 137);
        shim.delete("c", "").await.unwrap();
        shim.shut_down("c").await;
        OpenOptions::new()
            .write(true)
            .open(hung.join("gate"))
            .unwrap()
    };
    let (created, _gate) = tokio::join!(creating, others);
    created.unwrap();
    shim.start("hung", "").await.unwrap();
    shim.end(&["hung"]).await;
}

async fn a_hung_start_holds_up_no_kill() {
    let mut containerd = Containerd::new().await;
    let gate = [("fake.start-gate", "gate")];
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &gate);
    mkfifo(&bundle.join("gate"));
    let shim = containerd.start(&bundle, "c").await;
    let pid = shim.create(&bundle, "c").await.unwrap();
    let starting = shim.start("c", "");
    let others = async {
        while shim.status("c").await != "CREATED" {}
        assert_eq!(
            message(shim.start("c", "").await).0,
            Code::FAILED_PRECONDITION
        );
        shim.kill("c", "", 9).await.unwrap();
        while fake::is_alive(pid) {
            shim.status("c").await;
        }
        // A client that waits is told when the start has come to an end.
        let gate = async {
            OpenOptions::new()
                .write(true)
                .open(bundle.join("gate"))
                .unwrap()
        };
        tokio::join!(shim.wait("c", ""), gate)
    };
    let (started, (code, _gate)) = tokio::join!(starting, others);
    assert_eq!(
        message(started),
        (Code::FAILED_PRECONDITION, "init is gone".to_owned())
    );
    assert_eq!(code.unwrap(), 137);
    containerd.expect(&["create c", "exit c 137"]).await;
    shim.end(&["c"]).await;
}

async fn a_container_whose_calls_hang_holds_up_nobody() {
    let containerd = Containerd::new().await;
    let gate = [("fake.update-gate", "gate")];
    let bundle = containerd.bundle("hung", &["/bin/sleep", "1000"], &gate);
    mkfifo(&bundle.join("gate"));
    let shim = containerd.start(&bundle, "hung").await;
    shim.create(&bundle, "hung").await.unwrap();
    shim.start("hung", "").await.unwrap();
    let mut updates = JoinSet::new();
    for _ in 0..150 {
        let tasks = shim.tasks.clone();
        updates.spawn(async move { tasks.update(context(), &update("hung")).await });
    }
    // Sixteen hang; what comes after is told so.
    for _ in 16..150 {
        let (code, text) = message(updates.join_next().await.unwrap().unwrap());
        let expected = "update: 16 calls to this container hang, and none has ended for 5 s";
        assert_eq!((code, &*text), (Code::UNAVAILABLE, expected));
    }
    let other = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    shim.create(&other, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    shim.tasks.update(context(), &update("c")).await.unwrap();
    assert_eq!(shim.status("hung").await, "RUNNING");
    shim.kill("hung", "", 9).await.unwrap();
    assert_eq!(shim.wait("hung", "").await.unwrap(), 137);
    assert_eq!(shim.delete("hung", "").await.unwrap(), 137);
    shim.settles_at_threads(17).await;
    let _gate = open_gate(&bundle);
    // The calls have ended, though the container they were for is gone.
    updates.join_all().await;
    shim.settles_at_threads(1).await;
    shim.end(&["c"]).await;
}

fn update(id: &str) -> api::UpdateTaskRequest {
    api::UpdateTaskRequest {
        id: id.to_owned(),
        resources: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: b"{}".to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn a_hung_deletion_is_joined_and_not_begun_again() {
    let containerd = Containerd::new().await;
    let gate = [("fake.delete-gate", "gate")];
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &gate);
    mkfifo(&bundle.join("gate"));
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    let deleting = shim.delete("c", "");
    // As a client does whose containerd was restarted: it is told the same.
    let again = shim.delete("c", "");
    let others = async {
        assert_eq!(shim.status("c").await, "CREATED");
        open_gate(&bundle)
    };
    let (deleted, told, _gate) = tokio::join!(deleting, again, others);
    assert_eq!(deleted.unwrap(), 137);
    assert_eq!(told.unwrap(), 137);
    shim.end(&[]).await;
}

async fn a_log_binary_that_does_not_die_holds_up_nobody() {
    let containerd = Containerd::new().await;
    let annotations = [("fake.create-gate", "gate"), ("fake.odd-terminal", "")];
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &annotations);
    for fifo in ["gate", "logger-pid"] {
        mkfifo(&bundle.join(fifo));
    }
    let logger = bundle.join("logger");
    let script = "#!/bin/sh\nexec 5>&-\necho $$ >\"${0%/*}/logger-pid\"\nexec sleep 1000\n";
    std::fs::write(&logger, script).unwrap();
    std::fs::set_permissions(&logger, std::fs::Permissions::from_mode(0o755)).unwrap();
    let shim = containerd.start(&bundle, "c").await;
    let other = containerd.bundle("other", &["/bin/sleep", "1000"], &[]);
    shim.create(&other, "other").await.unwrap();
    let creating = shim.create_with(&bundle, "c", |request| {
        request.stdout = format!("binary://{}", logger.display());
    });
    let cgroup = Freezer::new();
    let others = async {
        let pid = bundle.join("logger-pid");
        let pid = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let mut reader = BufReader::new(File::open(pid).unwrap());
            reader.read_line(&mut line).unwrap();
            line.trim().parse().unwrap()
        });
        let pid = pid.await.unwrap();
        cgroup.freeze(pid);
        // With version 1, what is frozen does not die until it is thawed. Now the shim drops it.
        let gate = open_gate(&bundle);
        while shim.state("c", "").await.is_ok() {}
        let quick = ttrpc::context::with_duration(Duration::from_secs(5));
        for _ in 0..100 {
            let request = api::StateRequest {
                id: "other".to_owned(),
                ..Default::default()
            };
            shim.tasks.state(quick.clone(), &request).await.unwrap();
        }
        (pid, gate)
    };
    let (created, (pid, _gate)) = tokio::join!(creating, others);
    let (_, text) = message(created);
    assert!(text.contains("none was asked for"), "{text}");
    cgroup.thaw();
    while fake::is_alive(pid) {
        shim.status("other").await;
    }
    shim.end(&["other"]).await;
}

/// A cgroup of a test whose process is held still.
struct Freezer(cgroups::Cgroup);

impl Freezer {
    fn new() -> Self {
        let host = cgroups::Hierarchies::at_host().unwrap();
        let path = format!("/shim-core-freezer-{}", std::process::id());
        Self(cgroups::Cgroup::create(&host, &path).unwrap())
    }

    fn freeze(&self, pid: i32) {
        self.0.attach(sys::Pid::from_raw(pid)).unwrap();
        self.0.freeze().unwrap();
    }

    fn thaw(&self) {
        self.0.thaw().unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // A test that has failed leaves its process in it.
        let _gone = self.0.kill_all(9);
        self.0.delete().unwrap();
    }
}
