//! What a shim does for the containers it serves.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use ttrpc::Code;

use crate::containerd::{Containerd, Shim, context, message, mkfifo};
use crate::{Test, fake, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_container_goes_through_its_life,
    output_and_input_pass,
    an_exit_comes_after_its_start,
    events_wait_for_containerd,
    a_stopped_task_still_has_its_pid,
    execs_end_before_init,
    a_failed_exec_can_be_deleted,
    a_failed_create_leaves_nothing,
    a_bundle_on_a_full_disk_makes_no_container,
    an_oom_kill_is_told_before_the_end,
    a_created_container_can_be_deleted,
    options_are_refused_by_name,
    the_service_has_both_names,
    a_terminal_gets_its_size,
    limits_and_numbers_pass,
    many_execs_leave_nothing,
];

async fn a_container_goes_through_its_life() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    let pid = shim.create(&bundle, "c").await.unwrap();
    assert_eq!(
        std::fs::read_to_string(bundle.join("init.pid")).unwrap(),
        pid.to_string()
    );
    assert_eq!(
        message(shim.create(&bundle, "c").await).0,
        Code::ALREADY_EXISTS
    );
    assert_eq!(shim.status("c").await, "CREATED");
    // There is nothing yet that a further process could be beside.
    let (code, text) = message(shim.exec("c", "e", &["/bin/true"]).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(text.starts_with("cannot exec in a created state"), "{text}");
    assert_eq!(shim.start("c", "").await.unwrap(), pid);
    assert_eq!(shim.status("c").await, "RUNNING");
    containerd.expect(&["create c", "start c"]).await;

    shim.exec("c", "e", &["/bin/sleep", "1000"]).await.unwrap();
    let exec = shim.start("c", "e").await.unwrap();
    containerd.expect(&["exec-added e", "exec-started e"]).await;
    let mut pids = shim.pids("c").await;
    pids.sort_unstable();
    let mut expected = [pid, exec].map(i32::unsigned_abs);
    expected.sort_unstable();
    assert_eq!(pids, expected);

    pause_and_resume(&shim).await;
    containerd.expect(&["paused c", "resumed c"]).await;

    shim.kill("c", "e", 15).await.unwrap();
    assert_eq!(shim.wait("c", "e").await.unwrap(), 128 + 15);
    assert_eq!(message(shim.kill("c", "e", 15).await).0, Code::NOT_FOUND);
    assert_eq!(shim.delete("c", "e").await.unwrap(), 128 + 15);
    assert_eq!(message(shim.state("c", "e").await).0, Code::NOT_FOUND);
    assert_eq!(
        message(shim.delete("c", "").await).0,
        Code::FAILED_PRECONDITION
    );
    // With a container, a shim stays.
    shim.shut_down("c").await;

    shim.kill("c", "", 9).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 137);
    let record = bundle::ExitRecord::read(&bundle).unwrap().unwrap();
    assert_eq!((record.pid, record.code), (pid, 137));
    assert_eq!(shim.delete("c", "").await.unwrap(), 137);
    assert_eq!(message(shim.state("c", "").await).0, Code::NOT_FOUND);
    containerd
        .expect(&["exit e 143", "exit c 137", "delete c 137"])
        .await;
    let address = std::fs::read_to_string(bundle.join("address")).unwrap();
    let socket = Path::new(address.strip_prefix("unix://").unwrap());
    assert!(socket.exists());
    shim.shut_down("c").await;
    shim.ended(0).await;
    assert!(!socket.exists());
    containerd.no_event();
}

