//! The bytes of a blob as they come: of a file, or of a registry.

use std::io::{self, Read};

use super::{download::Download, section::Section};

/// Bytes of a registry that are fetched although they are of no use.
const SOON_BYTES_MAX: u64 = 4 << 20;

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

    /// Whether what is left is here, or takes little to be fetched.
    pub(super) fn is_soon_read(&self) -> bool {
        match self {
            Self::Section(_) => true,
            Self::Download(download) => download.left() <= SOON_BYTES_MAX,
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
