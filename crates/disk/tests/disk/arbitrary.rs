//! Whatever a tar holds, the answer is a layer or an error, within the limits; and the same tar is the
//! same layer however it is read.

use std::io::{self, Cursor, Read};

use disk::{Form, Image, Layer, Limits, Tree};
use proptest::prelude::*;

use super::tarball::{Entry, digest, directory, entry, file, link, read, tar};

const LIMITS: Limits = Limits {
    entries_max: 64,
    metadata_bytes_max: 1 << 20,
    header_bytes_max: 1 << 16,
    blob_bytes_max: 1 << 20,
};

/// A tar with something of everything, to be damaged.
pub(crate) fn everything() -> Vec<Entry> {
    vec![
        directory("./"),
        directory("d"),
        file("d/file", &"text".repeat(3000)).pax("SCHILY.xattr.security.capability", &[1; 20]),
        file("d/capable", "").pax("SCHILY.xattr.security.capability", &[1; 20]),
        Entry {
            uid: 100_000,
            mtime: 1_700_000_000,
            mode: 0o4755,
            ..file("set-id", "x")
        },
        link(b'1', "hard", "d/file"),
        link(b'2', "symlink", "../d/file"),
        Entry {
            device: (300, 70_000),
            ..entry(b'4', "block")
        },
        entry(b'6', "fifo").pax("mtime", b"-1.5"),
        file("sparse", "")
            .data(&[7; 512])
            .pax("GNU.sparse.map", b"40960,512")
            .pax("GNU.sparse.size", b"81920"),
        file(".wh.gone", ""),
        file("d/.wh..wh..opq", ""),
        directory("acl").pax(
            "SCHILY.xattr.system.posix_acl_default",
            &[2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255],
        ),
        file(&"n".repeat(100), "").pax("path", &[b'n'; 255]),
        entry(b'g', "global").data(b"13 comment=a\n"),
    ]
}

/// Reads it; what became a layer becomes an image as well.
fn convert(tar: impl Read) -> disk::Result<(Vec<u8>, Vec<u8>)> {
    let mut blob = Cursor::new(Vec::new());
    let layer = Layer::read(tar, &mut blob, &LIMITS)?;
    let mut tree = Tree::new();
    tree.apply(&layer, digest(0))?;
    let mut metadata = Vec::new();
    Image::of(&tree, digest(9), Form::Devices)?.write(&mut metadata)?;
    Ok((blob.into_inner(), metadata))
}

/// Gives a few bytes at a time and is interrupted in between.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = (self.1 * 7 % 97).min(buffer.len()).max(1);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn how_a_tar_arrives_makes_no_difference() {
    let tar = tar(&everything());
    let whole = convert(&tar[..]).unwrap();
    assert_eq!(convert(Dribble(&tar, 0)).unwrap(), whole);
}

/// The order of entries is that of the blob; everything else it leaves alone.
fn check_order(entries: &[Entry]) -> Result<(), TestCaseError> {
    let plain = read(&tar(&everything())).unwrap();
    // A target comes before its link, whatever else moves.
    let links = |entry: &&Entry| entry.flag == b'1';
    let others = entries.iter().filter(|entry| !links(entry));
    let all: Vec<Entry> = others
        .chain(entries.iter().filter(links))
        .cloned()
        .collect();
    let moved = read(&tar(&all)).unwrap();
    let of = |(layer, blob): (Layer, Vec<u8>)| {
        let mut tree = Tree::new();
        tree.apply(&layer, digest(0)).unwrap();
        super::tarball::listing(&tree, &[blob])
    };
    prop_assert_eq!(of(plain), of(moved));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn a_damaged_tar_is_a_layer_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        mends_sums in any::<bool>(),
    ) {
        let mut tar = tar(&everything());
        for (at, value) in changes {
            let at = at.index(tar.len());
            tar[at] = value;
            if mends_sums {
                // Else nearly every change would end at the checksum.
                mend(&mut tar, at);
            }
        }
        if let Some(cut) = cut {
            tar.truncate(cut.index(tar.len()));
        }
        if let Ok((blob, _)) = convert(&tar[..]) {
            prop_assert!(blob.len() as u64 <= LIMITS.blob_bytes_max);
        }
    }

    #[test]
    fn what_is_no_tar_is_an_error(bytes in prop::collection::vec(1_u8.., 1..2000)) {
        prop_assert!(convert(&bytes[..]).is_err());
    }

    #[test]
    fn extended_headers_of_any_bytes_are_taken_or_refused(
        records in prop::collection::vec(any::<u8>(), 0..200),
        flag in prop::sample::select(&b"xgLKV"[..]),
    ) {
        let entries = [entry(flag, "extension").data(&records), file("x", "x")];
        drop(convert(&tar(&entries)[..]));
    }

    #[test]
    fn the_order_of_entries_changes_nothing(
        entries in Just(everything()).prop_shuffle(),
    ) {
        check_order(&entries)?;
    }
}

/// Gives the block around a byte the checksum of a header.
fn mend(tar: &mut [u8], at: usize) {
    let start = at / 512 * 512;
    let block = &mut tar[start..start + 512];
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
