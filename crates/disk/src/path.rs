//! Paths inside an image: bytes, relative to its root, nothing in them that points elsewhere.

use std::fmt;

/// Name of a directory entry: 1 to 255 bytes, no `/`, no NUL.
pub type Name = Box<[u8]>;

/// What marks a removal (image-spec, layer.md, "Whiteouts").
pub(crate) const WHITEOUT: &[u8] = b".wh.";

/// Longest name (EROFS_NAME_LEN, Linux' NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// Longest path (Linux' PATH_MAX with its NUL).
pub(crate) const PATH_BYTES_MAX: usize = 4095;

/// A path below the root of an image. It has no empty part, no `.` and no `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Box<[u8]>);

impl Path {
    /// The path that a tar names: leading slashes, `.` and doubled slashes mean nothing, as in every
    /// tar.
    ///
    /// # Errors
    /// What is wrong with it: `..`, NUL, or too long for Linux.
    pub fn parse(raw: &[u8]) -> Result<Self, &'static str> {
        if raw.contains(&0) {
            return Err("a path with a NUL byte");
        }
        let mut joined = Vec::with_capacity(raw.len());
        for part in raw.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err("a path with .."),
                _ if part.len() > NAME_BYTES_MAX + prefix_bytes(part) => {
                    return Err("a name of more than 255 bytes");
                }
                _ => {}
            }
            if !joined.is_empty() {
                joined.push(b'/');
            }
            joined.extend_from_slice(part);
        }
        if joined.len() > PATH_BYTES_MAX {
            return Err("a path of more than 4095 bytes");
        }
        Ok(Self(joined.into()))
    }

    /// Its parts from the top; none for the root.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        // An empty slice splits into one empty part.
        let parts = self.0.split(|&byte| byte == b'/');
        parts.filter(|part| !part.is_empty())
    }

    /// The directory it is in and its name there; none for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (Self(self.0[..at].into()), &self.0[at + 1..]),
            None => (Self(Box::default()), &self.0),
        })
    }

    /// Its bytes, the parts separated by `/`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A whiteout is no file: it may name any name, and be longer than one by its prefix.
fn prefix_bytes(part: &[u8]) -> usize {
    if part.starts_with(WHITEOUT) {
        WHITEOUT.len()
    } else {
        0
    }
}

impl fmt::Display for Path {
    /// From the image's root; bytes that are not printable are escaped, so that no path can forge a
    /// line of a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", shown(&self.0))
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes from outside for a message: UTF-8 as it is, the rest and control characters escaped.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: &[u8], expected: Result<&[u8], &str>) {
        let parsed = Path::parse(raw);
        assert_eq!(
            parsed.as_ref().map(Path::as_bytes),
            expected.as_ref().copied()
        );
    }

    #[test]
    fn what_means_nothing_goes_and_what_points_elsewhere_is_refused() {
        check(b"", Ok(b""));
        check(b"./", Ok(b""));
        check(b"/etc//passwd", Ok(b"etc/passwd"));
        check(b"./a/./b/", Ok(b"a/b"));
        check(b"..a/b..", Ok(b"..a/b.."));
        check(b"a/../b", Err("a path with .."));
        check(b"..", Err("a path with .."));
        check(b"a\0b", Err("a path with a NUL byte"));
        check(
            &[b".wh.", &[b'a'; 255][..]].concat(),
            Ok(&[b".wh.", &[b'a'; 255][..]].concat()),
        );
        check(
            &[b".wh.", &[b'a'; 256][..]].concat(),
            Err("a name of more than 255 bytes"),
        );
        check(&[b'a'; 256], Err("a name of more than 255 bytes"));
        check(&b"a/".repeat(2048), Ok(&b"a/".repeat(2048)[..4095]));
        check(&b"a/".repeat(2049), Err("a path of more than 4095 bytes"));
    }

    #[test]
    fn a_path_comes_apart() {
        let path = Path::parse(b"a/bc/d").unwrap();
        assert_eq!(path.parts().collect::<Vec<_>>(), [&b"a"[..], b"bc", b"d"]);
        let (parent, name) = path.split_last().unwrap();
        assert_eq!((parent.as_bytes(), name), (&b"a/bc"[..], &b"d"[..]));
        let top = Path::parse(b"a").unwrap();
        assert_eq!(top.split_last().unwrap().0, Path::parse(b"").unwrap());
        assert_eq!(Path::parse(b"").unwrap().split_last(), None);
        assert_eq!(Path::parse(b"").unwrap().parts().count(), 0);
    }

    #[test]
    fn a_path_cannot_forge_a_line_of_a_log() {
        let path = Path::parse("a\nb\\ü\u{1b}".as_bytes()).unwrap();
        assert_eq!(path.to_string(), "/a\\nb\\\\ü\\u{1b}");
        assert_eq!(Path::parse(b"\xff").unwrap().to_string(), "/\\xff");
    }
}
