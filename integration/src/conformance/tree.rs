//! Changes to a directory tree, and whether two trees are the same.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};

/// One change. Paths are below the tree's root.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// A directory with that mode, new or there already.
    Directory(String, u32),
    /// A file with that content and mode, new or overwritten in place.
    File(String, String, u32),
    /// The path is removed with all below it, if it is there.
    RemoveAll(String),
    /// The first path becomes the second.
    Rename(String, String),
    /// The second path becomes a hard link to the first.
    Link(String, String),
    /// Owner and group.
    Chown(String, u32),
    /// The time of the last change to the content becomes one and the same moment, always.
    Stamp(String),
}

pub(super) fn directory(path: &str, mode: u32) -> Change {
    Change::Directory(path.to_owned(), mode)
}

pub(super) fn file(path: &str, content: &str, mode: u32) -> Change {
    Change::File(path.to_owned(), content.to_owned(), mode)
}

pub(super) fn remove_all(path: &str) -> Change {
    Change::RemoveAll(path.to_owned())
}

pub(super) fn rename(from: &str, to: &str) -> Change {
    Change::Rename(from.to_owned(), to.to_owned())
}

pub(super) fn link(from: &str, to: &str) -> Change {
    Change::Link(from.to_owned(), to.to_owned())
}

pub(super) fn owned(path: &str, id: u32) -> Change {
    Change::Chown(path.to_owned(), id)
}

pub(super) fn stamp(path: &str) -> Change {
    Change::Stamp(path.to_owned())
}

/// Makes the changes, in their order.
pub(super) fn apply(root: &Path, changes: &[Change]) -> Result<()> {
    for change in changes {
        change
            .apply(root)
            .with_context(|| format!("{change:?} in {}", root.display()))?;
    }
    Ok(())
}

impl Change {
    fn apply(&self, root: &Path) -> std::io::Result<()> {
        match self {
            Self::Directory(path, mode) => {
                fs::create_dir_all(root.join(path))?;
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode))
            }
            Self::File(path, content, mode) => {
                fs::write(root.join(path), content)?;
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode))
            }
            Self::RemoveAll(path) => {
                let path = root.join(path);
                match fs::symlink_metadata(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                    Ok(data) if data.is_dir() => fs::remove_dir_all(path),
                    Ok(_) => fs::remove_file(path),
                }
            }
            Self::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
            Self::Link(from, to) => fs::hard_link(root.join(from), root.join(to)),
            Self::Chown(path, id) => chown(root.join(path), Some(*id), Some(*id)),
            Self::Stamp(path) => {
                let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
                let file = fs::File::options().write(true).open(root.join(path))?;
                file.set_modified(moment)
            }
        }
    }
}

/// What is compared of one path: everything but times and extended attributes, as in the Go suite.
#[derive(PartialEq, Eq)]
struct Entry {
    mode: u32,
    uid: u32,
    gid: u32,
    shape: Shape,
}

#[derive(PartialEq, Eq)]
enum Shape {
    Directory,
    /// Content, and every path in the tree that is this file.
    File(Vec<u8>, Vec<PathBuf>),
    Symlink(PathBuf),
    /// Device number; 0 for sockets and fifos.
    Special(u64),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, uid, gid, .. } = self;
        write!(f, "mode {mode:o} owner {uid}:{gid}")?;
        match &self.shape {
            Shape::Directory => Ok(()),
            Shape::File(content, paths) => {
                write!(f, " {:?}", String::from_utf8_lossy(content))?;
                if paths.is_empty() {
                    return Ok(());
                }
                write!(f, " linked as {paths:?}")
            }
            Shape::Symlink(target) => write!(f, " -> {}", target.display()),
            Shape::Special(device) => write!(f, " device {device:#x}"),
        }
    }
}

/// Demands that two trees are the same, their roots' own attributes apart.
pub(super) fn same(expected: &Path, actual: &Path) -> Result<()> {
    let [wanted, found] = [expected, actual].map(entries);
    let (wanted, found) = (wanted?, found?);
    let mut differences = Vec::new();
    for (path, entry) in &wanted {
        let shown = path.display();
        match found.get(path) {
            None => differences.push(format!("{shown} is missing")),
            Some(other) if other != entry => {
                differences.push(format!("{shown} has {other}, expected {entry}"));
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !wanted.contains_key(*path)) {
        differences.push(format!("{} is too much", path.display()));
    }
    ensure!(
        differences.is_empty(),
        "{} is not what it should be: {}",
        actual.display(),
        differences.join("; ")
    );
    Ok(())
}

fn entries(root: &Path) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut found = BTreeMap::new();
    let mut links: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?
        {
            let path = entry?.path();
            let data = fs::symlink_metadata(&path)
                .with_context(|| format!("looking at {}", path.display()))?;
            let below = path.strip_prefix(root).expect("it was listed below it");
            if data.is_dir() {
                directories.push(path.clone());
            } else if data.is_file() && data.nlink() > 1 {
                let same = links.entry((data.dev(), data.ino())).or_default();
                same.push(below.to_owned());
            }
            let entry = Entry {
                mode: data.mode(),
                uid: data.uid(),
                gid: data.gid(),
                shape: shape(&path, &data)?,
            };
            found.insert(below.to_owned(), entry);
        }
    }
    for mut paths in links.into_values().filter(|paths| paths.len() > 1) {
        paths.sort();
        for path in &paths {
            if let Some(Entry {
                shape: Shape::File(_, linked),
                ..
            }) = found.get_mut(path)
            {
                linked.clone_from(&paths);
            }
        }
    }
    Ok(found)
}

fn shape(path: &Path, data: &fs::Metadata) -> Result<Shape> {
    let reading = || format!("reading {}", path.display());
    Ok(if data.is_dir() {
        Shape::Directory
    } else if data.is_file() {
        Shape::File(fs::read(path).with_context(reading)?, Vec::new())
    } else if data.is_symlink() {
        Shape::Symlink(fs::read_link(path).with_context(reading)?)
    } else {
        Shape::Special(data.rdev())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Vec<Change> {
        vec![
            directory("d", 0o700),
            file("d/f", "one", 0o644),
            file("d/g", "one", 0o644),
            link("d/f", "d/h"),
        ]
    }

    /// What the comparison says of a tree with further changes.
    fn difference(further: &[Change]) -> String {
        let [one, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        apply(one.path(), &base()).unwrap();
        apply(other.path(), &base()).unwrap();
        apply(other.path(), further).unwrap();
        same(one.path(), other.path()).map_or_else(|error| format!("{error:#}"), |()| String::new())
    }

    #[test]
    fn equal_trees_are_equal_and_every_difference_is_named() {
        assert_eq!(difference(&[]), "");
        assert_eq!(difference(&[stamp("d/g")]), "");
        for (further, expected) in [
            (vec![remove_all("d/g")], "d/g is missing"),
            (vec![directory("e", 0o755)], "e is too much"),
            (vec![directory("d", 0o711)], "d has mode 40711"),
            (vec![owned("d", 1)], "owner 1:1"),
            (vec![file("d/g", "two", 0o644)], "\"two\""),
            (
                vec![remove_all("d/h"), file("d/h", "one", 0o644)],
                "linked as",
            ),
            (vec![rename("d/g", "d/i")], "d/g is missing"),
            (
                vec![remove_all("d/g"), directory("d/g", 0o644)],
                "d/g has mode 40644",
            ),
        ] {
            let said = difference(&further);
            assert!(said.contains(expected), "{further:?}: {said:?}");
        }
    }
}
