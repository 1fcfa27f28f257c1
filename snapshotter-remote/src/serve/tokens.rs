//! Which hosts may ask, by a secret of each. Comparing takes as long whatever is wrong, and a token is
//! neither kept nor shown.

use std::{fmt, fs::File, io::Read, os::unix::fs::PermissionsExt, path::Path};

use blake3::Hash;

use crate::error::{Error, Result};

/// Nobody has more hosts than fit.
const FILE_BYTES_MAX: u64 = 16 << 20;

const TOKEN_BYTES_MIN: usize = 32;
const TOKEN_BYTES_MAX: usize = 512;
const HOST_BYTES_MAX: usize = 253;

/// Hosts by the digests of their tokens.
pub(super) struct Tokens(Vec<(String, Hash)>);

impl Tokens {
    /// Of a file with a line for each: name, spaces, token. Empty lines and those that begin with `#`
    /// say nothing. A host may have several tokens, so that they can be changed one by one.
    ///
    /// # Errors
    /// [`Error::Setting`] for a file that others can read, or that is not like this.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let failed = |source| Error::File {
            doing: "reading the tokens in",
            path: path.to_owned(),
            source,
        };
        let refused = |what: String| Error::Setting(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o007 != 0 {
            return Err(refused(format!(
                "everybody on this host can use it (mode {:04o}): chmod 0600",
                mode & 0o7777
            )));
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
        if read.map_err(failed)? as u64 > FILE_BYTES_MAX {
            return Err(refused(format!("longer than {FILE_BYTES_MAX} bytes")));
        }
        Self::parse(&text).map_err(refused)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut tokens: Vec<(String, Hash)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (host, token) =
                entry(line).map_err(|what| format!("line {}: {what}", index + 1))?;
            tokens.push((host.to_owned(), blake3::hash(token.as_bytes())));
        }
        if tokens.is_empty() {
            return Err("it has no token, so nobody could ask".to_owned());
        }
        Ok(Self(tokens))
    }

    /// The host whose token that is; all are looked at.
    pub(super) fn host(&self, token: &str) -> Option<&str> {
        let digest = blake3::hash(token.as_bytes());
        let mut found = None;
        for (host, known) in &self.0 {
            // In constant time, as blake3 promises for its digests.
            if *known == digest {
                found = Some(host.as_str());
            }
        }
        found
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

/// The token of an Authorization field (RFC 6750, 2.1).
pub(super) fn bearer(field: &str) -> Option<&str> {
    let (scheme, token) = field.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim_matches(' '))
}

fn entry(line: &str) -> Result<(&str, &str), String> {
    let (host, token) = line
        .split_once([' ', '\t'])
        .ok_or("a host's name, a space and its token are expected")?;
    let token = token.trim_start();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    if host.len() > HOST_BYTES_MAX || !host.bytes().all(is_name) {
        return Err("no name of a host: letters, digits and . _ - : are taken".to_owned());
    }
    if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
        return Err(format!(
            "the token of {host} has {} characters; from {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} is taken",
            token.len()
        ));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "the token of {host} has characters that are no letters, digits or signs of ASCII"
        ));
    }
    Ok((host, token))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "0123456789abcdef0123456789abcdeg";

    #[test]
    fn a_token_is_its_hosts_and_no_other_is() {
        let text = format!("# hosts\n\na {ONE}\nb.example\t {OTHER}\n");
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.count(), 2);
        assert_eq!(tokens.host(ONE), Some("a"));
        assert_eq!(tokens.host(OTHER), Some("b.example"));
        for wrong in ["", "a", &ONE[1..], &format!("{ONE}0")] {
            assert_eq!(tokens.host(wrong), None, "{wrong}");
        }
        assert!(!format!("{tokens:?}").contains(ONE));
    }

    #[test]
    fn what_is_no_token_is_named_by_its_line_and_not_shown() {
        let check = |text: &str, expected: &str| {
            let error = Tokens::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("0123"), "{error}");
        };
        check("", "no token, so nobody could ask");
        check(&format!("\n{ONE}"), "line 2: a host's name");
        check("a 0123", "line 1: the token of a has 4 characters");
        check(&format!("a/b {ONE}"), "no name of a host");
        check(&format!("a {ONE}\u{e9}"), "no letters, digits or signs");
        check(&format!("a {ONE} {OTHER}"), "no letters, digits or signs");
    }

    #[test]
    fn a_file_that_everybody_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, format!("a {ONE}\n")).unwrap();
        for (mode, is_taken) in [(0o600, true), (0o640, true), (0o644, false), (0o602, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = Tokens::read(&path);
            assert_eq!(read.is_ok(), is_taken, "{mode:o}: {read:?}");
        }
    }

    #[test]
    fn a_bearer_is_read_whatever_its_case() {
        assert_eq!(bearer("Bearer x"), Some("x"));
        assert_eq!(bearer("bearer  x "), Some("x"));
        assert_eq!(bearer("Basic x"), None);
        assert_eq!(bearer("Bearer"), None);
    }
}
