//! One 512-byte header block and the numbers in it.

use crate::error::{Error, Result};

/// A block of a tar.
pub(super) const BLOCK: usize = 512;

const WRONG_SUM: &str = "its checksum is wrong, or this is no tar";

/// Fields of a header, as they are before extensions.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) block: Box<[u8; BLOCK]>,
    /// Where the block begins in the tar.
    pub(super) offset: u64,
    pub(super) flavour: Flavour,
}

/// Which fields a header has beyond those of the oldest tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Unix V7: no device numbers, no prefix.
    V7,
    /// POSIX ustar, PAX with it: names in two parts.
    Ustar,
    /// Jörg Schilling's star: ustar with a shorter prefix and times behind it.
    Star,
    /// GNU: times and sparse maps instead of the prefix.
    Gnu,
}

/// Where a field is: first byte, length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field(usize, usize);

pub(super) const NAME: Field = Field(0, 100);
pub(super) const MODE: Field = Field(100, 8);
pub(super) const UID: Field = Field(108, 8);
pub(super) const GID: Field = Field(116, 8);
pub(super) const SIZE: Field = Field(124, 12);
pub(super) const MTIME: Field = Field(136, 12);
const CHECKSUM: Field = Field(148, 8);
const TYPE: usize = 156;
pub(super) const LINK: Field = Field(157, 100);
const MAGIC: Field = Field(257, 8);
pub(super) const MAJOR: Field = Field(329, 8);
pub(super) const MINOR: Field = Field(337, 8);
const PREFIX: Field = Field(345, 155);
const STAR_PREFIX: Field = Field(345, 131);
const STAR_MAGIC: Field = Field(508, 4);
/// GNU's sparse map: four pairs of offset and length, whether more follow, the file's length.
pub(super) const GNU_SPARSE: Field = Field(386, 96);
pub(super) const GNU_IS_EXTENDED: usize = 482;
pub(super) const GNU_REAL_SIZE: Field = Field(483, 12);

impl Header {
    /// Checks the sum of a block that is not zero.
    pub(super) fn parse(block: Box<[u8; BLOCK]>, offset: u64) -> Result<Self> {
        let mut header = Self {
            block,
            offset,
            flavour: Flavour::V7,
        };
        header.flavour = match header.field(MAGIC) {
            b"ustar  \0" => Flavour::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if header.field(STAR_MAGIC) == b"tar\0" => {
                Flavour::Star
            }
            [b'u', b's', b't', b'a', b'r', 0, ..] => Flavour::Ustar,
            _ => Flavour::V7,
        };
        let stored = header.number(CHECKSUM, WRONG_SUM)?;
        let (unsigned, signed) = header.sums();
        if stored != unsigned && stored != signed {
            return Err(header.malformed(WRONG_SUM));
        }
        Ok(header)
    }

    /// The type of the entry.
    pub(super) fn type_flag(&self) -> u8 {
        self.block[TYPE]
    }

    pub(super) fn field(&self, field: Field) -> &[u8] {
        &self.block[field.0..field.0 + field.1]
    }

    /// A text field up to its NUL.
    pub(super) fn text(&self, field: Field) -> &[u8] {
        until_nul(self.field(field))
    }

    /// The name, with its prefix where the flavour has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let prefix = match self.flavour {
            Flavour::Ustar => self.text(PREFIX),
            Flavour::Star => self.text(STAR_PREFIX),
            Flavour::V7 | Flavour::Gnu => b"",
        };
        let name = self.text(NAME);
        if prefix.is_empty() {
            return name.to_owned();
        }
        [prefix, b"/", name].concat()
    }

    /// A number in octal digits or, with the highest bit set, in binary.
    pub(super) fn number(&self, field: Field, what: &'static str) -> Result<i64> {
        parse_number(self.field(field)).ok_or_else(|| self.malformed(what))
    }

    pub(super) fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed {
            offset: self.offset,
            what,
        }
    }

    /// The sum of all bytes, the field of the sum as spaces; old tars added signed bytes.
    fn sums(&self) -> (i64, i64) {
        let summed = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
        let bytes = self.block.iter().enumerate();
        bytes.fold((0, 0), |(unsigned, signed), (at, &byte)| {
            let byte = if summed.contains(&at) { b' ' } else { byte };
            (
                unsigned + i64::from(byte),
                signed + i64::from(byte.cast_signed()),
            )
        })
    }
}

/// A text up to its NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number as tars have it: octal digits between spaces and NULs, or two's complement, most
/// significant byte first, behind a bit that is set (GNU, star). Empty is 0.
pub(super) fn parse_number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        return parse_binary(field);
    }
    let text = until_nul(field.trim_ascii_start());
    let digits = text.trim_ascii();
    digits.iter().try_fold(0_i64, |value, &digit| {
        let digit = (b'0'..=b'7').contains(&digit).then(|| digit - b'0')?;
        value.checked_mul(8)?.checked_add(i64::from(digit))
    })
}

fn parse_binary(field: &[u8]) -> Option<i64> {
    let is_negative = field[0] & 0x40 != 0;
    // The marking bit counts as one more bit of sign.
    let first = if is_negative {
        field[0]
    } else {
        field[0] & 0x7f
    };
    let start = if is_negative { -1_i64 } else { 0 };
    std::iter::once(&first)
        .chain(&field[1..])
        .try_fold(start, |value, &byte| {
            let shifted = value.checked_mul(256)?;
            Some(shifted | i64::from(byte))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let check = |field: &[u8], expected| assert_eq!(parse_number(field), expected, "{field:?}");
        check(b"0000644\0", Some(0o644));
        check(b"   644 \0", Some(0o644));
        check(b"0000644 ", Some(0o644));
        check(b"\0\0\0\0\0\0\0\0", Some(0));
        check(b"        ", Some(0));
        check(b"77777777", Some(0o77_777_777));
        check(b"0000689\0", None);
        check(b"-1\0\0\0\0\0\0", None);
        check(&[0x80, 0, 0, 0, 0, 1, 0, 0], Some(65536));
        check(&[0xff; 8], Some(-1));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0], Some(-256));
        check(
            &[
                0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            Some(i64::MAX),
        );
        check(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None);
        check(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None);
    }
}
