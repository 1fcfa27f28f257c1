//! Rules of `process`.

use super::*;

#[test]
fn a_process_needs_arguments_and_an_absolute_directory() {
    check_one("/process", Value::Null, "process: is missing");
    check_one(
        "/process/args",
        json!([]),
        "process.args: must not be empty",
    );
    check_one(
        "/process/args",
        Value::Null,
        "process.args: must not be empty",
    );
    check_one("/process/cwd", json!(""), "process.cwd: must not be empty");
    check_one(
        "/process/cwd",
        json!("tmp"),
        "process.cwd: \"tmp\" is not an absolute path",
    );
    check_one(
        "/process/env/-",
        json!("A"),
        "process.env[2]: \"A\" has no '='",
    );
    check_one(
        "/process/env/-",
        json!("=A"),
        "process.env[2]: \"=A\" has no name",
    );
    check_one(
        "/process/args/-",
        json!("a\0b"),
        "process.args[1]: \"a\\0b\" contains a NUL",
    );
    check_one(
        "/process/oomScoreAdj",
        json!(1001),
        "process.oomScoreAdj: 1001 is not in -1000..=1000",
    );
    check_one(
        "/process/user/umask",
        json!(512),
        "process.user.umask: 0o1000 is above 0o777",
    );
    check_one(
        "/process/consoleSize",
        json!({"height": 65536, "width": 1}),
        "process.consoleSize.height: 65536 is above 65535",
    );
    // A console without a terminal means nothing.
    let without = accepted(&[
        ("/process/terminal", json!(false)),
        ("/process/consoleSize", json!({"height": 65536})),
    ]);
    assert_eq!(without.init.process.terminal, None);
}

#[test]
fn ids_that_no_process_can_have_are_refused_by_name() {
    let none = json!(u32::MAX);
    for (field, value) in [
        ("uid", none.clone()),
        ("gid", none.clone()),
        ("additionalGids", json!([1, none])),
    ] {
        check_one(
            &format!("/process/user/{field}"),
            value,
            &format!("process.user.{field}: 4294967295 is the id that stands for none"),
        );
    }
    check_one(
        "/process/user/additionalGids",
        json!((0..65537).collect::<Vec<u32>>()),
        "process.user.additionalGids: 65537 groups, the kernel takes 65536",
    );
    accepted(&[(
        "/process/user/additionalGids",
        json!((0..65536).collect::<Vec<u32>>()),
    )]);
}

#[test]
fn resource_limits_are_known_and_given_once() {
    let limit = |kind: &str, soft: u64| json!({"type": kind, "soft": soft, "hard": 10});
    check_one(
        "/process/rlimits/-",
        limit("RLIMIT_NOFILE", 1),
        "process.rlimits[1]: a second RLIMIT_NOFILE",
    );
    check_one(
        "/process/rlimits/-",
        limit("RLIMIT_CORE", 11),
        "process.rlimits[1]: RLIMIT_CORE: the soft limit 11 is above the hard limit 10",
    );
    let error =
        planned(&[("/process/rlimits/-", limit("RLIMIT_X", 1))]).expect_err("no such limit");
    let message = error.to_string();
    assert!(
        message.starts_with("process.rlimits[1].type: unknown variant `RLIMIT_X`"),
        "{message}"
    );
}

#[test]
fn security_modules_that_the_host_lacks_are_refused_by_name() {
    check_one(
        "/process/apparmorProfile",
        json!("docker-default"),
        "process.apparmorProfile is not supported: profile \"docker-default\": AppArmor is not \
         enabled on this host",
    );
    check_one(
        "/process/selinuxLabel",
        json!("a:b:c"),
        "process.selinuxLabel is not supported: label \"a:b:c\": SELinux is not enabled on this host",
    );
    let plan = accepted(&[
        ("/process/apparmorProfile", json!("unconfined")),
        ("/process/selinuxLabel", json!("")),
        ("/linux/mountLabel", json!("a:b:c")),
    ]);
    assert_eq!(plan.init.process.labels, Labels::default());
    assert_eq!(plan.init.mount_label, None);
    assert_eq!(
        plan.warnings.last().map(String::as_str),
        Some("linux.mountLabel \"a:b:c\" is ignored: SELinux is not enabled on this host")
    );
}

