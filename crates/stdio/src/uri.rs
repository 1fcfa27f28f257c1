//! The places containerd's clients name for a stream. Opens nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Where a stream comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// Nowhere: empty, or `/dev/null`.
    Null,
    /// A fifo the client has made: a plain path, or `fifo:///path`. For output, a plain path may
    /// also be a regular file that is there already.
    Fifo(PathBuf),
    /// A log file: `file:///path`.
    File(PathBuf),
    /// A program that takes the output: `binary:///path?key=value`.
    Binary {
        /// The program.
        path: PathBuf,
        /// Its arguments: the keys and values of the query, in turn.
        args: Vec<OsString>,
        /// How it says that it is ready.
        readiness: Readiness,
    },
}

/// How a log binary says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// `binary:`: by closing descriptor 5, also by its end.
    Close,
    /// `binary-v2:`: by a byte in descriptor 5.
    Byte,
}

impl Uri {
    /// Reads what a client named.
    ///
    /// A plain path is taken as it is. The path and the query of a URI are percent-decoded
    /// (RFC 3986), in a query `+` is a blank; of a key that comes twice the first value counts, as
    /// in containerd.
    ///
    /// # Errors
    /// [`Error::Uri`] for unknown schemes, other hosts, relative paths and bad escapes.
    pub fn parse(uri: &str) -> Result<Self> {
        let bad = |why| Error::Uri {
            uri: uri.to_owned(),
            why,
        };
        match uri {
            "" | "/dev/null" => return Ok(Self::Null),
            _ if uri.starts_with('/') => return Ok(Self::Fifo(PathBuf::from(uri))),
            _ => {}
        }
        let (scheme, rest) = uri.split_once(':').ok_or_else(|| bad("is not absolute"))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = match path.strip_prefix("//") {
            None => path,
            Some(path) if path.is_empty() || path.starts_with('/') => path,
            Some(path) => path
                .strip_prefix("localhost")
                .ok_or_else(|| bad("names another host"))?,
        };
        if !path.starts_with('/') {
            return Err(bad("has no absolute path"));
        }
        let decoded = |text, plus| unescape(text, plus).ok_or_else(|| bad("has a bad escape"));
        let path = PathBuf::from(decoded(path, Plus::Plus)?);
        let readiness = match scheme {
            "fifo" => return Ok(Self::Fifo(path)),
            "file" => return Ok(Self::File(path)),
            "binary" => Readiness::Close,
            "binary-v2" => Readiness::Byte,
            _ => return Err(bad("has an unknown scheme")),
        };
        let mut keys = Vec::new();
        let mut args = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decoded(key, Plus::Blank)?;
            if !keys.contains(&key) {
                args.extend([key.clone(), decoded(value, Plus::Blank)?]);
                keys.push(key);
            }
        }
        Ok(Self::Binary {
            path,
            args,
            readiness,
        })
    }
}

/// What a `+` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plus {
    Plus,
    Blank,
}

fn unescape(text: &str, plus: Plus) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if plus == Plus::Blank => b' ',
            other => other,
        });
    }
    // No path or argument can hold it.
    (!bytes.contains(&0)).then(|| OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uri: &str, expected: &Uri) {
        assert_eq!(&Uri::parse(uri).unwrap(), expected);
    }

    #[track_caller]
    fn check_bad(uri: &str, expected: &str) {
        let error = Uri::parse(uri).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    }

    fn binary(path: &str, args: &[&str], readiness: Readiness) -> Uri {
        Uri::Binary {
            path: path.into(),
            args: args.iter().map(OsString::from).collect(),
            readiness,
        }
    }

    #[test]
    fn plain_paths_are_fifos_as_they_are() {
        check("", &Uri::Null);
        check("/dev/null", &Uri::Null);
        check("/run/a%20b?c#d:e", &Uri::Fifo("/run/a%20b?c#d:e".into()));
        check("fifo:///run/a%20b", &Uri::Fifo("/run/a b".into()));
    }

    #[test]
    fn files_may_name_this_host() {
        check("file:///var/log/a+b", &Uri::File("/var/log/a+b".into()));
        check("file:/var/log/a", &Uri::File("/var/log/a".into()));
        check("file://localhost/a", &Uri::File("/a".into()));
        check("file:///a?b=c#d", &Uri::File("/a".into()));
        check("file:///%C3%A4", &Uri::File("/ä".into()));
    }

    #[test]
    fn queries_are_arguments_of_log_binaries_in_order() {
        use Readiness::{Byte, Close};
        check("binary:///bin/l", &binary("/bin/l", &[], Close));
        check("binary-v2:///bin/l", &binary("/bin/l", &[], Byte));
        check(
            "binary:///bin/l?z=1&a=%2Fx%26y&b&z=2&=e+f",
            &binary(
                "/bin/l",
                &["z", "1", "a", "/x&y", "b", "", "", "e f"],
                Close,
            ),
        );
    }

    #[test]
    fn what_names_no_place_is_refused() {
        check_bad("run/fifo", "is not absolute");
        check_bad("file://log/a", "names another host");
        check_bad("file://", "has no absolute path");
        check_bad("file:a", "has no absolute path");
        check_bad("http:///a", "has an unknown scheme");
        check_bad("file:///a%2", "has a bad escape");
        check_bad("file:///a%zz", "has a bad escape");
        check_bad("file:///a%00", "has a bad escape");
        check_bad("file:///a%+1", "has a bad escape");
    }
}
