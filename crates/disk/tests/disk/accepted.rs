//! What tars of all kinds say, and what is read of it.

use super::tarball::{Entry, directory, entry, file, link, listing, read, record, tar, tree};

fn check(entries: &[Entry], expected: &str) {
    check_tar(tar(entries), expected);
}

fn check_tar(tar: Vec<u8>, expected: &str) {
    let (tree, blobs) = tree(&[tar]).unwrap();
    assert_eq!(
        listing(&tree, &blobs),
        format!("/ 755 0:0 directory\n{expected}")
    );
}

#[test]
fn every_type_of_entry_is_taken() {
    let entries = [
        file("file", "text"),
        file("empty", ""),
        entry(0, "old").data(b"old"),
        entry(0, "old-directory/"),
        entry(b'7', "contiguous").data(b"7"),
        link(b'2', "symlink", "/a/../b//"),
        link(b'1', "hard", "./file"),
        link(b'1', "hard-symlink", "symlink"),
        directory("directory/"),
        entry(b'6', "fifo"),
        Entry {
            device: (1, 3),
            ..entry(b'3', "null")
        },
        Entry {
            device: (4095, 1_048_575),
            ..entry(b'4', "block")
        },
        Entry {
            device: (0, 0),
            ..entry(b'4', "block0")
        },
    ];
    check(
        &entries,
        "/block 644 0:0 block 4095:1048575\n\
         /block0 644 0:0 block 0:0\n\
         /contiguous 644 0:0 file \"7\"\n\
         /directory 755 0:0 directory\n\
         /empty 644 0:0 file \"\"\n\
         /fifo 644 0:0 fifo\n\
         /file 644 0:0 file \"text\"\n\
         /hard is /file\n\
         /hard-symlink 777 0:0 -> /a/../b//\n\
         /null 644 0:0 character 1:3\n\
         /old 644 0:0 file \"old\"\n\
         /old-directory 644 0:0 directory\n\
         /symlink is /hard-symlink\n",
    );
}

#[test]
fn records_of_an_extended_header_win_over_the_header() {
    let long = "n".repeat(200);
    let entries = [
        file("x", "1234")
            .pax("path", format!("d/{long}").as_bytes())
            .pax("uid", b"4294967294")
            .pax("gid", b"70000")
            .pax("mtime", b"-1.25")
            .pax("SCHILY.xattr.user.a", b"1\n=\0")
            .pax("SCHILY.xattr.user.empty", b"")
            .pax("SCHILY.xattr.com.apple.quarantine", b"left out")
            .pax("comment", b"nothing"),
        Entry {
            mode: 0o106_755,
            mtime: 5,
            ..file("set-id", "")
        },
        link(b'2', "l", "short").pax("linkpath", b"record"),
    ];
    check(
        &entries,
        &format!(
            "/d 755 0:0 directory\n\
             /d/{long} 644 4294967294:70000 @-2.750000000 user.a=1\\n=\\x00 user.empty= file \"1234\"\n\
             /l 777 0:0 -> record\n\
             /set-id 6755 0:0 @5.000000000 file \"\"\n"
        ),
    );
}

#[test]
fn a_global_header_counts_for_what_follows_and_makes_no_file() {
    let global = [record("mtime", b"7"), record("comment", b"of git")].concat();
    let entries = [
        file("before", ""),
        entry(b'g', "pax_global_header").data(&global),
        file("after", ""),
        file("own", "").pax("mtime", b"8"),
        file("none", "").pax("mtime", b""),
    ];
    check(
        &entries,
        "/after 644 0:0 @7.000000000 file \"\"\n\
         /before 644 0:0 file \"\"\n\
         /none 644 0:0 file \"\"\n\
         /own 644 0:0 @8.000000000 file \"\"\n",
    );
}

#[test]
fn long_names_of_gnu_and_of_ustar_are_whole() {
    let (long, target) = ("l".repeat(150), "t".repeat(150));
    let entries = [
        entry(b'L', "././@LongLink").data(format!("{long}\0").as_bytes()),
        entry(b'K', "././@LongLink").data(format!("{target}\0").as_bytes()),
        link(b'2', "cut", "cut"),
        file("x", ""),
    ];
    check(
        &entries,
        &format!("/{long} 777 0:0 -> {target}\n/x 644 0:0 file \"\"\n"),
    );
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o600);
    header.set_mtime(0);
    let path = format!("{}/{}", "d".repeat(120), "n".repeat(90));
    builder.append_data(&mut header, &path, &b""[..]).unwrap();
    check_tar(
        builder.into_inner().unwrap(),
        &format!(
            "/{} 755 0:0 directory\n/{path} 600 0:0 file \"\"\n",
            "d".repeat(120)
        ),
    );
}

