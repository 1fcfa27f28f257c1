//! What every back end must pass, by what it says it can do.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::Path,
};

use nix::errno::Errno;
use snapshotter_quota::{
    backend::{Backend, Full, Report, Resize, Support},
    limit::Limit,
};

use super::store::{Store, bytes, in_group, inodes};

pub(crate) const MIB: u64 = 1 << 20;

/// Writes a file of so many MiB of what does not compress, to the disk.
pub(crate) fn write(path: &Path, mib: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0_u8; 1 << 20];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..mib {
        for chunk in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// The errno of a writer that met the limit.
pub(crate) fn errno(result: io::Result<()>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

/// What a full snapshot's writer must get.
pub(crate) fn full(backend: &impl Backend) -> Errno {
    match backend.abilities().full {
        Full::QuotaExceeded => Errno::EDQUOT,
        Full::NoSpace => Errno::ENOSPC,
        Full::Never => panic!("{} never says that it is full", backend.kind()),
    }
}

/// A container writes until it is full, gets the right errno, sees its size where the kernel shows
/// it, can delete all, and write again.
pub(crate) fn limit_holds_and_all_can_be_deleted<B: Backend>(store: &mut Store<B>, size: u64) {
    let made = store.prepare(&bytes(size));
    let overlay = store.mount(&made);
    if store.backend.abilities().df == Support::Yes {
        let shown = overlay.bytes();
        assert!((size * 3 / 4..=size).contains(&shown), "{shown} of {size}");
    }
    let mib = size / MIB;
    write(&overlay.path().join("some"), mib / 2).unwrap();
    let result = write(&overlay.path().join("more"), mib);
    assert_eq!(errno(result), full(&store.backend));
    let usage = store.usage(&made);
    assert!(usage.bytes <= size, "{usage:?} of {size}");
    let charge = store.charge(&made);
    let most = charge.bytes_max.unwrap();
    assert!((size / 2..=size).contains(&most), "{most} of {size}");
    let left = most - charge.usage.bytes;
    assert!(left < MIB, "{left} bytes are left when 1 MiB did not fit");

    // At 100 %. xfs may count so much beyond the end of the first file that there was no room to
    // make the second.
    match fs::remove_file(overlay.path().join("more")) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other.unwrap(),
    }
    fs::remove_file(overlay.path().join("some")).unwrap();
    write(&overlay.path().join("again"), mib / 4).unwrap();
    drop(overlay);
    store.remove(&made);
}

/// The limit goes up and, where that can be, down, below the usage too.
pub(crate) fn limit_changes_while_in_use<B: Backend>(store: &mut Store<B>, size: u64) {
    let made = store.prepare(&bytes(size));
    let overlay = store.mount(&made);
    let mib = size / MIB;
    let held = made.held();
    errno(write(&overlay.path().join("a"), mib * 2));
    store.set_limit(&held, &bytes(size * 4)).unwrap();
    write(&overlay.path().join("a"), mib * 2).unwrap();
    let result = store.set_limit(&held, &bytes(size));
    match store.backend.abilities().resize {
        Resize::Both => {
            result.unwrap();
            let refused = errno(write(&overlay.path().join("b"), mib));
            assert_eq!(refused, full(&store.backend));
            fs::remove_file(overlay.path().join("a")).unwrap();
            write(&overlay.path().join("b"), mib / 4).unwrap();
            store.set_limit(&held, &Limit::counted()).unwrap();
            write(&overlay.path().join("c"), mib * 2).unwrap();
        }
        Resize::AboveUsage | Resize::Grow => {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("cannot be made smaller"), "{error}");
            write(&overlay.path().join("b"), mib / 4).unwrap();
        }
        Resize::Fixed => panic!("a back end with limits can change them"),
    }
    drop(overlay);
    store.remove(&made);
}

/// So many files and no more; file systems of a snapshot's own are made for a few more.
pub(crate) fn inode_limit_holds<B: Backend>(store: &mut Store<B>, limit: &Limit, most: u32) {
    let made = store.prepare(limit);
    let overlay = store.mount(&made);
    let mut count = 0;
    let refused = loop {
        match File::create(overlay.path().join(count.to_string())) {
            Ok(_) => count += 1,
            Err(error) => break Errno::from_raw(error.raw_os_error().unwrap()),
        }
        assert!(count <= most, "more files than inodes");
    };
    assert_eq!(refused, full(&store.backend));
    assert!(count > 80, "{count}");
    let more = Limit {
        inodes: inodes(200).inodes,
        ..limit.clone()
    };
    let result = store.set_limit(&made.held(), &more);
    match store.backend.abilities().resize {
        Resize::Both | Resize::AboveUsage => {
            result.unwrap();
            for more in 0..50 {
                File::create(overlay.path().join(format!("more-{more}"))).unwrap();
            }
        }
        Resize::Grow => {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("inodes cannot be changed"), "{error}");
            fs::remove_file(overlay.path().join("0")).unwrap();
            File::create(overlay.path().join("again")).unwrap();
        }
        Resize::Fixed => panic!("a back end with limits can change them"),
    }
    drop(overlay);
    store.remove(&made);
}

