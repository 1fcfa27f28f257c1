//! What a shim's program does when containerd runs it.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::RuntimeInfo;

use crate::containerd::{Answer, Call, Containerd, PATIENCE, Shim};
use crate::{Test, fake, tests};

pub(crate) const TESTS: &[Test] = tests![
    each_containerd_is_answered_in_its_form,
    a_pod_shares_a_shim,
    a_shim_whose_start_was_killed_goes,
    delete_works_from_disk,
    delete_tells_the_recorded_exit,
    delete_with_nothing_there_succeeds,
    delete_ends_a_shim_that_was_forgotten,
    a_shim_without_bundle_goes,
    containers_without_bundle_go_unless_they_run,
    signals_end_an_idle_shim_only,
    the_log_goes_into_the_fifo,
    a_shim_is_a_quiet_daemon,
    a_shim_joins_its_cgroup,
    info_and_version_are_printed,
];

fn delete_response(answer: &Answer) -> api::DeleteResponse {
    assert_eq!((answer.stderr.as_str(), answer.code), ("", 0));
    api::DeleteResponse::parse_from_bytes(&answer.stdout).unwrap()
}

async fn each_containerd_is_answered_in_its_form() {
    let containerd = Containerd::new().await;
    let sockets = containerd.dir.path().join("s");
    let params = BootstrapParams {
        instance_id: "c".into(),
        namespace: "ns".into(),
        socket_dir: Some(sockets.to_str().unwrap().into()),
        ..Default::default()
    };
    let params = params.write_to_bytes().unwrap();
    let check = async |name: &str, stdin: &[u8], max: Option<&str>| {
        let bundle = containerd.bundle(name, &["/bin/true"], &[]);
        let call = Call {
            stdin,
            max_shim_version: max,
            ..Call::default()
        };
        let answer = containerd.verb(&bundle, "c", "start", call);
        assert_eq!((answer.stderr.as_str(), answer.code), ("", 0));
        let address = std::fs::read_to_string(bundle.join("address")).unwrap();
        Shim::connect(&bundle, &address).await.end(&[]).await;
        (answer.stdout, address)
    };
    let (answer, address) = check("1.6", b"", None).await;
    assert_eq!(String::from_utf8(answer).unwrap(), address);
    assert!(address.starts_with("unix:///run/containerd/s/"));

    let (answer, address) = check("1.7", b"", Some("2")).await;
    let json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "version": 2, "address": address, "protocol": "ttrpc" })
    );

    let (answer, address) = check("2.4", &params, Some("2")).await;
    let result = BootstrapResult::parse_from_bytes(&answer).unwrap();
    let result = (result.version, result.address, result.protocol);
    assert!(address.starts_with(&format!("unix://{}/", sockets.display())));
    assert_eq!(result, (3, address, "ttrpc".to_owned()));
}

async fn a_pod_shares_a_shim() {
    let containerd = Containerd::new().await;
    let pod = [("io.kubernetes.cri.sandbox-id", "pod")];
    let bundles = ["pod", "a", "b"].map(|id| containerd.bundle(id, &["/bin/sleep", "9"], &pod));
    let shim = containerd.start(&bundles[0], "pod").await;
    shim.create(&bundles[0], "pod").await.unwrap();
    let first = std::fs::read_to_string(bundles[0].join("address")).unwrap();
    for (bundle, id) in bundles.iter().zip(["pod", "a", "b"]).skip(1) {
        let answer = containerd.verb(bundle, id, "start", Call::default());
        assert_eq!(
            (String::from_utf8(answer.stdout).unwrap(), &*answer.stderr),
            (first.clone(), "")
        );
        assert_eq!(
            std::fs::read_to_string(bundle.join("address")).unwrap(),
            first
        );
        assert!(!bundle.join("shim.pid").exists());
        shim.create(bundle, id).await.unwrap();
    }
    // Cleaning up after one container leaves the others alone.
    let answer = containerd.verb(&bundles[1], "a", "delete", Call::default());
    assert_eq!(delete_response(&answer).exit_status, 137);
    assert_eq!(shim.status("b").await, "CREATED");
    assert!(shim.state("a", "").await.is_err());
    shim.end(&["pod", "b"]).await;
}

async fn a_shim_whose_start_was_killed_goes() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let socket = containerd.dir.path().join("socket");
    let spawn = || {
        let (ours, theirs) = sys::socketpair_stream_cloexec().unwrap();
        let args = [
            "-namespace",
            "ns",
            "-id",
            "c",
            "-socket",
            socket.to_str().unwrap(),
        ];
        let program = containerd.program();
        let shim = sys::Spawn::new(&program)
            .args(args)
            .cwd(&bundle)
            .stdin(theirs);
        (ours, shim.spawn().unwrap())
    };
    let ended = |mut shim: sys::Child| {
        assert_eq!(shim.wait_timeout(PATIENCE).unwrap().unwrap().code(), 0);
        assert!(!socket.exists());
    };
    let bind = || std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // Before it has bound; after; after it has handed the socket over.
    let (strand, shim) = spawn();
    drop(strand);
    ended(shim);
    let (strand, shim) = spawn();
    drop((bind(), strand));
    ended(shim);
    let (strand, shim) = spawn();
    let listener = bind();
    sys::send_with_fds(&strand, b"l", &[std::os::fd::AsFd::as_fd(&listener)]).unwrap();
    drop((listener, strand));
    ended(shim);
}

