//! An archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
//! The same entries give the same bytes: owner, time and numbers come from here.

use std::io::{self, Write};

/// Type bits of a directory.
const DIRECTORY: u32 = 0o040_000;

/// Type bits of a regular file.
const REGULAR: u32 = 0o100_000;

/// Name of the last entry.
const TRAILER: &str = "TRAILER!!!";

/// Writes an archive.
#[derive(Debug)]
pub(crate) struct Cpio<W> {
    out: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    /// An empty one.
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a directory; those above it must be there.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a regular file.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | permissions, data)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::other(format!("{path} is too large for an initramfs"));
        let bytes = u32::try_from(data.len()).map_err(too_long)?;
        let name_bytes = u32::try_from(path.len() + 1).map_err(too_long)?;
        self.inode += 1;
        // inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum
        let fields = [
            self.inode, mode, 0, 0, 1, 0, bytes, 0, 0, 0, 0, name_bytes, 0,
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        header.extend_from_slice(path.as_bytes());
        header.push(0);
        self.write_padded(&header)?;
        self.write_padded(data)
    }

    fn write_padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        let padding = self.written.next_multiple_of(4) - self.written;
        self.out.write_all(&[0; 4][..padding])?;
        self.written += padding;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_these_bytes() {
        let mut archive = Cpio::new(Vec::new());
        archive.directory("d").unwrap();
        archive.file("d/f", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let zeros = |count| "00000000".repeat(count);
        let expected = [
            format!(
                "07070100000001000041ed{}00000001{}00000002{}d\0",
                zeros(2),
                zeros(6),
                zeros(1)
            ),
            format!(
                "07070100000002000081ed{}000000010000000000000005{}00000004{}d/f\0",
                zeros(2),
                zeros(4),
                zeros(1)
            ),
            "\0\0hello\0\0\0".to_owned(),
            format!(
                "0707010000000300000000{}00000001{}0000000b{}TRAILER!!!\0",
                zeros(2),
                zeros(6),
                zeros(1)
            ),
            "\0\0\0".to_owned(),
        ];
        assert_eq!(String::from_utf8(bytes).unwrap(), expected.concat());
    }
}
