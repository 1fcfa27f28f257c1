//! The tar of a layer while it is read: unpacked by what it begins with, hashed before and after.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
};

use disk::Digest;
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use zstd::stream::Decoder;

use super::blob::Blob;
use crate::error::{Error, Result};

/// Length of an uncompressed layer: twice what its files may have.
pub(super) const BYTES_MAX: u64 = 128 << 30;

/// Hashes what is read.
struct Hashing<R> {
    source: R,
    hash: Sha256,
}

type Packed = BufReader<Hashing<Blob>>;

enum Unpacking {
    Plain(Packed),
    Gzip(Box<MultiGzDecoder<Packed>>),
    Zstd(Decoder<'static, Packed>),
}

/// An uncompressed layer. What is read counts only after [`LayerTar::judge`].
pub struct LayerTar {
    tar: Hashing<Unpacking>,
    read_bytes: u64,
    /// The image that it belongs to, for messages.
    image: String,
    blob: Digest,
    diff_id: Digest,
}

impl fmt::Debug for LayerTar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerTar")
            .field("image", &self.image)
            .field("blob", &self.blob)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

impl Read for Unpacking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(source) => source.read(buffer),
            Self::Zstd(source) => source.read(buffer),
        }
    }
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.tar.read(buffer)?;
        self.read_bytes += u64::try_from(count).expect("a length fits 64 bits");
        if self.read_bytes > BYTES_MAX {
            return Err(io::Error::other("more than 128 GiB in a layer"));
        }
        Ok(count)
    }
}

impl LayerTar {
    /// Of a blob: what its first bytes say goes, as in containerd, not its media type.
    pub(super) fn new(
        image: String,
        bytes: Blob,
        blob: Digest,
        diff_id: Digest,
    ) -> io::Result<Self> {
        let mut packed = BufReader::with_capacity(
            128 << 10,
            Hashing {
                source: bytes,
                hash: Sha256::new(),
            },
        );
        let unpacking = match packed.fill_buf()? {
            [0x1f, 0x8b, ..] => Unpacking::Gzip(Box::new(MultiGzDecoder::new(packed))),
            // A frame, or one to skip that comes before it (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Unpacking::Zstd(Decoder::with_buffer(packed)?)
            }
            _ => Unpacking::Plain(packed),
        };
        Ok(Self {
            tar: Hashing {
                source: unpacking,
                hash: Sha256::new(),
            },
            read_bytes: 0,
            image,
            blob,
            diff_id,
        })
    }

    /// What was made of the tar, if the tar is the one that the image names. It is read to its end.
    ///
    /// # Errors
    /// [`Error::Image`] for another blob or another layer; else the error of what was made.
    pub fn judge<T>(mut self, made: Result<T>) -> Result<T> {
        let rest = match &made {
            Ok(_) => io::copy(&mut self, &mut io::sink()),
            Err(_) => Ok(0),
        };
        let packed = match &mut self.tar.source {
            Unpacking::Plain(packed) => packed,
            Unpacking::Gzip(source) => source.get_mut(),
            Unpacking::Zstd(source) => source.get_mut(),
        };
        // What is wrong with a layer may be said better of all of its blob, for which not much is fetched.
        let is_whole = made.is_ok() || packed.get_ref().source.is_soon_read();
        let drained = match is_whole {
            true => io::copy(packed, &mut io::sink()),
            false => Ok(0),
        };
        let found = Digest(packed.get_mut().hash.finalize_reset().into());
        let blob = self.blob;
        let not = |what: String| Error::Image {
            image: self.image.clone(),
            what,
        };
        // Bytes that are not the blob's explain whatever else is wrong with them.
        if is_whole && drained.is_ok() && found != blob {
            return Err(not(format!(
                "blob sha256:{blob} is damaged, its digest is sha256:{found}"
            )));
        }
        let made = made?;
        rest.and(drained)
            .map_err(|error| not(format!("blob sha256:{blob} cannot be unpacked: {error}")))?;
        let found = Digest(self.tar.hash.finalize_reset().into());
        if found != self.diff_id {
            return Err(not(format!(
                "layer sha256:{} is sha256:{found} in blob sha256:{blob}",
                self.diff_id
            )));
        }
        Ok(made)
    }
}
