//! An object of a bucket whose bytes are read one behind the other: one request, of which no more is in memory than what is read at
//! once.

use std::{fmt, future::poll_fn, io, pin::Pin};

use futures_core::Stream;
use hyper::body::Bytes;
use object_store::{GetResult, ObjectMeta};
use snapshot_core::one_line;

use super::{name::Name, objects::Objects};
use crate::error::Result;

/// Digits of what stands for the bucket's own tag, which may have signs that ours may not.
const TAG_DIGITS: usize = 16;

/// The object, from the byte on that is read next.
pub(super) struct Streamed {
    objects: Objects,
    name: Name,
    meta: ObjectMeta,
    /// The next byte.
    at: u64,
    stream: Pin<Box<dyn Stream<Item = object_store::Result<Bytes>> + Send>>,
    /// What has come and was not read yet.
    rest: Bytes,
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed")
            .field("name", &self.name)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Streamed {
    /// The object, if it is there.
    ///
    /// # Errors
    /// What the bucket answers.
    pub(super) fn begin(objects: &Objects, name: Name) -> Result<Option<Self>> {
        let begun = objects.begin(&name.to_string(), 0, None)?;
        Ok(begun.map(|answer| {
            let meta = answer.meta.clone();
            Self {
                objects: objects.clone(),
                name,
                meta,
                at: 0,
                stream: answer.into_stream(),
                rest: Bytes::new(),
            }
        }))
    }

    /// Length of the whole.
    pub(super) fn bytes(&self) -> u64 {
        self.meta.size
    }

    /// What changes when the object is written anew.
    pub(super) fn written(&self) -> String {
        match &self.meta.e_tag {
            Some(tag) => {
                let mut digits = blake3::hash(tag.as_bytes()).to_hex().to_string();
                digits.truncate(TAG_DIGITS);
                digits
            }
            None => format!("{:x}", self.meta.last_modified.timestamp_millis()),
        }
    }

    /// So many bytes from there on; from another place than the last one, it is asked for again.
    ///
    /// # Errors
    /// What the bucket answers, that it has no more, and that it is another by now.
    pub(super) fn read(&mut self, at: u64, count: usize) -> io::Result<Vec<u8>> {
        if at != self.at {
            let answer = self.again(at)?;
            self.stream = answer.into_stream();
            self.rest = Bytes::new();
            self.at = at;
        }
        let mut read = Vec::with_capacity(count);
        while read.len() < count {
            if self.rest.is_empty() {
                let stream = &mut self.stream;
                let next = poll_fn(|context| stream.as_mut().poll_next(context));
                let next = self
                    .objects
                    .in_time(async { next.await.transpose() })
                    .map_err(|error| io::Error::other(one_line(&error)))?;
                self.rest = next.ok_or(io::ErrorKind::UnexpectedEof)?;
            }
            let some = self.rest.len().min(count - read.len());
            read.extend_from_slice(&self.rest.split_to(some));
            self.at += some as u64;
        }
        Ok(read)
    }

    fn again(&self, at: u64) -> io::Result<GetResult> {
        let begun = self
            .objects
            .begin(&self.name.to_string(), at, self.meta.e_tag.as_deref());
        match begun {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(io::Error::other(one_line(&error))),
        }
    }
}
