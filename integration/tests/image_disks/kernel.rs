//! The kernel of this machine and fsck.erofs, asked of both forms of a disk.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use integration::{
    images::{Content, Image, Layer},
    listing::Listing,
    process::{Running, command},
    wait::SOON,
};

use super::{converted::Converted, expected, mounted::with_erofs};

/// Both forms show the tree, to the kernel and to fsck.erofs.
pub(crate) fn check(converted: &Converted) -> Result<()> {
    let expected = expected::listing(converted)?;
    let (metadata, blobs) = converted.devices()?;
    let flat = converted.flat()?;
    for (image, blobs) in [(&metadata, &blobs[..]), (&flat, &[][..])] {
        let seen = with_erofs(image, blobs, Listing::of)?;
        let lines = expected.differences(&seen);
        ensure!(
            lines.is_empty(),
            "{}:\n{}",
            image.display(),
            lines.join("\n")
        );
        fsck(image, blobs)?;
    }
    Ok(())
}

/// Checks every inode; of a disk in one piece it reads the files, too (1.5 knows no addresses that go
/// on from device to device). Its exit code tells not of all that it finds.
pub(crate) fn fsck(image: &Path, blobs: &[PathBuf]) -> Result<()> {
    let mut fsck = command("fsck.erofs");
    fsck.arg("-d3");
    if blobs.is_empty() {
        fsck.arg("--extract");
    }
    for blob in blobs {
        fsck.arg(format!("--device={}", blob.display()));
    }
    let finished = Running::start(fsck.arg(image))?
        .finish(SOON * 6)?
        .success()?;
    let said = format!("{}{}", finished.stdout(), finished.stderr());
    ensure!(said.contains("No errors found"), "{finished}");
    Ok(())
}

#[test]
fn images_look_as_they_were_merged() {
    for image in [Image::Busybox, Image::Layers, Image::Debian] {
        check(&Converted::image(image).unwrap()).unwrap();
    }
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    check(&Converted::new().unwrap()).unwrap();
}

/// More than options of mount(2) have room for.
#[test]
fn hundreds_of_layers_are_one_mount() {
    let mut converted = Converted::new().unwrap();
    for index in 0..300 {
        let mut layer = Layer::default();
        layer.file(&format!("file-{index}"), "text");
        layer.file("last", &format!("{index}"));
        let mut tar = Vec::new();
        layer.write(&mut tar).unwrap();
        converted.add(&tar[..]).unwrap();
    }
    assert_eq!(converted.devices().unwrap().1.len(), 300);
    check(&converted).unwrap();
}

#[test]
fn access_control_lists_are_kept() {
    check(&Converted::of([&acls()[..]]).unwrap()).unwrap();
}

/// A file that one more user may read, and a directory that hands such a list on.
pub(crate) fn acls() -> Vec<u8> {
    let list = access_control_list();
    let mut layer = Layer::default();
    let file = layer.add("acl-file", 0o640, Content::File(b"text".to_vec()));
    file.xattrs
        .insert("system.posix_acl_access".to_owned(), list.clone());
    let directory = layer.directory("acl-directory");
    directory
        .xattrs
        .insert("system.posix_acl_default".to_owned(), list);
    let mut tar = Vec::new();
    layer.write(&mut tar).unwrap();
    tar
}

/// acl(5) in the kernel's form: version 2; tag, permissions and id of the owner, a user, the group, the
/// mask, others.
pub(crate) fn access_control_list() -> Vec<u8> {
    let entries = [
        (0x1, 6, u32::MAX),
        (0x2, 4, 1000),
        (0x4, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        list.extend_from_slice(&[tag, 0, permissions, 0]);
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

#[test]
fn a_flipped_bit_in_the_superblock_is_found() {
    let converted = Converted::image(Image::Layers).unwrap();
    let (metadata, blobs) = converted.devices().unwrap();
    let mut bytes = std::fs::read(&metadata).unwrap();
    bytes[1024 + 0x30] ^= 1; // In the UUID, which means nothing to anybody.
    std::fs::write(&metadata, bytes).unwrap();
    with_erofs(&metadata, &blobs, Listing::of).unwrap_err();
    fsck(&metadata, &blobs).unwrap_err();
}
