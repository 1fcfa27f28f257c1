//! Images byte by byte. `UPDATE_GOLDEN=1` writes the golden files anew, for a reader to check; a
//! change of them is a change of `FORMAT_VERSION`.

use std::{fmt::Write, path::Path};

use disk::{Digest, Form, Image, Tree};
use sha2::{Digest as _, Sha256};

use super::{
    arbitrary::everything,
    tarball::{Entry, digest, directory, file, link, tar, tree},
};

const CHAIN_ID: Digest = Digest([0xc5; 32]);

fn written(tree: &Tree, form: Form) -> Vec<u8> {
    let image = Image::of(tree, CHAIN_ID, form).unwrap();
    let mut out = Vec::new();
    image.write(&mut out).unwrap();
    assert_eq!(out.len() as u64, image.metadata_bytes());
    out
}

/// Sixteen bytes a line; lines of zeros are left out.
pub(crate) fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (index, line) in bytes.chunks(16).enumerate() {
        if line.iter().all(|&byte| byte == 0) {
            continue;
        }
        write!(out, "{:06x} ", index * 16).unwrap();
        line.iter()
            .for_each(|byte| write!(out, " {byte:02x}").unwrap());
        let shown = line.iter().map(|&byte| {
            if byte.is_ascii_graphic() {
                byte as char
            } else {
                '.'
            }
        });
        writeln!(out, "  {}", shown.collect::<String>()).unwrap();
    }
    out
}

pub(crate) fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/disk/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} differs, see UPDATE_GOLDEN; now:\n{actual}"
    );
}

/// Three layers: no file of the first is left, and the third has none.
fn three_layers() -> Tree {
    let lower = [file("gone", "gone"), file("d/kept", "kept")];
    let top = tar(&everything());
    tree(&[tar(&lower), top, tar(&[file(".wh.gone", "")])])
        .unwrap()
        .0
}

#[test]
fn an_image_has_the_bytes_it_always_had() {
    golden(
        "devices.txt",
        &dump(&written(&three_layers(), Form::Devices)),
    );
    golden("flat.txt", &dump(&written(&three_layers(), Form::Flat)));
}

/// What must not change by accident, where the bytes are too many to be read: a directory of several
/// blocks, attributes that do not fit a block, targets of links of every length around one.
#[test]
fn a_wide_image_has_the_digest_it_always_had() {
    let mut entries = vec![directory("d")];
    for index in 0..3000_u32 {
        let name = format!("d/{index}-{}", "n".repeat(index as usize % 200));
        entries.push(Entry {
            uid: index,
            mtime: u64::from(index % 3),
            ..file("x", "").pax("path", name.as_bytes())
        });
    }
    for length in [1, 3999, 4000, 4031, 4032, 4033, 4095] {
        let target = "t".repeat(length);
        let named = link(b'2', &format!("link-{length}"), "x");
        entries.push(named.pax("linkpath", target.as_bytes()));
    }
    for length in [100, 3900, 4096, 5000, 65535] {
        entries
            .push(directory(&format!("x-{length}")).pax("SCHILY.xattr.user.a", &vec![7; length]));
    }
    let (tree, _) = tree(&[tar(&entries)]).unwrap();
    let mut sums = String::new();
    for form in [Form::Devices, Form::Flat] {
        let sum = Sha256::digest(written(&tree, form));
        writeln!(sums, "{form:?} {}", Digest(sum.into())).unwrap();
    }
    golden("wide.txt", &sums);
}

#[test]
fn only_layers_of_which_a_file_is_left_are_devices() {
    let devices = |tars: &[Vec<u8>]| {
        let tree = tree(tars).unwrap().0;
        let image = Image::of(&tree, CHAIN_ID, Form::Devices).unwrap();
        let blobs: Vec<_> = image.blobs().map(|blob| blob.diff_id).collect();
        blobs
    };
    let (x, y) = (tar(&[file("x", "x")]), tar(&[file("y", "y")]));
    let empty = tar(&[directory("d"), file("empty", "")]);
    assert_eq!(
        devices(&[x.clone(), empty, y.clone()]),
        [digest(0), digest(2)]
    );
    assert_eq!(
        devices(&[x.clone(), tar(&[file(".wh.x", "")]), y]),
        [digest(2)]
    );
    assert_eq!(devices(&[]), []);
    // A file that only a hard link of a later layer keeps.
    let linked = tar(&[link(b'1', "z", "x")]);
    assert_eq!(
        devices(&[x, linked, tar(&[file(".wh.x", "")])]),
        [digest(0)]
    );
}

#[test]
fn a_layer_that_comes_twice_is_one_device() {
    let (x, y) = (tar(&[file("x", "x")]), tar(&[file("y", "y")]));
    let mut tree = Tree::new();
    for (tar, name) in [(&x, 1), (&y, 2), (&x, 1)] {
        let (layer, _) = super::tarball::read(tar).unwrap();
        tree.apply(&layer, digest(name)).unwrap();
    }
    let image = Image::of(&tree, CHAIN_ID, Form::Devices).unwrap();
    let names: Vec<_> = image.blobs().map(|blob| blob.diff_id).collect();
    assert_eq!(names, [digest(2), digest(1)]);
    assert_eq!(image.bytes(), image.metadata_bytes() + 2 * 4096);
}

#[test]
fn the_flat_form_is_metadata_and_blobs_in_one() {
    let (tree, blobs) = tree(&[tar(&[file("x", "xxx")]), tar(&[file("y", "yyy")])]).unwrap();
    let image = Image::of(&tree, CHAIN_ID, Form::Flat).unwrap();
    let mut whole = Vec::new();
    let open = |diff_id: Digest| Ok(&blobs[usize::from(diff_id.0[0]) - 1][..]);
    image.write_with_blobs(&mut whole, open).unwrap();
    assert_eq!(whole.len() as u64, image.bytes());
    let metadata = written(&tree, Form::Flat);
    assert_eq!(whole, [metadata, blobs.concat()].concat());
    let short = image
        .write_with_blobs(&mut Vec::new(), |_| Ok(&b"short"[..]))
        .unwrap_err();
    assert!(matches!(short, disk::Error::ReadBlob { .. }), "{short:?}");
    let absent = |_| Err::<&[u8], _>(std::io::ErrorKind::NotFound.into());
    let absent = image.write_with_blobs(&mut Vec::new(), absent).unwrap_err();
    assert!(matches!(absent, disk::Error::ReadBlob { .. }), "{absent:?}");
}

#[test]
fn a_disk_beyond_32_bit_addresses_is_refused() {
    let hole = |name: &str| {
        let size = (900_u64 << 30).to_string();
        let map = format!("{size},0");
        file(name, "")
            .pax("GNU.sparse.size", size.as_bytes())
            .pax("GNU.sparse.map", map.as_bytes())
    };
    let mut tree = Tree::new();
    for index in 0..19_u8 {
        // Only the address space is as large as that.
        let layer = disk::Layer::read(
            &tar(&[hole(&index.to_string())])[..],
            Nowhere,
            &disk::Limits::GENEROUS,
        );
        tree.apply(&layer.unwrap(), Digest([index; 32])).unwrap();
    }
    let error = Image::of(&tree, CHAIN_ID, Form::Devices).unwrap_err();
    assert_eq!(error.to_string(), "/: a disk of more than 16 TiB");
}

/// Takes everything.
struct Nowhere;

impl std::io::Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Nowhere {
    fn seek(&mut self, _to: std::io::SeekFrom) -> std::io::Result<u64> {
        Ok(0)
    }
}
