//! Tars that are damaged, hostile or too large: each with the words its owner reads.

use disk::{Error, Limits};

use super::{
    accepted::old_gnu_sparse,
    tarball::{Entry, directory, entry, file, link, read, read_limited, record, tar},
};

fn check(entries: &[Entry], expected: &str) {
    check_tar(&tar(entries), expected);
}

fn check_tar(tar: &[u8], expected: &str) {
    assert_eq!(read(tar).unwrap_err().to_string(), expected);
}

#[test]
fn paths_do_not_leave_the_image() {
    check(&[file("../x", "")], "../x: a path with ..");
    check(&[file("a/../../x", "")], "a/../../x: a path with ..");
    check(&[directory("..")], "..: a path with ..");
    check(&[link(b'1', "x", "../../etc/shadow")], "/x: a path with ..");
    check(
        &[link(b'2', "d", "/etc"), file("d/passwd", "")],
        "/d/passwd: a path through a symbolic link of its own layer",
    );
    check(
        &[link(b'2', "d", "/etc"), link(b'1', "x", "d/shadow")],
        "/x: a hard link to a path below what is no directory",
    );
    check(
        &[file("x", "").pax("path", b"a\0b")],
        "a\\u{0}b: a path with a NUL byte",
    );
    check(
        &[file("x", "").pax("path", &[b'n'; 256])],
        &format!("{}: a name of more than 255 bytes", "n".repeat(256)),
    );
}

#[test]
fn a_path_is_one_thing() {
    check(
        &[file("x", "1"), file("./x", "2")],
        "/x: a path that the layer has twice",
    );
    check(
        &[directory("x"), file("x", "")],
        "/x: a path that the layer has twice",
    );
    check(
        &[file("x", ""), directory("x")],
        "/x: a directory where its own layer has a file",
    );
    check(
        &[file("x", ""), file("x/y", "")],
        "/x/y: a directory where its own layer has a file",
    );
    check(
        &[file("x/y", ""), file("x", "")],
        "/x: a path that the layer has twice",
    );
    check(
        &[file("/", "")],
        "/: the root of an image that is no directory",
    );
}

#[test]
fn hard_links_lead_to_files_that_came_before() {
    check(
        &[link(b'1', "a", "b"), link(b'1', "b", "a")],
        "/b: the target of a hard link that comes before it",
    );
    check(
        &[link(b'1', "a", "a")],
        "/a: the target of a hard link that comes before it",
    );
    check(
        &[link(b'1', "a", "b"), file("b", "")],
        "/b: the target of a hard link that comes before it",
    );
    check(
        &[directory("d"), link(b'1', "a", "d")],
        "/a: a hard link to a directory",
    );
}

#[test]
fn whiteouts_are_empty_files_that_name_something() {
    check(&[file(".wh.", "")], "/.wh.: a whiteout of nothing");
    check(&[file("d/.wh..", "")], "/d/.wh..: a whiteout of nothing");
    check(&[file(".wh...", "")], "/.wh...: a whiteout of nothing");
    check(
        &[file(".wh.x", "data")],
        "/.wh.x: a whiteout that is no empty file",
    );
    check(
        &[directory(".wh.x")],
        "/.wh.x: a whiteout that is no empty file",
    );
    check(
        &[file("d/.wh..wh..opq", "data")],
        "/d/.wh..wh..opq: a whiteout that is no empty file",
    );
    check(
        &[file(".wh.d/x", "")],
        "/.wh.d/x: an entry below a whiteout",
    );
    check(
        &[file("d", ""), file("d/.wh.x", "")],
        "/d: a directory where its own layer has a file",
    );
}

#[test]
fn what_linux_or_the_disk_cannot_hold_is_said() {
    let device = |flag, major, minor| Entry {
        device: (major, minor),
        ..entry(flag, "dev")
    };
    check(
        &[device(b'3', 4096, 0)],
        "/dev: a device number that Linux does not have",
    );
    check(
        &[device(b'4', 0, 1 << 20)],
        "/dev: a device number that Linux does not have",
    );
    check(&[device(b'3', 0, 0)], "/dev: a character device 0:0");
    check(&[link(b'2', "l", "")], "/l: a symbolic link to nothing");
    check(
        &[link(b'2', "l", "x").pax("linkpath", &[b'x'; 4096])],
        "/l: a symbolic link of more than 4095 bytes",
    );
    let owner = "tar header at byte 1024: its owner is no user or group of Linux";
    check(&[file("x", "").pax("uid", b"4294967295")], owner);
    check(&[file("x", "").pax("gid", b"4294967296")], owner);
    check(&[file("x", "").pax("gid", b"-1")], owner);
    let xattr =
        |name: &str, value: &[u8]| [directory("d").pax(&format!("SCHILY.xattr.{name}"), value)];
    check(
        &xattr("user.x", &[0; 65536]),
        "/d: an extended attribute of 64 KiB or more",
    );
    check(
        &xattr("trusted.overlay.opaque", b"y"),
        "/d: an extended attribute of overlayfs itself",
    );
    let error = read(&tar(&xattr("trusted.overlay.redirect", b"/etc"))).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let many: Vec<String> = (0..5)
        .map(|index| format!("SCHILY.xattr.user.{index}"))
        .collect();
    let many = many
        .iter()
        .fold(directory("d"), |it, name| it.pax(name, &[0; 60_000]));
    check(&[many], "/d: extended attributes of more than 256 KiB");
}

