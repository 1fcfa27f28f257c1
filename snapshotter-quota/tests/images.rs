//! The back ends that every kernel has: an image or a tmpfs for each snapshot, and none.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod image_sizes;
#[expect(dead_code, reason = "project_quota.rs uses the rest")]
mod rig;

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rig::{
    checks::{self, MIB, errno, write},
    killed::{Killing, Sizes},
    store::{Made, Store, bytes, in_group, inodes},
};
use snapshot_core::Error;
use snapshotter_quota::{
    backend::{Backend, Fs, Image, ImageOptions, Kept, Plain, Record, Report, Tmpfs},
    limit::{Limit, Mode, Size},
};
use sys::LoopDevice;

/// The smallest xfs.
const XFS: u64 = 300 * MIB;

const EXT4_ONLY: ImageOptions = ImageOptions {
    fs: Some(Fs::Ext4),
    reserve_bytes: 0,
};
const XFS_ONLY: ImageOptions = ImageOptions {
    fs: Some(Fs::Xfs),
    reserve_bytes: 0,
};

/// Runs a check in a root of its own and proves that nothing is left.
fn check<B: Backend>(make: impl Fn(&Path) -> B, check: impl Fn(&mut Store<B>)) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let mut store = Store::new(&root, make(&root));
    check(&mut store);
    checks::nothing_is_left(&store);
    let templates = fs::read_dir(root.join("templates")).into_iter().flatten();
    for template in templates {
        let name = template.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with("new-"), "{name:?}");
    }
}

/// With both file systems, and a size that fits.
fn on_images(test: impl Fn(&mut Store<Image>, u64)) {
    for (options, size) in [(EXT4_ONLY, 32 * MIB), (XFS_ONLY, XFS)] {
        check(|root| Image::new(root, options), |store| test(store, size));
    }
}

fn on_tmpfs(test: impl Fn(&mut Store<Tmpfs>)) {
    check(|_| Tmpfs, test);
}

fn image(made: &Made) -> PathBuf {
    made.directory.join("rw.img")
}

fn with_inodes(size: u64, count: u64) -> Limit {
    Limit {
        inodes: inodes(count).inodes,
        ..bytes(size)
    }
}

#[test]
fn limit_of_an_image_holds_and_all_can_be_deleted() {
    on_images(checks::limit_holds_and_all_can_be_deleted);
}

#[test]
fn limit_of_a_tmpfs_holds_and_all_can_be_deleted() {
    on_tmpfs(|store| checks::limit_holds_and_all_can_be_deleted(store, 32 * MIB));
}

/// ext4 in images: tests/project_quota.rs, since this process may lack CAP_SYS_RESOURCE.
#[test]
fn limit_of_an_image_grows_while_in_use() {
    check(
        |root| Image::new(root, XFS_ONLY),
        |store| checks::limit_changes_while_in_use(store, XFS),
    );
}

#[test]
fn limit_of_a_tmpfs_changes_while_in_use() {
    on_tmpfs(|store| checks::limit_changes_while_in_use(store, 16 * MIB));
}

#[test]
fn inode_limits_hold() {
    check(
        |root| Image::new(root, EXT4_ONLY),
        |store| checks::inode_limit_holds(store, &with_inodes(32 * MIB, 100), 128),
    );
    on_tmpfs(|store| checks::inode_limit_holds(store, &inodes(100), 100));
}

#[test]
fn without_capability_ext4_is_not_grown_and_says_so() {
    let holds = fs::read_to_string("/proc/self/status").unwrap();
    let effective = holds
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
    let may_grow = effective & 1 << 24 != 0;
    check(
        |root| Image::new(root, EXT4_ONLY),
        |store| {
            let made = store.prepare(&bytes(16 * MIB));
            let result = store.set_limit(&made.held(), &bytes(64 * MIB));
            assert_eq!(result.is_ok(), may_grow);
            if let Err(error) = result {
                assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
                let length = fs::metadata(image(&made)).unwrap().len();
                assert_eq!(length, 16 * MIB, "nothing was changed");
            }
            // What is no change needs nothing.
            let now = fs::metadata(image(&made)).unwrap().len();
            store.set_limit(&made.held(), &bytes(now)).unwrap();
            let overlay = store.mount(&made);
            write(&overlay.path().join("a"), 4).unwrap();
            drop(overlay);
            store.remove(&made);
        },
    );
}

