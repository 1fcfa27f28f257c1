//! `/dev`.

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use launch::control::FailureKind;
use launch::plan::{DeviceKind, DeviceNode};

use crate::host::{Container, Extras, output_of, refusal_of};
use crate::image::{Image, mount};

fn node(path: &str, kind: DeviceKind, major: u64, minor: u64) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        kind,
        major,
        minor,
        mode: 0o640,
        uid: 3,
        gid: 4,
    }
}

#[test]
fn default_nodes_and_links_are_there_and_those_of_the_plan() {
    let image = Image::new();
    let mut plan = image.plan(
        "cd /dev; stat -c '%n %F %t:%T %a %u:%g' null zero full random urandom tty fuse deep/loop fifo; \
         for l in fd stdin stdout stderr ptmx; do readlink $l; done; umask",
    );
    plan.devices = vec![
        node("/dev/fuse", DeviceKind::Char, 10, 229),
        node("/dev/deep/loop", DeviceKind::Block, 7, 3),
        node("/dev/fifo", DeviceKind::Fifo, 0, 0),
        // Whatever is asked for, it is the link to the container's own.
        node("/dev/ptmx", DeviceKind::Char, 5, 2),
        // Named by the plan, so no default one.
        DeviceNode {
            mode: 0o600,
            ..node("/dev/zero", DeviceKind::Char, 1, 5)
        },
    ];
    assert_eq!(
        output_of(plan),
        "null character special file 1:3 666 0:0\n\
         zero character special file 1:5 600 3:4\n\
         full character special file 1:7 666 0:0\n\
         random character special file 1:8 666 0:0\n\
         urandom character special file 1:9 666 0:0\n\
         tty character special file 5:0 666 0:0\n\
         fuse character special file a:e5 640 3:4\n\
         deep/loop block special file 7:3 640 3:4\n\
         fifo fifo 0:0 640 3:4\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
         0022\n"
    );
}

#[test]
fn what_is_in_the_way_of_a_node_is_kept_and_named() {
    let image = Image::new();
    image.write("dev/null", "not a device");
    let mut plan = image.plan("true");
    plan.mounts
        .retain(|mount| !format!("{mount:?}").contains("\"/dev"));
    let (text, kind) = refusal_of(plan);
    assert_eq!(
        text,
        "make device /dev/null (c 1:3): another file is there: file exists"
    );
    assert_eq!(kind, FailureKind::Request);
    assert_eq!(
        std::fs::read_to_string(image.path("dev/null")).unwrap(),
        "not a device"
    );
}

#[test]
fn a_dev_that_is_the_hosts_is_left_alone() {
    let image = Image::new();
    let outside = image.outside("dev");
    std::fs::create_dir(&outside).unwrap();
    let mut plan = image.plan("ls /dev");
    plan.mounts.truncate(1);
    plan.mounts
        .push(mount("bind", outside.to_str().unwrap(), "/dev", &["bind"]));
    assert_eq!(output_of(plan), "");
    assert_eq!(std::fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn a_dev_that_is_a_link_leads_nowhere_outside() {
    // CVE-2026-41579: the image's /dev points to a folder of the host.
    let image = Image::new();
    let outside = image.outside("target");
    std::fs::create_dir(&outside).unwrap();
    std::fs::remove_dir(image.path("dev")).unwrap();
    symlink(&outside, image.path("dev")).unwrap();
    let mut plan = image.plan("true");
    plan.mounts.truncate(1);
    let _any = Container::create(plan).map(|_| ());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    let inside = image.path(outside.strip_prefix("/").unwrap().to_str().unwrap());
    assert!(inside.join("null").exists(), "made inside the root instead");
}

#[test]
fn streams_on_the_hosts_null_become_the_containers() {
    let image = Image::new();
    let stdin = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let extras = Extras {
        stdin: Some(stdin),
        ..Extras::default()
    };
    let script =
        "stat -L -c %d /proc/self/fd/0 /dev/null | sort -u | wc -l; readlink /proc/self/fd/0";
    let (container, _) = Container::create_with(image.plan(script), extras).unwrap();
    container.start().unwrap();
    assert_eq!(container.finish().0, "1\n/dev/null\n");
}
