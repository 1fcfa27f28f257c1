//! Where a store is, as people say it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

use super::bucket::S3Config;

/// What the name of a bucket begins with.
const SCHEME: &str = "s3://";

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// Below a prefix of a bucket of S3, and how that is reached.
    Bucket(BucketName, Box<S3Config>),
}

/// `s3://BUCKET[/PREFIX]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BucketName {
    pub(super) bucket: String,
    /// Without `/` at its ends; empty for the whole bucket.
    pub(super) prefix: String,
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::Directory(path.to_owned())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::Directory(path.clone())
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket(name, _) => name.fmt(f),
        }
    }
}

impl FromStr for BucketName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(name) = text.strip_prefix(SCHEME) else {
            return Err(format!("{text:?} does not begin with {SCHEME}"));
        };
        let (bucket, prefix) = name.split_once('/').unwrap_or((name, ""));
        let is_bucket_sign = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_bucket_sign) {
            return Err(format!(
                "{bucket:?} is no name of a bucket: 3 to 63 of a-z, 0-9, . and -"
            ));
        }
        let prefix = prefix.trim_end_matches('/');
        let is_prefix_sign = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_part =
            |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_prefix_sign);
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err(format!(
                "{prefix:?} is no prefix of a store: parts of A-Z, a-z, 0-9, ., _ and -, with / between them"
            ));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl TryFrom<String> for BucketName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket)?;
        if self.prefix.is_empty() {
            return Ok(());
        }
        write!(f, "/{}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_named_as_they_are_shown() {
        for name in ["s3://disks", "s3://a.b-1", "s3://disks/hall-1/x_2"] {
            assert_eq!(name.parse::<BucketName>().unwrap().to_string(), name);
        }
        let name = "s3://disks/hall/".parse::<BucketName>().unwrap();
        assert_eq!(name.to_string(), "s3://disks/hall");
        for wrong in [
            "disks",
            "s3:/disks",
            "s3://",
            "s3://ab",
            "s3://Disks",
            "s3://disks//x",
            "s3://disks/../x",
            "s3://disks/x y",
            "s3://disks/x/./y",
        ] {
            wrong.parse::<BucketName>().unwrap_err();
        }
    }
}