#[test]
fn an_image_takes_little_of_the_disk_and_gives_back_what_was_deleted() {
    on_images(|store, size| {
        for size in [2 * size, 10_240 * MIB] {
            let made = store.prepare(&bytes(size));
            let taken = || fs::metadata(image(&made)).unwrap().blocks() * 512;
            assert!(taken() < 6 * MIB, "{} of {size}", taken());
            let overlay = store.mount(&made);
            write(&overlay.path().join("a"), 32).unwrap();
            let full = taken();
            assert!(full > 32 * MIB, "{full}");
            fs::remove_file(overlay.path().join("a")).unwrap();
            let start = std::time::Instant::now();
            while taken() > full - 30 * MIB {
                assert!(start.elapsed().as_secs() < 60, "{}", taken());
                nix::unistd::syncfs(File::open(overlay.path()).unwrap()).unwrap();
            }
            drop(overlay);
            store.remove(&made);
        }
    });
}

#[test]
fn usage_is_what_was_written() {
    on_images(|store, size| {
        let made = store.prepare(&bytes(size));
        let before = store.usage(&made);
        assert!(before.bytes < MIB && before.inodes <= 2, "{before:?}");
        written_is_counted(store, &made);
        store.remove(&made);
    });
    on_tmpfs(|store| {
        let made = store.prepare(&bytes(64 * MIB));
        written_is_counted(store, &made);
        store.remove(&made);
    });
}

fn inodes_of(tree: &Path) -> u64 {
    if !fs::symlink_metadata(tree).unwrap().is_dir() {
        return 1;
    }
    let below = fs::read_dir(tree).unwrap();
    below.fold(1, |sum, entry| sum + inodes_of(&entry.unwrap().path()))
}

fn written_is_counted<B: Backend>(store: &Store<B>, made: &Made) {
    let overlay = store.mount(made);
    let before = store.usage(made);
    let work = made.record.work(&made.directory);
    let files = inodes_of(&made.upper()) + inodes_of(&work);
    for number in 0..50 {
        fs::write(overlay.path().join(number.to_string()), "x").unwrap();
    }
    write(&overlay.path().join("a"), 10).unwrap();
    // What overlay made and removed to find out what it can do goes in the background.
    let start = std::time::Instant::now();
    loop {
        nix::unistd::syncfs(File::open(made.upper()).unwrap()).unwrap();
        let after = store.usage(made);
        let bytes = after.bytes - before.bytes;
        // tmpfs counts extended attributes, of which overlay makes some, as parts of inodes.
        let inodes = files + 51..=files + 52;
        if (10 * MIB..11 * MIB).contains(&bytes) && inodes.contains(&after.inodes) {
            return;
        }
        assert!(start.elapsed().as_secs() < 60, "{before:?} {after:?}");
    }
}

#[test]
fn a_layer_is_moved_out_as_it_is_and_the_image_is_gone() {
    fn test<B: Backend>(store: &mut Store<B>, size: u64) {
        let made = store.prepare(&bytes(size));
        let overlay = store.mount(&made);
        fs::create_dir(overlay.path().join("folder")).unwrap();
        fs::write(overlay.path().join("folder/file"), "text").unwrap();
        fs::hard_link(
            overlay.path().join("folder/file"),
            overlay.path().join("again"),
        )
        .unwrap();
        write(&overlay.path().join("big"), 5).unwrap();
        drop(overlay);
        let (layer, usage) = store.commit(&made);
        assert_eq!(layer.record, Record::Plain);
        assert_eq!(layer.upper(), made.directory.join("fs"));
        let names: Vec<_> = fs::read_dir(&layer.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["fs"]);
        let again = fs::metadata(layer.upper().join("again")).unwrap();
        assert_eq!((again.nlink(), again.len()), (2, 4));
        assert!(usage.bytes >= 5 * MIB && usage.inodes == 4, "{usage:?}");
        // Again, as after a crash before the store knew of it.
        assert_eq!(store.commit(&made), (layer.clone(), usage));
        store.remove(&layer);
    }
    on_images(test);
    on_tmpfs(|store| test(store, 32 * MIB));
}

