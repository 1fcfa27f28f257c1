//! Names of objects, and where each lies below a store. The only place that knows the layout.

use std::{fmt, str::FromStr};

use disk::{Digest, FORMAT_VERSION};
use object_store::path::Path as ObjectPath;

use crate::{chunk::ChunkId, signature::digest};

/// The name of an object. It never means anything else: what depends on the format of disks has its
/// version in the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// Contents, by their BLAKE3.
    Chunk(ChunkId),
    /// The table of a blob, by its BLAKE3.
    Table([u8; 32]),
    /// A stored layer, by diffID.
    Layer(Digest),
    /// A signed manifest, by chainID.
    Disk(Digest),
}

/// A text that is no object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no object has such a name")]
pub struct NoName;

impl Name {
    /// Where it lies with others.
    pub(super) fn directory(&self) -> String {
        let mut path = self.to_string();
        path.truncate(path.rfind('/').unwrap_or_default());
        path
    }

    /// The whole of it.
    pub(super) fn path(&self) -> ObjectPath {
        ObjectPath::from(match self {
            Self::Chunk(id) => format!("chunks/{:02x}/{id}", id.0[0]),
            Self::Table(digest) => format!("tables/{}", Digest(*digest)),
            Self::Layer(diff_id) => format!("layers/{FORMAT_VERSION}/{diff_id}"),
            Self::Disk(chain_id) => format!("disks/{FORMAT_VERSION}/{chain_id}"),
        })
    }
}

impl FromStr for Name {
    type Err = NoName;

    /// Of what [`Name`] shows, and of nothing else.
    fn from_str(text: &str) -> Result<Self, NoName> {
        let (directory, last) = text.rsplit_once('/').ok_or(NoName)?;
        let digest = digest(last).ok_or(NoName)?;
        let kind = directory.split('/').next();
        let name = match kind {
            Some("chunks") => Self::Chunk(ChunkId(digest.0)),
            Some("tables") => Self::Table(digest.0),
            Some("layers") => Self::Layer(digest),
            Some("disks") => Self::Disk(digest),
            _ => return Err(NoName),
        };
        // What is between them is a matter of the whole name.
        if name.to_string() == text {
            Ok(name)
        } else {
            Err(NoName)
        }
    }
}

impl fmt::Display for Name {
    /// Where it lies below the directory of the store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_not_otherwise() {
        let digits = "ab".repeat(32);
        let names = [
            Name::Chunk(ChunkId([0xab; 32])),
            Name::Table([0xab; 32]),
            Name::Layer(Digest([0xab; 32])),
            Name::Disk(Digest([0xab; 32])),
        ];
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for wrong in [
            String::new(),
            digits.clone(),
            format!("chunks/{digits}"),
            format!("chunks/ac/{digits}"),
            format!("chunks/ab/x/{digits}"),
            format!("chunks//ab/{digits}"),
            format!("/chunks/ab/{digits}"),
            format!("chunks/ab/{digits}/"),
            format!("chunks/ab/{digits}0"),
            format!("chunks/ab/{}", &digits[1..]),
            format!("chunks/AB/{}", digits.to_uppercase()),
            format!("disks/{digits}"),
            format!("disks/2/{digits}"),
            format!("disks/../disks/1/{digits}"),
            format!("key/{digits}"),
            "key".to_owned(),
        ] {
            assert_eq!(wrong.parse::<Name>(), Err(NoName), "{wrong}");
        }
    }
}
