//! Quota groups of a real btrfs in a loop image.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own functions")]

#[expect(dead_code, reason = "project_quota.rs uses the rest")]
mod rig;

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::Path,
};

use rig::{
    checks::{self, MIB, errno, full, write},
    disk::Disk,
    killed::{Killing, Sizes},
    store::{Made, Store, bytes, in_group, inodes},
};
use snapshotter_quota::{
    backend::{Backend, Btrfs, Record, Report},
    limit::{Limit, Mode, Size},
};
use sys::btrfs::{self, QgroupId, QgroupLimits, QuotaKind, QuotaMode, SubvolumeId};

fn disk() -> Disk {
    Disk::new("btrfs", &["-q"], 512, "")
}

/// Runs a check and proves that nothing is left.
fn check(check: impl Fn(&mut Store<Btrfs>)) {
    let disk = disk();
    let mut store = Store::new(disk.path(), Btrfs::open(disk.path()).unwrap());
    check(&mut store);
    checks::nothing_is_left(&store);
}

fn root(store: &Store<Btrfs>) -> File {
    File::open(&store.root).unwrap()
}

fn sync(store: &Store<Btrfs>) {
    btrfs::sync(root(store)).unwrap();
}

fn own(made: &Made) -> QgroupId {
    match made.record {
        Record::Btrfs { subvolume, .. } => QgroupId::of_subvolume(SubvolumeId(subvolume)),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn limit_holds_and_all_can_be_deleted() {
    check(|store| checks::limit_holds_and_all_can_be_deleted(store, 32 * MIB));
}

#[test]
fn limit_changes_while_in_use() {
    check(|store| checks::limit_changes_while_in_use(store, 16 * MIB));
}

#[test]
fn a_group_shares_its_limit() {
    check(checks::a_group_shares_its_limit);
}

#[test]
fn a_member_that_was_given_up_leaves_its_group() {
    check(checks::a_member_that_was_given_up_leaves_its_group);
}

#[test]
fn a_group_cannot_be_changed() {
    check(checks::a_group_cannot_be_changed);
}

#[test]
fn data_counts_before_the_kernel_commits_it() {
    check(|store| {
        let made = store.prepare(&bytes(32 * MIB));
        let overlay = store.mount(&made);
        fs::write(overlay.path().join("a"), vec![7; 10 << 20]).unwrap();
        let (usage, charge) = (store.usage(&made), store.charge(&made));
        assert!(
            (10 * MIB..11 * MIB).contains(&charge.usage.bytes),
            "{charge:?}"
        );
        assert_eq!(usage, charge.usage);
        drop(overlay);
        store.remove(&made);
    });
}

#[test]
fn a_layer_holds_what_was_written_and_has_no_limit() {
    check(|store| {
        let made = store.prepare(&bytes(16 * MIB));
        let overlay = store.mount(&made);
        write(&overlay.path().join("a"), 10).unwrap();
        drop(overlay);
        // It may not be stored, and the snapshot goes on with its limit.
        store.backend.commit(&made.held()).unwrap();
        let charge = store.backend.charge(&made.held()).unwrap().unwrap();
        assert_eq!(charge.bytes_max, Some(16 * MIB));
        let (layer, usage) = store.commit(&made);
        assert!((10 * MIB..11 * MIB).contains(&usage.bytes), "{usage:?}");
        write(&layer.upper().join("b"), 30).unwrap();
        // Again, as after a crash before the store knew of it.
        let (layer, again) = store.commit(&layer);
        assert!(again.bytes >= 40 * MIB, "{again:?}");
        store.remove(&layer);
    });
}

#[test]
fn who_switches_quota_off_still_hears_what_snapshots_hold() {
    let disk = disk();
    let mut store = Store::new(disk.path(), Btrfs::open(disk.path()).unwrap());
    let made = store.prepare(&bytes(16 * MIB));
    write(&made.upper().join("a"), 10).unwrap();
    let (layer, _) = store.commit(&made);
    let root = File::open(disk.path()).unwrap();
    btrfs::disable_quota(&root).unwrap();
    let usage = store.usage(&layer);
    assert!((10 * MIB..11 * MIB).contains(&usage.bytes), "{usage:?}");
    btrfs::enable_quota(&root, QuotaKind::Simple).unwrap();
    store.remove(&layer);
}

#[test]
fn a_layer_no_longer_counts_for_its_group() {
    check(|store| {
        let limit = in_group(bytes(32 * MIB), "pod");
        let (first, second) = (store.prepare(&limit), store.prepare(&limit));
        write(&first.upper().join("a"), 20).unwrap();
        let (layer, _) = store.commit(&first);
        assert_eq!(layer.record.group(), None);
        write(&second.upper().join("a"), 20).unwrap();
        let refused = errno(write(&second.upper().join("b"), 20));
        assert_eq!(refused, full(&store.backend));
        store.remove(&second);
        store.remove(&layer);
    });
}

#[test]
fn a_full_snapshot_leaves_the_directory_above_writable() {
    check(|store| {
        let made = store.prepare(&bytes(4 * MIB));
        errno(write(&made.upper().join("a"), 8));
        fs::write(made.directory.join("snapshot.json"), vec![b' '; 1 << 20]).unwrap();
        sync(store);
        store.remove(&made);
    });
}

#[test]
fn what_btrfs_cannot_do_is_refused_before_anything_is_made() {
    check(|store| {
        let soft = Limit {
            soft_bytes: Size::from_bytes(MIB),
            ..bytes(2 * MIB)
        };
        for (limit, why) in [(inodes(5), "limit inodes"), (soft, "soft limit")] {
            let error = store.try_prepare(&limit).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            let made = store.prepare(&bytes(MIB));
            let result = store.backend.set_limit(&made.held(), &limit);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            store.remove(&made);
        }
    });
}

#[test]
fn a_snapshot_that_is_off_is_in_no_subvolume() {
    check(|store| {
        let made = store.prepare(&Limit::off());
        assert_eq!(made.record, Record::Plain);
        store.remove(&made);
        let account = Limit {
            mode: Mode::Account,
            ..bytes(MIB)
        };
        let made = store.prepare(&account);
        write(&made.upper().join("a"), 4).unwrap();
        sync(store);
        assert!(store.usage(&made).bytes >= 4 * MIB);
        store.remove(&made);
    });
}

/// Classic quota counts in the background what is there when it begins; what is written meanwhile
/// meets no limit.
fn wait_until_counted(root: &File) {
    let start = std::time::Instant::now();
    while btrfs::quota_mode(root).unwrap() != QuotaMode::Classic {
        assert!(start.elapsed().as_secs() < 60, "the rescan does not end");
        btrfs::sync(root).unwrap();
    }
}

#[test]
fn quota_of_a_user_keeps_its_mode_and_is_used() {
    let disk = disk();
    let open = File::open(disk.path()).unwrap();
    btrfs::enable_quota(&open, QuotaKind::Classic).unwrap();
    wait_until_counted(&open);
    let mut store = Store::new(disk.path(), Btrfs::open(disk.path()).unwrap());
    assert_eq!(btrfs::quota_mode(&open).unwrap(), QuotaMode::Classic);
    checks::limit_holds_and_all_can_be_deleted(&mut store, 16 * MIB);
    checks::limit_changes_while_in_use(&mut store, 16 * MIB);
    let error = store.try_prepare(&in_group(bytes(MIB), "pod")).unwrap_err();
    assert!(error.to_string().contains("classic quota"), "{error}");
    store.sweep_until_clean();
    drop(open);
}

#[test]
fn a_restart_puts_limits_right_and_gives_back_what_nobody_owns() {
    let disk = disk();
    let mut store = Store::new(disk.path(), Btrfs::open(disk.path()).unwrap());
    let limits = [
        bytes(8 * MIB),
        in_group(bytes(9 * MIB), "pod"),
        in_group(bytes(7 * MIB), "pod"),
        Limit::counted(),
    ];
    let kept: Vec<(Made, Option<Limit>)> = limits
        .into_iter()
        .map(|limit| (store.prepare(&limit), Some(limit)))
        .collect();
    let group = match &kept[1].0.record {
        Record::Btrfs {
            shared: Some(shared),
            ..
        } => QgroupId::new(1, shared.number).unwrap(),
        other => panic!("{other:?}"),
    };
    let open = root(&store);
    let none = QgroupLimits::default();
    btrfs::set_qgroup_limits(&open, own(&kept[0].0), none).unwrap();
    btrfs::set_qgroup_limits(&open, group, none).unwrap();
    // One of ours that a crash left, and two of a user.
    let ours = QgroupId::new(1, group.number() + 1000).unwrap();
    let theirs = [QgroupId::new(1, 5).unwrap(), QgroupId::new(2, 5).unwrap()];
    for qgroup in [ours, theirs[0], theirs[1]] {
        btrfs::create_qgroup(&open, qgroup).unwrap();
    }

    let (store, report) = store.restart(Btrfs::open(disk.path()).unwrap(), &kept);
    let expected = Report {
        corrected: 2,
        cleared: 1,
        ..Report::default()
    };
    assert_eq!(report, expected);
    let limit = |qgroup| {
        let limits = btrfs::qgroup(&open, qgroup).unwrap().unwrap().limits;
        limits.referenced.map(std::num::NonZeroU64::get)
    };
    assert_eq!(limit(own(&kept[0].0)), Some(8 * MIB));
    assert_eq!(limit(group), Some(7 * MIB), "the last counts");
    assert_eq!(btrfs::qgroup(&open, ours).unwrap(), None);
    for qgroup in theirs {
        assert!(btrfs::qgroup(&open, qgroup).unwrap().is_some());
        btrfs::destroy_qgroup(&open, qgroup).unwrap();
    }
    for (made, _) in &kept {
        store.remove(made);
    }
    assert_eq!(btrfs::qgroup(&open, group).unwrap(), None);
    checks::nothing_is_left(&store);
}

#[test]
fn a_group_that_an_interrupted_commit_took_away_is_made_again() {
    check(|store| {
        let limit = in_group(bytes(16 * MIB), "pod");
        let made = store.prepare(&limit);
        // Nobody was told of the layer, so it is a snapshot as before.
        store.commit(&made);
        store.backend = Btrfs::open(&store.root).unwrap();
        let kept = snapshotter_quota::backend::Kept {
            held: made.held(),
            limit: Some(&limit),
        };
        let report = store.backend.recover(&[kept]).unwrap();
        assert_eq!(
            report.corrected, 2,
            "it is in the group again, and that is limited"
        );
        let refused = errno(write(&made.upper().join("a"), 32));
        assert_eq!(refused, full(&store.backend));
        store.remove(&made);
    });
}

#[test]
fn whatever_a_crash_leaves_is_given_back() {
    check(|store| {
        // Before anything; the subvolume; its limit; both directories.
        for steps in 0..4 {
            let (id, directory) = store.begin();
            if steps > 0 {
                let parent = File::open(&directory).unwrap();
                btrfs::create_subvolume(&parent, OsStr::new("rw")).unwrap();
            }
            if steps > 1 {
                let open = File::open(directory.join("rw")).unwrap();
                let own = QgroupId::of_subvolume(btrfs::subvolume_of(open).unwrap());
                let limit = QgroupLimits {
                    referenced: std::num::NonZeroU64::new(MIB),
                    exclusive: None,
                };
                btrfs::set_qgroup_limits(root(store), own, limit).unwrap();
            }
            if steps > 2 {
                fs::create_dir(directory.join("rw/fs")).unwrap();
            }
            store.bury(id, &directory, None);
        }
        // In a group that was made for it.
        let (id, directory) = store.begin();
        let limit = in_group(bytes(MIB), "pod");
        store.backend.create(&directory, id, &limit).unwrap();
        store.backend = Btrfs::open(&store.root).unwrap();
        store.backend.recover(&[]).unwrap();
        store.bury(id, &directory, None);
        store.sweep_until_clean();
        store.backend.recover(&[]).unwrap();
        // The subvolume is gone, and nothing else.
        let made = store.prepare(&bytes(MIB));
        let parent = File::open(&made.directory).unwrap();
        btrfs::destroy_subvolume(&parent, OsStr::new("rw")).unwrap();
        store.remove(&made);
    });
}

#[test]
fn whenever_the_daemon_is_killed_all_is_put_right() {
    let killing = Killing {
        name: "whenever_the_daemon_is_killed_all_is_put_right",
        sizes: Sizes {
            bytes: MIB,
            groups: true,
        },
        rounds: 50,
        open: |root: &Path| Btrfs::open(root).unwrap(),
    };
    killing.survive(disk);
}