#[test]
fn a_commit_that_was_interrupted_is_done_again_with_all_that_was_written_since() {
    on_images(|store, size| {
        let made = store.prepare(&bytes(size));
        write(&made.upper().join("a"), 1).unwrap();
        // The copy was made, and got its name; then the daemon ended.
        fs::create_dir(made.directory.join("fs.new")).unwrap();
        fs::create_dir(made.directory.join("fs")).unwrap();
        write(&made.upper().join("b"), 1).unwrap();
        let (layer, _) = store.commit(&made);
        assert!(layer.upper().join("a").exists() && layer.upper().join("b").exists());
        // Or the image was gone, too: then nothing can be written any more.
        let larger = bytes(2 * size);
        for refused in [
            store.backend.attach(&made.held()),
            store.backend.set_limit(&made.held(), &larger),
        ] {
            let error = refused.unwrap_err();
            assert!(error.to_string().contains("commit it again"), "{error}");
        }
        store.remove(&layer);
    });
}

/// A container goes on writing while its snapshot is committed, and the store refuses.
#[test]
fn a_commit_that_is_not_stored_leaves_the_container_its_disk() {
    fn test<B: Backend>(store: &mut Store<B>, size: u64) {
        let made = store.prepare(&bytes(size));
        let overlay = store.mount(&made);
        write(&overlay.path().join("a"), 1).unwrap();
        store.backend.commit(&made.held()).unwrap();
        assert!(made.directory.join("fs/a").exists());
        write(&overlay.path().join("b"), 1).unwrap();
        store.backend.uncommitted(&made.held()).unwrap();
        assert!(!made.directory.join("fs").exists());
        store.backend.attach(&made.held()).unwrap();
        assert!(store.usage(&made).bytes >= 2 * MIB);
        assert!(made.upper().join("a").exists() && made.upper().join("b").exists());
        drop(overlay);
        let (layer, _) = store.commit(&made);
        assert!(layer.upper().join("a").exists() && layer.upper().join("b").exists());
        store.remove(&layer);
    }
    on_images(test);
    on_tmpfs(|store| test(store, 32 * MIB));
}

#[test]
fn what_a_daemon_that_ended_left_beside_a_layer_or_a_snapshot_goes_at_the_next_start() {
    fn test<B: Backend>(store: &mut Store<B>, size: u64) {
        let (active, made) = (store.prepare(&bytes(size)), store.prepare(&bytes(size)));
        for one in [&active, &made] {
            write(&one.upper().join("a"), 1).unwrap();
            store.backend.commit(&one.held()).unwrap();
        }
        let layer = Made {
            record: Record::Plain,
            ..made
        };
        let limit = bytes(size);
        let kept = |made, limit| Kept {
            held: Made::held(made),
            limit,
        };
        let plain = Plain::default();
        plain.recover(&[kept(&layer, None)]).unwrap();
        store
            .backend
            .recover(&[kept(&active, Some(&limit))])
            .unwrap();
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            std::collections::BTreeSet::from_iter(names)
        };
        assert_eq!(names(&layer.directory), ["fs".to_owned()].into());
        assert!(layer.upper().join("a").exists());
        assert!(!names(&active.directory).contains("fs"));
        assert!(active.upper().join("a").exists());
        store.remove(&layer);
        store.remove(&active);
    }
    on_images(test);
    on_tmpfs(|store| test(store, 32 * MIB));
}

#[test]
fn after_a_reboot_images_are_mounted_again() {
    on_images(|store, size| {
        let made = store.prepare(&bytes(size));
        fs::write(made.upper().join("a"), "text").unwrap();
        mounts::unmount_tree(&made.directory).unwrap();
        assert!(!made.upper().exists());
        let overlay = store.mount(&made);
        assert_eq!(
            fs::read_to_string(overlay.path().join("a")).unwrap(),
            "text"
        );
        // A second time nothing is to be done.
        store.backend.attach(&made.held()).unwrap();
        let mounts = mounts::mountinfo::below(&made.directory).unwrap();
        assert_eq!(mounts.len(), 1);
        drop(overlay);
        mounts::unmount_tree(&made.directory).unwrap();
        let (layer, _) = store.commit(&made);
        assert!(layer.upper().join("a").exists());
        store.remove(&layer);
    });
}

