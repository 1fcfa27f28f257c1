//! Reading and writing one kernel file; errors carry the file and the value.
//!
//! A file is never created: on a cgroup file system a missing one means a missing feature.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;

use crate::{Error, Result};

/// Writes a line in one write(2), as `echo` does.
pub(crate) fn write(dir: &Path, name: &str, value: &str) -> Result<()> {
    let path = dir.join(name);
    let line = format!("{value}\n");
    // In unit tests the files are ordinary ones and keep every write.
    let mut options = OpenOptions::new();
    options.write(true).append(cfg!(test));
    let written = options
        .open(&path)
        .and_then(|mut file| match file.write(line.as_bytes()) {
            Ok(count) if count < line.len() => Err(io::ErrorKind::WriteZero.into()),
            other => other.map(drop),
        });
    written.map_err(|source| Error::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

/// Writes a number.
pub(crate) fn write_number(dir: &Path, name: &str, value: impl Display + Copy) -> Result<()> {
    write(dir, name, &value.to_string())
}

/// The text of a file.
pub(crate) fn read(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
}

/// The text of a file that some kernels do not have, or that belongs to a feature which is off.
pub(crate) fn read_if_there(dir: &Path, name: &str) -> Result<Option<String>> {
    match read(dir, name) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_not_found() || is(&error, Errno::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number in a file; `u64::MAX` for `max`.
pub(crate) fn read_number(dir: &Path, name: &str) -> Result<u64> {
    let text = read(dir, name)?;
    number(text.trim()).ok_or_else(|| malformed(dir, name, &text))
}

/// The number in a file that some kernels do not have.
pub(crate) fn read_number_if_there(dir: &Path, name: &str) -> Result<Option<u64>> {
    let Some(text) = read_if_there(dir, name)? else {
        return Ok(None);
    };
    number(text.trim())
        .map(Some)
        .ok_or_else(|| malformed(dir, name, &text))
}

/// A number of a cgroup file. Old kernels can show a counter below zero: it counts as zero, as in
/// runc.
pub(crate) fn number(word: &str) -> Option<u64> {
    if word == "max" {
        return Some(u64::MAX);
    }
    match word.strip_prefix('-') {
        Some(digits) => digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(0),
        None => word.parse().ok(),
    }
}

/// The `key value` lines of a text; other lines are skipped.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value.trim())?))
    })
}

/// The value behind a key of a `key value` text.
pub(crate) fn value_of(text: &str, key: &str) -> Option<u64> {
    pairs(text).find_map(|(name, value)| (name == key).then_some(value))
}

/// Whether a file is there.
pub(crate) fn exists(dir: &Path, name: &str) -> bool {
    dir.join(name).exists()
}

/// Whether the kernel answered this.
pub(crate) fn is(error: &Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// The error of a text that this crate does not understand.
pub(crate) fn malformed(dir: &Path, name: &str, text: &str) -> Error {
    Error::Malformed {
        path: dir.join(name),
        text: text.trim_end().to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory with these files, empty ones for recording writes.
    pub(crate) fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    /// What was written to a file, line by line.
    pub(crate) fn written(dir: &Path, name: &str) -> Vec<String> {
        read(dir, name)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn numbers_of_the_kernel_are_understood() {
        for (word, expected) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("max", Some(u64::MAX)),
            ("-4096", Some(0)),
            ("", None),
            ("12k", None),
        ] {
            assert_eq!(number(word), expected, "{word:?}");
        }
    }

    #[test]
    fn missing_file_is_an_error_to_write_and_nothing_to_read() {
        let dir = directory(&[]);
        let error = write(dir.path(), "pids.max", "12").unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(
            error.to_string(),
            format!("write \"12\" to {}", dir.path().join("pids.max").display())
        );
        assert!(!dir.path().join("pids.max").exists());
        assert_eq!(read_number_if_there(dir.path(), "pids.max").unwrap(), None);
    }

    #[test]
    fn odd_lines_between_pairs_are_skipped() {
        let text = "anon 12\n\nnuma_locality 0 0 0\nfile 7\n";
        assert_eq!(pairs(text).collect::<Vec<_>>(), [("anon", 12), ("file", 7)]);
        assert_eq!(value_of(text, "file"), Some(7));
        assert_eq!(value_of(text, "slab"), None);
    }
}
