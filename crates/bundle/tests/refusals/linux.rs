//! Rules of `linux`, but for paths.

use bundle::annotations::LEFT_OUT;

use super::*;

#[test]
fn namespaces_are_known_absolute_and_given_once() {
    let namespace = |kind: &str, path: &str| json!({"type": kind, "path": path});
    check_one(
        "/linux/namespaces/-",
        namespace("uts", ""),
        "linux.namespaces[5]: a second uts namespace",
    );
    check_one(
        "/linux/namespaces/0",
        namespace("pid", "proc/1/ns/pid"),
        "linux.namespaces[0].path: \"proc/1/ns/pid\" is not an absolute path",
    );
    check_one(
        "/linux/namespaces",
        json!([{"type": "user"}]),
        "linux.namespaces: a user namespace needs a new mount namespace",
    );
    check_one(
        "/linux/namespaces/4",
        namespace("mount", "/proc/1/ns/mnt"),
        "linux.maskedPaths: needs a mount namespace of the container's own",
    );
    let error =
        planned(&[("/linux/namespaces/0", namespace("net", ""))]).expect_err("no such kind");
    assert!(
        error
            .to_string()
            .starts_with("linux.namespaces[0].type: unknown variant `net`")
    );
}

#[test]
fn clocks_are_set_off_in_a_time_namespace_only() {
    let of = |clock: &str, nanoseconds: u32| {
        let offset = json!({clock: {"secs": -3, "nanosecs": nanoseconds}});
        let time = json!({"type": "time"});
        [
            ("/linux/namespaces/-", time),
            ("/linux/timeOffsets", offset),
        ]
    };
    check(
        &of("boottime", 7)[1..],
        "linux.timeOffsets: given without a new time namespace",
    );
    check(
        &of("realtime", 7),
        "linux.timeOffsets: \"realtime\" is not one of monotonic, boottime",
    );
    check(
        &of("monotonic", 1_000_000_000),
        "linux.timeOffsets: monotonic: 1000000000 nanoseconds are a second or more",
    );
    let offset = accepted(&of("boottime", 7)).time_offsets["boottime"];
    assert_eq!((offset.seconds, offset.nanoseconds), (-3, 7));
}

#[test]
fn names_need_a_uts_namespace() {
    let without = |field, value| {
        let mounts = json!([{"type": "mount"}]);
        [
            ("/hostname", json!("")),
            ("/linux/namespaces", mounts),
            (field, json!(value)),
        ]
    };
    check(
        &without("/hostname", "h"),
        "hostname: needs a uts namespace other than the host's",
    );
    check(
        &without("/domainname", "d"),
        "domainname: needs a uts namespace other than the host's",
    );
    accepted(&without("/hostname", ""));
    check_one(
        "/hostname",
        json!("h".repeat(65)),
        "hostname: 65 bytes, the kernel takes 64",
    );
}

fn range(container: u32, host: u32, size: u32) -> Value {
    json!({"containerID": container, "hostID": host, "size": size})
}

/// Changes that give the container a user namespace of its own.
fn mapped(uids: Value, gids: Value) -> Vec<(&'static str, Value)> {
    let user = json!({"type": "user"});
    vec![
        ("/linux/namespaces/-", user),
        ("/linux/uidMappings", uids),
        ("/linux/gidMappings", gids),
    ]
}

