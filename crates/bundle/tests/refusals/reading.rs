//! Files that cannot be read, versions and annotations.

use super::*;

#[test]
fn a_config_that_cannot_be_read_is_told_in_one_line() {
    let told = |config: &[u8], expected: &str| {
        let dir = bundle(config);
        let error = Bundle::load(dir.path()).expect_err(expected);
        let message = message(&error).replace(&*dir.path().to_string_lossy(), "/B");
        assert_eq!(message, expected);
    };
    told(
        b"",
        "/B/config.json: not JSON: EOF while parsing a value at line 1 column 0",
    );
    told(
        b"{\n \"a\": x}",
        "/B/config.json: not JSON: expected value at line 2 column 7",
    );
    told(b"null", "/B/config.json: not a JSON object");
    told(b"\"\xff\"", "/B/config.json: not UTF-8 after byte 1");
    told(
        &vec![b' '; (8 << 20) + 1],
        "/B/config.json: larger than 8388608 bytes",
    );
    told(
        br#"{"ociVersion": 1}"#,
        "ociVersion: invalid type: integer `1`, expected a string",
    );
    let dir = tempfile::tempdir().expect("a directory");
    let of = |error: bundle::Error| message(&error).replace(&*dir.path().to_string_lossy(), "/B");
    let absent = Bundle::load(dir.path()).expect_err("no file");
    assert_eq!(
        of(absent),
        "read /B/config.json: No such file or directory (os error 2)"
    );
    let nowhere = Bundle::load(&dir.path().join("x")).expect_err("no bundle");
    assert_eq!(
        of(nowhere),
        "read /B/x: No such file or directory (os error 2)"
    );
    std::fs::create_dir(dir.path().join("config.json")).expect("a directory");
    let directory = Bundle::load(dir.path()).expect_err("a directory");
    assert_eq!(
        of(directory),
        "read /B/config.json: Is a directory (os error 21)"
    );
}

#[test]
fn versions_other_than_one_are_refused() {
    for version in ["1.0.0", "1.0.2-dev", "1.3.0+15", "1.99.7"] {
        accepted(&[("/ociVersion", json!(version))]);
    }
    check_one(
        "/ociVersion",
        json!("2.0.0"),
        "ociVersion: \"2.0.0\": only 1.x is understood",
    );
    for version in ["", "1", "1.x.0", "one", "1.0.0.0"] {
        let expected = format!("ociVersion: {version:?} is no semantic version");
        check_one("/ociVersion", json!(version), &expected);
    }
}

#[test]
fn annotations_of_ours_that_nobody_defined_are_refused() {
    check_one(
        "/annotations",
        json!({"org.pouch.rich": "1"}),
        "annotations.org.pouch.rich: unknown: the nearest known one is org.pouch.rich.mode",
    );
    accepted(&[("/annotations", json!({"org.pouchy": "1", "": ""}))]);
}

#[test]
fn services_are_roots_and_each_lengthens_the_start() {
    let annotations = json!({
        "org.pouch.rich.mode": "dumb-init",
        "org.pouch.rich.services": "a,b",
    });
    let plan = accepted(&[("/annotations", annotations)]);
    let services = match plan.init.pid_one {
        PidOne::Stub { services, .. } => services,
        _ => None,
    };
    let services = services.expect("there are two");
    assert_eq!((services.list.len(), services.limit_s()), (2, 180));
    let process = &services.process;
    assert_eq!((process.uid, process.cwd.as_str()), (0, "/"));
    assert_eq!(process.capabilities, plan.init.process.capabilities);
}

