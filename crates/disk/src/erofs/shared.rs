//! Extended attributes of inodes: what several have is stored once.

use std::collections::BTreeMap;

use crate::{
    attributes::Xattrs,
    xattr::{Split, entry_bytes, split},
};

/// An inode's header names its shared attributes in at most so many words.
const SHARED_MAX: usize = 255;
/// Bytes of that header (erofs_xattr_ibody_header).
const HEADER_BYTES: usize = 12;

/// A name, split, and its value.
type Attribute<'a> = (Split<'a>, &'a [u8]);

/// The attributes that more than one inode has.
#[derive(Debug, Default)]
pub(super) struct Shared<'a> {
    /// Where each lies, in words of 4 bytes.
    places: BTreeMap<Attribute<'a>, u32>,
    bytes: Vec<u8>,
}

fn attributes(xattrs: &Xattrs) -> impl Iterator<Item = Attribute<'_>> {
    let known = xattrs.iter();
    known.filter_map(|(name, value)| Some((split(name)?, &**value)))
}

impl<'a> Shared<'a> {
    /// Those that occur twice or more in all of these, in the order of names and values.
    pub(super) fn of(all: impl Iterator<Item = &'a Xattrs>) -> Self {
        let mut uses: BTreeMap<Attribute<'a>, u32> = BTreeMap::new();
        for attribute in all.flat_map(attributes) {
            *uses.entry(attribute).or_default() += 1;
        }
        let mut shared = Self::default();
        for (attribute, _) in uses.into_iter().filter(|&(_, count)| count > 1) {
            // A place is a 32-bit number; what lies further on is not shared.
            let Ok(place) = u32::try_from(shared.bytes.len() / 4) else {
                break;
            };
            encode_entry(attribute, &mut shared.bytes);
            shared.places.insert(attribute, place);
        }
        shared
    }

    /// All of them, one behind the other.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes behind an inode with these attributes.
    pub(super) fn bytes_of(&self, xattrs: &Xattrs) -> usize {
        if xattrs.is_empty() {
            return 0;
        }
        let (shared, own) = self.parts(xattrs);
        let own = own
            .iter()
            .map(|((_, rest), value)| entry_bytes(rest, value));
        HEADER_BYTES + shared.len() * 4 + own.sum::<usize>()
    }

    /// Those bytes.
    pub(super) fn encode(&self, xattrs: &Xattrs, out: &mut Vec<u8>) {
        if xattrs.is_empty() {
            return;
        }
        let (shared, own) = self.parts(xattrs);
        // No filter of names; then how many are shared.
        out.extend_from_slice(&[0; 4]);
        out.push(u8::try_from(shared.len()).expect("at most 255"));
        out.extend_from_slice(&[0; 7]);
        for place in shared {
            out.extend_from_slice(&place.to_le_bytes());
        }
        for attribute in own {
            encode_entry(attribute, out);
        }
    }

    fn parts<'x>(&self, xattrs: &'x Xattrs) -> (Vec<u32>, Vec<Attribute<'x>>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for attribute in attributes(xattrs) {
            match self.places.get(&attribute) {
                Some(&place) if shared.len() < SHARED_MAX => shared.push(place),
                _ => own.push(attribute),
            }
        }
        (shared, own)
    }
}

fn encode_entry(((index, rest), value): Attribute<'_>, out: &mut Vec<u8>) {
    let end = out.len() + entry_bytes(rest, value);
    out.push(u8::try_from(rest.len()).expect("names have at most 255 bytes"));
    out.push(index);
    let length = u16::try_from(value.len()).expect("values have at most 65535 bytes");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattrs(all: &[(&str, &str)]) -> Xattrs {
        let all = all.iter();
        all.map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()))
            .collect()
    }

    #[test]
    fn what_two_inodes_have_is_stored_once() {
        let one = xattrs(&[("user.a", "1"), ("user.b", "2")]);
        let two = xattrs(&[("user.a", "1"), ("user.b", "3")]);
        let shared = Shared::of([&one, &two].into_iter());
        assert_eq!(shared.bytes(), b"\x01\x01\x01\0a1\0\0");
        let mut out = Vec::new();
        shared.encode(&two, &mut out);
        let header = b"\0\0\0\0\x01\0\0\0\0\0\0\0";
        assert_eq!(
            out,
            [&header[..], b"\0\0\0\0", b"\x01\x01\x01\0b3\0\0"].concat()
        );
        assert_eq!(shared.bytes_of(&two), out.len());
        assert_eq!(shared.bytes_of(&Xattrs::new()), 0);
    }
}
