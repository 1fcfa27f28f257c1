//! What the kernel tells of project quota, as events. The kernel must have it, so this is run in
//! guests (integration/tests/quota_backends.rs), and not by `cargo test`.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

#[expect(dead_code, reason = "others use the rest")]
mod rig;
mod watching;

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use rig::{
    checks::{self, MIB, errno, full, write},
    disk::Disk,
    store::{Store, bytes, in_group, inodes},
};
use snapshotter_quota::{
    backend::{Backend, Kind, Prjquota, ProjectRange},
    events::What,
    limit::{Limit, Size},
};
use sys::project_quota::{Inherit, ProjectId, set_project};
use watching::{Pace, Watching};

/// On a fresh ext4 and a fresh xfs, with the name of each.
fn on_both(pace: Pace, check: impl Fn(&str, &mut Store<Prjquota>, Watching)) {
    for (kind, mkfs) in [
        ("ext4", &["-q", "-O", "quota,project"][..]),
        ("xfs", &["-q"]),
    ] {
        let disk = Disk::new(kind, mkfs, 512, "prjquota");
        let backend = Prjquota::open(disk.path(), ProjectRange::default()).unwrap();
        let mut store = Store::new(disk.path(), backend);
        let watching = Watching::start(&store.root, Kind::Prjquota, pace);
        assert!(watching.figures.hears());
        // What the trial of the back end has left, as at the start of a daemon.
        store.backend.recover(&[]).unwrap();
        check(kind, &mut store, watching);
        checks::nothing_is_left(&store);
    }
}

/// Writes until it is refused, and says when that was.
fn fill(path: &Path) -> Instant {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[7; 1 << 16]).is_ok() && file.sync_data().is_ok() {}
    Instant::now()
}

#[test]
fn a_refused_write_is_an_event_within_milliseconds() {
    on_both(Pace::NEVER, |kind, store, watching| {
        let limit = bytes(8 * MIB);
        let made = store.prepare(&limit);
        watching.put(&made, &limit);
        let overlay = store.mount(&made);
        let path = overlay.path().join("x");
        for round in 0..5 {
            let refused = fill(&path);
            let (heard, event) = watching.expect(&made, What::Full);
            let after = heard.saturating_duration_since(refused);
            println!("{kind}: event {round} was heard {after:?} after the write was refused");
            assert!(event.usage.unwrap().bytes > 7 * MIB, "{event:?}");
            // xfs tells of each of these; one event was enough.
            for _ in 0..50 {
                errno(write(&overlay.path().join("y"), 8));
            }
            fs::remove_file(&path).unwrap();
            // On xfs there was no room for its inode either.
            if overlay.path().join("y").exists() {
                fs::remove_file(overlay.path().join("y")).unwrap();
            }
            store.settle();
            // A slow machine may come here after the look that follows the refusal, and the next
            // of this pace is far away: who is put again is looked at.
            watching.put(&made, &limit);
            watching.expect(&made, What::Below);
        }
        println!(
            "{kind}: the kernel told of {} refusals",
            watching.figures.refused()
        );
        println!("{kind}: {} looks", watching.figures.looks());
        drop(overlay);
        watching.end();
        store.remove(&made);
    });
}

#[test]
fn inodes_soft_limits_and_thresholds_are_told() {
    on_both(Pace::OFTEN, |_, store, watching| {
        let limit = Limit {
            soft_bytes: Size::from_bytes(4 * MIB),
            warn: "80%".parse().unwrap(),
            inodes: inodes(50).inodes,
            ..bytes(16 * MIB)
        };
        let made = store.prepare(&limit);
        watching.put(&made, &limit);
        let overlay = store.mount(&made);
        write(&overlay.path().join("x"), 6).unwrap();
        let (_, event) = watching.expect(&made, What::Near);
        assert!(event.text.contains("soft"), "{event:?}");
        write(&overlay.path().join("y"), 8).unwrap();
        let (_, event) = watching.expect(&made, What::Near);
        assert!(
            event.text.starts_with("80% of the limit of bytes"),
            "{event:?}"
        );
        let made_files =
            (0..100).take_while(|n| File::create(overlay.path().join(format!("n{n}"))).is_ok());
        assert!(made_files.count() < 50);
        loop {
            // 80% of the inodes may be seen on the way.
            let event = watching.next();
            assert!(event.text.contains("inodes"), "{event:?}");
            if event.what == What::Full {
                break;
            }
        }
        drop(overlay);
        watching.driver.writables().remove(made.id);
        store.remove(&made);
    });
}

#[test]
fn all_members_of_a_group_are_told_and_strangers_are_not() {
    on_both(Pace::NEVER, |_, store, watching| {
        let limit = in_group(bytes(8 * MIB), "pod");
        let alone = bytes(8 * MIB);
        let [first, second] = [store.prepare(&limit), store.prepare(&limit)];
        let stranger = store.prepare(&alone);
        watching.put(&first, &limit);
        watching.put(&second, &limit);
        watching.put(&stranger, &alone);
        let overlay = store.mount(&second);
        fill(&overlay.path().join("x"));
        watching.expect(&first, What::Full);
        watching.expect(&second, What::Full);
        let refused = errno(write(&overlay.path().join("y"), 8));
        assert_eq!(refused, full(&store.backend));
        drop(overlay);
        watching.end();
        for made in [&first, &second, &stranger] {
            store.remove(made);
        }
    });
}

#[test]
fn another_file_system_with_the_same_projects_is_not_mistaken() {
    on_both(Pace::NEVER, |_, store, watching| {
        let other = Disk::new("xfs", &["-q"], 512, "prjquota");
        let mut elsewhere = Store::new(
            other.path(),
            Prjquota::open(other.path(), ProjectRange::default()).unwrap(),
        );
        let limit = bytes(8 * MIB);
        let (made, twin) = (store.prepare(&limit), elsewhere.prepare(&limit));
        assert_eq!(made.record, twin.record);
        watching.put(&made, &limit);
        let overlay = elsewhere.mount(&twin);
        fill(&overlay.path().join("x"));
        drop(overlay);
        elsewhere.remove(&twin);
        let overlay = store.mount(&made);
        fill(&overlay.path().join("x"));
        watching.expect(&made, What::Full);
        drop(overlay);
        watching.end();
        store.remove(&made);
        checks::nothing_is_left(&elsewhere);
    });
}

#[test]
fn who_leaves_his_project_is_told() {
    let pace = Pace {
        audit: Duration::from_secs(1),
        ..Pace::NEVER
    };
    on_both(pace, |_, store, watching| {
        let limit = bytes(8 * MIB);
        let made = store.prepare(&limit);
        let overlay = store.mount(&made);
        write(&overlay.path().join("x"), 2).unwrap();
        watching.put(&made, &limit);
        let inside = File::open(overlay.path().join("x")).unwrap();
        set_project(&inside, ProjectId(0), Inherit::No).unwrap();
        let (_, event) = watching.expect(&made, What::Escaped);
        assert!(event.text.contains("in project 0"), "{event:?}");
        assert_eq!(watching.figures.suspects(), 1);
        drop((inside, overlay));
        watching.end();
        store.remove(&made);
    });
}