/// What is told without walking is what walking finds.
pub(crate) fn usage_is_what_du_finds<B: Backend>(store: &mut Store<B>) {
    let made = store.prepare(&bytes(64 * MIB));
    let overlay = store.mount(&made);
    for number in 0..200_u32 {
        let folder = overlay.path().join(format!("{}", number % 7));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(number.to_string()), vec![7; 5000]).unwrap();
    }
    write(&overlay.path().join("big"), 5).unwrap();
    drop(overlay);
    store.settle();
    let told = store.usage(&made);
    let (upper, work) = (made.upper(), made.record.work(&made.directory));
    let walked: Vec<_> = [&upper, &work].map(|tree| du(tree)).into();
    let (bytes, inodes) = (walked[0].0 + walked[1].0, walked[0].1 + walked[1].1);
    assert_eq!((told.bytes, told.inodes), (bytes, inodes), "{walked:?}");

    // A layer is counted, and nothing limits it any more.
    let (layer, usage) = store.commit(&made);
    assert_eq!(usage, told);
    write(&layer.upper().join("more"), 80).unwrap();
    store.remove(&layer);
}

/// Bytes and inodes by walking; no hard links.
fn du(tree: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let about = fs::symlink_metadata(tree).unwrap();
    let own = (about.blocks() * 512, 1);
    if !about.is_dir() {
        return own;
    }
    let below = fs::read_dir(tree).unwrap();
    below
        .map(|entry| du(&entry.unwrap().path()))
        .fold(own, |sum, part| (sum.0 + part.0, sum.1 + part.1))
}

/// A file that may have been refused before it was made.
fn remove_what_was_begun(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        removed => removed.unwrap(),
    }
}

/// Two snapshots fill one limit, and it stays while one of them is there.
pub(crate) fn a_group_shares_its_limit<B: Backend>(store: &mut Store<B>) {
    let limit = in_group(bytes(32 * MIB), "pod");
    let first = store.prepare(&limit);
    let second = store.prepare(&in_group(Limit::counted(), "pod"));
    let stranger = store.prepare(&in_group(bytes(32 * MIB), "other"));
    let overlays = [&first, &second, &stranger].map(|made| store.mount(made));
    write(&overlays[0].path().join("a"), 20).unwrap();
    let refused = errno(write(&overlays[1].path().join("b"), 20));
    assert_eq!(refused, full(&store.backend));
    write(&overlays[2].path().join("c"), 20).unwrap();

    // Each is told what it holds itself.
    remove_what_was_begun(&overlays[1].path().join("b"));
    store.settle();
    let (one, other) = (store.usage(&first), store.usage(&second));
    assert!(
        one.bytes >= 20 * MIB && other.bytes < MIB,
        "{one:?} {other:?}"
    );

    // What counts is the sum, whoever asks.
    let charges = [&first, &second].map(|made| store.charge(made));
    assert_eq!(charges[0], charges[1]);
    assert_eq!(charges[0].bytes_max, Some(32 * MIB));
    assert!(charges[0].usage.bytes >= 20 * MIB, "{charges:?}");

    // Any member changes the limit of all.
    let larger = in_group(bytes(64 * MIB), "pod");
    store.set_limit(&second.held(), &larger).unwrap();
    write(&overlays[1].path().join("b"), 20).unwrap();
    let [a, b, c] = overlays;
    drop((a, c));
    store.remove(&first);
    let refused = errno(write(&b.path().join("c"), 50));
    assert_eq!(refused, full(&store.backend));
    drop(b);
    store.remove(&second);
    store.remove(&stranger);

    // The group is gone with its last member: another limit, another account.
    let again = store.prepare(&limit);
    let overlay = store.mount(&again);
    write(&overlay.path().join("a"), 20).unwrap();
    drop(overlay);
    store.remove(&again);
}

/// A member that was given up before anybody kept its record leaves the group, and the group goes
/// with the last one.
pub(crate) fn a_member_that_was_given_up_leaves_its_group<B: Backend>(store: &mut Store<B>) {
    let limit = in_group(bytes(32 * MIB), "pod");
    let (id, directory) = store.begin();
    store.backend.create(&directory, id, &limit).unwrap();
    let other = store.prepare(&limit);
    store.bury(id, &directory, None);
    let overlay = store.mount(&other);
    let refused = errno(write(&overlay.path().join("a"), 40));
    assert_eq!(refused, full(&store.backend));
    drop(overlay);
    store.remove(&other);
    let again = store.prepare(&limit);
    assert_ne!(again.record, other.record);
    store.remove(&again);
}

/// A group is fixed when the snapshot is made.
pub(crate) fn a_group_cannot_be_changed<B: Backend>(store: &mut Store<B>) {
    let made = store.prepare(&bytes(32 * MIB));
    let other = in_group(bytes(32 * MIB), "pod");
    let error = store.set_limit(&made.held(), &other).unwrap_err();
    assert!(error.to_string().contains("fixed"), "{error}");
    store.remove(&made);
}

/// Nothing in the file system is ours any more, and nothing is mounted or attached below the root.
pub(crate) fn nothing_is_left<B: Backend>(store: &Store<B>) {
    store.sweep_until_clean();
    let report = store.backend.recover(&[]).unwrap();
    assert_eq!(report, Report::default());
    let mounts = mounts::mountinfo::below(&store.root).unwrap();
    let below: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.path() != store.root)
        .collect();
    assert!(below.is_empty(), "{below:?}");
    let left: Vec<_> = fs::read_dir(store.root.join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