#[test]
fn damaged_headers_say_where_they_are() {
    check_tar(
        &[1; 512],
        "tar header at byte 0: its checksum is wrong, or this is no tar",
    );
    check_tar(
        &[1; 100],
        "tar header at byte 100: the tar ends within a block",
    );
    let good = tar(&[file("x", "data")]);
    check_tar(
        &good[..600],
        "tar header at byte 600: the tar ends within a block",
    );
    check_tar(
        &good[..514],
        "tar header at byte 514: the tar ends within a file",
    );
    let mut flipped = good.clone();
    flipped[1] ^= 1;
    check_tar(
        &flipped,
        "tar header at byte 0: its checksum is wrong, or this is no tar",
    );
    let mut behind_zeros = good[..1024].to_vec();
    behind_zeros.extend_from_slice(&[0; 512]);
    behind_zeros.extend_from_slice(&good);
    check_tar(
        &behind_zeros,
        "tar header at byte 1024: a block of zeros between two entries",
    );
    check(
        &[entry(b'x', "pax").data(&record("path", b"y"))],
        "tar header at byte 1536: the tar ends after an extended header",
    );
    check(
        &[entry(b'x', "pax").data(b"99 path=y\n")],
        "tar header at byte 0: a record of its PAX header is longer than the header",
    );
    check(
        &[entry(b'M', "x")],
        "tar header at byte 0: an entry of a type that no image has",
    );
    let global = |key: &str| entry(b'g', "global").data(&record(key, b"1"));
    check(
        &[global("path")],
        "tar header at byte 0: a global header that gives all files one name or size",
    );
    check(
        &[global("GNU.sparse.size")],
        "tar header at byte 0: a global header that makes all files sparse",
    );
    let long = |key: &str| entry(b'g', "global").data(&record(key, &[1; 3000]));
    check(
        &[long("a"), long("b")],
        "tar header at byte 3584: global headers of more than 4 KiB",
    );
    check(
        &[file("x", "").pax("size", b"x")],
        "tar header at byte 1024: its size is no number",
    );
    check(
        &[file("x", "").pax("mtime", b"now")],
        "tar header at byte 1024: its time is no number",
    );
}

#[test]
fn sparse_maps_with_two_meanings_are_refused() {
    let sparse = |map: &[u8]| {
        [file("x", "")
            .data(&[1; 1024])
            .pax("GNU.sparse.size", b"8192")
            .pax("GNU.sparse.map", map)]
    };
    let at = "tar header at byte 1024: ";
    let ends = format!("{at}its sparse map has a piece that ends within a block");
    check(&sparse(b"0,500,4096,524"), &ends);
    check(
        &sparse(b"4096,512,0,512"),
        &format!("{at}its sparse map is out of order"),
    );
    check(
        &sparse(b"0,1024,4096"),
        &format!("{at}its sparse map has an offset without a length"),
    );
    check(
        &sparse(b"0,512"),
        &format!("{at}its sparse map tells another length than the header"),
    );
    check(
        &sparse(b"8192,1024"),
        &format!("{at}its sparse map reaches beyond the file"),
    );
    let version = file("x", "")
        .pax("GNU.sparse.major", b"2")
        .pax("GNU.sparse.minor", b"0");
    check(
        &[version],
        &format!("{at}a sparse file of an unknown version"),
    );
    let endless = file("x", "")
        .data(&[b'1'; 4096])
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0");
    check(
        &[endless],
        &format!("{at}its sparse map has what is no number"),
    );
    let old = old_gnu_sparse("x", 100, &[(0, 512)], &[1; 512]);
    check_tar(
        &old,
        "tar header at byte 0: its sparse map reaches beyond the file",
    );
}

#[test]
fn bombs_meet_a_limit_before_they_take_memory_or_disk() {
    let limits = Limits {
        entries_max: 3,
        metadata_bytes_max: 4096,
        header_bytes_max: 1000,
        blob_bytes_max: 16384,
    };
    let check = |entries: &[Entry], expected: &str| {
        let error = read_limited(&tar(entries), &limits).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error:?}");
        assert_eq!(error.to_string(), expected);
    };
    let names = ["a", "b", "c", "d"];
    check(
        &names.map(|name| file(name, "")),
        "more than 3 entries in a layer",
    );
    let deep = "d/".repeat(49);
    check(
        &[directory(&deep)],
        "more than 4096 bytes of names and attributes in a layer",
    );
    let header = "more than 1000 bytes of an extended header in a layer";
    check(&[file("x", "").pax("path", &[b'n'; 1000])], header);
    check(&[entry(b'L', "x").data(&[b'n'; 1001])], header);
    let map = b"1000000\n".to_vec();
    let sparse = file("x", "")
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0");
    let mut padded = map;
    padded.resize(512, 0);
    check(&[sparse.data(&padded)], header);
    let blob = "more than 16384 bytes of files in a layer";
    check(&[file("x", "").data(&[1; 16385])], blob);
    check(
        &["a", "b", "c"].map(|name| file(name, "").data(&[1; 5000])),
        blob,
    );
    let hole = file("x", "")
        .pax("GNU.sparse.size", b"1000000000000")
        .pax("GNU.sparse.map", b"1000000000000,0");
    check(&[hole], blob);
}

#[test]
fn a_failing_source_and_a_full_disk_are_told_apart() {
    use std::io::{Cursor, Read};
    let good = tar(&[file("x", "data")]);
    let broken = good[..512].chain(Broken);
    let error = disk::Layer::read(broken, Cursor::new(Vec::new()), &Limits::GENEROUS).unwrap_err();
    assert!(
        matches!(error, Error::Read { offset: 512, .. }),
        "{error:?}"
    );
    let full = Cursor::new([0_u8; 100]);
    let mut full = full;
    let error = disk::Layer::read(
        &good[..],
        Cursor::new(&mut full.get_mut()[..]),
        &Limits::GENEROUS,
    );
    assert!(matches!(error, Err(Error::Write(_))), "{error:?}");
}

/// Fails whatever is asked.
struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _buffer: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::ConnectionReset.into())
    }
}