#[test]
fn a_user_namespace_needs_sound_mappings() {
    let sound = json!([range(0, 1000, 10)]);
    let none = json!([]);
    let overlap = "linux.uidMappings[1]: overlaps an earlier range";
    for (uids, expected) in [
        (
            none.clone(),
            "linux.uidMappings: a new user namespace needs mappings",
        ),
        (
            json!([range(1, 1, 1)]),
            "linux.uidMappings: id 0 of the container is not mapped",
        ),
        (json!([range(0, 0, 0)]), "linux.uidMappings[0]: size is 0"),
        (
            json!([range(0, 5, u32::MAX)]),
            "linux.uidMappings[0]: goes beyond the largest id",
        ),
        (json!([range(0, 5, 5), range(4, 50, 1)]), overlap),
        (json!([range(0, 5, 5), range(5, 9, 1)]), overlap),
    ] {
        check(&mapped(uids, sound.clone()), expected);
    }
    let without_gids = "linux.gidMappings: a new user namespace needs mappings";
    check(&mapped(sound.clone(), none), without_gids);
    let without_namespace = "linux.gidMappings: given without a user namespace";
    check_one("/linux/gidMappings", sound.clone(), without_namespace);
    let joined = (
        "/linux/namespaces/-",
        json!({"type": "user", "path": "/proc/1/ns/user"}),
    );
    let plan = accepted(&[joined, ("/linux/uidMappings", sound)]);
    assert!(
        plan.uid_maps.is_empty(),
        "the namespace to join has maps of its own"
    );
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
}

#[test]
fn mounts_of_others_stay_as_they_are() {
    let own_paths = [
        ("/linux/maskedPaths", Value::Null),
        ("/linux/readonlyPaths", Value::Null),
    ];
    let shared = |more: &[(&'static str, Value)]| {
        let mut changes = vec![(
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "uts"}]),
        )];
        changes.extend(own_paths.clone());
        changes.extend_from_slice(more);
        changes
    };
    let plan = accepted(&shared(&[]));
    assert_eq!(plan.init.root.entry, RootEntry::Chroot);
    check(
        &shared(&[("/linux/rootfsPropagation", json!("slave"))]),
        "linux.rootfsPropagation: needs a mount namespace of the container's own",
    );
    for (annotations, what) in [
        (json!({"org.pouch.view": "lxcfs"}), "a view by lxcfs"),
        (
            json!({"org.pouch.rich.mode": "dumb-init"}),
            "a rich container",
        ),
    ] {
        check(
            &shared(&[("/annotations", annotations)]),
            &format!("{what} is not supported: it needs a mount namespace of the container's own"),
        );
    }
}

#[test]
fn ids_of_a_joined_user_namespace_are_those_of_the_process_that_names_it() {
    let joined = || {
        let user = json!({"type": "user", "path": "/proc/self/ns/user"});
        ("/linux/namespaces/-", user)
    };
    let mount = json!({"destination": "/m", "source": "/tmp", "options": ["bind", "idmap"]});
    let plan = accepted(&[joined(), ("/mounts/-", mount)]);
    let Some(PlannedMount::Plain(mount)) = plan.init.mounts.last() else {
        panic!("it is a bind mount");
    };
    let maps = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let lines = maps.lines().count();
    assert_eq!(mount.id_map().unwrap().uids.len(), lines);
    assert!(plan.uid_maps.is_empty() && plan.warnings.is_empty());
}

#[test]
fn the_ids_of_a_process_are_mapped() {
    let sound = json!([range(0, 1000, 10)]);
    for (at, value, expected) in [
        (
            "/process/user/uid",
            json!(10),
            "process.user.uid: 10 is not mapped in the user namespace",
        ),
        (
            "/process/user/gid",
            json!(11),
            "process.user.gid: 11 is not mapped in the user namespace",
        ),
        (
            "/process/user/additionalGids",
            json!([9, 12]),
            "process.user.additionalGids: 12 is not mapped in the user namespace",
        ),
    ] {
        let mut changes = mapped(sound.clone(), sound.clone());
        changes.push((at, value));
        check(&changes, expected);
    }
}

#[test]
fn a_domain_has_one_name() {
    let both = |name: &str| {
        [
            ("/domainname", json!("one")),
            ("/linux/sysctl", json!({"kernel.domainname": name})),
        ]
    };
    accepted(&both("one"));
    check(
        &both("other"),
        "linux.sysctl.kernel.domainname: conflicts with the field domainname",
    );
}

