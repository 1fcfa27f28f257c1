//! Project quota of real file systems. The kernel must have it, so this is run in guests
//! (integration/tests/quota_kernels.rs), and not by `cargo test`.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod rig;

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use rig::{
    checks::{self, MIB, errno, full, write},
    disk::Disk,
    killed::{Killing, Sizes},
    store::{Made, Store, bytes, in_group, inodes},
};
use snapshot_core::SnapshotId;
use snapshotter_quota::{
    backend::{
        Audit, Backend, Fs, Full, Image, ImageOptions, Kind, Options, Pool, PoolOptions, Prjquota,
        ProjectRange, Report, Volume, limit_volumes, probe, volume_projects,
    },
    limit::{Limit, Mode, PathRules, Size},
};
use sys::project_quota::{Inherit, Limits, ProjectId, Quota, project_of, set_project};

fn ext4() -> Disk {
    Disk::new("ext4", &["-q", "-O", "quota,project"], 512, "prjquota")
}

fn xfs() -> Disk {
    Disk::new("xfs", &["-q"], 512, "prjquota")
}

fn open(disk: &Disk) -> Prjquota {
    Prjquota::open(disk.path(), ProjectRange::default()).unwrap()
}

/// Runs a check on both file systems and proves that nothing is left.
fn on_both(check: impl Fn(&mut Store<Prjquota>)) {
    for disk in [ext4(), xfs()] {
        let mut store = Store::new(disk.path(), open(&disk));
        check(&mut store);
        checks::nothing_is_left(&store);
    }
}

#[test]
fn limit_holds_and_all_can_be_deleted() {
    on_both(|store| checks::limit_holds_and_all_can_be_deleted(store, 32 * MIB));
}

#[test]
fn limit_changes_while_in_use() {
    on_both(|store| checks::limit_changes_while_in_use(store, 16 * MIB));
}

#[test]
fn inode_limit_holds() {
    on_both(|store| checks::inode_limit_holds(store, &inodes(100), 100));
}

#[test]
fn usage_is_what_du_finds() {
    on_both(checks::usage_is_what_du_finds);
}

#[test]
fn a_group_shares_its_limit() {
    on_both(checks::a_group_shares_its_limit);
}

#[test]
fn a_member_that_was_given_up_leaves_its_group() {
    on_both(checks::a_member_that_was_given_up_leaves_its_group);
}

#[test]
fn a_group_cannot_be_changed() {
    on_both(checks::a_group_cannot_be_changed);
}

