//! A part of a file, read from its beginning to its end and never beyond.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

/// What is left of it.
#[derive(Debug)]
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Section {
    pub(super) fn new(file: Arc<File>, offset: u64, bytes: u64) -> Self {
        Self {
            file,
            offset,
            left: bytes,
        }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let read = u64::try_from(count).expect("a length fits 64 bits");
        self.offset += read;
        self.left -= read;
        Ok(count)
    }
}