#[test]
fn kernel_parameters_belong_to_a_namespace_of_the_container() {
    let only_mounts = ("/linux/namespaces", json!([{"type": "mount"}]));
    let one = |key: &str| ("/linux/sysctl", json!({key: "1"}));
    let refused = |key: &str, why: &str| {
        let expected = format!("linux.sysctl.{key}: {why}");
        let no_name = ("/hostname", json!(""));
        check(&[no_name, only_mounts.clone(), one(key)], &expected);
    };
    refused(
        "kernel.shmmax",
        "needs a ipc namespace other than the host's",
    );
    refused(
        "fs.mqueue.msg_max",
        "needs a ipc namespace other than the host's",
    );
    refused(
        "net.core.somaxconn",
        "needs a network namespace other than the host's",
    );
    refused(
        "net/core/somaxconn",
        "needs a network namespace other than the host's",
    );
    refused(
        "kernel.domainname",
        "needs a uts namespace other than the host's",
    );
    refused(
        "user.max_user_namespaces",
        "needs a user namespace other than the host's",
    );
    refused("kernel.hostname", "conflicts with the field hostname");
    refused(
        "kernel.core_pattern",
        "belongs to no namespace, setting it would change the host",
    );
    refused(
        "vm",
        "belongs to no namespace, setting it would change the host",
    );
    for key in [
        "",
        "net.",
        "net..core",
        "net./../../kernel/core_pattern",
        "net.a//b",
        "/net/x",
    ] {
        refused(key, "is no name of a kernel parameter");
    }
    for key in ["kernel.shmmax", "net.core.somaxconn", "kernel.domainname"] {
        accepted(&[one(key)]);
    }
    check(
        &[
            (
                "/linux/namespaces/1",
                json!({"type": "network", "path": "/proc/self/ns/net"}),
            ),
            one("net.x"),
        ],
        "linux.sysctl.net.x: the network namespace to join is the host's",
    );
}

#[test]
fn propagation_is_one_of_the_words() {
    check_one(
        "/linux/rootfsPropagation",
        json!("public"),
        "linux.rootfsPropagation: \"public\" is not one of [r]private, [r]slave, [r]shared, \
         [r]unbindable",
    );
    let mut context = context();
    context.root_entry = RootEntry::MoveChroot;
    let private = config(&[("/linux/rootfsPropagation", json!("rprivate"))]);
    assert_eq!(
        plan(&private, &context).expect_err("unsafe").to_string(),
        "linux.rootfsPropagation: \"rprivate\" is not safe without pivot_root"
    );
}

#[test]
fn links_of_the_host_go_where_they_are_the_containers() {
    let devices = |value: Value, expected: &str| check_one("/linux/netDevices", value, expected);
    let why = "is no name of a link: the kernel takes 1 to 15 bytes without blanks, \"/\", \":\" and \
               more than one \"%d\"";
    for (name, wrong) in [
        ("", ""),
        ("..", ".."),
        ("eth0:1", "eth0:1"),
        ("e\t0", "e\\t0"),
        ("eth%d", "eth%d"),
        ("a-name-too-long-", "a-name-too-long-"),
    ] {
        let expected = format!("linux.netDevices.{name}: \"{wrong}\" {why}");
        devices(json!({ name: {} }), &expected);
    }
    devices(
        json!({"eth0": {"name": "a%db%d"}}),
        &format!("linux.netDevices.eth0: \"a0b%d\" {why}"),
    );
    devices(
        json!({"eth0": {"name": "eth9"}, "eth1": {"name": "eth9"}}),
        "linux.netDevices.eth1: a second link that is to be \"eth9\" in the container",
    );
    check(
        &[
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "uts"}]),
            ),
            ("/linux/netDevices", json!({"eth0": {}})),
        ],
        "linux.netDevices: needs a network namespace other than the host's, and linux.namespaces \
         has none",
    );
    let accepted = accepted(&[(
        "/linux/netDevices",
        json!({"eth0": {}, "eth1": {"name": "x%d"}, "eth2": {"name": "x%d"}, "eth3": {"name": ""}}),
    )]);
    let names = accepted.net_devices.iter();
    let names: Vec<_> = names
        .map(|(old, new)| (old.as_str(), new.as_str()))
        .collect();
    let expected = [
        ("eth0", "eth0"),
        ("eth1", "x%d"),
        ("eth2", "x%d"),
        ("eth3", "eth3"),
    ];
    assert_eq!(names, expected);
}