/// A folder whose pool is unmounted at the end.
fn in_a_pool(check: impl Fn(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    check(&root);
    mounts::unmount_tree(&root).unwrap();
}

fn pool(root: &Path, mib: Option<u64>) -> Pool {
    let bytes = mib.map(|mib| mib * MIB);
    Pool::open(root, PoolOptions { bytes }).unwrap()
}

#[test]
fn limits_hold_in_a_pool() {
    in_a_pool(|root| {
        let pool = pool(root, Some(512));
        let backend = pool.backend(ProjectRange::default()).unwrap();
        assert_eq!(backend.kind(), Kind::Pool);
        let mut store = Store::new(pool.root(), backend);
        checks::limit_holds_and_all_can_be_deleted(&mut store, 32 * MIB);
        checks::limit_changes_while_in_use(&mut store, 16 * MIB);
        checks::inode_limit_holds(&mut store, &inodes(100), 100);
        checks::usage_is_what_du_finds(&mut store);
        checks::nothing_is_left(&store);
    });
}

#[test]
fn a_pool_stays_mounted_grows_and_is_there_after_a_reboot() {
    in_a_pool(|root| {
        let size = |pool: &Pool| {
            let about = nix::sys::statvfs::statvfs(pool.root()).unwrap();
            about.blocks() * about.fragment_size()
        };
        let first = pool(root, Some(300));
        let before = size(&first);
        fs::write(first.root().join("file"), "text").unwrap();
        // The daemon begins again: nothing is to be done, or it grows.
        let second = pool(root, None);
        assert_eq!(second.bytes().unwrap(), 300 * MIB);
        let third = pool(root, Some(400));
        assert_eq!(size(&third), before + 100 * MIB);
        let mounted = mounts::mountinfo::below(third.root()).unwrap();
        assert_eq!(mounted.len(), 1);
        let error = third.grow(300 * MIB).unwrap_err().to_string();
        assert!(error.contains("cannot be made smaller"), "{error}");
        third.grow(500 * MIB).unwrap();
        assert_eq!(size(&third), before + 200 * MIB);
        // The machine begins again.
        third.close().unwrap();
        assert!(!root.join("pool/file").exists());
        let fourth = pool(root, Some(400));
        assert_eq!(fourth.bytes().unwrap(), 500 * MIB);
        assert_eq!(fs::read_to_string(root.join("pool/file")).unwrap(), "text");
    });
}

#[test]
fn a_pool_that_is_too_small_is_refused_and_one_that_was_half_made_is_made() {
    in_a_pool(|root| {
        let small = PoolOptions {
            bytes: Some(100 * MIB),
        };
        let error = Pool::open(root, small).unwrap_err().to_string();
        assert!(error.contains("too small"), "{error}");
        fs::write(root.join("pool.img.new"), "half").unwrap();
        let pool = pool(root, None);
        assert!(pool.bytes().unwrap() >= 300 * MIB);
        assert!(!root.join("pool.img.new").exists());
    });
}

#[test]
fn project_quota_and_pools_are_said_to_work_where_they_do() {
    let options = Options::default();
    for (disk, expected) in [(ext4(), Full::QuotaExceeded), (xfs(), Full::NoSpace)] {
        let abilities = probe(Kind::Prjquota, disk.path(), &options).unwrap();
        assert_eq!(abilities.full, expected);
        let store = Store::new(disk.path(), open(&disk));
        checks::nothing_is_left(&store);
    }
    for disk in [
        Disk::new("ext4", &["-q"], 512, ""),
        Disk::new("xfs", &["-q"], 512, "pqnoenforce"),
    ] {
        assert!(probe(Kind::Prjquota, disk.path(), &options).is_err());
        probe(Kind::Pool, disk.path(), &options).unwrap();
        let names: Vec<_> = fs::read_dir(disk.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "lost+found")
            .collect();
        assert!(names.is_empty(), "{names:?}");
    }
}

#[test]
fn ext4_in_an_image_grows_while_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let options = ImageOptions {
        fs: Some(Fs::Ext4),
        reserve_bytes: 0,
    };
    let mut store = Store::new(folder.path(), Image::new(folder.path(), options));
    checks::limit_changes_while_in_use(&mut store, 32 * MIB);
    checks::limit_holds_and_all_can_be_deleted(&mut store, 32 * MIB);
    checks::nothing_is_left(&store);
}

#[test]
fn a_full_snapshot_leaves_the_directory_above_writable() {
    on_both(|store| {
        let made = store.prepare(&bytes(4 * MIB));
        let overlay = store.mount(&made);
        errno(write(&overlay.path().join("a"), 8));
        fs::write(made.directory.join("snapshot.json"), vec![b' '; 100_000]).unwrap();
        let project = project_of(File::open(&made.directory).unwrap()).unwrap();
        assert_eq!((project.id, project.inherit), (ProjectId(0), Inherit::No));
        drop(overlay);
        store.remove(&made);
    });
}

#[test]
fn the_ids_of_snapshots_follow_from_their_numbers() {
    on_both(|store| {
        let made = store.prepare(&Limit::counted());
        let expected = ProjectRange::default().of(made.id);
        for path in [made.upper(), made.record.work(&made.directory)] {
            let project = project_of(File::open(path).unwrap()).unwrap();
            assert_eq!((project.id, project.inherit), (expected, Inherit::Yes));
        }
        store.remove(&made);
    });
}

