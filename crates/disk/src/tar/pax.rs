//! Records of PAX extended headers: `LENGTH KEY=VALUE\n`, one after the other.

use std::collections::BTreeMap;

/// What precedes the name of an extended attribute, as star began it; all OCI tools write these.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the extended headers before an entry say of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    /// The last value of each key.
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, the only keys that come many times and in
    /// order (GNU format 0.0).
    pub(super) sparse_pairs: Vec<Vec<u8>>,
}

impl Records {
    /// Adds those of another header; an empty value takes the key away (POSIX), but extended
    /// attributes may be empty.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let (text, rest) = record(bytes)?;
            bytes = rest;
            let equals = text.iter().position(|&byte| byte == b'=');
            let equals = equals.ok_or("a record of its PAX header has no value")?;
            let (key, value) = (&text[..equals], &text[equals + 1..]);
            if key.is_empty() {
                return Err("a record of its PAX header has no key");
            }
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let is_length = self.sparse_pairs.len() % 2 == 1;
                    if is_length != (key == b"GNU.sparse.numbytes") {
                        return Err("its sparse map is out of order");
                    }
                    self.sparse_pairs.push(value.to_owned());
                }
                _ if value.is_empty() && !key.starts_with(XATTR) => drop(self.values.remove(key)),
                _ => drop(self.values.insert(key.to_owned(), value.to_owned())),
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// Keys that begin with that, without it, and their values.
    pub(super) fn below<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.values
            .range(prefix.to_owned()..)
            .map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_slice())))
    }

    /// Memory of keys and values, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let of = |(key, value): (&Vec<u8>, &Vec<u8>)| key.len() + value.len();
        self.values.iter().map(of).sum()
    }
}

/// `KEY=VALUE` of the first record, and what follows it.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let space = bytes.iter().position(|&byte| byte == b' ');
    let digits = &bytes[..space.ok_or("a record of its PAX header has no length")?];
    let length = decimal(digits).and_then(|length| usize::try_from(length).ok());
    let length = length.ok_or("a record's length in its PAX header is no number")?;
    let text = bytes.get(digits.len() + 1..length);
    let text = text.ok_or("a record of its PAX header is longer than the header")?;
    let Some((b'\n', text)) = text.split_last() else {
        return Err("a record of its PAX header does not end with its line");
    };
    Ok((text, &bytes[length..]))
}

/// Digits, at least one.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// A time: seconds since 1970 with a sign, then perhaps a fraction. Seconds rounded down and
/// nanoseconds come back; finer digits are cut.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanoseconds = digits
        .take(9)
        .fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_whole_or_refused() {
        let mut records = Records::default();
        records.add(b"12 path=a\nb\n13 mtime=1.5\n").unwrap();
        // A value may hold anything, lines too.
        records.add(b"18 SCHILY.xattr.a=").unwrap_err();
        assert_eq!(records.get("path"), Some(&b"a\nb"[..]));
        assert_eq!(records.get("mtime"), Some(&b"1.5"[..]));
        records.add(b"9 mtime=\n").unwrap();
        assert_eq!(records.get("mtime"), None);
        let refusals: [&[u8]; 8] = [
            b"path=a\n",
            b"x path=a\n",
            b" path=a\n",
            b"11 path=a\n",
            b"8 path=a\n",
            b"0 path=a\n",
            b"5 =a\n",
            b"7 path\n",
        ];
        for refused in refusals {
            assert!(Records::default().add(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn keys_below_a_prefix_are_found_without_it() {
        let mut records = Records::default();
        records
            .add(b"25 SCHILY.xattr.user.a=1\n6 T=3\n24 SCHILY.xattr.user.b=\n")
            .unwrap();
        let found: Vec<_> = records.below(XATTR).collect();
        assert_eq!(found, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"")]);
    }

    #[test]
    fn times_have_signs_and_fractions() {
        let check = |text: &[u8], expected| assert_eq!(time(text), expected, "{text:?}");
        check(b"0", Some((0, 0)));
        check(b"1.000000001", Some((1, 1)));
        check(b"1.0000000019", Some((1, 1)));
        check(b"1.5", Some((1, 500_000_000)));
        check(b"-1", Some((-1, 0)));
        check(b"-0.25", Some((-1, 750_000_000)));
        check(b"-1.5", Some((-2, 500_000_000)));
        check(b"1.", Some((1, 0)));
        check(b"", None);
        check(b".5", None);
        check(b"1.x", None);
        check(b"9223372036854775808", None);
    }
}
