//! A directory with something of everything, through GNU tar in each of its formats and back: the disk
//! shows the directory.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt, chown, symlink},
    path::Path,
};

use anyhow::Result;
use integration::{
    listing::Listing,
    process::{command, output_of},
    wait::SOON,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::{converted::Converted, kernel, mounted::with_erofs};

/// A sparse file: two pieces in three megabytes, and a hole at the end.
const SPARSE_BYTES: u64 = 3 << 20;

/// Makes the directory. `time` is what touch(1) takes.
fn make(root: &Path, time: &str) -> Result<()> {
    fs::create_dir_all(root.join("d/e"))?;
    fs::write(root.join("file"), "text")?;
    fs::write(root.join("empty"), "")?;
    fs::hard_link(root.join("file"), root.join("d/hard"))?;
    symlink("../file", root.join("d/symlink"))?;
    symlink("t".repeat(4000), root.join("long-symlink"))?;
    fs::hard_link(root.join("d/symlink"), root.join("hard-symlink"))?;
    fs::write(root.join("n".repeat(255)), "long")?;
    let deep = root.join("deep/".repeat(60));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("ünïcode\n"), "deep")?;
    fs::create_dir(root.join("many"))?;
    for index in 0..2000 {
        fs::write(root.join(format!("many/file-{index}")), format!("{index}"))?;
    }
    let sparse = File::create(root.join("sparse"))?;
    sparse.write_all_at(&[7; 5000], 1 << 20)?;
    sparse.write_all_at(b"x", 2 << 20)?;
    sparse.set_len(SPARSE_BYTES)?;
    File::create(root.join("hole"))?.set_len(1 << 20)?;
    let all = Mode::from_bits_truncate(0o640);
    mknod(&root.join("fifo"), SFlag::S_IFIFO, all, 0)?;
    mknod(
        &root.join("character"),
        SFlag::S_IFCHR,
        all,
        makedev(10, 300),
    )?;
    mknod(
        &root.join("block"),
        SFlag::S_IFBLK,
        all,
        makedev(300, 70_000),
    )?;
    chown(root.join("file"), Some(70_000), Some(4_000_000_000))?;
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o6755))?;
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o1777))?;
    let set = |path: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join(path), name, value, flags)
    };
    set("file", "user.text", b"1\n=\0")?;
    set(
        "file",
        "security.capability",
        &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )?;
    set("d", "trusted.empty", b"")?;
    let touch = "find \"$1\" -exec touch -h -d \"$2\" {} +";
    output_of(
        command("sh").args(["-c", touch, "sh"]).arg(root).arg(time),
        SOON,
    )?;
    Ok(())
}

/// A layer of it.
pub(crate) fn tar(root: &Path, flags: &[&str]) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    let mut tar = command("tar");
    tar.args(flags)
        .arg("-cf")
        .arg(file.path())
        .arg("-C")
        .arg(root)
        .arg(".");
    output_of(&mut tar, SOON)?;
    Ok(fs::read(file.path())?)
}

/// Some file systems do not count directories in directories.
fn comparable(mut listing: Listing) -> Listing {
    for facts in listing.entries.values_mut() {
        if facts.mode & 0o170_000 == 0o040_000 {
            facts.links = 0;
        }
    }
    listing
}

fn check(flags: &[&str], time: &str, has_xattrs: bool) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root");
    make(&root, time)?;
    let mut expected = comparable(Listing::of(&root)?);
    if !has_xattrs {
        expected
            .entries
            .values_mut()
            .for_each(|facts| facts.xattrs.clear());
    }
    let converted = Converted::of([&tar(&root, flags)?[..]])?;
    kernel::check(&converted)?;
    let (metadata, blobs) = converted.devices()?;
    let seen = comparable(with_erofs(&metadata, &blobs, Listing::of)?);
    let lines = expected.differences(&seen);
    anyhow::ensure!(lines.is_empty(), "{flags:?}:\n{}", lines.join("\n"));
    Ok(())
}

/// What a later disk has on top, for kernels elsewhere.
pub(crate) fn everything() -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root");
    make(&root, "1960-01-02 03:04:05.000000006")?;
    tar(
        &root,
        &[
            "--format=posix",
            "--sparse",
            "--xattrs",
            "--xattrs-include=*",
        ],
    )
}

const XATTRS: [&str; 2] = ["--xattrs", "--xattrs-include=*"];

#[test]
fn a_pax_tar_of_gnu_tar_looks_as_the_directory() {
    let flags = [&["--format=posix"][..], &XATTRS].concat();
    check(&flags, "1960-01-02 03:04:05.000000006", true).unwrap();
}

#[test]
fn sparse_files_of_gnu_tar_look_as_the_directory() {
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        let flags = [&["--format=posix", "--sparse", &version][..], &XATTRS].concat();
        check(&flags, "2038-01-20 00:00:00.5", true).unwrap();
    }
}

#[test]
fn a_gnu_tar_with_its_old_sparse_files_looks_as_the_directory() {
    check(&["--format=gnu"], "2106-02-08 00:00:00", false).unwrap();
    check(&["--format=gnu", "--sparse"], "1970-01-01 00:00:00", false).unwrap();
    check(
        &["--format=oldgnu", "--sparse"],
        "1969-12-31 23:59:59",
        false,
    )
    .unwrap();
}

/// No sparse file has an address for its holes, so nothing is asked for them.
#[test]
fn holes_are_holes_to_the_kernel() {
    let converted = Converted::of([&everything().unwrap()[..]]).unwrap();
    let (metadata, blobs) = converted.devices().unwrap();
    let holes = |root: &Path| {
        let file = File::open(root.join("sparse"))?;
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0))?;
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data))?;
        Ok((data, hole, fs::metadata(root.join("hole"))?.len()))
    };
    let seen = with_erofs(&metadata, &blobs, holes).unwrap();
    assert_eq!(seen, (1 << 20, (1 << 20) + 8192, 1 << 20));
}