#[test]
fn numbers_beyond_octal_are_read() {
    let mut bytes = Vec::new();
    let mut header = file("x", "").header();
    header[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    header[136..148].copy_from_slice(&[0xff; 12]);
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.extend_from_slice(&header);
    // Without the blocks of zeros that should end it.
    check_tar(bytes, "/x 644 4294967294:0 @-1.000000000 file \"\"\n");
}

/// 40 KiB with data at 8192 (512 bytes) and at 20480 (600 bytes).
const SPARSE: &str = " 644 0:0 file of 40960 bytes data [2..3, 5..6]\n";

fn sparse_data() -> Vec<u8> {
    [[b'a'; 512].to_vec(), [b'b'; 600].to_vec()].concat()
}

#[test]
fn sparse_files_of_all_four_kinds_are_the_same() {
    let data = sparse_data();
    let gnu_0_0 = file("x", "")
        .data(&data)
        .pax("GNU.sparse.size", b"40960")
        .pax("GNU.sparse.numblocks", b"2")
        .pax("GNU.sparse.offset", b"8192")
        .pax("GNU.sparse.numbytes", b"512")
        .pax("GNU.sparse.offset", b"20480")
        .pax("GNU.sparse.numbytes", b"600");
    let gnu_0_1 = file("GNUSparseFile.1/x", "")
        .data(&data)
        .pax("GNU.sparse.size", b"40960")
        .pax("GNU.sparse.map", b"8192,512,20480,600")
        .pax("GNU.sparse.name", b"x");
    let mut with_map = b"3\n8192\n512\n20480\n600\n40960\n0\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(&data);
    let gnu_1_0 = file("GNUSparseFile.1/x", "")
        .data(&with_map)
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.name", b"x")
        .pax("GNU.sparse.realsize", b"40960");
    for sparse in [gnu_0_0, gnu_0_1, gnu_1_0] {
        check(
            &[sparse, file("y", "behind")],
            &format!("/x{SPARSE}/y 644 0:0 file \"behind\"\n"),
        );
    }
    let old = [
        old_gnu_sparse("x", 40960, &[(8192, 512), (20480, 600)], &data),
        tar(&[]),
    ]
    .concat();
    check_tar(old.clone(), &format!("/x{SPARSE}"));
    let (_, blob) = read(&old).unwrap();
    let mut expected = vec![0; 40960];
    expected[8192..8704].fill(b'a');
    expected[20480..21080].fill(b'b');
    assert_eq!(blob, expected);
}

/// Type `S`, with as many blocks of further pieces as it takes.
pub(crate) fn old_gnu_sparse(
    name: &str,
    bytes: u64,
    pieces: &[(u64, u64)],
    data: &[u8],
) -> Vec<u8> {
    let pair = |&(offset, length): &(u64, u64)| format!("{offset:011o}\0{length:011o}\0");
    let mut header = entry(b'S', name).data(data).header();
    header[257..265].copy_from_slice(b"ustar  \0");
    header[345..].fill(0);
    let here: String = pieces.iter().take(4).map(pair).collect();
    header[386..386 + here.len()].copy_from_slice(here.as_bytes());
    header[482] = u8::from(pieces.len() > 4);
    header[483..495].copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    let mut rest = pieces.get(4..).unwrap_or_default();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(21));
        let text: String = now.iter().map(pair).collect();
        let start = out.len();
        out.extend_from_slice(text.as_bytes());
        out.resize(start + 504, 0);
        out.push(u8::from(!later.is_empty()));
        out.resize(start + 512, 0);
        rest = later;
    }
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

#[test]
fn old_sparse_maps_go_on_in_further_blocks() {
    let pieces: Vec<(u64, u64)> = (0..60).map(|index| (index * 8192, 512)).collect();
    let data = vec![b'x'; 60 * 512];
    let tar = [
        old_gnu_sparse("x", 60 * 8192, &pieces, &data),
        tar(&[file("y", "y")]),
    ]
    .concat();
    let (layer, blob) = read(&tar).unwrap();
    assert_eq!(layer.blob_blocks, 121);
    for (at, chunk) in blob[..120 * 4096].chunks(8192).enumerate() {
        assert_eq!(
            (chunk[0], chunk[511], chunk[512]),
            (b'x', b'x', 0),
            "piece {at}"
        );
    }
}

#[test]
fn a_sparse_file_takes_address_space_and_no_disk() {
    let mut blob = CountingDisk::default();
    let sparse = file("log", "")
        .pax("GNU.sparse.size", b"109951162777")
        .pax("GNU.sparse.map", b"109951162777,0");
    let tar = tar(&[sparse, file("x", "x")]);
    let layer = disk::Layer::read(&tar[..], &mut blob, &disk::Limits::GENEROUS).unwrap();
    assert_eq!(
        u64::from(layer.blob_blocks),
        109_951_162_777_u64.div_ceil(4096) + 1
    );
    // One byte of a file, and one that gives the blob its length.
    assert_eq!(blob.written, 2);
}

/// Forgets what is written.
#[derive(Debug, Default)]
struct CountingDisk {
    at: u64,
    written: u64,
}

impl std::io::Write for CountingDisk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.at += bytes.len() as u64;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for CountingDisk {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let std::io::SeekFrom::Start(at) = to else {
            return Err(std::io::ErrorKind::Unsupported.into());
        };
        self.at = at;
        Ok(at)
    }
}

#[test]
fn the_source_is_read_to_its_end() {
    let mut tar = tar(&[file("x", "x")]);
    tar.extend_from_slice(&[7; 100_000]);
    let mut source = &tar[..];
    disk::Layer::read(
        &mut source,
        std::io::Cursor::new(Vec::new()),
        &disk::Limits::GENEROUS,
    )
    .unwrap();
    assert!(
        source.is_empty(),
        "{} bytes are left for the digest",
        source.len()
    );
}

#[test]
fn a_directory_may_come_twice_and_the_last_one_counts() {
    let again = Entry {
        mode: 0o700,
        ..directory("d")
    };
    check(
        &[directory("d"), file("d/x", ""), again],
        "/d 700 0:0 directory\n/d/x 644 0:0 file \"\"\n",
    );
}

#[test]
fn the_root_has_attributes_when_the_layer_says_so() {
    let root = Entry {
        mode: 0o1777,
        uid: 5,
        ..directory("./")
    };
    let (tree, blobs) = tree(&[tar(&[root])]).unwrap();
    assert_eq!(listing(&tree, &blobs), "/ 1777 5:0 directory\n");
}
