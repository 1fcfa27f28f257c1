//! Items of btrfs' trees by key (BTRFS_IOC_TREE_SEARCH); must not know what is in them.
//!
//! The first version of the request: its 4 KiB buffer holds dozens of the small items that are
//! asked for here, and every kernel has it.

use std::io;
use std::os::fd::BorrowedFd;

use crate::ioctl;

/// Tree of roots (BTRFS_ROOT_TREE_OBJECTID).
pub(super) const ROOT_TREE: u64 = 1;
/// Tree of quota groups (BTRFS_QUOTA_TREE_OBJECTID).
pub(super) const QUOTA_TREE: u64 = 8;

/// Of an item, ordered as the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Object.
    pub(super) object: u64,
    /// Kind of item.
    pub(super) kind: u8,
    /// What the kind says.
    pub(super) offset: u64,
}

impl Key {
    /// The next key, if there is one of the same object and kind.
    fn next(self) -> Option<Self> {
        let offset = self.offset.checked_add(1)?;
        Some(Self { offset, ..self })
    }
}

const BUFFER_BYTES: usize = 4096 - 104;

/// `struct btrfs_ioctl_search_args`: struct btrfs_ioctl_search_key and the buffer.
#[repr(C)]
struct Arguments {
    tree: u64,
    object_min: u64,
    object_max: u64,
    offset_min: u64,
    offset_max: u64,
    transaction_min: u64,
    transaction_max: u64,
    kind_min: u32,
    kind_max: u32,
    items: u32,
    unused: [u32; 9],
    buffer: [u8; BUFFER_BYTES],
}

const BTRFS_IOC_TREE_SEARCH: libc::Ioctl =
    nix::request_code_readwrite!(super::MAGIC, 17, size_of::<Arguments>());

/// The one item with this key.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOENT without such a tree.
pub(super) fn item(fd: BorrowedFd<'_>, tree: u64, key: Key) -> io::Result<Option<Vec<u8>>> {
    let arguments = request(fd, tree, (key, key), 1)?;
    let found = items(&arguments.buffer, arguments.items).next();
    Ok(found.map(|(_, bytes)| bytes.to_vec()))
}

/// Shows each item from the first key to the last, both of the same object and kind.
///
/// # Errors
/// As [`item`].
pub(super) fn each(
    fd: BorrowedFd<'_>,
    tree: u64,
    (mut first, last): (Key, Key),
    mut show: impl FnMut(Key, &[u8]),
) -> io::Result<()> {
    loop {
        let arguments = request(fd, tree, (first, last), u32::MAX)?;
        let mut end = None;
        for (key, bytes) in items(&arguments.buffer, arguments.items) {
            show(key, bytes);
            end = Some(key);
        }
        match end.and_then(Key::next) {
            Some(next) if next <= last => first = next,
            _ => return Ok(()),
        }
    }
}

fn request(
    fd: BorrowedFd<'_>,
    tree: u64,
    (min, max): (Key, Key),
    items: u32,
) -> io::Result<Arguments> {
    let mut arguments = Arguments {
        tree,
        object_min: min.object,
        object_max: max.object,
        offset_min: min.offset,
        offset_max: max.offset,
        transaction_min: 0,
        transaction_max: u64::MAX,
        kind_min: min.kind.into(),
        kind_max: max.kind.into(),
        items,
        unused: [0; 9],
        buffer: [0; BUFFER_BYTES],
    };
    // SAFETY: BTRFS_IOC_TREE_SEARCH reads and fills one struct btrfs_ioctl_search_args of numbers.
    unsafe { ioctl::with(fd, BTRFS_IOC_TREE_SEARCH, &mut arguments) }?;
    Ok(arguments)
}

/// Takes a filled buffer apart: struct btrfs_ioctl_search_header and the item, `count` times.
fn items(mut buffer: &[u8], count: u32) -> impl Iterator<Item = (Key, &[u8])> {
    (0..count).map_while(move |_| {
        let _transaction = number(&mut buffer)?;
        let object = number(&mut buffer)?;
        let offset = number(&mut buffer)?;
        let (kind, rest) = buffer.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let kind = u8::try_from(u32::from_ne_bytes(*kind)).ok()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let (bytes, rest) = rest.split_at_checked(length)?;
        buffer = rest;
        let key = Key {
            object,
            kind,
            offset,
        };
        Some((key, bytes))
    })
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_ne_bytes(*number))
}

/// The numbers in an item, which are little-endian on every machine; `None` when it is shorter.
pub(super) fn numbers<const COUNT: usize>(item: &[u8]) -> Option<[u64; COUNT]> {
    let mut numbers = [0; COUNT];
    for (number, bytes) in numbers
        .iter_mut()
        .zip(item.get(..COUNT * 8)?.chunks_exact(8))
    {
        *number = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    fn header(object: u64, kind: u32, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [9, object, offset] {
            bytes.extend_from_slice(&u64::to_ne_bytes(number));
        }
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn items_are_taken_apart_as_many_as_the_kernel_says() {
        assert_eq!(size_of::<Arguments>(), 4096);
        let mut buffer = header(0, 242, 256, 3);
        buffer.extend_from_slice(b"abc");
        buffer.extend(header(0, 242, 257, 0));
        buffer.resize(buffer.len() + 100, 0);
        let key = |offset| Key {
            object: 0,
            kind: 242,
            offset,
        };
        let found: Vec<_> = items(&buffer, 2).collect();
        assert_eq!(found, [(key(256), &b"abc"[..]), (key(257), &[][..])]);
        assert_eq!(items(&buffer, 0).count(), 0);
    }

    #[test]
    fn numbers_need_their_bytes() {
        assert_eq!(numbers::<2>(&[1; 15]), None);
        assert_eq!(numbers::<1>(&[1, 0, 0, 0, 0, 0, 0, 0, 9]), Some([1]));
    }

    proptest! {
        #[test]
        fn any_buffer_is_taken_apart_without_a_panic(
            buffer in prop::collection::vec(any::<u8>(), 0..300),
            count in any::<u32>(),
        ) {
            let found: usize = items(&buffer, count).map(|(_, bytes)| bytes.len() + 32).sum();
            assert!(found <= buffer.len());
        }
    }
}