#[test]
fn classes_of_resctrl_have_names_and_lines() {
    let check = |value: Value, expected: &str| check_one("/linux/intelRdt", value, expected);
    for class in ["..", "a/b"] {
        check(
            json!({ "closID": class }),
            &format!("linux.intelRdt.closID: {class:?} is no name of a class of resctrl"),
        );
    }
    check(
        json!({"l3CacheSchema": "L3:0=f\nL3:1=f"}),
        "linux.intelRdt.l3CacheSchema: \"L3:0=f\\nL3:1=f\" is not one line",
    );
    check(
        json!({"memBwSchema": "L3:0=f"}),
        "linux.intelRdt.memBwSchema: \"L3:0=f\" does not begin with MB:",
    );
    check(
        json!({"schemata": ["L2:0=f", ""]}),
        "linux.intelRdt.schemata: \"\" is not one line",
    );
    let twice = [
        (
            "/annotations",
            json!({"customization.intel_rdt_group": "batch"}),
        ),
        ("/linux/intelRdt", json!({})),
    ];
    let expected = "linux.intelRdt: annotations.customization.intel_rdt_group names a class, \
                    too (batch)";
    super::check(&twice, expected);
    let wanted = accepted(&[(
        "/linux/intelRdt",
        json!({
            "closID": "/", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20",
            "schemata": ["L2:0=f"], "enableMonitoring": true,
        }),
    )]);
    let wanted = wanted.intel_rdt.expect("it is asked for");
    assert_eq!(wanted.class.as_deref(), Some("/"));
    assert_eq!(wanted.shared, ["L3:0=f", "MB:0=20"]);
    assert_eq!(wanted.schemata, ["L2:0=f"]);
    assert!(wanted.is_monitored);
}

#[test]
fn a_filter_that_cannot_be_is_refused() {
    let filter = |filter: Value, expected: &str| check_one("/linux/seccomp", filter, expected);
    let call = |extra: Value| {
        let mut call = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        for (key, value) in extra.as_object().expect("an object") {
            call[key] = value.clone();
        }
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]})
    };
    filter(
        call(json!({"errnoRet": 1})),
        "linux.seccomp: action Allow takes no errno, 1 was given",
    );
    filter(
        call(json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
        "linux.seccomp: system call read: argument index 6 is not below 6",
    );
    filter(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
        "linux.seccomp.flags is not supported: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: only of use \
         with SCMP_ACT_NOTIFY",
    );
    // runc: no profile at all.
    let plan = accepted(&[(
        "/linux/seccomp",
        json!({"defaultAction": "", "syscalls": []}),
    )]);
    assert_eq!(plan.init.process.seccomp, None);

    let old = |change: &dyn Fn(&mut bundle::HostFacts), value: Value, expected: &str| {
        let mut context = context();
        change(&mut context.host);
        let error = plan_of(&[("/linux/seccomp", value)], &context).expect_err(expected);
        assert_eq!(message(&error), expected);
    };
    old(
        &|host| host.seccomp_filter = Toggle::Off,
        json!({"defaultAction": "SCMP_ACT_ALLOW"}),
        "linux.seccomp is not supported: this kernel has no system call filters, which Linux has from \
         3.5; HardeningOptional (see docs/runlxc.md) leaves it out",
    );
    old(
        &|host| host.seccomp_flags = 0,
        json!({"defaultAction": "SCMP_ACT_LOG"}),
        "linux.seccomp.defaultAction is not supported: this kernel has no SCMP_ACT_LOG",
    );
    old(
        &|host| host.seccomp_flags = 0,
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}),
        "linux.seccomp.flags is not supported: SECCOMP_FILTER_FLAG_SPEC_ALLOW: this kernel has no \
         such flag",
    );
}

