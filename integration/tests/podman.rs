//! runlxc as podman's runtime: what containerd's shim does not ask of the command, podman does.

use integration::podman::Podman;
use integration::wait::{SOON, Sources, until};

#[test]
fn a_run_gives_streams_exit_code_and_what_was_asked_for() {
    let podman = Podman::start().unwrap();
    let flags = ["--rm", "-e", "WORD=a b", "-u", "5:6", "-w", "/bin"];
    let script = "echo \"$WORD $(id -u):$(id -g) $PWD\"; echo wrong >&2; exit 3";
    let ended = podman.run(&flags, &["sh", "-c", script]).unwrap();
    let ended = ended.with_code(3).unwrap();
    assert_eq!(ended.stdout(), "a b 5:6 /bin\n");
    assert!(ended.stderr().contains("wrong"), "{ended}");
    podman.finish().unwrap();
}

#[test]
fn a_service_is_executed_in_paused_measured_updated_stopped_and_restarted() {
    let podman = Podman::start().unwrap();
    let call = |words: &[&str]| podman.call(words).unwrap();
    let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let flags = ["--detach", "--name", "web", "--memory", "64m"];
    let started = podman.run(&flags, &["sh", "-c", script]).unwrap();
    let id = started.success().unwrap().stdout().trim().to_owned();
    assert!(podman.known_to_runtime().unwrap().contains(&id));

    call(&["exec", "-e", "N=4", "web", "sh", "-c", "exit $N"])
        .with_code(4)
        .unwrap();
    call(&["pause", "web"]).success().unwrap();
    let state = podman.list("{{.State}}").unwrap();
    assert_eq!(state.trim().to_lowercase(), "paused");
    call(&["unpause", "web"]).success().unwrap();
    let stats = call(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "web"]);
    let stats = stats.success().unwrap().stdout();
    assert!(stats.contains("/ 67.11MB"), "{stats}");
    call(&["update", "--memory", "80m", "web"])
        .success()
        .unwrap();
    let limit =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
    let limit = call(&["exec", "web", "sh", "-c", limit]).stdout();
    assert_eq!(limit.trim(), (80 << 20).to_string());
    let top = call(&["top", "web", "args"]).success().unwrap().stdout();
    assert!(top.contains("trap"), "{top}");

    call(&["stop", "--time", "20", "web"]).success().unwrap();
    let state = call(&["inspect", "--format", "{{.State.ExitCode}}", "web"]);
    assert_eq!(state.stdout().trim(), "7");
    assert_eq!(call(&["logs", "web"]).stdout(), "up\nbye\n");
    call(&["restart", "web"]).success().unwrap();
    call(&["kill", "web"]).success().unwrap();
    assert_eq!(call(&["wait", "web"]).stdout().trim(), "137");
    call(&["rm", "web"]).success().unwrap();
    assert!(!podman.known_to_runtime().unwrap().contains(&id));
    podman.finish().unwrap();
}

#[test]
fn containers_of_a_pod_share_what_the_pod_has() {
    let podman = Podman::start().unwrap();
    let call = |words: &[&str]| podman.call(words).unwrap().success().unwrap();
    let image = integration::images::Image::Busybox.reference();
    let pod = [
        "pod",
        "create",
        "--name",
        "shop",
        "--share",
        "net,uts,ipc,pid",
        "--infra-image",
        &image,
        "--infra-command",
        "sleep 1000",
    ];
    call(&pod);
    let of_pod = ["--detach", "--pod", "shop", "--name"];
    for name in ["one", "two"] {
        let flags = [&of_pod[..], &[name]].concat();
        let started = podman.run(&flags, &["sleep", "1000"]).unwrap();
        started.success().unwrap();
    }
    for namespace in ["net", "uts", "ipc", "pid"] {
        let path = format!("/proc/self/ns/{namespace}");
        let seen = ["one", "two"].map(|name| call(&["exec", name, "readlink", &path]).stdout());
        assert_eq!(seen[0], seen[1], "{namespace}");
    }
    let sleeping = "grep -lx sleep /proc/[0-9]*/comm";
    let processes = call(&["exec", "one", "sh", "-c", sleeping]).stdout();
    assert_eq!(processes.lines().count(), 3, "{processes}");
    // podman 4.3 removes the cgroup of its conmons once, and fails when one of them has not ended yet.
    let remove = ["pod", "rm", "--force", "--ignore", "--time", "0", "shop"];
    until("podman removes the pod", SOON, Sources::none(), || {
        Ok(podman.call(&remove)?.success().ok())
    })
    .unwrap();
    podman.finish().unwrap();
}

#[test]
fn a_program_that_is_not_there_is_named_and_leaves_nothing() {
    let podman = Podman::start().unwrap();
    let ended = podman.run(&["--rm"], &["/no/such"]).unwrap();
    let ended = ended.with_code(127).unwrap();
    assert!(ended.stderr().contains("/no/such"), "{ended}");
    podman.finish().unwrap();
}