#[test]
fn a_snapshot_in_account_mode_is_counted_and_not_limited() {
    on_both(|store| {
        let limit = Limit {
            mode: Mode::Account,
            ..bytes(4 * MIB)
        };
        let made = store.prepare(&limit);
        let overlay = store.mount(&made);
        write(&overlay.path().join("a"), 8).unwrap();
        assert!(store.usage(&made).bytes >= 8 * MIB);
        store
            .backend
            .set_limit(&made.held(), &bytes(4 * MIB))
            .unwrap();
        let refused = errno(write(&overlay.path().join("b"), 1));
        assert_eq!(refused, full(&store.backend));
        drop(overlay);
        store.remove(&made);
    });
}

#[test]
fn a_snapshot_that_is_off_is_in_no_project() {
    on_both(|store| {
        let made = store.prepare(&Limit::off());
        let project = project_of(File::open(made.upper()).unwrap()).unwrap();
        assert_eq!(project.id, ProjectId(0));
        let error = store.backend.usage(&made.held()).unwrap_err();
        assert!(error.to_string().contains("in no project"), "{error}");
        store.remove(&made);
    });
}

#[test]
fn a_soft_limit_is_what_df_shows() {
    on_both(|store| {
        let limit = Limit {
            soft_bytes: Size::from_bytes(8 * MIB),
            ..bytes(16 * MIB)
        };
        let made = store.prepare(&limit);
        let overlay = store.mount(&made);
        assert_eq!(overlay.bytes(), 8 * MIB);
        write(&overlay.path().join("a"), 12).unwrap();
        errno(write(&overlay.path().join("b"), 12));
        drop(overlay);
        store.remove(&made);
    });
}

#[test]
fn deleted_files_that_are_open_keep_their_project() {
    on_both(|store| {
        let made = store.prepare(&bytes(32 * MIB));
        let mut open = File::create(made.upper().join("open")).unwrap();
        open.write_all(&vec![7; 4 << 20]).unwrap();
        open.sync_all().unwrap();
        store.remove(&made);
        let report = store.backend.sweep().unwrap();
        let project = ProjectRange::default().of(made.id);
        let stray = report.strays.first().expect("the open file is counted");
        assert_eq!(stray.what, format!("project {}", project.0));
        assert!(stray.usage.bytes >= 4 * MIB, "{stray:?}");

        // The same after a restart, and its limit still holds.
        let report = store.backend.recover(&[]).unwrap();
        assert_eq!((report.strays.len(), report.cleared), (1, 0));
        let quota = Quota::open(&store.root).unwrap();
        let limits = quota.get(project).unwrap().limits;
        assert_eq!(limits.bytes_hard.unwrap().get(), 32 * MIB);
        drop(open);
        store.sweep_until_clean();
        assert_eq!(
            quota.get(project).unwrap(),
            sys::project_quota::Usage::default()
        );
    });
}

#[test]
fn a_project_that_somebody_uses_is_not_taken() {
    on_both(|store| {
        let quota = Quota::open(&store.root).unwrap();
        let project = ProjectRange::default().of(SnapshotId(1));
        let limits = Limits {
            inodes_hard: std::num::NonZeroU64::new(5),
            ..Limits::default()
        };
        quota.set(project, &limits).unwrap();
        let foreign = store.root.join("foreign");
        fs::create_dir(&foreign).unwrap();
        set_project(File::open(&foreign).unwrap(), project, Inherit::No).unwrap();
        let error = store.try_prepare(&bytes(MIB)).unwrap_err().to_string();
        assert!(
            error.contains("project 1073741825") && error.contains("another range"),
            "{error}"
        );
        assert_eq!(
            quota.get(project).unwrap().limits,
            limits,
            "it is not ours to clear"
        );
        let next = store.prepare(&bytes(MIB));
        store.remove(&next);
        fs::remove_dir(&foreign).unwrap();
    });
}

