//! Maps of sparse files: which pieces of the file are stored in the tar.

use super::{header::parse_number, pax::decimal};

/// A sparse file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Length of the file in bytes, holes included.
    pub(crate) bytes: u64,
    /// Offset in the file and length of each piece, ascending; none is empty.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl SparseMap {
    /// Checks pieces as tars name them against the file's length and what is stored.
    ///
    /// GNU tar begins each piece on a block of 512 bytes, Go reads one right behind the other:
    /// a map for which that makes a difference is refused.
    pub(super) fn check(
        bytes: u64,
        stored_bytes: u64,
        pieces: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, &'static str> {
        let mut map = Self {
            bytes,
            pieces: Vec::new(),
        };
        let (mut end, mut stored) = (0, 0_u64);
        for (offset, length) in pieces {
            let next = offset.checked_add(length).filter(|&next| next <= bytes);
            let next = next.ok_or("its sparse map reaches beyond the file")?;
            if offset < end {
                return Err("its sparse map is out of order");
            }
            end = next;
            if length == 0 {
                continue;
            }
            if !stored.is_multiple_of(512) {
                return Err("its sparse map has a piece that ends within a block");
            }
            stored += length;
            map.pieces.push((offset, length));
        }
        if stored != stored_bytes {
            return Err("its sparse map tells another length than the header");
        }
        Ok(map)
    }
}

/// Pairs of 12-byte numbers up to the first empty one (GNU, type `S`).
pub(super) fn gnu_pairs(bytes: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
    let mut pairs = Vec::new();
    for pair in bytes.chunks_exact(24) {
        let (offset, length) = pair.split_at(12);
        if length[0] == 0 {
            break;
        }
        let number = |field| {
            let value = parse_number(field).and_then(|value| u64::try_from(value).ok());
            value.ok_or("its sparse map has what is no number")
        };
        pairs.push((number(offset)?, number(length)?));
    }
    Ok(pairs)
}

/// Decimal numbers in pairs (PAX, GNU formats 0.0 and 0.1).
pub(super) fn decimal_pairs<'a>(
    numbers: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<(u64, u64)>, &'static str> {
    let numbers: Option<Vec<u64>> = numbers.map(decimal).collect();
    let numbers = numbers.ok_or("its sparse map has what is no number")?;
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err("its sparse map has an offset without a length");
    }
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_with_one_meaning_are_taken() {
        let check =
            |bytes, stored, pieces: &[(u64, u64)], expected: Result<&[(u64, u64)], &str>| {
                let map = SparseMap::check(bytes, stored, pieces.iter().copied());
                assert_eq!(
                    map.as_ref().map(|map| &map.pieces[..]),
                    expected.as_ref().copied()
                );
            };
        check(
            4096,
            1024,
            &[(0, 512), (1024, 512)],
            Ok(&[(0, 512), (1024, 512)]),
        );
        // GNU tar closes every map with an empty piece at the file's end.
        check(5000, 88, &[(4912, 88), (5000, 0)], Ok(&[(4912, 88)]));
        check(1 << 40, 0, &[], Ok(&[]));
        check(
            4096,
            1000,
            &[(0, 488), (1024, 512)],
            Err("its sparse map has a piece that ends within a block"),
        );
        check(
            4096,
            1024,
            &[(1024, 512), (0, 512)],
            Err("its sparse map is out of order"),
        );
        check(
            4096,
            1024,
            &[(0, 512), (256, 512)],
            Err("its sparse map is out of order"),
        );
        check(
            1000,
            512,
            &[(512, 512)],
            Err("its sparse map reaches beyond the file"),
        );
        check(
            4096,
            1024,
            &[(u64::MAX, 512)],
            Err("its sparse map reaches beyond the file"),
        );
        check(
            4096,
            512,
            &[(0, 1024)],
            Err("its sparse map tells another length than the header"),
        );
    }
}
