//! Links of the host that become a container's; here the host's network is one that a test has made.

use serde_json::json;

use crate::harness::Place;

const LINKS: &str = "ip link add v0 mtu 1400 address 02:00:00:00:00:05 type veth peer name v1; \
                     ip address add 192.0.2.7/24 dev v0; ip address add fd00::7/64 dev v0; \
                     ip address add 127.0.0.33/32 scope host dev v0; ip link set v0 up; \
                     ip link set v1 up";

#[test]
fn a_link_comes_with_its_addresses_and_another_name() {
    let mut place = Place::new("ip address show dev eth0");
    place.config["linux"]["netDevices"] = json!({"v0": {"name": "eth%d"}});
    place.save();
    let bundle = place.bundle_str().to_owned();
    let words = ["run", "--bundle", &bundle, &place.id];
    let out = place.run_in_network(LINKS, &words).ok();
    let expected = [
        ",UP",
        "mtu 1400",
        "02:00:00:00:00:05",
        "192.0.2.7/24",
        "fd00::7/64",
    ];
    for part in expected {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(!out.contains("127.0.0.33"), "{out}");
    place.finish();
}

#[test]
fn hooks_of_create_see_the_link() {
    let mut place = Place::new("true");
    let seen = place.path("seen");
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); nsenter -n -t $pid ip -o link > {}",
        seen.display()
    );
    place.config["hooks"] = json!({"createRuntime": [
        {"path": "/bin/sh", "args": ["sh", "-ec", script], "env": ["PATH=/sbin:/bin:/usr/bin"]},
    ]});
    place.config["linux"]["netDevices"] = json!({"v0": {}});
    place.save();
    let bundle = place.bundle_str().to_owned();
    let words = ["run", "--bundle", &bundle, &place.id];
    place.run_in_network(LINKS, &words).ok();
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.contains(" v0@"), "{seen}");
    place.finish();
}

#[test]
fn a_hook_after_the_end_needs_no_link() {
    let mut place = Place::new("exit 3");
    let log = place.path("log");
    std::fs::create_dir(&log).unwrap();
    place.config["annotations"] = json!({
        "org.pouch.rich.mode": "dumb-init",
        "org.pouch.rich.poststop": "sh:ls /sys/class/net >/log/links",
    });
    let mounts = place.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/log", "type": "bind", "source": log, "options": ["bind"]}));
    place.config["linux"]["netDevices"] = json!({"v0": {}});
    place.save();
    let bundle = place.bundle_str().to_owned();
    let words = ["run", "--bundle", &bundle, &place.id];
    assert_eq!(place.run_in_network(LINKS, &words).code, 3);
    let links = std::fs::read_to_string(log.join("links")).unwrap();
    assert_eq!(links, "lo\n");
    place.finish();
}

#[test]
fn what_cannot_be_moved_is_refused_and_nothing_is_left() {
    let mut place = Place::new("true");
    let bundle = place.bundle_str().to_owned();
    let id = place.id.clone();
    let words = ["create", "--bundle", &bundle, &id];
    for (devices, why) in [
        (json!({"none": {}}), "there is no link none"),
        (json!({"v0": {"name": "lo"}}), "there is a link lo already"),
        (json!({"lo": {"name": "lo1"}}), "link lo is the loopback"),
    ] {
        place.config["linux"]["netDevices"] = devices;
        place.save();
        place.run_in_network(LINKS, &words).fails_with(why);
    }
    let namespaces = place.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "network", "path": "/proc/self/ns/net"}));
    place.config["linux"]["netDevices"] = json!({"v0": {}});
    place.save();
    let why = "the network namespace that the container joins is the host's";
    place.run_in_network(LINKS, &words).fails_with(why);
    place.finish();
}
