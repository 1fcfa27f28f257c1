//! The environment of the program: as asked, without doubles, with a HOME.
//!
//! Follows runc's prepareEnv. Reads the image's `/etc/passwd`, so it must run inside the container.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Error, Result};

/// Bound on what is read of an image's `/etc/passwd`.
const PASSWD_BYTES_MAX: u64 = 16 << 20;

/// Where the user has no entry.
const HOME_DEFAULT: &str = "/";

/// Checks and completes an environment: of equal names the last counts, and HOME comes from the
/// container's `/etc/passwd` when it is missing or empty.
pub(crate) fn complete(asked: &[String], uid: u32) -> Result<Vec<String>> {
    let mut entries: Vec<&str> = Vec::with_capacity(asked.len() + 1);
    let mut names: Vec<&str> = Vec::with_capacity(asked.len());
    for entry in asked.iter().rev() {
        let (name, value) = split(entry)?;
        if names.contains(&name) {
            continue;
        }
        names.push(name);
        if name == "HOME" && value.is_empty() {
            continue;
        }
        entries.push(entry);
    }
    let mut complete: Vec<String> = entries
        .iter()
        .rev()
        .map(|&entry| entry.to_owned())
        .collect();
    if value(&complete, "HOME").is_none() {
        complete.push(format!("HOME={}", home_of(uid)));
    }
    Ok(complete)
}

/// The value of a name in an environment.
pub(crate) fn value<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment
        .iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn split(entry: &str) -> Result<(&str, &str)> {
    let refuse = |why: &str| Error::Request {
        step: format!("invalid environment variable{why}"),
        errno: 0,
    };
    let (name, value) = entry
        .split_once('=')
        .ok_or_else(|| refuse(": missing '='"))?;
    if name.is_empty() {
        return Err(refuse(": name cannot be empty"));
    }
    if entry.contains('\0') {
        return Err(refuse(&format!(" \"{name}\": contains nul byte (\\x00)")));
    }
    Ok((name, value))
}

/// The home directory of a user, `/` when the image does not tell.
fn home_of(uid: u32) -> String {
    // O_NONBLOCK: the image could have put a fifo there.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/etc/passwd");
    let regular = file
        .ok()
        .filter(|file| file.metadata().is_ok_and(|about| about.is_file()));
    let home = regular.and_then(|file| find_home(BufReader::new(file.take(PASSWD_BYTES_MAX)), uid));
    home.unwrap_or_else(|| HOME_DEFAULT.to_owned())
}

fn find_home(passwd: impl BufRead, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd
        .split(b'\n')
        .map_while(std::result::Result::ok)
        .find_map(|line| {
            let line = std::str::from_utf8(&line).ok()?;
            let mut fields = line.split(':');
            let found = fields.nth(2)? == uid;
            found.then(|| fields.nth(2).map(str::to_owned))?
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &[&str], expected: &[&str]) {
        let asked: Vec<String> = asked.iter().map(|&entry| entry.to_owned()).collect();
        assert_eq!(complete(&asked, 0).unwrap(), expected);
    }

    #[test]
    fn of_equal_names_the_last_counts_in_its_own_place() {
        check(
            &["A=1", "HOME=/h", "B=2", "A=3"],
            &["HOME=/h", "B=2", "A=3"],
        );
        check(
            &["A=x=y", "HOME=/h", "EMPTY="],
            &["A=x=y", "HOME=/h", "EMPTY="],
        );
    }

    #[test]
    fn a_missing_or_empty_home_is_looked_up() {
        check(&[], &["HOME=/root"]);
        check(&["HOME=", "A=1"], &["A=1", "HOME=/root"]);
        assert_eq!(home_of(4_000_000), "/");
    }

    #[test]
    fn malformed_entries_are_refused_by_name() {
        for (entry, expected) in [
            ("NOVALUE", "invalid environment variable: missing '='"),
            ("=x", "invalid environment variable: name cannot be empty"),
            (
                "A=\0",
                "invalid environment variable \"A\": contains nul byte (\\x00)",
            ),
        ] {
            let error = complete(&[entry.to_owned()], 0).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn homes_are_found_by_number_and_odd_lines_are_passed_over() {
        let passwd =
            b"\xff:x:7:7::/bad\nshort:x\n\nroot:x:0:0:root:/root:/bin/sh\nx:x:7:8:g:/seven:/sh\n";
        assert_eq!(find_home(&passwd[..], 7).as_deref(), Some("/seven"));
        assert_eq!(find_home(&passwd[..], 0).as_deref(), Some("/root"));
        assert_eq!(find_home(&passwd[..], 9), None);
    }
}