#[test]
fn an_image_that_is_mounted_elsewhere_gets_no_second_device() {
    on_images(|store, size| {
        let made = store.prepare(&bytes(size));
        // A container keeps the file system after its place here was unmounted.
        let busy = File::create(made.upper().join("open")).unwrap();
        let file = File::open(image(&made)).unwrap();
        let device = LoopDevice::of_file(&file).unwrap().unwrap();
        let first = device.path().to_owned();
        drop(device);
        mounts::unmount_tree(&made.directory).unwrap();
        let overlay = store.mount(&made);
        let device = LoopDevice::of_file(&file).unwrap().unwrap();
        assert_eq!(device.path(), first);
        drop((busy, overlay));
        store.remove(&made);
    });
}

#[test]
fn growth_that_was_interrupted_is_finished() {
    let images = |root: &Path| Image::new(root, XFS_ONLY);
    check(images, |store| {
        let size = |made: &Made| {
            let about = nix::sys::statvfs::statvfs(&made.upper()).unwrap();
            about.blocks() * about.fragment_size()
        };
        let made = store.prepare(&bytes(XFS));
        let before = size(&made);
        // Nothing but the file; then a reboot.
        let file = File::options().write(true).open(image(&made)).unwrap();
        file.set_len(2 * XFS).unwrap();
        mounts::unmount_tree(&made.directory).unwrap();
        store.backend.attach(&made.held()).unwrap();
        assert_eq!(size(&made), before + XFS);
        // Nothing at all, and the label says more.
        let limit = bytes(3 * XFS);
        let kept = Kept {
            held: made.held(),
            limit: Some(&limit),
        };
        let report = store.backend.recover(&[kept]).unwrap();
        assert_eq!(report.corrected, 1);
        assert_eq!(size(&made), before + 2 * XFS);
        assert_eq!(store.backend.recover(&[kept]).unwrap(), Report::default());
        store.remove(&made);
    });
}