async fn pause_and_resume(shim: &Shim) {
    shim.tasks
        .pause(
            context(),
            &api::PauseRequest {
                id: "c".into(),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(shim.status("c").await, "PAUSED");
    assert_eq!(
        message(shim.exec("c", "f", &["/bin/true"]).await).0,
        Code::FAILED_PRECONDITION
    );
    shim.tasks
        .resume(
            context(),
            &api::ResumeRequest {
                id: "c".into(),
                ..Default::default()
            },
        )
        .await
        .unwrap();
}

async fn output_and_input_pass() {
    let containerd = Containerd::new().await;
    let script = "cat; echo err >&2; exit 3";
    let bundle = containerd.bundle("c", &["/bin/sh", "-c", script], &[]);
    let shim = containerd.start(&bundle, "c").await;
    let fifo = |name: &str| {
        let path = bundle.join(name);
        mkfifo(&path);
        path.to_str().unwrap().to_owned()
    };
    let [stdin, stdout, stderr] = ["in", "out", "err"].map(fifo);
    let reader = |path: &str| {
        // Opened as containerd's clients do: before the other side is there.
        let mut options = OpenOptions::new();
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        let file = options
            .read(true)
            .custom_flags(flags.bits())
            .open(path)
            .unwrap();
        nix::fcntl::fcntl(
            &file,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
        )
        .unwrap();
        file
    };
    let (mut out, mut err) = (reader(&stdout), reader(&stderr));
    let create = shim.create_with(&bundle, "c", |request| {
        request.stdin.clone_from(&stdin);
        request.stdout.clone_from(&stdout);
        request.stderr.clone_from(&stderr);
    });
    create.await.unwrap();
    shim.start("c", "").await.unwrap();
    let mut input = OpenOptions::new().write(true).open(&stdin).unwrap();
    input.write_all(b"hello").unwrap();
    drop(input);
    let close = api::CloseIORequest {
        id: "c".into(),
        stdin: true,
        ..Default::default()
    };
    shim.tasks.close_io(context(), &close).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 3);
    assert_eq!(shim.delete("c", "").await.unwrap(), 3);
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    err.read_to_string(&mut text).unwrap();
    assert_eq!(text, "helloerr\n");
    shim.end(&[]).await;
}

async fn an_exit_comes_after_its_start() {
    let mut containerd = Containerd::new().await;
    // start and exec return when the process has long been reaped.
    let bundle = containerd.bundle("c", &["/bin/sh", "-c", "exit 7"], &[("fake.late", "")]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 7);
    containerd
        .expect(&["create c", "start c", "exit c 7"])
        .await;

    let bundle = containerd.bundle("d", &["/bin/sleep", "1000"], &[]);
    shim.create(&bundle, "d").await.unwrap();
    shim.start("d", "").await.unwrap();
    containerd.expect(&["create d", "start d"]).await;
    for exec in ["e1", "e2", "e3"] {
        shim.exec("d", exec, &["/bin/true"]).await.unwrap();
        shim.start("d", exec).await.unwrap();
        assert_eq!(shim.wait("d", exec).await.unwrap(), 0);
        let [added, started] = ["added", "started"].map(|what| format!("exec-{what} {exec}"));
        containerd
            .expect(&[&added, &started, &format!("exit {exec} 0")])
            .await;
    }
    shim.end(&["c", "d"]).await;
}

async fn events_wait_for_containerd() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    containerd.expect(&["create c"]).await;
    containerd.vanish().await;
    shim.start("c", "").await.unwrap();
    for exec in 0..20 {
        let exec = format!("e{exec}");
        shim.exec("c", &exec, &["/bin/true"]).await.unwrap();
        shim.start("c", &exec).await.unwrap();
        shim.wait("c", &exec).await.unwrap();
        shim.delete("c", &exec).await.unwrap();
    }
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    containerd.no_event();
    containerd.listen().await;
    containerd.expect(&["start c"]).await;
    for exec in 0..20 {
        let lines = ["exec-added e", "exec-started e"].map(|line| format!("{line}{exec}"));
        containerd
            .expect(&[&lines[0], &lines[1], &format!("exit e{exec} 0")])
            .await;
    }
    containerd.expect(&["exit c 137"]).await;
    shim.end(&["c"]).await;
    containerd.expect(&["delete c 137"]).await;
    containerd.no_event();
}

async fn a_stopped_task_still_has_its_pid() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    let pid = shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    shim.wait("c", "").await.unwrap();
    assert_eq!(shim.pids("c").await, [pid.unsigned_abs()]);
    let connect = api::ConnectRequest {
        id: "c".into(),
        ..Default::default()
    };
    let connected = shim.tasks.connect(context(), &connect).await.unwrap();
    assert_eq!(
        connected.shim_pid,
        shim.process.pid().as_raw().unsigned_abs()
    );
    assert_eq!(connected.task_pid, pid.unsigned_abs());
    shim.end(&["c"]).await;
}

async fn execs_end_before_init() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    shim.exec("c", "e", &["/bin/sleep", "1000"]).await.unwrap();
    shim.start("c", "e").await.unwrap();
    shim.kill("c", "", 9).await.unwrap();
    containerd
        .expect(&["create c", "start c", "exec-added e", "exec-started e"])
        .await;
    containerd.expect(&["exit e 137", "exit c 137"]).await;
    shim.end(&["c"]).await;
}

