//! A read that was asked for, and what goes before its bytes.

use super::{
    fields::Writing,
    values::{DONE, Failure, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk},
};

/// A read of bytes that the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The client's own number of it.
    pub(super) cookie: u64,
    /// The first byte.
    pub offset: u64,
    /// How many, at least 1 and at most [`super::READ_BYTES_MAX`].
    pub bytes: u32,
    pub(super) is_structured: bool,
}

impl Read {
    /// What goes before that many bytes, which follow; they are those behind what was sent before.
    #[must_use]
    pub fn before_data(&self, offset: u64, bytes: u32) -> Vec<u8> {
        if self.is_structured {
            let flags = self.done(offset, bytes);
            let head = structured(self.cookie, chunk::OFFSET_DATA, flags, 8 + bytes);
            return head.u64(offset).done();
        }
        if offset != self.offset {
            return Vec::new();
        }
        simple(self.cookie, None)
    }

    /// What says that there are so many zeros; none where these have to be sent themselves.
    #[must_use]
    pub fn hole(&self, offset: u64, bytes: u32) -> Option<Vec<u8>> {
        if !self.is_structured {
            return None;
        }
        let flags = self.done(offset, bytes);
        let head = structured(self.cookie, chunk::OFFSET_HOLE, flags, 12);
        Some(head.u64(offset).u32(bytes).done())
    }

    /// What says that the bytes from there on cannot be had; none where the client can only be told by the end of the connection.
    #[must_use]
    pub fn failed(&self, offset: u64, why: Failure) -> Option<Vec<u8>> {
        (self.is_structured || offset == self.offset)
            .then(|| refusal(self.cookie, self.is_structured, why))
    }

    /// Whether nothing comes behind these.
    fn done(&self, offset: u64, bytes: u32) -> u16 {
        let is_last = offset + u64::from(bytes) == self.offset + u64::from(self.bytes);
        if is_last { DONE } else { 0 }
    }
}

/// The whole answer to a request that is not answered with what it asks for.
pub(super) fn refusal(cookie: u64, is_structured: bool, why: Failure) -> Vec<u8> {
    match is_structured {
        // Without a message: 32 bits of error, 16 of its length.
        true => structured(cookie, chunk::ERROR, DONE, 6)
            .u32(why.code())
            .u16(0)
            .done(),
        false => simple(cookie, Some(why)),
    }
}

fn simple(cookie: u64, why: Option<Failure>) -> Vec<u8> {
    let head = Writing::default().u32(SIMPLE_REPLY_MAGIC);
    head.u32(why.map_or(0, Failure::code)).u64(cookie).done()
}

fn structured(cookie: u64, kind: u16, flags: u16, bytes: u32) -> Writing {
    let head = Writing::default()
        .u32(STRUCTURED_REPLY_MAGIC)
        .u16(flags)
        .u16(kind);
    head.u64(cookie).u32(bytes)
}
