//! Modules as a guest's agent loads them, whatever a distribution packed them with (kmod's suffixes, depmod(8)).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use lzma_rust2::XzReader;

/// How large one unpacked module may be: the largest of Debian's has 10 MiB.
const BYTES_MAX: u64 = 64 << 20;

/// A module's file name without what says how it is packed, and that.
pub(super) fn split(name: &str) -> (&str, Packing) {
    let packings = [
        (".gz", Packing::Gzip),
        (".xz", Packing::Xz),
        (".zst", Packing::Zstd),
    ];
    let mut found = packings
        .into_iter()
        .filter_map(|(suffix, packing)| Some((name.strip_suffix(suffix)?, packing)));
    found.next().unwrap_or((name, Packing::None))
}

/// How a module is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// The contents of a module's file, unpacked.
///
/// # Errors
/// What reading says; `FileTooLarge` for one that would not end.
pub(super) fn read(path: &Path, packing: Packing) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    match packing {
        Packing::None => bounded(file),
        Packing::Gzip => bounded(flate2::read::MultiGzDecoder::new(file)),
        Packing::Xz => bounded(XzReader::new(io::BufReader::new(file), true)),
        Packing::Zstd => bounded(zstd::Decoder::new(file)?),
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()).is_ok_and(|length| length <= BYTES_MAX) {
        true => Ok(bytes),
        false => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// `a module` and a line end, by xz 5.4 with the kernel's `--check=crc32 --lzma2=dict=1MiB`.
    const XZ: &[u8] = b"\xfd7zXZ\x00\x00\x01i\x22\xde6\x02\x00!\x01\x10\x00\x00\x00\xa8p\x8e\x86\x01\x00\x08a module\x0a\x00\x00\x00\x00.\xb6e\xce\x00\x01\x1d\x09\x93a6\xa6\x90B\x99\x0d\x01\x00\x00\x00\x00\x01YZ";

    #[test]
    fn a_module_is_the_same_however_it_was_packed() {
        let directory = tempfile::tempdir().unwrap();
        let text = b"a module\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        let files: [(&str, &[u8]); 4] = [
            ("m.ko", text),
            ("m.ko.gz", &gzip.finish().unwrap()),
            ("m.ko.xz", XZ),
            ("m.ko.zst", &zstd),
        ];
        for (name, packed) in files {
            let path = directory.path().join(name);
            std::fs::write(&path, packed).unwrap();
            let (plain, packing) = split(name);
            assert_eq!(plain, "m.ko");
            assert_eq!(read(&path, packing).unwrap(), text, "{name}");
            if packing != Packing::None {
                std::fs::write(&path, &packed[..packed.len() - 1]).unwrap();
                assert!(read(&path, packing).is_err(), "{name} cut short");
            }
        }
    }

    #[test]
    fn what_does_not_end_is_not_read_to_its_end() {
        let error = bounded(io::repeat(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