#[test]
fn directories_of_ours_hand_no_project_on() {
    for disk in [ext4(), xfs()] {
        let root = disk.path().join("root");
        fs::create_dir(&root).unwrap();
        set_project(File::open(&root).unwrap(), ProjectId(9), Inherit::Yes).unwrap();
        let backend = Prjquota::open(&root, ProjectRange::default()).unwrap();
        let mut store = Store::new(&root, backend);
        let made = store.prepare(&bytes(MIB));
        let above = project_of(File::open(&made.directory).unwrap()).unwrap();
        assert_eq!(above.id, ProjectId(0));
        store.remove(&made);
        checks::nothing_is_left(&store);
    }
}

#[test]
fn who_leaves_his_project_is_found_and_put_back() {
    on_both(|store| {
        let made = store.prepare(&bytes(8 * MIB));
        assert_eq!(store.backend.audit(&made.held()).unwrap(), Audit::Sound);
        let overlay = store.mount(&made);
        // What a root without a user namespace of its own can do in a container.
        let inside = File::open(overlay.path()).unwrap();
        set_project(&inside, ProjectId(0), Inherit::No).unwrap();
        write(&overlay.path().join("escaped"), 16).unwrap();
        let audit = store.backend.audit(&made.held()).unwrap();
        assert!(matches!(audit, Audit::Escaped(_)), "{audit:?}");
        assert_eq!(store.backend.audit(&made.held()).unwrap(), Audit::Sound);
        let refused = errno(write(&overlay.path().join("again"), 16));
        assert_eq!(refused, full(&store.backend));
        drop((inside, overlay));
        store.remove(&made);
    });
}

#[test]
fn files_of_other_projects_at_the_top_are_found_and_put_back() {
    on_both(|store| {
        let made = store.prepare(&bytes(8 * MIB));
        let overlay = store.mount(&made);
        fs::create_dir_all(overlay.path().join("tmp/deep")).unwrap();
        write(&overlay.path().join("file"), 2).unwrap();
        write(&overlay.path().join("tmp/deep/file"), 1).unwrap();
        std::os::unix::fs::symlink("file", overlay.path().join("link")).unwrap();
        assert_eq!(store.backend.audit(&made.held()).unwrap(), Audit::Sound);
        let before = store.charge(&made);
        for name in ["file", "tmp", "tmp/deep/file"] {
            let inside = File::open(overlay.path().join(name)).unwrap();
            set_project(&inside, ProjectId(0), Inherit::No).unwrap();
        }
        assert!(store.charge(&made).usage.bytes <= before.usage.bytes - 3 * MIB);
        let Audit::Escaped(how) = store.backend.audit(&made.held()).unwrap() else {
            panic!("nothing was found");
        };
        assert!(how.contains("in project 0 instead of"), "{how}");
        assert!(how.ends_with("so were 1 others"), "{how}");
        assert_eq!(store.backend.audit(&made.held()).unwrap(), Audit::Sound);
        // Further down nobody looks.
        let after = store.charge(&made);
        assert_eq!(after.usage.bytes, before.usage.bytes - MIB);
        drop(overlay);
        store.remove(&made);
    });
}