#[test]
fn who_is_asked_about_system_calls_is_named() {
    let filter = |filter: Value, expected: &str| check_one("/linux/seccomp", filter, expected);
    let asks = |names: &[&str], path: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "y",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]})
    };
    filter(
        asks(&["mkdir"], Value::Null),
        "linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs the absolute path of a socket",
    );
    for name in ["write", "sendmsg"] {
        filter(
            asks(&["read", name], json!("/run/x")),
            &format!(
                "linux.seccomp.syscalls: SCMP_ACT_NOTIFY cannot be used for the {name} syscall"
            ),
        );
    }
    filter(
        json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/x"}),
        "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
    );
    let asked = asks(&["mkdir"], json!("/run/x"));
    let plan = accepted(&[("/linux/seccomp", asked.clone())]);
    let listener = plan.seccomp_listener.expect("a listener");
    let metadata = listener.metadata.as_deref();
    assert_eq!((listener.path, metadata), ("/run/x".into(), Some("y")));
    let filter = plan.init.process.seccomp.expect("a filter");
    assert_eq!(filter.flags, 0b10_1000);
    check(
        &[
            ("/linux/seccomp", asked.clone()),
            ("/annotations", json!({"org.pouch.rich.mode": "dumb-init"})),
        ],
        "linux.seccomp is not supported: SCMP_ACT_NOTIFY is not for rich containers, whose pid 1 is \
         not the program",
    );
    let mut context = context();
    context.host.seccomp_flags = 0;
    let error = plan_of(&[("/linux/seccomp", asked)], &context).expect_err("an old kernel");
    assert_eq!(
        message(&error),
        "linux.seccomp.syscalls[0].action is not supported: this kernel has no SCMP_ACT_NOTIFY, which \
         Linux has from 5.0"
    );
}

#[test]
fn what_an_old_kernel_lacks_is_refused_unless_the_operator_lets_it_be_left_out() {
    let changes = [
        ("/process/noNewPrivileges", json!(true)),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})),
    ];
    let mut context = context();
    context.host.no_new_privs = Toggle::Off;
    let error = plan_of(&changes, &context).expect_err("no_new_privs");
    assert_eq!(
        message(&error),
        "process.noNewPrivileges is not supported: this kernel has no no_new_privs, which Linux has \
         from 3.5; HardeningOptional (see docs/runlxc.md) leaves it out"
    );
    context.host.hardening_optional = Toggle::On;
    let plan = plan_of(&changes, &context).expect("filters it has");
    assert_eq!(plan.init.process.no_new_privs, Toggle::Off);
    assert!(plan.init.process.seccomp.is_some());
    let left_out = |plan: &Plan| plan.annotations.get(LEFT_OUT).cloned();
    assert_eq!(left_out(&plan).as_deref(), Some("process.noNewPrivileges"));

    context.host.seccomp_filter = Toggle::Off;
    let plan = plan_of(&changes, &context).expect("all is left out");
    assert_eq!(plan.init.process.seccomp, None);
    assert_eq!(
        left_out(&plan).as_deref(),
        Some("process.noNewPrivileges,linux.seccomp")
    );
    for warning in [
        "process.noNewPrivileges is left out: this kernel has no no_new_privs",
        "linux.seccomp is left out: this kernel has no system call filters",
    ] {
        assert!(
            plan.warnings.iter().any(|said| said == warning),
            "{warning}"
        );
    }

    let plain = plan_of(&[("/process/noNewPrivileges", json!(false))], &context);
    assert_eq!(left_out(&plain.expect("nothing is asked for")), None);
    let error = plan_of(&[("/annotations", json!({LEFT_OUT: "x"}))], &context);
    let said = message(&error.expect_err("a key of ours alone"));
    assert!(
        said.starts_with("annotations.org.pouch.left-out: unknown"),
        "{said}"
    );
}

#[test]
fn resources_of_an_update_have_no_device_rules() {
    let json = br#"{"cpu": {"shares": 5}, "devices": [{"access": "rwm"}]}"#;
    let resources = bundle::resources(&parse_resources(json).expect("resources")).expect("limits");
    assert_eq!(resources.cpu.shares, Some(5));
    assert!(resources.devices.is_empty());
    let error = parse_resources(br#"{"cpu": {"shares": -5}}"#).expect_err("negative");
    assert_eq!(
        error.to_string(),
        "cpu.shares: invalid value: integer `-5`, expected u64"
    );
}