async fn a_failed_exec_can_be_deleted() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    shim.exec("c", "e", &["/no/such/program"]).await.unwrap();
    let waiting = shim.wait("c", "e");
    let (code, text) = message(shim.start("c", "e").await);
    assert_eq!(code, Code::UNKNOWN);
    assert!(text.contains("No such file"), "{text}");
    assert_eq!(waiting.await.unwrap(), 255);
    shim.delete("c", "e").await.unwrap();
    shim.end(&["c"]).await;
    let events = [
        "create c",
        "start c",
        "exec-added e",
        "exit c 137",
        "delete c 137",
    ];
    containerd.expect(&events).await;
}

async fn a_failed_create_leaves_nothing() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[("fake.create-fails", "")]);
    let shim = containerd.start(&bundle, "c").await;
    let rootfs = containerd_shim_protos::types::mount::Mount {
        type_: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["size=64k".into()],
        ..Default::default()
    };
    let create = || {
        shim.create_with(&bundle, "c", |request| {
            request.rootfs = vec![rootfs.clone()];
        })
    };
    for _ in 0..2 {
        let (_, text) = message(create().await);
        assert_eq!(text, "create fails as asked");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bundle.to_str().unwrap()));
    shim.end(&[]).await;
    containerd.no_event();
}

/// Files that take all but `left` of a small disk's inodes.
fn fill(disk: &Path, left: usize) {
    for number in 0.. {
        if File::create(disk.join(format!("full-{number}"))).is_err() {
            for number in number - left..number {
                std::fs::remove_file(disk.join(format!("full-{number}"))).unwrap();
            }
            return;
        }
    }
}

async fn a_bundle_on_a_full_disk_makes_no_container() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    let mut containerd = Containerd::new().await;
    let bundle = containerd.dir.path().join("c");
    std::fs::create_dir(&bundle).unwrap();
    let options = Some("nr_inodes=32");
    mount(
        Some("tiny"),
        &bundle,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .unwrap();
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    // What create writes: options, the fake's note, init's pid.
    let mut refused = 0;
    fill(&bundle, 0);
    while let Err(error) = shim.create(&bundle, "c").await {
        let (code, text) = message::<()>(Err(error));
        assert_eq!(code, Code::UNKNOWN);
        assert!(text.contains("No space left on device"), "{text}");
        assert!(shim.state("c", "").await.is_err());
        assert_eq!(
            fake::pids(&bundle)
                .iter()
                .filter(|pid| fake::is_alive(**pid))
                .count(),
            0
        );
        refused += 1;
        std::fs::remove_file(bundle.join(format!("full-{refused}"))).unwrap();
    }
    assert_eq!(refused, 3);
    // Its end cannot be written down, and is told all the same.
    shim.start("c", "").await.unwrap();
    shim.kill("c", "", 9).await.unwrap();
    containerd
        .expect(&["create c", "start c", "exit c 137"])
        .await;
    shim.end(&["c"]).await;
    umount2(&bundle, MntFlags::MNT_DETACH).unwrap();
}

async fn an_oom_kill_is_told_before_the_end() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    mkfifo(&bundle.join("oom"));
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    let mut oom = OpenOptions::new()
        .write(true)
        .open(bundle.join("oom"))
        .unwrap();
    oom.write_all(b"x").unwrap();
    containerd.expect(&["create c", "start c", "oom c"]).await;
    oom.write_all(b"x").unwrap();
    shim.kill("c", "", 9).await.unwrap();
    containerd.expect(&["oom c", "exit c 137"]).await;
    shim.end(&["c"]).await;
}

async fn a_created_container_can_be_deleted() {
    let mut containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    let pid = shim.create(&bundle, "c").await.unwrap();
    assert_eq!(shim.delete("c", "").await.unwrap(), 137);
    containerd
        .expect(&["create c", "exit c 137", "delete c 137"])
        .await;
    assert!(!fake::is_alive(pid));
    shim.end(&[]).await;
}

async fn options_are_refused_by_name() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    let create = shim.create_with(&bundle, "c", |request| {
        request.options = MessageField::some(Any {
            type_url: "containerd.runc.v1.Options".into(),
            // binary_name = "x"
            value: vec![0x32, 1, b'x'],
            ..Default::default()
        });
    });
    let expected = "runtime option BinaryName is not supported by this runtime";
    assert_eq!(
        message(create.await),
        (Code::INVALID_ARGUMENT, expected.to_owned())
    );
    shim.end(&[]).await;
}

