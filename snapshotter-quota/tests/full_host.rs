//! Snapshots in images on a host's disk that gets full.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

#[expect(dead_code, reason = "other tests use the rest")]
mod rig;

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use rig::{
    checks::{self, MIB},
    disk::Disk,
    store::{Made, Store, bytes},
};
use snapshot_core::Error;
use snapshotter_quota::backend::{Audit, Backend, Fs, Image, ImageOptions, Record};

const HOST_MIB: u64 = 500;

/// With both file systems on a small host's disk.
fn on_full_hosts(test: impl Fn(&mut Store<Image>, &Filler<'_>, u64)) {
    for (fs, size) in [(Fs::Ext4, 200 * MIB), (Fs::Xfs, 300 * MIB)] {
        let host = Disk::new("ext4", &["-q"], HOST_MIB, "");
        let options = ImageOptions {
            fs: Some(fs),
            reserve_bytes: 0,
        };
        let mut store = Store::new(host.path(), Image::new(host.path(), options));
        test(&mut store, &Filler(host.path()), size);
        checks::nothing_is_left(&store);
    }
}

/// Takes all room on the host's disk.
struct Filler<'a>(&'a Path);

impl Filler<'_> {
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        let block = vec![1; 1 << 20];
        while file.write_all(&block).is_ok() {}
        // What was promised to files that are not on the disk yet is there now.
        drop(file.sync_all());
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

/// Writes what cannot be kept, and does not care.
fn write_in_vain(path: &Path, mib: u64) {
    let block = vec![7; 1 << 20];
    let mut file = File::create(path).unwrap();
    for _ in 0..mib {
        if file.write_all(&block).is_err() {
            break;
        }
    }
    file.sync_all().unwrap_err();
}

fn sync(path: &Path) -> nix::Result<()> {
    nix::unistd::syncfs(File::open(path).unwrap())
}

fn refused(store: &Store<Image>, made: &Made) {
    let error = store.backend.commit(&made.held()).unwrap_err();
    assert!(matches!(error, Error::DataLoss(_)), "{error:?}");
    let text = error.to_string();
    let named = format!("the disk image of snapshot {} lost writes", made.held());
    assert!(text.starts_with(&named), "{text}");
    assert!(text.contains("remove the snapshot"), "{text}");
    assert!(!Record::Plain.upper(&made.directory).exists());
    let audit = store.backend.audit(&made.held()).unwrap();
    assert!(matches!(audit, Audit::LostWrites(_)), "{audit:?}");
}

#[test]
fn a_layer_that_lost_writes_is_refused_however_often_it_is_committed() {
    on_full_hosts(|store, host, size| {
        let made = store.prepare(&bytes(size));
        assert_eq!(store.backend.audit(&made.held()).unwrap(), Audit::Sound);
        host.fill();
        write_in_vain(&made.upper().join("file"), 100);
        host.make_room();
        refused(store, &made);
        refused(store, &made);
        // A reboot, after which the file system may look whole.
        mounts::unmount_tree(&made.directory).unwrap();
        refused(store, &made);
        store.remove(&made);
    });
}

/// Only the first who asks the kernel is told that a file could not be written.
#[test]
fn an_ext4_that_lost_writes_is_refused_when_somebody_else_was_told_of_it() {
    on_full_hosts(|store, host, size| {
        if size != 200 * MIB {
            return;
        }
        let made = store.prepare(&bytes(size));
        let file = made.upper().join("file");
        checks::write(&file, 1).unwrap();
        sync(&file).unwrap();
        host.fill();
        write_in_vain(&file, 50);
        sync(&file).unwrap_err();
        host.make_room();
        refused(store, &made);
        store.remove(&made);
    });
}

#[test]
fn a_layer_for_which_there_is_no_room_is_not_made_and_can_be_made_later() {
    on_full_hosts(|store, host, size| {
        let made = store.prepare(&bytes(size));
        checks::write(&made.upper().join("file"), 50).unwrap();
        sync(&made.upper()).unwrap();
        host.fill();
        let error = store.backend.commit(&made.held()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(!made.directory.join("fs.new").exists(), "it takes room");
        assert_eq!(store.backend.audit(&made.held()).unwrap(), Audit::Sound);
        host.make_room();
        let (layer, _) = store.commit(&made);
        assert_eq!(
            fs::metadata(layer.upper().join("file")).unwrap().len(),
            50 * MIB
        );
        store.remove(&layer);
    });
}
