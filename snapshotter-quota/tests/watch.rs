//! Back ends of which the kernel tells nothing: what looking finds on a real btrfs and in real images.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

#[expect(dead_code, reason = "others use the rest")]
mod rig;
#[expect(dead_code, reason = "others use the rest")]
mod watching;

use std::fs;

use rig::{
    checks::{self, MIB, errno, full, write},
    disk::Disk,
    store::{Store, bytes, in_group},
};
use snapshotter_quota::{
    backend::{Backend, Btrfs, Image, ImageOptions, Kind, Tmpfs},
    events::What,
    limit::Limit,
};
use watching::{Pace, Watching};

fn warned(limit: Limit) -> Limit {
    Limit {
        warn: "50%,80%".parse().unwrap(),
        ..limit
    }
}

/// Thresholds, the limit and getting below, in a snapshot of so many MiB.
fn all_is_found_by_looking<B: Backend>(store: &mut Store<B>, watching: Watching, mib: u64) {
    let limit = warned(bytes(mib * MIB));
    let made = store.prepare(&limit);
    watching.put(&made, &limit);
    let overlay = store.mount(&made);
    let file = |name: &str| overlay.path().join(name);
    write(&file("half"), mib * 55 / 100).unwrap();
    store.settle();
    let (_, event) = watching.expect(&made, What::Near);
    assert!(event.text.starts_with("50%"), "{event:?}");
    // A file system of its own takes a part of the limit for itself.
    let room = nix::sys::statvfs::statvfs(overlay.path()).unwrap();
    let room = (room.blocks() * room.fragment_size()).min(mib * MIB);
    assert!(event.usage.unwrap().bytes >= room / 2, "{event:?}");

    let refused = errno(write(&file("more"), mib));
    assert_eq!(refused, full(&store.backend));
    loop {
        let event = watching.next();
        assert_eq!(event.limit, Some(limit.clone()));
        match event.what {
            // On the way.
            What::Near => assert!(event.text.starts_with("80%"), "{event:?}"),
            what => break assert_eq!(what, What::Full, "{event:?}"),
        }
    }

    fs::remove_file(file("more")).unwrap();
    fs::remove_file(file("half")).unwrap();
    store.settle();
    loop {
        let event = watching.next();
        assert_eq!(event.what, What::Below, "{event:?}");
        if event.text.contains("well below") {
            break;
        }
    }
    drop(overlay);
    watching.driver.writables().remove(made.id);
    watching.end();
    store.remove(&made);
    checks::nothing_is_left(store);
}

#[test]
fn thresholds_and_the_limit_of_btrfs_are_found() {
    let disk = Disk::new("btrfs", &["-q"], 512, "");
    let mut store = Store::new(disk.path(), Btrfs::open(disk.path()).unwrap());
    let watching = Watching::start(&store.root, Kind::Btrfs, Pace::OFTEN);
    all_is_found_by_looking(&mut store, watching, 64);
}

#[test]
fn thresholds_and_the_limit_of_an_image_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let options = ImageOptions {
        fs: None,
        reserve_bytes: 0,
    };
    let mut store = Store::new(&root, Image::new(&root, options));
    let watching = Watching::start(&root, Kind::Image, Pace::OFTEN);
    all_is_found_by_looking(&mut store, watching, 64);
}

#[test]
fn thresholds_and_the_limit_of_a_tmpfs_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let mut store = Store::new(&root, Tmpfs);
    let watching = Watching::start(&root, Kind::Tmpfs, Pace::OFTEN);
    all_is_found_by_looking(&mut store, watching, 64);
}

#[test]
fn all_members_of_a_group_are_told() {
    let disk = Disk::new("btrfs", &["-q"], 512, "");
    let mut store = Store::new(disk.path(), Btrfs::open(disk.path()).unwrap());
    let watching = Watching::start(&store.root, Kind::Btrfs, Pace::OFTEN);
    let limit = in_group(bytes(32 * MIB), "pod");
    let first = store.prepare(&limit);
    let shared = in_group(Limit::counted(), "pod");
    let second = store.prepare(&shared);
    watching.put(&first, &limit);
    watching.put(&second, &shared);
    let overlay = store.mount(&second);
    errno(write(&overlay.path().join("a"), 40));
    let events = [watching.next(), watching.next()];
    for (made, event) in [&first, &second].iter().zip(&events) {
        assert_eq!(event.what, What::Full, "{events:?}");
        assert!(event.text.contains("group test/pod"), "{events:?}");
        assert!(event.usage.unwrap().bytes > 30 * MIB, "{events:?}");
        assert!(
            event
                .key
                .as_ref()
                .unwrap()
                .as_str()
                .contains(&made.id.to_string())
        );
    }
    drop(overlay);
    watching.end();
    store.remove(&first);
    store.remove(&second);
    checks::nothing_is_left(&store);
}
