//! Namespaces that are new, the host's, or another container's.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use serde_json::{Value, json};

use crate::harness::Place;

#[test]
fn namespaces_are_new_the_hosts_or_joined() {
    let mut place = Place::new(
        "readlink() { ls -l /proc/self/ns/$1; }; readlink net; readlink uts; readlink pid",
    );
    place.config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/proc/self/ns/net"}
    ]);
    place.config["hostname"] = Value::Null;
    let said = place.run_program().ok();
    let own = |kind: &str| {
        fs::read_link(format!("/proc/self/ns/{kind}"))
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert!(
        said.contains(&own("net")) && said.contains(&own("uts")),
        "{said}"
    );
    assert!(!said.contains(&own("pid")), "{said}");
    place.finish();
}

#[test]
fn namespaces_of_another_container_can_be_joined() {
    let first = Place::new("sleep 100");
    first.create().ok();
    first.on("start").ok();
    let pid = first.state()["pid"].to_string();
    let mut second =
        Place::new("cat /proc/1/cmdline; hostname; echo; ls -l /proc/self/ns; ip link");
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    second.config["linux"]["namespaces"] = json!([
        {"type": "mount"},
        {"type": "pid", "path": path("pid")},
        {"type": "network", "path": path("net")},
        {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")},
    ]);
    second.config["hostname"] = Value::Null;
    let said = second.run_program().ok();
    assert!(said.starts_with("sleep\u{0}100"), "{said}");
    assert!(said.contains("lo: <LOOPBACK,UP"), "{said}");
    for kind in ["pid", "net", "ipc", "uts"] {
        let theirs = fs::read_link(path(kind)).unwrap();
        assert!(said.contains(theirs.to_str().unwrap()), "{kind}: {said}");
    }
    second.finish();
    first.run(&["delete", "--force", &first.id]).ok();
    first.finish();
}

/// A container's first host id of a user namespace.
const FIRST: u32 = 100_000;

/// Adds a user namespace with that map, and lets its root write to /tmp.
fn with_users(place: &mut Place) {
    let maps = json!([{"containerID": 0, "hostID": FIRST, "size": 65_536}]);
    place.config["linux"]["uidMappings"] = maps.clone();
    place.config["linux"]["gidMappings"] = maps;
    add(place, json!({"type": "user"}));
    own_tmp(place);
}

fn own_tmp(place: &Place) {
    chown(place.rootfs().join("tmp"), Some(FIRST), Some(FIRST)).unwrap();
}

fn add(place: &mut Place, namespace: Value) {
    let namespaces = place.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(namespace);
}

#[test]
fn a_user_namespace_that_is_joined_owns_the_new_ones() {
    let mut first = Place::new("sleep 100");
    with_users(&mut first);
    first.create().ok();
    first.on("start").ok();
    let pid = first.state()["pid"].to_string();
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    // Whoever owns the network may change it, and whoever owns the mounts may mount.
    let mut second = Place::new(
        "test $$ = 1 && ip link | grep -q LOOPBACK,UP && ip link set lo down && ip link set lo up && \
         mount -t tmpfs none /mnt && umount /mnt && echo x > /tmp/made && exec sleep 100",
    );
    own_tmp(&second);
    add(&mut second, json!({"type": "user", "path": path("user")}));
    add(
        &mut second,
        json!({"type": "cgroup", "path": path("cgroup")}),
    );
    second.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
        "permitted": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
        "effective": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
    });
    fs::create_dir_all(second.rootfs().join("mnt")).unwrap();
    second.create().ok();
    second.on("start").ok();
    let made = second.rootfs().join("tmp/made");
    crate::lifecycle::wait_for(|| made.exists());
    assert_eq!(fs::metadata(&made).unwrap().uid(), FIRST);
    let said = second
        .run(&["exec", &second.id, "sh", "-c", "id -u; ls -l /proc/self/ns"])
        .ok();
    assert!(said.starts_with("0\n"), "{said}");
    let theirs = |kind: &str| {
        let link = fs::read_link(path(kind)).unwrap();
        link.to_str().unwrap().to_owned()
    };
    for (kind, is_joined) in [("user", true), ("cgroup", true), ("net", false)] {
        assert_eq!(said.contains(&theirs(kind)), is_joined, "{kind}: {said}");
    }
    for place in [second, first] {
        place.run(&["delete", "--force", &place.id]).ok();
        place.finish();
    }
}

#[test]
fn what_is_mounted_in_the_hosts_namespace_goes_with_the_container() {
    let mut place = Place::new("sleep 100");
    let namespaces = place.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "mount");
    place.config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    place
        .create()
        .fails_with("linux.maskedPaths: needs a mount namespace");
    for field in ["maskedPaths", "readonlyPaths"] {
        place.config["linux"][field] = Value::Null;
    }
    place.create().ok();
    place.on("start").ok();
    let inside = fs::read_link("/proc/self/ns/mnt").unwrap();
    // Both are in the container's root, although its mount namespace has another one.
    let said = place
        .run(&[
            "exec",
            &place.id,
            "sh",
            "-c",
            "ls -l /proc/self/ns/mnt; echo x > /tmp/made",
        ])
        .ok();
    assert!(said.contains(inside.to_str().unwrap()), "{said}");
    assert!(place.rootfs().join("tmp/made").exists());
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = place.rootfs().to_str().unwrap().to_owned();
    assert!(mounts().contains(&root));
    place.run(&["delete", "--force", &place.id]).ok();
    assert!(!mounts().contains(&root), "{}", mounts());
    place.finish();
}