#[test]
fn security_modules_of_the_host_get_their_labels() {
    let mut context = context();
    context.host.apparmor = Toggle::On;
    context.host.selinux = Toggle::On;
    let with = |edits: &[(&str, Value)]| plan(&config(edits), &context);
    for profile in ["cri-containerd.apparmor.d", "unconfined"] {
        let plan = with(&[
            ("/process/apparmorProfile", json!(profile)),
            ("/process/selinuxLabel", json!("u:r:t:s0:c1,c2")),
            ("/linux/mountLabel", json!("u:r:file_t:s0:c1,c2")),
        ])
        .expect("a plan");
        let labels = Labels {
            apparmor: Some(profile.to_owned()),
            selinux: Some("u:r:t:s0:c1,c2".to_owned()),
        };
        assert_eq!(plan.init.process.labels, labels);
        assert_eq!(
            plan.init.mount_label.as_deref(),
            Some("u:r:file_t:s0:c1,c2")
        );
    }
    let plan = with(&[
        ("/process/apparmorProfile", json!("")),
        ("/process/selinuxLabel", json!("")),
        ("/linux/mountLabel", json!("")),
    ])
    .expect("a plan");
    assert_eq!(plan.init.process.labels, Labels::default());
    assert_eq!(plan.init.mount_label, None);
    for (at, value, expected) in [
        (
            "/process/apparmorProfile",
            "a\nb",
            "process.apparmorProfile: \"a\\nb\" has a control character",
        ),
        (
            "/process/selinuxLabel",
            &"l".repeat(4001),
            "process.selinuxLabel: 4001 bytes, above 4000",
        ),
        (
            "/linux/mountLabel",
            "a\",exec",
            "linux.mountLabel: \"a\\\",exec\" has a quote",
        ),
    ] {
        let error = with(&[(at, json!(value))]).expect_err(expected);
        assert_eq!(message(&error), expected);
    }
}

#[test]
fn an_exec_has_the_rights_of_its_container_unless_it_names_its_own() {
    let context = ProcessContext {
        host: HOST,
        preserve_fds: 2,
        new_keyring: Toggle::Off,
        seccomp: None,
        capabilities: launch::plan::CapabilitySets {
            bounding: 1,
            ..bundle::capabilities::NONE
        },
        labels: Labels {
            apparmor: Some("of-container".to_owned()),
            selinux: None,
        },
        scheduling: Scheduling {
            personality: Some(8),
            ..Scheduling::default()
        },
    };
    let parsed = parse_process(br#"{"args": ["a"], "cwd": "/"}"#).expect("a process");
    let process = process_plan(&parsed.value, &context).expect("a plan").value;
    assert_eq!(process.capabilities, Some(context.capabilities));
    assert_eq!(process.labels, context.labels);
    assert_eq!(process.scheduling, context.scheduling);
    assert_eq!(
        (process.preserve_fds, process.new_keyring),
        (2, Toggle::Off)
    );
    let own = br#"{"args": ["a"], "cwd": "/", "capabilities": {"bounding": ["CAP_KILL", "KILL"]}}"#;
    let parsed = parse_process(own).expect("a process");
    assert_eq!(
        parsed.warnings,
        ["ignoring unknown or unavailable capabilities: [KILL]"]
    );
    let process = process_plan(&parsed.value, &context).expect("a plan").value;
    assert_eq!(process.capabilities.expect("always given").bounding, 1 << 5);
    let error = parse_process(br#"{"args": [1]}"#).expect_err("no string");
    assert_eq!(
        error.to_string(),
        "args[0]: invalid type: integer `1`, expected a string"
    );
}

#[test]
fn scheduling_has_the_rules_of_runc() {
    let scheduler = "/process/scheduler";
    for (value, expected) in [
        (
            json!({"policy": "SCHED_OTHER", "nice": 20}),
            "nice: 20 is not in -20..=19",
        ),
        (
            json!({"policy": "SCHED_BATCH", "priority": 1}),
            "priority: is for SCHED_FIFO and SCHED_RR only",
        ),
        (
            json!({"policy": "SCHED_RR", "priority": -1}),
            "priority: -1 is below 0",
        ),
        (
            json!({"policy": "SCHED_RR", "runtime": 1}),
            "policy: runtime, deadline and period are for SCHED_DEADLINE only",
        ),
    ] {
        check_one(scheduler, value, &format!("process.scheduler.{expected}"));
    }
    check_one(
        "/process/ioPriority",
        json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
        "process.ioPriority.priority: 8 is not in 0..=7",
    );
    check_one(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_BIND", "nodes": "1-0"}),
        "linux.memoryPolicy.nodes: invalid memory policy node: \"1-0\" is no list of numbers and ranges",
    );
    check_one(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_LOCAL", "nodes": "0-1"}),
        "linux.memoryPolicy.nodes: mode requires 0 nodes but got 2",
    );
    for (policy, expected) in [
        (
            json!({"nodes": "0"}),
            ": invalid memory policy mode: missing",
        ),
        (
            json!({"mode": "BIND"}),
            ".mode: invalid memory policy mode: unknown",
        ),
        (
            json!({"mode": "MPOL_BIND", "flags": ["F"]}),
            ".flags[0]: invalid memory policy flag: unknown",
        ),
    ] {
        let error = planned(&[("/linux/memoryPolicy", policy)])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("linux.memoryPolicy{expected}")),
            "{error}"
        );
    }
}

