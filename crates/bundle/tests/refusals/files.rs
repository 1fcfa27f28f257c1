//! Rules of what has a path: the root, mounts, devices, hooks.

use super::*;

#[test]
fn mounts_have_sound_targets_and_sources() {
    let mount = |mount: Value, expected: &str| check_one("/mounts/-", mount, expected);
    mount(
        json!({"destination": ""}),
        "mounts[7] ().destination: must not be empty",
    );
    mount(
        json!({"destination": "/m", "options": ["rbind"]}),
        "mounts[7] (/m).source: a bind mount needs one",
    );
    mount(
        json!({"destination": "/m", "source": "/s\0"}),
        "mounts[7].source: \"/s\\0\" contains a NUL",
    );
    let plan = accepted(&[(
        "/mounts/-",
        json!({"destination": "m", "type": "tmpfs", "source": "t"}),
    )]);
    assert_eq!(
        plan.warnings,
        ["mounts[7] (m).destination is not absolute, taken as relative to the container's root"]
    );
    // As the kernel does.
    let bind = json!({"destination": "/m", "source": "/s", "options": ["bind", "size=1m"]});
    let plan = accepted(&[("/mounts/-", bind)]);
    let expected = "mounts[7] (/m).options: \"size=1m\" is ignored: a bind mount takes no options of a file system";
    assert_eq!(plan.warnings, [expected]);
}

#[test]
fn id_mapped_mounts_are_bind_mounts_with_both_maps_of_their_own_or_of_the_user_namespace() {
    let range = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mount = |options: Value, uids: Value, gids: Value| {
        json!({
            "destination": "/m", "source": "/tmp", "options": options,
            "uidMappings": uids, "gidMappings": gids,
        })
    };
    let both = |options: Value| mount(options, range.clone(), range.clone());
    let refused = |mount: Value, expected: &str| check_one("/mounts/-", mount, expected);
    let incomplete = "mounts[7] (/m): an id-mapped mount needs uidMappings and gidMappings, unless a \
                      new user namespace has its own";
    refused(
        mount(json!(["bind", "idmap"]), json!([]), json!([])),
        incomplete,
    );
    refused(mount(json!(["bind"]), range.clone(), json!([])), incomplete);
    refused(
        both(json!(["idmap"])),
        "mounts[7] (/m): only bind mounts can be id-mapped",
    );
    for (options, scope) in [
        (json!(["bind"]), Scope::Mount),
        (json!(["rbind", "idmap"]), Scope::Mount),
        (json!(["rbind", "ridmap"]), Scope::Tree),
    ] {
        let plan = accepted(&[("/mounts/-", both(options))]);
        assert_eq!(maps(&plan), vec![id_map(scope, 1000)]);
    }
    let in_user_namespace = |mount: Value| {
        let ids = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
        let plan = accepted(&[
            ("/linux/namespaces/-", json!({"type": "user"})),
            ("/linux/uidMappings", ids.clone()),
            ("/linux/gidMappings", ids),
            ("/mounts/-", mount),
        ]);
        maps(&plan)
    };
    assert_eq!(
        in_user_namespace(both(json!(["bind"]))),
        vec![id_map(Scope::Mount, 1000)]
    );
    let bare = json!({"destination": "/m", "source": "/tmp", "options": ["bind", "ridmap"]});
    assert_eq!(in_user_namespace(bare), vec![id_map(Scope::Tree, 5000)]);
}

/// How the mounts of a plan map owners.
fn maps(plan: &Plan) -> Vec<IdMap> {
    let of = |planned: &PlannedMount| match planned {
        PlannedMount::Plain(mount) => mount.id_map().cloned(),
        PlannedMount::Cgroup { .. } => None,
    };
    plan.init.mounts.iter().filter_map(of).collect()
}

fn id_map(scope: Scope, outside: u32) -> IdMap {
    let ids = vec![IdRange {
        inside: 0,
        outside,
        count: 10,
    }];
    IdMap {
        scope,
        uids: ids.clone(),
        gids: ids,
    }
}

#[test]
fn the_root_is_a_directory_that_is_there() {
    check_one("/root", Value::Null, "root: is missing");
    check_one("/root/path", json!(""), "root.path: must not be empty");
    check_one(
        "/root/path",
        json!("/"),
        "root.path: / is the root of the host",
    );
    let dir = bundle(&config(&[("/root/path", json!("nowhere"))]));
    let error = Bundle::load(dir.path())
        .expect("a bundle")
        .plan(&context())
        .expect_err("no root");
    let path = dir.path().join("nowhere");
    let expected = format!(
        "root.path: {} cannot be used: No such file or directory (os error 2)",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    let file = bundle(&config(&[("/root/path", json!("config.json"))]));
    let error = Bundle::load(file.path())
        .expect("a bundle")
        .plan(&context())
        .expect_err("a file");
    assert!(
        error
            .to_string()
            .ends_with("config.json is not a directory"),
        "{error}"
    );
}

#[test]
fn paths_devices_and_hooks_are_checked() {
    check_one("/linux", Value::Null, "linux: is missing");
    check_one(
        "/linux/maskedPaths/0",
        json!("proc"),
        "linux.maskedPaths[0]: \"proc\" is not an absolute path",
    );
    check_one(
        "/linux/readonlyPaths/-",
        json!(""),
        "linux.readonlyPaths[5]: \"\" is not an absolute path",
    );
    let device =
        |device: Value, expected: &str| check_one("/linux/devices", json!([device]), expected);
    device(
        json!({"path": "a", "type": "c"}),
        "linux.devices[0].path: \"a\" is not an absolute path",
    );
    device(
        json!({"path": "/a", "type": "a"}),
        "linux.devices[0].type: \"a\" is no type of a device node",
    );
    device(
        json!({"path": "/a", "type": "b", "major": -2}),
        "linux.devices[0].major: -2 is no device number",
    );
    let rule =
        |rule: Value, expected: &str| check_one("/linux/resources/devices/-", rule, expected);
    rule(
        json!({"allow": true}),
        "linux.resources.devices[1].access: \"\" is not made of r, w and m",
    );
    rule(
        json!({"access": "x"}),
        "linux.resources.devices[1].access: \"x\" is not made of r, w and m",
    );
    rule(
        json!({"access": "r", "type": "p"}),
        "linux.resources.devices[1].type: \"p\" has no device rules",
    );
    rule(
        json!({"access": "r", "type": "c", "major": -3}),
        "linux.resources.devices[1]: -3 is no device number",
    );
    let hook =
        |hook: Value, expected: &str| check_one("/hooks", json!({"poststop": [hook]}), expected);
    hook(
        json!({"path": "true"}),
        "hooks.poststop[0].path: \"true\" is not an absolute path",
    );
    hook(
        json!({"path": "/a", "timeout": 0}),
        "hooks.poststop[0].timeout: 0 is not a positive number of seconds",
    );
    hook(
        json!({"path": "/a", "timeout": -1}),
        "hooks.poststop[0].timeout: -1 is not a positive number of seconds",
    );
}
