//! What a request asks for: its path as one of the few things that are served. No path of a request ever
//! becomes a path of the file system; only names do.

use disk::Digest;

use crate::{signature::digest, store::Name, trace};

/// No path that is served is longer.
const PATH_BYTES_MAX: usize = 200;

/// Before the names of objects; another layout would be another number.
const PREFIX: &str = "/v1/";

/// Of the version of traces that this program reads.
const TRACES: &str = "traces/1/";
const _: () = assert!(trace::VERSION == 1, "the number in TRACES");

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Whether it serves.
    Health,
    /// An object.
    Object(Name),
    /// What is read first of a disk.
    Trace(Digest),
}

/// Why nothing is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTarget {
    /// Nothing that is served looks like this.
    Malformed(&'static str),
    /// It could be, but is nothing.
    Unknown,
}

impl Target {
    /// Of path and query, as they came.
    pub(super) fn of(path: &str, query: Option<&str>) -> Result<Self, NoTarget> {
        if path.len() > PATH_BYTES_MAX {
            return Err(NoTarget::Malformed("the path is longer than paths are"));
        }
        if query.is_some() {
            return Err(NoTarget::Malformed("a query means nothing here"));
        }
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'/');
        if !path.bytes().all(is_plain) {
            return Err(NoTarget::Malformed(
                "a path has small letters, digits and slashes, and nothing else",
            ));
        }
        let name = path.strip_prefix(PREFIX).ok_or(NoTarget::Unknown)?;
        if name == "health" {
            return Ok(Self::Health);
        }
        if let Some(chain_id) = name.strip_prefix(TRACES) {
            let chain_id = digest(chain_id).ok_or(NoTarget::Unknown)?;
            return Ok(Self::Trace(chain_id));
        }
        let name = name.parse().map_err(|_no_name| NoTarget::Unknown)?;
        Ok(Self::Object(name))
    }

    /// For metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Trace(_) => "trace",
            Self::Object(Name::Chunk(_)) => "chunk",
            Self::Object(Name::Table(_)) => "table",
            Self::Object(Name::Layer(_)) => "layer",
            Self::Object(Name::Disk(_)) => "disk",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_targets() {
        let digits = "ab".repeat(32);
        let check = |path: &str, expected| assert_eq!(Target::of(path, None), expected, "{path}");
        let disk = Name::Disk(Digest([0xab; 32]));
        check(&format!("/v1/disks/1/{digits}"), Ok(Target::Object(disk)));
        check("/v1/health", Ok(Target::Health));
        let trace = Target::Trace(Digest([0xab; 32]));
        check(&format!("/v1/traces/1/{digits}"), Ok(trace));
        let malformed = Err(NoTarget::Malformed(
            "a path has small letters, digits and slashes, and nothing else",
        ));
        for path in [
            format!("/v1/disks/1/{}", digits.to_uppercase()),
            format!("/v1/disks/../disks/1/{digits}"),
            format!("/v1/disks/1/%61b{}", &digits[3..]),
            "/v1/key.pub".to_owned(),
            "/v1/%2e%2e/key".to_owned(),
            "/v1/\0".to_owned(),
        ] {
            check(&path, malformed);
        }
        for path in [
            "",
            "/",
            "/v1",
            "/v1/",
            "/v1/key",
            "/v1/disks/1/",
            "//v1/health",
            "/v2/health",
            "/v1/traces/1/ab",
            "/v1/traces/2/",
        ] {
            check(path, Err(NoTarget::Unknown));
        }
        let long = "/v1/".to_owned() + &"a".repeat(300);
        check(
            &long,
            Err(NoTarget::Malformed("the path is longer than paths are")),
        );
        let query = Target::of("/v1/health", Some(""));
        assert_eq!(
            query,
            Err(NoTarget::Malformed("a query means nothing here"))
        );
    }
}