#[test]
fn after_a_reboot_a_tmpfs_begins_empty_with_its_limit() {
    on_tmpfs(|store| {
        let made = store.prepare(&bytes(16 * MIB));
        fs::write(made.upper().join("a"), "text").unwrap();
        mounts::unmount_tree(&made.directory).unwrap();
        let limit = with_inodes(8 * MIB, 50);
        let kept = Kept {
            held: made.held(),
            limit: Some(&limit),
        };
        store.backend.recover(&[kept]).unwrap();
        let overlay = store.mount(&made);
        assert_eq!(overlay.bytes(), 8 * MIB);
        assert_eq!(fs::read_dir(overlay.path()).unwrap().count(), 0);
        drop(overlay);
        store.remove(&made);
    });
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_is_made() {
    fn refuse<B: Backend>(store: &mut Store<B>, limit: &Limit, why: &str) {
        let error = store.try_prepare(limit).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let soft = Limit {
        soft_bytes: Size::from_bytes(MIB),
        ..bytes(32 * MIB)
    };
    on_images(|store, size| {
        refuse(store, &in_group(bytes(size), "pod"), "share its limit");
        refuse(store, &soft, "soft limit");
        refuse(store, &inodes(50), "needs one on bytes too");
        refuse(store, &bytes(MIB), "no room for anything");
    });
    on_tmpfs(|store| {
        refuse(store, &in_group(bytes(32 * MIB), "pod"), "share its limit");
        refuse(store, &soft, "soft limit");
    });
    check(
        |_| Plain::default(),
        |store| refuse(store, &bytes(32 * MIB), "probe"),
    );
    check(
        |root| Image::new(root, XFS_ONLY),
        |store| {
            refuse(store, &bytes(32 * MIB), "xfs needs");
            refuse(store, &with_inodes(XFS, 50), "cannot limit inodes");
        },
    );
}

#[test]
fn a_disk_that_is_nearly_full_gets_no_more_images() {
    let reserve = ImageOptions {
        fs: None,
        reserve_bytes: u64::MAX,
    };
    check(
        |root| Image::new(root, reserve),
        |store| {
            let error = store.try_prepare(&bytes(32 * MIB)).unwrap_err();
            assert!(matches!(error, Error::Exhausted(_)), "{error}");
            let made = store.prepare(&Limit::counted());
            store.remove(&made);
        },
    );
}

#[test]
fn a_snapshot_without_a_limit_is_plain_directories_and_cannot_get_one() {
    fn test<B: Backend>(store: &mut Store<B>) {
        let account = Limit {
            mode: Mode::Account,
            ..bytes(32 * MIB)
        };
        for limit in [Limit::counted(), Limit::off(), account] {
            let made = store.prepare(&limit);
            assert_eq!(made.record, Record::Plain);
            let plain = Plain::default();
            write(&made.upper().join("a"), 2).unwrap();
            let usage = plain.usage(&made.held()).unwrap();
            assert!(usage.bytes >= 2 * MIB && usage.inodes == 2, "{usage:?}");
            plain.set_limit(&made.held(), &limit).unwrap();
            let error = plain.set_limit(&made.held(), &bytes(MIB)).unwrap_err();
            assert!(error.to_string().contains("new container"), "{error}");
            assert_eq!(plain.commit(&made.held()).unwrap().usage, Some(usage));
            store.remove(&made);
        }
    }
    on_images(|store, _| test(store));
    on_tmpfs(test);
    check(|_| Plain::default(), test);
}

#[test]
fn a_limit_that_is_the_size_of_a_file_system_cannot_be_taken_away() {
    on_images(|store, size| {
        let made = store.prepare(&bytes(size));
        let result = store.backend.set_limit(&made.held(), &Limit::counted());
        let error = result.unwrap_err().to_string();
        assert!(error.contains("cannot be taken away"), "{error}");
        store.remove(&made);
    });
    on_tmpfs(|store| {
        let made = store.prepare(&bytes(8 * MIB));
        store
            .backend
            .set_limit(&made.held(), &Limit::counted())
            .unwrap();
        write(&made.upper().join("a"), 16).unwrap();
        let result = store.backend.set_limit(&made.held(), &bytes(8 * MIB));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("smaller than what is used"), "{error}");
        store.remove(&made);
    });
}

#[test]
fn whatever_a_crash_leaves_is_given_back() {
    on_images(|store, size| {
        // Before anything; an empty image; a device for it; all.
        for steps in 0..4 {
            let (id, directory) = store.begin();
            let path = directory.join("rw.img");
            if steps > 0 {
                File::create(&path).unwrap().set_len(size).unwrap();
            }
            if steps > 1 {
                // It goes with the process that made it.
                drop(LoopDevice::attach(&path, sys::LoopAccess::ReadWrite).unwrap());
            }
            if steps > 2 {
                fs::remove_file(&path).unwrap();
                store.backend.create(&directory, id, &bytes(size)).unwrap();
            }
            store.bury(id, &directory, None);
        }
        // Busy when it goes: the place is free at once, the device with its last user.
        let made = store.prepare(&bytes(size));
        let mut open = File::create(made.upper().join("open")).unwrap();
        let file = File::open(image(&made)).unwrap();
        store.remove(&made);
        std::io::Write::write_all(&mut open, b"text").unwrap();
        drop(open);
        let start = std::time::Instant::now();
        while LoopDevice::of_file(&file).unwrap().is_some() {
            assert!(start.elapsed().as_secs() < 60, "the device stays");
        }
        fs::create_dir_all(store.root.join("templates")).unwrap();
        fs::write(store.root.join("templates/new-7"), "").unwrap();
    });
}

#[test]
fn a_full_snapshot_leaves_the_directory_above_writable() {
    fn test<B: Backend>(store: &mut Store<B>, size: u64) {
        let made = store.prepare(&bytes(size));
        errno(write(&made.upper().join("a"), size / MIB + 1));
        fs::write(made.directory.join("snapshot.json"), vec![b' '; 1 << 20]).unwrap();
        store.remove(&made);
    }
    on_images(test);
    on_tmpfs(|store| test(store, 8 * MIB));
}

#[test]
fn whenever_the_daemon_is_killed_images_are_put_right() {
    let killing = Killing {
        name: "whenever_the_daemon_is_killed_images_are_put_right",
        sizes: Sizes {
            bytes: XFS,
            groups: false,
        },
        rounds: 30,
        open: |root: &Path| Image::new(root, XFS_ONLY),
    };
    killing.survive(|| tempfile::tempdir().unwrap());
}

#[test]
fn whenever_the_daemon_is_killed_tmpfs_are_put_right() {
    let killing = Killing {
        name: "whenever_the_daemon_is_killed_tmpfs_are_put_right",
        sizes: Sizes {
            bytes: MIB,
            groups: false,
        },
        rounds: 50,
        open: |_: &Path| Tmpfs,
    };
    killing.survive(|| tempfile::tempdir().unwrap());
}
