//! Images whose size is not what it should be, or cannot be.

use std::fs::{self, File};

use snapshot_core::Error;
use snapshotter_quota::{
    backend::{Backend, Image, Kept, Report},
    limit::Limit,
};
use sys::LoopDevice;

use crate::{
    EXT4_ONLY, XFS, XFS_ONLY, check, image, on_images,
    rig::{
        checks::{MIB, write},
        store::{Made, Store, bytes},
    },
};

fn recover(store: &Store<Image>, made: &Made, limit: &Limit) -> Report {
    let kept = Kept {
        held: made.held(),
        limit: Some(limit),
    };
    store.backend.recover(&[kept]).unwrap()
}

fn length(made: &Made) -> u64 {
    fs::metadata(image(made)).unwrap().len()
}

/// How far a growth had come when the daemon was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grown {
    File,
    Device,
    /// The host was started again after that.
    FileBeforeReboot,
}

#[test]
fn a_growth_that_its_file_system_had_not_begun_is_taken_back_at_the_next_start() {
    on_images(|store, size| {
        let made = store.prepare(&bytes(size));
        write(&made.upper().join("a"), 1).unwrap();
        let before = store.charge(&made);
        for grown in [Grown::File, Grown::Device, Grown::FileBeforeReboot] {
            if grown == Grown::FileBeforeReboot {
                mounts::unmount_tree(&made.directory).unwrap();
            }
            let file = File::options().write(true).open(image(&made)).unwrap();
            file.set_len(2 * size).unwrap();
            if grown == Grown::Device {
                let device = LoopDevice::of_file(&file).unwrap().unwrap();
                device.take_file_size().unwrap();
            }
            let report = recover(store, &made, &bytes(size));
            assert_eq!(
                (report.corrected, report.larger),
                (1, Vec::new()),
                "{grown:?}"
            );
            assert_eq!(length(&made), size, "{grown:?}");
            store.backend.attach(&made.held()).unwrap();
            assert_eq!(store.charge(&made), before, "{grown:?}");
            assert_eq!(recover(store, &made, &bytes(size)), Report::default());
        }
        write(&made.upper().join("b"), 1).unwrap();
        assert!(made.upper().join("a").exists());
        store.remove(&made);
    });
}

#[test]
fn a_growth_that_is_not_stored_leaves_nothing_that_could_not_shrink() {
    check(
        |root| Image::new(root, XFS_ONLY),
        |store| {
            let (less, more) = (bytes(XFS), bytes(2 * XFS));
            let made = store.prepare(&less);
            let before = store.charge(&made);
            store.backend.set_limit(&made.held(), &more).unwrap();
            assert_eq!(recover(store, &made, &less), Report::default());
            assert_eq!((length(&made), store.charge(&made)), (XFS, before));
            // It was refused, and the limit is as it was.
            store.backend.set_limit(&made.held(), &more).unwrap();
            store.backend.set_limit(&made.held(), &less).unwrap();
            store.backend.settle(&made.held(), &less).unwrap();
            assert_eq!((length(&made), store.charge(&made)), (XFS, before));
            store.remove(&made);
        },
    );
}

/// However far it had come.
#[test]
fn a_growth_that_was_stored_is_ended_at_the_next_start() {
    check(
        |root| Image::new(root, XFS_ONLY),
        |store| {
            let (less, more) = (bytes(XFS), bytes(2 * XFS));
            for grown in [None, Some(Grown::File), Some(Grown::Device)] {
                let made = store.prepare(&less);
                store.backend.set_limit(&made.held(), &more).unwrap();
                if let Some(grown) = grown {
                    File::create(made.directory.join("growing")).unwrap();
                    let file = File::options().write(true).open(image(&made)).unwrap();
                    file.set_len(2 * XFS).unwrap();
                    if grown == Grown::Device {
                        let device = LoopDevice::of_file(&file).unwrap().unwrap();
                        device.take_file_size().unwrap();
                    }
                }
                let report = recover(store, &made, &more);
                assert_eq!(
                    (report.corrected, report.larger),
                    (1, Vec::new()),
                    "{grown:?}"
                );
                let most = store.charge(&made).bytes_max.unwrap();
                assert!(most > XFS, "{grown:?}: {most}");
                assert_eq!(recover(store, &made, &more), Report::default());
                store.remove(&made);
            }
        },
    );
}

/// xfs: growing ext4 needs CAP_SYS_RESOURCE.
#[test]
fn a_growth_that_had_ended_before_it_was_stored_is_told_with_its_size() {
    check(
        |root| Image::new(root, XFS_ONLY),
        |store| {
            let made = store.prepare(&bytes(XFS));
            let larger = bytes(XFS + 64 * MIB);
            store.set_limit(&made.held(), &larger).unwrap();
            let file = File::options().write(true).open(image(&made)).unwrap();
            // And another had begun.
            file.set_len(2 * XFS).unwrap();
            let report = recover(store, &made, &bytes(XFS));
            assert_eq!(report.larger, [(made.id, XFS + 64 * MIB)]);
            assert_eq!((report.corrected, length(&made)), (0, XFS + 64 * MIB));
            assert_eq!(recover(store, &made, &larger), Report::default());
            store.remove(&made);
        },
    );
}

/// The test's disk may have a bound of its own, which is lower then.
#[test]
fn a_size_that_no_image_can_have_is_refused_with_the_largest_and_leaves_nothing() {
    const LARGEST: u64 = (1 << 44) - 4096;
    let refused = |error: Error| {
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(": at most "), "{error}");
    };
    for options in [EXT4_ONLY, XFS_ONLY] {
        check(
            |root| Image::new(root, options),
            |store| {
                for size in [LARGEST + 1, i64::MAX.unsigned_abs()] {
                    refused(store.try_prepare(&bytes(size)).unwrap_err());
                }
                let made = store.prepare(&bytes(XFS));
                for size in [LARGEST + 1, i64::MAX.unsigned_abs()] {
                    let limit = bytes(size);
                    refused(store.backend.set_limit(&made.held(), &limit).unwrap_err());
                    assert_eq!(length(&made), XFS);
                }
                store.remove(&made);
            },
        );
    }
}
