//! Numbers of bytes and inodes as people write them.

use std::{fmt, num::NonZeroU64, str::FromStr};

use super::Unreadable;

/// What a size looks like, for messages.
const SIZE: &str = "a size is a whole number of bytes such as 10737418240, or one with a unit of \
                    1024: 512m, 10g, 10G, 10GB, 10GiB, 1t";
const INODES: &str = "a number of inodes is a whole number such as 100000";

/// The largest number that containerd's own label can hold, and every quota of the kernel.
const MAX: u64 = i64::MAX.unsigned_abs();

/// Bytes: at least 1, at most 2^63 - 1.
///
/// Reads a plain decimal number, as `containerd.io/snapshot/max-size` has it, and a number with a
/// unit in any case: `k`, `kB`, `Ki`, `KiB` and so on to `t`, all of 1024 (as docker, podman and
/// Pouch read them). Nothing is rounded and nothing is guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(NonZeroU64);

impl Size {
    /// `None` for 0 and for what is above 2^63 - 1.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        NonZeroU64::new(bytes).filter(|_| bytes <= MAX).map(Self)
    }

    /// How many.
    #[must_use]
    pub fn bytes(self) -> NonZeroU64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Size {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let refuse = |why| Err(Unreadable::new(text, why, SIZE));
        let (number, unit) = match digits(text) {
            Ok(parts) => parts,
            Err(why) => return refuse(why),
        };
        let Some(factor) = factor(unit) else {
            return refuse("has a unit that is not known");
        };
        let bytes = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor));
        match bytes {
            Some(0) => refuse("is no limit at all (quota.mode=off takes a limit away)"),
            Some(bytes) => match Self::from_bytes(bytes) {
                Some(size) => Ok(size),
                None => refuse("is more than 2^63 - 1 bytes"),
            },
            None => refuse("is more than 2^63 - 1 bytes"),
        }
    }
}

/// Files, directories and whatever else has an inode: at least 1, at most 2^63 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inodes(NonZeroU64);

impl Inodes {
    /// `None` for 0 and for what is above 2^63 - 1.
    #[must_use]
    pub fn new(count: u64) -> Option<Self> {
        NonZeroU64::new(count).filter(|_| count <= MAX).map(Self)
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> NonZeroU64 {
        self.0
    }
}

impl fmt::Display for Inodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Inodes {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let refuse = |why| Err(Unreadable::new(text, why, INODES));
        let (number, unit) = match digits(text) {
            Ok(parts) => parts,
            Err(why) => return refuse(why),
        };
        if !unit.is_empty() {
            return refuse("is no plain number");
        }
        match number.parse::<u64>().map(Self::new) {
            Ok(Some(inodes)) => Ok(inodes),
            Ok(None) if number.bytes().all(|digit| digit == b'0') => {
                refuse("is no limit at all (quota.mode=off takes a limit away)")
            }
            _ => refuse("is more than 2^63 - 1"),
        }
    }
}

/// The digits a text begins with, and what comes after them.
fn digits(text: &str) -> Result<(&str, &str), &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if !text.is_ascii() {
        return Err("has characters beyond ASCII");
    }
    if text.starts_with('-') {
        return Err("is negative");
    }
    let end = text
        .bytes()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    if rest.starts_with(['.', ',']) {
        return Err("is a fraction");
    }
    if number.is_empty() {
        return Err("does not begin with a digit");
    }
    Ok((number, rest))
}

fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    Some(match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" | "ki" | "kib" => 1 << 10,
        "m" | "mb" | "mi" | "mib" => 1 << 20,
        "g" | "gb" | "gi" | "gib" => 1 << 30,
        "t" | "tb" | "ti" | "tib" => 1 << 40,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn why<T: FromStr<Err = Unreadable>>(text: &str) -> String {
        text.parse::<T>().err().unwrap().to_string()
    }

    #[test]
    fn sizes_are_read_as_containerd_and_people_write_them() {
        let check = |text: &str, bytes: u64| {
            let size = text.parse::<Size>().map(|size| size.bytes().get());
            assert_eq!(size, Ok(bytes), "{text}");
        };
        check("1", 1);
        check("007", 7);
        check("10737418240", 10 << 30);
        check("9223372036854775807", i64::MAX.unsigned_abs());
        for text in ["10g", "10G", "10gb", "10GB", "10Gi", "10GiB", "10gIb"] {
            check(text, 10 << 30);
        }
        check("512m", 512 << 20);
        check("4k", 4096);
        check("4KiB", 4096);
        check("2t", 2 << 40);
        check("3B", 3);
    }

    #[test]
    fn what_is_no_size_is_refused_and_says_what_is_taken() {
        let check = |text: &str, why_not: &str| {
            let message = why::<Size>(text);
            assert!(message.contains(why_not), "{text}: {message}");
            assert!(message.contains("10737418240"), "{message}");
        };
        check("", "is empty");
        check("-1", "is negative");
        check("-10g", "is negative");
        check("1.5g", "is a fraction");
        check("1,5g", "is a fraction");
        check("0", "no limit at all");
        check("0g", "no limit at all");
        check("g", "does not begin with a digit");
        check(" 1g", "does not begin with a digit");
        check("+1", "does not begin with a digit");
        check("1 g", "unit that is not known");
        check("1g ", "unit that is not known");
        check("1p", "unit that is not known");
        check("1e9", "unit that is not known");
        check("0x10", "unit that is not known");
        check("10\0", "unit that is not known");
        check("１０g", "beyond ASCII");
        check("10ｇ", "beyond ASCII");
        check("9223372036854775808", "more than 2^63 - 1");
        check("8388608t", "more than 2^63 - 1");
        check("99999999999999999999999999", "more than 2^63 - 1");
        check("18446744073709551615t", "more than 2^63 - 1");
    }

    #[test]
    fn inodes_are_plain_numbers() {
        let read = |text: &str| text.parse::<Inodes>().map(|inodes| inodes.count().get());
        assert_eq!(read("100000"), Ok(100_000));
        assert_eq!(read("9223372036854775807"), Ok(i64::MAX.unsigned_abs()));
        for (text, why_not) in [
            ("", "is empty"),
            ("0", "no limit at all"),
            ("00", "no limit at all"),
            ("-5", "is negative"),
            ("1.0", "is a fraction"),
            ("10k", "is no plain number"),
            ("9223372036854775808", "more than 2^63 - 1"),
            ("99999999999999999999", "more than 2^63 - 1"),
        ] {
            let message = why::<Inodes>(text);
            assert!(message.contains(why_not), "{text}: {message}");
        }
    }

    #[test]
    fn long_texts_are_not_repeated_in_full() {
        let message = why::<Size>(&"x".repeat(4096));
        assert!(message.len() < 400, "{message}");
    }

    proptest! {
        #[test]
        fn every_size_reads_back_from_what_it_shows(bytes in 1..=i64::MAX.unsigned_abs()) {
            let size = Size::from_bytes(bytes).unwrap();
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }

        #[test]
        fn no_text_is_read_as_something_it_does_not_begin_with(text in ".{0,40}") {
            if let Ok(size) = text.parse::<Size>() {
                let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
                let number: u64 = digits.parse().unwrap();
                prop_assert_eq!(size.bytes().get() % number, 0);
                prop_assert!((size.bytes().get() / number).is_power_of_two());
            }
        }
    }
}