async fn delete_works_from_disk() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let mut shim = containerd.start(&bundle, "c").await;
    let rootfs = containerd_shim_protos::types::mount::Mount {
        type_: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["size=64k".into()],
        ..Default::default()
    };
    let create = shim.create_with(&bundle, "c", |request| request.rootfs = vec![rootfs]);
    let pid = create.await.unwrap();
    shim.start("c", "").await.unwrap();
    let mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(bundle.to_str().unwrap())
    };
    assert!(mounted());
    shim.process.kill(sys::Signal::SIGKILL).unwrap();
    shim.process.wait_timeout(PATIENCE).unwrap().unwrap();
    let address = std::fs::read_to_string(bundle.join("address")).unwrap();
    let socket = Path::new(address.strip_prefix("unix://").unwrap());
    assert!(socket.exists() && fake::is_alive(pid));

    let flags = vec!["-bundle", bundle.to_str().unwrap()];
    let answer = containerd.verb(
        Path::new("/"),
        "c",
        "delete",
        Call {
            flags,
            ..Call::default()
        },
    );
    let response = delete_response(&answer);
    assert_eq!(
        (response.pid, response.exit_status),
        (pid.unsigned_abs(), 137)
    );
    assert!(response.exited_at.seconds > 1_600_000_000);
    assert!(!socket.exists() && !mounted());
    // Its status is ours to take.
    let mut init = sys::Child::adopt(sys::Pid::from_raw(pid));
    assert_eq!(init.wait_timeout(PATIENCE).unwrap().unwrap().code(), 137);
}

async fn delete_tells_the_recorded_exit() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sh", "-c", "exit 5"], &[]);
    let mut shim = containerd.start(&bundle, "c").await;
    let pid = shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 5);
    shim.process.kill(sys::Signal::SIGKILL).unwrap();
    shim.process.wait_timeout(PATIENCE).unwrap().unwrap();
    for _ in 0..2 {
        let answer = containerd.verb(&bundle, "c", "delete", Call::default());
        let response = delete_response(&answer);
        assert_eq!(
            (response.pid, response.exit_status),
            (pid.unsigned_abs(), 5)
        );
    }
}

async fn delete_with_nothing_there_succeeds() {
    let containerd = Containerd::new().await;
    let empty = containerd.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let answer = containerd.verb(&empty, "c", "delete", Call::default());
    let response = delete_response(&answer);
    assert_eq!((response.pid, response.exit_status), (0, 137));
}

async fn delete_ends_a_shim_that_was_forgotten() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    // containerd was killed after `start`; and, the second time, after the container ran.
    let shim = containerd.start(&bundle, "c").await;
    delete_response(&containerd.verb(&bundle, "c", "delete", Call::default()));
    shim.ended(0).await;
    let shim = containerd.start(&bundle, "c").await;
    let pid = shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    let answer = containerd.verb(&bundle, "c", "delete", Call::default());
    let response = delete_response(&answer);
    assert_eq!(
        (response.pid, response.exit_status),
        (pid.unsigned_abs(), 137)
    );
    assert!(!fake::is_alive(pid));
    shim.ended(0).await;
}

async fn a_shim_without_bundle_goes() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    std::fs::remove_dir_all(&bundle).unwrap();
    shim.ended(0).await;
    // And `delete` finds nothing.
    let flags = vec!["-bundle", bundle.to_str().unwrap()];
    let call = Call {
        flags,
        ..Call::default()
    };
    let answer = containerd.verb(Path::new("/"), "c", "delete", call);
    assert_eq!(delete_response(&answer).exit_status, 137);
}

async fn containers_without_bundle_go_unless_they_run() {
    let containerd = Containerd::new().await;
    let mut shims = Vec::new();
    for id in ["created", "stopped", "running"] {
        let bundle = containerd.bundle(id, &["/bin/sleep", "1000"], &[]);
        let shim = containerd.start(&bundle, id).await;
        let pid = shim.create(&bundle, id).await.unwrap();
        if id != "created" {
            shim.start(id, "").await.unwrap();
        }
        if id == "stopped" {
            shim.kill(id, "", 9).await.unwrap();
            shim.wait(id, "").await.unwrap();
        }
        std::fs::remove_dir_all(&bundle).unwrap();
        shims.push((shim, pid));
    }
    let [(created, pid), (stopped, _), (running, running_pid)] =
        <[_; 3]>::try_from(shims).unwrap_or_else(|_| unreachable!("there are three"));
    created.ended(0).await;
    assert!(!fake::is_alive(pid));
    stopped.ended(0).await;
    assert_eq!(running.status("running").await, "RUNNING");
    assert!(fake::is_alive(running_pid));
    running.end(&["running"]).await;
}

