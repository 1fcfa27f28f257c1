//! All that a file system tells of a tree, entry by entry, to be compared with what it should be.
//! Runs in guests, too, where it prints what it sees.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::{self, File, Metadata},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::Path,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A tree: facts by path relative to its root, which is the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// In the order of paths.
    pub entries: BTreeMap<Vec<u8>, Facts>,
}

/// What is known of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Type and permissions as stat(2) has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it has; for a directory by the number of those in it.
    pub links: u64,
    /// The number of a device file.
    pub device: u64,
    /// Time of modification: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it holds.
    pub contents: Contents,
    /// The first path of the same inode, for other names of it.
    pub same_as: Option<Vec<u8>>,
}

/// What an entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// A file's length in bytes and its SHA-256.
    File(u64, [u8; 32]),
    /// Where a symbolic link points.
    Symlink(Vec<u8>),
    /// A directory, a device, a pipe.
    Nothing,
}

impl Listing {
    /// Without what overlayfs does not tell as other file systems do: links of directories, and the time
    /// of a root without an entry, which stock containerd makes when it unpacks.
    #[must_use]
    pub fn as_unpacked(mut self) -> Self {
        for facts in self.entries.values_mut() {
            if facts.mode & 0o170_000 == 0o040_000 {
                facts.links = 1;
            }
        }
        if let Some(root) = self.entries.get_mut(&b""[..]) {
            root.mtime = (0, 0);
        }
        self
    }

    /// Walks a tree; symbolic links are not followed. What has many names is read once.
    pub fn of(root: &Path) -> Result<Self> {
        let mut listing = Self::default();
        let mut names: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let full = root.join(OsString::from_vec(path.clone()));
            let about = || format!("looking at {}", full.display());
            let metadata = fs::symlink_metadata(&full).with_context(about)?;
            if metadata.is_dir() {
                for entry in fs::read_dir(&full).with_context(about)? {
                    pending.push(below(&path, entry?.file_name().as_bytes()));
                }
            }
            let names = names.entry((metadata.dev(), metadata.ino())).or_default();
            let facts = match names.first() {
                Some(name) => listing.entries[name].clone(),
                None => facts(&full, &metadata).with_context(about)?,
            };
            names.push(path.clone());
            listing.entries.insert(path, facts);
        }
        for mut paths in names.into_values() {
            paths.sort_unstable();
            for path in &paths[1..] {
                let facts = listing.entries.get_mut(path).context("it was listed")?;
                facts.same_as = Some(paths[0].clone());
            }
        }
        Ok(listing)
    }

    /// Lines of what one has and the other has not, or not so.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let paths = self.entries.keys().chain(other.entries.keys());
        let paths: std::collections::BTreeSet<_> = paths.collect();
        for path in paths {
            let (one, two) = (self.entries.get(path), other.entries.get(path));
            if one == two {
                continue;
            }
            for (sign, facts) in [('-', one), ('+', two)] {
                if let Some(facts) = facts {
                    lines.push(format!("{sign} /{} {facts}", path.escape_ascii()));
                }
            }
        }
        lines
    }
}

/// A path below a directory's path.
#[must_use]
pub fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_owned();
    }
    [directory, b"/", name].concat()
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, facts) in &self.entries {
            writeln!(f, "/{} {facts}", path.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = self.mtime;
        let (mode, links) = (self.mode, self.links);
        write!(f, "{mode:o} {}:{} links {links}", self.uid, self.gid)?;
        write!(f, " device {:x} @{seconds}.{nanoseconds:09}", self.device)?;
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        match &self.contents {
            Contents::File(bytes, sum) => {
                write!(f, " {bytes} bytes ")?;
                sum.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            }
            Contents::Symlink(target) => write!(f, " -> {}", target.escape_ascii())?,
            Contents::Nothing => {}
        }
        match &self.same_as {
            Some(first) => write!(f, " is /{}", first.escape_ascii()),
            None => Ok(()),
        }
    }
}

fn facts(path: &Path, metadata: &Metadata) -> Result<Facts> {
    let kind = metadata.file_type();
    let contents = if kind.is_file() {
        let mut sum = Sha256::new();
        let bytes = io::copy(&mut File::open(path)?, &mut sum)?;
        Contents::File(bytes, sum.finalize().into())
    } else if kind.is_symlink() {
        Contents::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else {
        Contents::Nothing
    };
    Ok(Facts {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: metadata.nlink(),
        device: metadata.rdev(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        xattrs: xattrs(path)?,
        contents,
        same_as: None,
    })
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The most that Linux gives: XATTR_LIST_MAX, XATTR_SIZE_MAX.
    let mut buffer = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut buffer)?;
    let names = buffer[..length].to_owned();
    let names = names.split(|&byte| byte == 0).filter(|it| !it.is_empty());
    names
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, name, &mut buffer[..])
                .with_context(|| format!("attribute {}", name.escape_ascii()))?;
            Ok((name.to_owned(), buffer[..length].to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_makes_a_difference() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "a").unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let before = Listing::of(dir.path()).unwrap();
        assert_eq!(before.differences(&before), [""; 0]);
        assert_eq!(before.entries[&b"b"[..]].same_as, Some(b"a".to_vec()));
        fs::write(dir.path().join("a"), "b").unwrap();
        let mut after = Listing::of(dir.path()).unwrap();
        for (path, facts) in &mut after.entries {
            facts.mtime = before.entries[path].mtime;
        }
        let lines = before.differences(&after);
        assert_eq!(lines.len(), 4, "{lines:?}");
        fs::remove_file(dir.path().join("b")).unwrap();
        let lines = after.differences(&Listing::of(dir.path()).unwrap());
        assert!(
            lines[0].starts_with("- / ") || lines[0].starts_with("- /a "),
            "{lines:?}"
        );
    }
}
