//! createContainer and startContainer hooks.

use launch::control::FailureKind;
use launch::plan::{Hook, Toggle};
use sys::ExitStatus;

use crate::host::{Container, output_of, refusal_of};
use crate::image::{Image, filter, set_mode};

fn hook(path: &str, script: &str) -> Hook {
    Hook {
        path: path.to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin:/usr/bin".to_owned()],
        timeout_s: Some(10),
    }
}

#[test]
fn create_container_hooks_see_the_hosts_files_and_the_containers_namespaces() {
    let image = Image::new();
    let log = image.outside("log");
    let log = log.to_str().unwrap();
    let mut plan = image.plan("cat /bound; grep -c ' /bound ' /proc/mounts; hostname");
    plan.create_container_hooks = vec![
        hook(
            "/bin/sh",
            &format!("cat >{log}; pwd >>{log}; ls dev/null proc/self/status >>{log}"),
        ),
        // Mounts made in time are the container's.
        hook(
            "/bin/sh",
            &format!("echo made >made; touch bound; mount --bind {log} bound"),
        ),
    ];
    let output = output_of(plan);
    let root = image.path("");
    let expected = format!(
        "{{\"status\":\"creating\",\"pid\":1}}{}\ndev/null\nproc/self/status\n",
        root.to_str().unwrap().trim_end_matches('/')
    );
    assert!(output.starts_with(&expected), "{output}");
    assert!(output[expected.len()..].starts_with("1\n"), "{output}");
    assert_eq!(
        std::fs::read_to_string(image.path("made")).unwrap(),
        "made\n"
    );
    assert_eq!(std::fs::read_to_string(image.path("bound")).unwrap(), "");
}

#[test]
fn a_failing_create_container_hook_ends_it_all() {
    let image = Image::new();
    let mut plan = image.plan("true");
    plan.create_container_hooks = vec![
        hook("/bin/sh", "true"),
        hook("/bin/sh", "echo no >&2; exit 3"),
    ];
    assert_eq!(
        refusal_of(plan),
        (
            "error running createContainer hook #1: /bin/sh: exit status 3, stderr: no".to_owned(),
            FailureKind::Hook
        )
    );
}

#[test]
fn start_container_hooks_run_at_start_with_the_programs_rights() {
    let image = Image::new();
    set_mode(&image.path("tmp"), 0o777);
    let mut plan = image.plan("cat /tmp/log");
    let script = "(cat; echo; id -u; echo $A $HOME; pwd; ls /proc/self/fd | wc -l; \
                  grep NoNewPrivs /proc/self/status) >/tmp/log";
    plan.start_container_hooks = vec![Hook {
        env: Vec::new(),
        ..hook("/bin/sh", script)
    }];
    plan.process.uid = 1000;
    plan.process.env.push("A=1".to_owned());
    plan.process.cwd = "/tmp".to_owned();
    plan.process.no_new_privs = Toggle::On;
    let (container, _) = Container::create(plan).unwrap();
    assert!(!image.path("tmp/log").exists(), "not before the start");
    container.start().unwrap();
    assert_eq!(
        container.finish(),
        (
            "{\"status\":\"created\",\"pid\":1}\n1000\n1 /home/u\n/tmp\n4\nNoNewPrivs:\t1\n"
                .to_owned(),
            ExitStatus::Exited(0)
        )
    );
}

#[test]
fn start_container_hooks_are_under_the_filter_and_their_failure_is_the_starts() {
    let image = Image::new();
    let mut plan = image.plan("echo never");
    plan.start_container_hooks = vec![hook("/bin/busybox", "exec mkdir /tmp/x")];
    plan.process.seccomp = Some(filter(nix::libc::SYS_mkdir, 0x8000_0000));
    let (container, _) = Container::create(plan).unwrap();
    let failure = container.start().unwrap_err();
    assert_eq!(
        failure.to_string(),
        "error running startContainer hook #0: /bin/busybox: signal: bad system call"
    );
    assert_eq!(failure.kind, FailureKind::Hook);
    assert_eq!(container.finish(), (String::new(), ExitStatus::Exited(255)));
}