async fn signals_end_an_idle_shim_only() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    for signal in [
        sys::Signal::SIGTERM,
        sys::Signal::SIGINT,
        sys::Signal::SIGUSR1,
        sys::Signal::SIGPIPE,
    ] {
        shim.process.kill(signal).unwrap();
        assert_eq!(shim.status("c").await, "CREATED");
    }
    shim.delete("c", "").await.unwrap();
    shim.process.kill(sys::Signal::SIGTERM).unwrap();
    shim.ended(0).await;
}

async fn the_log_goes_into_the_fifo() {
    use std::io::BufRead;

    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let log = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(bundle.join("log"))
        .unwrap();
    let answer = containerd.verb(
        &bundle,
        "c",
        "start",
        Call {
            flags: vec!["-debug"],
            ..Call::default()
        },
    );
    let address = String::from_utf8(answer.stdout).unwrap();
    let mut lines = std::io::BufReader::new(log).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(
        line.starts_with("time=\"2") && line.contains("level=info msg=\"shim serves\" id=c "),
        "{line}"
    );
    Shim::connect(&bundle, &address).await.end(&[]).await;
    let shutdown = lines.find(|line| line.as_ref().unwrap().contains("msg=shutdown"));
    assert!(shutdown.unwrap().unwrap().contains("level=debug"));
}

async fn a_shim_is_a_quiet_daemon() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    // It answers, so it has settled.
    assert!(shim.state("c", "").await.is_err());
    let pid = shim.process.pid();
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd"), bundle.canonicalize().unwrap());
    assert_eq!(link("fd/0"), Path::new("/dev/null"));
    assert_eq!(link("fd/1"), Path::new("/dev/null"));
    assert_eq!(link("fd/2"), bundle.join("log").canonicalize().unwrap());
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid);
    let score = |pid: i32| -> i32 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    let ours = score(std::process::id().cast_signed());
    assert_eq!(score(pid.as_raw()), (ours + 1).min(1000));
    let address = std::fs::read_to_string(bundle.join("address")).unwrap();
    let metadata = std::fs::metadata(address.strip_prefix("unix://").unwrap()).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777,
        0o600
    );
    shim.end(&[]).await;
}

async fn a_shim_joins_its_cgroup() {
    let containerd = Containerd::new().await;
    let name = format!("shim-core-{}", std::process::id());
    let options = containerd_shim_protos::shim::oci::Options {
        shim_cgroup: format!("/{name}"),
        ..Default::default()
    };
    let options = containerd_shim_protos::protobuf::well_known_types::any::Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let stdin = options.write_to_bytes().unwrap();
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let start = || {
        let call = Call {
            stdin: &stdin,
            ..Call::default()
        };
        containerd.verb(&bundle, "c", "start", call)
    };
    // One that nobody made.
    let answer = start();
    assert!(
        answer.stderr.contains("ShimCgroup: cgroup /shim-core-"),
        "{}",
        answer.stderr
    );
    assert!(answer.stdout.is_empty() && answer.code == 1);

    let hierarchies = cgroups::Hierarchies::at_host().unwrap();
    // A new cpuset has no processors and takes nobody.
    let hierarchy = hierarchies.iter().find(|h| !h.names.contains("cpuset"));
    let cgroup = hierarchy.unwrap().mount_point.join(&name);
    std::fs::create_dir(&cgroup).unwrap();
    let answer = start();
    assert_eq!((answer.stderr.as_str(), answer.code), ("", 0));
    let address = String::from_utf8(answer.stdout).unwrap();
    let shim = Shim::connect(&bundle, &address).await;
    let members = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), shim.process.pid().to_string());
    shim.end(&[]).await;
    std::fs::remove_dir(&cgroup).unwrap();
}

async fn info_and_version_are_printed() {
    let containerd = Containerd::new().await;
    let call = || Call {
        flags: vec!["-info"],
        ..Call::default()
    };
    let answer = containerd.verb(containerd.dir.path(), "", "", call());
    assert_eq!((answer.stderr.as_str(), answer.code), ("", 0));
    let info = RuntimeInfo::parse_from_bytes(&answer.stdout).unwrap();
    assert_eq!(
        (info.name.as_str(), info.version.revision.as_str()),
        ("io.containerd.fake.v2", "abc")
    );
    assert!(info.features.value.starts_with(b"{\"ociVersionMin\""));

    let call = Call {
        flags: vec!["-v"],
        ..Call::default()
    };
    let answer = containerd.verb(containerd.dir.path(), "", "", call);
    let text = String::from_utf8(answer.stdout).unwrap();
    assert_eq!(
        text,
        "containerd-shim-fake-v2:\n  Version:  1.2.3\n  Revision: abc\n"
    );

    let call = Call {
        flags: vec!["--help"],
        ..Call::default()
    };
    let answer = containerd.verb(containerd.dir.path(), "", "", call);
    assert_eq!((answer.stderr.as_str(), answer.code), ("", 0));
    let text = String::from_utf8(answer.stdout).unwrap();
    let first = "usage: containerd-shim-fake-v2 [FLAG...] [start|delete]\n\ncontainerd starts";
    assert!(text.starts_with(first), "{text}");
}