#[test]
fn a_restart_puts_limits_right_and_gives_back_what_nobody_owns() {
    for disk in [ext4(), xfs()] {
        let mut store = Store::new(disk.path(), open(&disk));
        let kept: Vec<(Made, Option<Limit>)> = [
            bytes(8 * MIB),
            inodes(50),
            in_group(bytes(9 * MIB), "pod"),
            in_group(bytes(7 * MIB), "pod"),
            Limit::counted(),
        ]
        .into_iter()
        .map(|limit| (store.prepare(&limit), Some(limit)))
        .collect();
        let layer = store.prepare(&bytes(6 * MIB));
        let mut kept = kept;
        kept.push((store.commit(&layer).0, None));
        let quota = Quota::open(&store.root).unwrap();
        let project = |made: &Made| match made.record {
            snapshotter_quota::backend::Record::Prjquota { project, .. } => ProjectId(project),
            ref other => panic!("{other:?}"),
        };

        // Lost limits, wrong limits, limits of a layer, limits of nobody.
        quota.set(project(&kept[0].0), &Limits::default()).unwrap();
        let wrong = Limits {
            bytes_hard: std::num::NonZeroU64::new(1 << 30),
            ..Limits::default()
        };
        quota.set(project(&kept[1].0), &wrong).unwrap();
        quota.set(project(&layer), &wrong).unwrap();
        let nobody = ProjectId(0x7FFF_FFFF);
        quota.set(nobody, &wrong).unwrap();
        let outside = ProjectId(0x1234);
        quota.set(outside, &wrong).unwrap();

        let (store, report) = store.restart(open(&disk), &kept);
        let expected = Report {
            corrected: 3,
            cleared: 1,
            ..Report::default()
        };
        assert_eq!(report, expected);
        let limits = |id| quota.get(id).unwrap().limits;
        let hard = |id| limits(id).bytes_hard.map(std::num::NonZeroU64::get);
        assert_eq!(hard(project(&kept[0].0)), Some(8 * MIB));
        assert_eq!(limits(project(&kept[1].0)).inodes_hard.unwrap().get(), 50);
        assert_eq!(hard(project(&kept[3].0)), Some(7 * MIB), "the last counts");
        assert_eq!(hard(project(&layer)), None);
        assert_eq!(hard(nobody), None);
        assert_eq!(hard(outside), Some(1 << 30), "not in our range");
        quota.set(outside, &Limits::default()).unwrap();

        // The group is known again.
        let third = store
            .backend
            .set_limit(&kept[2].0.held(), &in_group(bytes(5 * MIB), "pod"));
        third.unwrap();
        store.remove(&kept[2].0);
        assert_eq!(hard(project(&kept[3].0)), Some(5 * MIB));
        for (made, _) in kept.iter().filter(|(made, _)| made.id != kept[2].0.id) {
            store.remove(made);
        }
        checks::nothing_is_left(&store);
    }
}

#[test]
fn whatever_a_crash_leaves_is_given_back() {
    on_both(|store| {
        let quota = Quota::open(&store.root).unwrap();
        let project = |id| ProjectRange::default().of(id);
        let limits = Limits {
            bytes_hard: std::num::NonZeroU64::new(MIB),
            ..Limits::default()
        };
        // Before anything; one directory; its project; both; limits too.
        for steps in 0..5 {
            let (id, directory) = store.begin();
            let (upper, work) = (directory.join("fs"), directory.join("work"));
            if steps > 0 {
                fs::create_dir(&upper).unwrap();
            }
            if steps > 1 {
                let open = File::open(&upper).unwrap();
                set_project(open, project(id), Inherit::Yes).unwrap();
            }
            if steps > 2 {
                fs::create_dir(&work).unwrap();
                let open = File::open(&work).unwrap();
                set_project(open, project(id), Inherit::Yes).unwrap();
            }
            if steps > 3 {
                quota.set(project(id), &limits).unwrap();
            }
            store.backend.recover(&[]).unwrap();
            store.bury(id, &directory, None);
        }
        // Gone, but not forgotten.
        let made = store.prepare(&bytes(MIB));
        fs::remove_dir_all(&made.directory).unwrap();
        store.backend.recover(&[]).unwrap();
        // Twice.
        let made = store.prepare(&bytes(MIB));
        store.remove(&made);
        fs::create_dir(store.root.join(format!("snapshots/rm-{}", made.id))).unwrap();
        store.remove(&Made {
            directory: store.root.join(format!("snapshots/rm-{}", made.id)),
            ..made
        });
    });
}

