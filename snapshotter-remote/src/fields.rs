//! Fixed fields of bytes from outside, read one after the other; must not allocate by what they say.

use crate::error::{Error, Result};

/// What is left of an object.
#[derive(Debug)]
pub(crate) struct Fields<'b> {
    /// What it is, for messages.
    object: &'b str,
    rest: &'b [u8],
}

impl<'b> Fields<'b> {
    pub(crate) fn new(object: &'b str, bytes: &'b [u8]) -> Self {
        Self {
            object,
            rest: bytes,
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.damaged("it ends too early"))?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn number(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// How many of something follow, each of at least so many bytes: more than there are bytes for is
    /// an error before anything is made ready for them.
    pub(crate) fn count(&mut self, each_bytes: usize) -> Result<usize> {
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if count > self.rest.len() / each_bytes {
            return Err(self.damaged("it says more than it has"));
        }
        Ok(count)
    }

    /// So many bytes as the number before them says.
    pub(crate) fn bytes(&mut self) -> Result<&'b [u8]> {
        let count = self.count(1)?;
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(bytes)
    }

    /// Everything has been read.
    pub(crate) fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.damaged("more follows than it says"))
    }

    pub(crate) fn damaged(&self, what: &'static str) -> Error {
        Error::damaged(self.object, what)
    }

    pub(crate) fn object(&self) -> &'b str {
        self.object
    }
}

/// A length as it is written.
pub(crate) fn count(length: usize) -> [u8; 4] {
    let count = u32::try_from(length).expect("lists are shorter than their limits");
    count.to_le_bytes()
}