async fn the_service_has_both_names() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/true"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: "Connect".to_owned(),
            ..Default::default()
        };
        shim.client.request(request).await.unwrap();
    }
    shim.end(&[]).await;
}

async fn a_terminal_gets_its_size() {
    let containerd = Containerd::new().await;
    let script = "while [ \"$(stty size)\" != '12 34' ]; do :; done; echo sized";
    let bundle = containerd.bundle("c", &["/bin/sh", "-c", script], &[]);
    let shim = containerd.start(&bundle, "c").await;
    let out = bundle.join("out");
    mkfifo(&out);
    let mut reader = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&out)
        .unwrap();
    let create = shim.create_with(&bundle, "c", |request| {
        request.stdout = out.to_str().unwrap().to_owned();
        request.terminal = true;
    });
    create.await.unwrap();
    let resize = api::ResizePtyRequest {
        id: "c".into(),
        height: 12,
        width: 34,
        ..Default::default()
    };
    shim.tasks.resize_pty(context(), &resize).await.unwrap();
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    let mut text = [0; 7];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"sized\r\n");
    shim.end(&["c"]).await;
}

async fn limits_and_numbers_pass() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    let update = |type_url: &str| api::UpdateTaskRequest {
        id: "c".into(),
        resources: MessageField::some(Any {
            type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{type_url}"),
            value: br#"{"pids":{"limit":7}}"#.to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    };
    shim.tasks
        .update(context(), &update("LinuxResources"))
        .await
        .unwrap();
    let applied = std::fs::read(bundle.join("resources")).unwrap();
    assert_eq!(applied, br#"{"pids":{"limit":7}}"#);
    let annotations = api::UpdateTaskRequest {
        id: "c".into(),
        annotations: [("io.example".to_owned(), "now".to_owned())].into(),
        ..Default::default()
    };
    let updated = shim.tasks.update(context(), &annotations).await;
    updated.unwrap();
    let applied =
        ["resources", "annotations"].map(|name| std::fs::read(bundle.join(name)).unwrap());
    assert_eq!(applied[0], b"{}", "no limits came along");
    assert_eq!(applied[1], br#"{"io.example": "now"}"#);
    let wrong = shim
        .tasks
        .update(context(), &update("WindowsResources"))
        .await;
    assert_eq!(message(wrong).0, Code::INVALID_ARGUMENT);

    let stats = api::StatsRequest {
        id: "c".into(),
        ..Default::default()
    };
    let stats = shim.tasks.stats(context(), &stats).await.unwrap();
    assert_eq!(stats.stats.type_url, "io.containerd.cgroups.v1.Metrics");

    shim.start("c", "").await.unwrap();
    let checkpoint = api::CheckpointTaskRequest {
        id: "c".into(),
        path: "/x".into(),
        ..Default::default()
    };
    let refused = shim.tasks.checkpoint(context(), &checkpoint).await;
    assert_eq!(message(refused).0, Code::UNIMPLEMENTED);
    shim.end(&["c"]).await;
}

async fn many_execs_leave_nothing() {
    let containerd = Containerd::new().await;
    let bundle = containerd.bundle("c", &["/bin/sleep", "1000"], &[]);
    let shim = containerd.start(&bundle, "c").await;
    shim.create(&bundle, "c").await.unwrap();
    shim.start("c", "").await.unwrap();
    let descriptors = || {
        let path = format!("/proc/{}/fd", shim.process.pid());
        std::fs::read_dir(path).unwrap().count()
    };
    let run = async |number: u32| {
        let exec = format!("e{number}");
        shim.exec("c", &exec, &["/bin/true"]).await.unwrap();
        shim.start("c", &exec).await.unwrap();
        assert_eq!(shim.wait("c", &exec).await.unwrap(), 0);
        shim.delete("c", &exec).await.unwrap();
    };
    run(0).await;
    let before = descriptors();
    for number in 1..=200 {
        run(number).await;
        assert!(shim.threads() <= 8, "{} threads", shim.threads());
    }
    assert_eq!(descriptors(), before);
    shim.settles_at_threads(1).await;
    shim.end(&["c"]).await;
}