#[test]
fn deadlines_have_the_rules_of_the_kernel() {
    let check = |times: [Option<u64>; 3], expected: &str| {
        let [runtime, deadline, period] = times;
        let mut scheduler = json!({"policy": "SCHED_DEADLINE"});
        for (name, time) in [
            ("runtime", runtime),
            ("deadline", deadline),
            ("period", period),
        ] {
            if let Some(time) = time {
                scheduler[name] = json!(time);
            }
        }
        let expected = format!("process.scheduler: sched_setattr: `SCHED_DEADLINE` {expected}");
        check_one("/process/scheduler", scheduler, &expected);
    };
    check([None, Some(5000), None], "requires `runtime`");
    check([Some(5000), None, None], "requires `deadline`");
    check(
        [Some(0), Some(5000), None],
        "runtime must be greater than 0",
    );
    check(
        [Some(10), Some(5000), None],
        "runtime (10) must be between 1024 and 9223372036854775807",
    );
    check(
        [Some(5000), Some(1 << 63), None],
        "deadline (9223372036854775808) must be between 1024 and 9223372036854775807",
    );
    check(
        [Some(6000), Some(5000), None],
        "runtime (6000) must be <= deadline (5000)",
    );
    check(
        [Some(5000), Some(6000), Some(5500)],
        "deadline (6000) must be <= period (5500)",
    );
    let sound = json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 6000, "period": 0});
    accepted(&[("/process/scheduler", sound)]);
}

#[test]
fn scheduling_becomes_the_kernels_numbers() {
    let flags = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]);
    let plan = accepted(&[
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 5, "flags": flags}),
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}),
        ),
        (
            "/process/execCPUAffinity",
            json!({"initial": "0", "final": "0"}),
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX32", "flags": ["X"]}),
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}),
        ),
    ]);
    let expected = Scheduling {
        cpu: Some(CpuScheduler {
            policy: 1,
            flags: 5,
            nice: 0,
            priority: 5,
            runtime_ns: 0,
            deadline_ns: 0,
            period_ns: 0,
        }),
        io: Some(3 << 13),
        cpus_initial: vec![0],
        cpus: vec![0],
        memory: Some(MemoryPolicy {
            mode: 3 | 1 << 15,
            nodes: vec![0, 1],
        }),
        personality: Some(8),
    };
    assert_eq!(plan.init.process.scheduling, expected);
    // The affinity is for those that join.
    let of_init = Scheduling {
        cpus_initial: Vec::new(),
        cpus: Vec::new(),
        ..expected
    };
    assert_eq!(plan.init_for(1).process.scheduling, of_init);
    assert_eq!(
        plan.warnings,
        ["linux.personality.flags [\"X\"] are ignored"]
    );
}
