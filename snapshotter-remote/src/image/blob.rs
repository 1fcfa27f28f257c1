//! The bytes of a blob as they come: of a file, or of a registry.

use std::io::{self, Read};

use super::{download::Download, section::Section};

/// What is left of it.
#[derive(Debug)]
pub(super) enum Blob {
    Section(Section),
    Download(Box<Download>),
}

impl Blob {
    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        match self {
            Self::Section(section) => section.left(),
            Self::Download(download) => download.left(),
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Section(section) => section.read(buffer),
            Self::Download(download) => download.read(buffer),
        }
    }
}