#[test]
fn a_rich_container_has_pid_1_beside_its_program_in_a_new_pid_namespace() {
    let mode = ("/annotations", json!({"org.pouch.rich.mode": "dumb-init"}));
    assert_eq!(accepted(&[]).init.pid_one, PidOne::Program);
    let plan = accepted(std::slice::from_ref(&mode));
    assert_eq!(plan.init.pid_one, PidOne::stub());
    for (profile, call) in [
        (json!({"defaultAction": "SCMP_ACT_ERRNO"}), Some("read")),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {"names": ["read", "write", "waitid", "kill", "exit_group"],
                 "action": "SCMP_ACT_ALLOW"}]}),
            Some("wait4"),
        ),
        (
            json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [
                {"names": ["read", "write", "wait4", "waitid", "kill", "exit_group", "close"],
                 "action": "SCMP_ACT_ALLOW"}]}),
            Some("pidfd_send_signal"),
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["kill", "tkill"], "action": "SCMP_ACT_KILL"}]}),
            Some("kill"),
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {"names": ["read", "write", "kill", "exit_group"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["wait4", "waitid"], "action": "SCMP_ACT_LOG"}]}),
            None,
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]}),
            None,
        ),
    ] {
        let changes = [mode.clone(), ("/linux/seccomp", profile)];
        let why = |call| {
            format!(
                "annotations.org.pouch.rich.mode: mode dumb-init needs {call}, which \
                 linux.seccomp forbids"
            )
        };
        match call {
            Some(call) => check(&changes, &why(call)),
            None => drop(accepted(&changes)),
        }
    }
    let why = "mode dumb-init needs a new pid namespace, and linux.namespaces has none";
    for namespaces in [
        json!([{"type": "mount"}]),
        json!([{"type": "mount"}, {"type": "pid", "path": "/proc/1/ns/pid"}]),
    ] {
        let namespaces = ("/linux/namespaces", namespaces);
        let hostname = ("/hostname", Value::Null);
        let of = |field: &str| format!("{field}: {why}");
        check(
            &[mode.clone(), namespaces.clone(), hostname.clone()],
            &of("annotations.org.pouch.rich.mode"),
        );
        let env = ("/process/env/-", json!("rich_mode=true"));
        check(&[env, namespaces, hostname], &of("process.env rich_mode"));
    }
}

#[test]
fn a_program_that_is_started_again_has_a_parent_that_may_fork_and_no_terminal() {
    let annotations = json!({
        "org.pouch.rich.mode": "dumb-init",
        "org.pouch.rich.restart": "always",
    });
    let mode = ("/annotations", annotations);
    let field = "annotations.org.pouch.rich.restart";
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["clone"], "action": "SCMP_ACT_ERRNO"}]});
    let terminal = |is_there: bool| ("/process/terminal", json!(is_there));
    check(
        &[mode.clone(), terminal(false), ("/linux/seccomp", profile)],
        &format!("{field}: it needs clone, which linux.seccomp forbids"),
    );
    let why = "a terminal ends with the program that has it, and process.terminal is true";
    check(&[mode, terminal(true)], &format!("{field}: {why}"));
}

#[test]
fn an_images_systemd_gets_a_cgroup_namespace_and_tmpfs() {
    let mode = ("/annotations", json!({"org.pouch.rich.mode": "systemd"}));
    let plan = accepted(std::slice::from_ref(&mode));
    assert!(matches!(plan.init.pid_one, PidOne::Systemd(_)));
    assert_eq!(plan.init.cgroup_namespace, Toggle::On);
    let has_cgroup = |kind: &bundle::Namespace| kind.kind == bundle::NamespaceKind::Cgroup;
    assert_eq!(
        plan.namespaces
            .iter()
            .filter(|kind| has_cgroup(kind))
            .count(),
        1
    );
    for (namespaces, why) in [
        (
            json!([{"type": "mount"}]),
            ": mode systemd needs a new pid namespace, and linux.namespaces has none",
        ),
        (
            json!([{"type": "mount"}, {"type": "pid"}, {"type": "cgroup", "path": "/proc/1/ns/cgroup"}]),
            ": mode systemd needs a new cgroup namespace, and linux.namespaces joins one",
        ),
    ] {
        let namespaces = ("/linux/namespaces", namespaces);
        let hostname = ("/hostname", Value::Null);
        let why = format!("annotations.org.pouch.rich.mode{why}");
        check(&[mode.clone(), namespaces, hostname], &why);
    }
    let again = json!({"org.pouch.rich.mode": "systemd", "org.pouch.rich.restart": "always"});
    let terminal = ("/process/terminal", json!(true));
    check(
        &[("/annotations", again), terminal],
        "annotations.org.pouch.rich.restart: a terminal ends with the program that has it, and \
         process.terminal is true",
    );
}

#[test]
fn only_a_network_of_its_own_is_limited() {
    let limited = ("/annotations", json!({"org.pouch.net.egress": "1mbit"}));
    let namespaces = |more: Value| json!([{"type": "mount"}, {"type": "uts"}, more]);
    let own = namespaces(json!({"type": "network"}));
    accepted(&[limited.clone(), ("/linux/namespaces", own)]);
    let hosts = namespaces(json!({"type": "pid"}));
    check(
        &[limited, ("/linux/namespaces", hosts)],
        "annotations.org.pouch.net.egress: needs a network namespace other than the host's, and \
         linux.namespaces has none",
    );
}