#[test]
fn whenever_the_daemon_is_killed_all_is_put_right() {
    for disk in [ext4, xfs] {
        let killing = Killing {
            name: "whenever_the_daemon_is_killed_all_is_put_right",
            sizes: Sizes {
                bytes: MIB,
                groups: true,
            },
            rounds: 30,
            open: |root: &Path| Prjquota::open(root, ProjectRange::default()).unwrap(),
        };
        killing.survive(disk);
    }
}

fn volumes(root: &Path, names: &[&str]) -> Vec<Volume> {
    let volume = |name: &&str| {
        let directory = root.join(name);
        fs::create_dir_all(&directory).unwrap();
        Volume {
            path: format!("/{name}").parse().unwrap(),
            directory,
        }
    };
    names.iter().map(volume).collect()
}

fn limit(rules: &str, volumes: &[Volume]) -> Result<Vec<u32>, String> {
    let rules: PathRules = rules.parse().unwrap();
    let limited = limit_volumes(&rules, volumes, volume_projects());
    let limited = limited.map_err(|error| error.to_string())?;
    Ok(limited.into_iter().map(|limited| limited.project).collect())
}

#[test]
fn volumes_are_limited_by_the_rules_of_pouch() {
    on_both(|store| {
        let all = volumes(&store.root, &["a", "b", "c", "d", "e"]);
        let ids = limit("/=1g&/a=8m;/b&/c=8m;4m", &all).unwrap();
        assert_eq!(ids.len(), 5);
        assert!(ids[1] == ids[2] && ids[0] != ids[1] && ids[3] != ids[4]);
        let quota = Quota::open(&store.root).unwrap();
        let hard = |id: u32| {
            let limits = quota.get(ProjectId(id)).unwrap().limits;
            limits.bytes_hard.map(std::num::NonZeroU64::get)
        };
        let sizes: Vec<_> = ids.iter().map(|id| hard(*id).unwrap() / MIB).collect();
        assert_eq!(sizes, [8, 8, 8, 4, 4]);
        // Whoever limits them again finds them: also when they are in use.
        write(&all[1].directory.join("file"), 2).unwrap();
        assert_eq!(limit("/b&/c=16m", &all).unwrap(), ids[1..3]);
        assert_eq!(hard(ids[1]), Some(16 * MIB));
        let used = quota.get(ProjectId(ids[2])).unwrap();
        assert!(used.bytes >= 2 * MIB && used.inodes == 3, "{used:?}");
        // They are not the snapshots', and so are left alone.
        assert_eq!(store.backend.recover(&[]).unwrap(), Report::default());
        assert_eq!(hard(ids[0]), Some(8 * MIB));
    });
}

#[test]
fn volumes_that_cannot_be_limited_are_left_alone() {
    on_both(|store| {
        let all = volumes(&store.root, &["used", "theirs", "a", "b"]);
        fs::write(all[0].directory.join("file"), "text").unwrap();
        let theirs = File::open(&all[1].directory).unwrap();
        set_project(&theirs, ProjectId(77), Inherit::Yes).unwrap();
        let check = |rules: &str, why: &str| {
            let error = limit(rules, &all).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        check("/used=8m", "is not empty");
        check("/theirs=8m", "in project 77, which is somebody else's");
        check("/&/a=8m", "cannot share a limit with /");
        limit("/a=8m;/b=8m", &all).unwrap();
        check("/a&/b=8m", "a limit already that it does not share");
        let other = Disk::new("xfs", &["-q"], 300, "prjquota");
        let mut mixed = volumes(other.path(), &["c"]);
        mixed.extend(volumes(&store.root, &["d"]));
        let error = limit("/c&/d=8m", &mixed).unwrap_err();
        assert!(error.contains("another file system"), "{error}");
        let untouched = project_of(File::open(&mixed[1].directory).unwrap()).unwrap();
        assert_eq!(untouched.id, ProjectId(0));
    });
}
