//! New images without mkfs: the first of a size is kept as a template, and the others are copies of
//! the few blocks in it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use snapshot_core::{Error, Result, SnapshotId};

use super::{Fs, directories, filesystem_maker, image_size, sparse_copy};
use crate::limit::{Inodes, Size};

/// More sizes than a host has kinds of containers. A template has some 100 KiB.
const COUNT_MAX: usize = 64;

/// Change it when mkfs gets other arguments: it is in the names.
const RECIPE: u32 = 1;

/// Which file system is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) fs: Fs,
    pub(super) bytes: Size,
    pub(super) inodes: Option<Inodes>,
}

impl Wanted {
    fn name(self) -> String {
        let inodes = self
            .inodes
            .map_or("any".to_owned(), |count| count.to_string());
        format!("{}-{}-{inodes}-{RECIPE}", self.fs.name(), self.bytes)
    }
}

/// The templates of a root.
#[derive(Debug)]
pub(super) struct Templates {
    folder: PathBuf,
}

impl Templates {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            folder: root.join("templates"),
        }
    }

    /// Makes an image.
    ///
    /// # Errors
    /// Those of mkfs the first time, and of the disk.
    pub(super) fn instantiate(&self, wanted: Wanted, image: &Path, id: SnapshotId) -> Result<()> {
        let template = self.folder.join(wanted.name());
        let from = match File::open(&template) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make(wanted, &template, id)?
            }
            other => other.map_err(Error::io("open", &template))?,
        };
        let to = create(image)?;
        sparse_copy::copy(&from, &to).map_err(Error::io("copy a template to", image))
    }

    fn make(&self, wanted: Wanted, template: &Path, id: SnapshotId) -> Result<File> {
        directories::make_one(&self.folder, 0o700)?;
        self.make_room()?;
        let building = self.folder.join(format!("new-{id}"));
        let lean = self.folder.join(format!("new-{id}.lean"));
        let made = build(wanted, &building, &lean).and_then(|file| {
            // Two snapshots may make the same one: the last name counts, and both are the same.
            fs::rename(&lean, template).map_err(Error::io("rename", &lean))?;
            Ok(file)
        });
        for unfinished in [&building, &lean] {
            if let Err(error) = remove(unfinished) {
                let error = error.in_one_line();
                tracing::warn!(error, "an unfinished template stays until the next start");
            }
        }
        made
    }

    /// The oldest goes when there are many; images do not need their template any more.
    fn make_room(&self) -> Result<()> {
        let listed = self.list()?;
        let over = (listed.len() + 1).saturating_sub(COUNT_MAX);
        for (_, path) in listed.into_iter().take(over) {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes what a crash left half made.
    pub(super) fn clear_unfinished(&self) -> Result<()> {
        for (_, path) in self.list()? {
            let name = path.file_name().map(|name| name.to_string_lossy());
            if name.is_some_and(|name| name.starts_with("new-")) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// From the oldest.
    fn list(&self) -> Result<Vec<(SystemTime, PathBuf)>> {
        let failed = || Error::io("list", &self.folder);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed())?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed())?;
            // Gone meanwhile: another snapshot makes room too.
            if let Ok(about) = entry.metadata() {
                let made = about.modified().map_err(failed())?;
                found.push((made, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }
}

fn build(wanted: Wanted, building: &Path, lean: &Path) -> Result<File> {
    let full = create(building)?;
    image_size::set_length(&full, building, wanted.bytes.bytes().get())?;
    filesystem_maker::make(wanted.fs, building, wanted.inodes)?;
    // mkfs.xfs allocates its log, 64 MiB of zeros.
    let file = create(lean)?;
    sparse_copy::copy_lean(&full, &file).map_err(Error::io("copy", building))?;
    Ok(file)
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(Error::io("make", path))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn wanted(fs: Fs, mib: u64) -> Wanted {
        Wanted {
            fs,
            bytes: Size::from_bytes(mib << 20).unwrap(),
            inodes: None,
        }
    }

    #[test]
    fn images_of_one_size_are_copies_of_one_template() {
        let root = tempfile::tempdir().unwrap();
        let templates = Templates::new(root.path());
        for (number, kind) in (0..).zip([Fs::Ext4, Fs::Xfs, Fs::Ext4, Fs::Xfs]) {
            let image = root.path().join(number.to_string());
            let id = SnapshotId(number);
            templates
                .instantiate(wanted(kind, 1 << 14), &image, id)
                .unwrap();
            let about = fs::metadata(&image).unwrap();
            assert_eq!((about.len(), about.mode() & 0o777), (16 << 30, 0o600));
            let kept = about.blocks() * 512;
            assert!(kept < 2 << 20, "{kind:?} {kept}");
        }
        let kept = templates.list().unwrap();
        let blocks = |path: &PathBuf| fs::metadata(path).unwrap().blocks();
        assert!(kept.len() == 2 && kept.iter().all(|(_, path)| blocks(path) < 4096));
    }

    #[test]
    fn templates_do_not_pile_up_and_unfinished_ones_go() {
        let root = tempfile::tempdir().unwrap();
        let templates = Templates::new(root.path());
        templates.clear_unfinished().unwrap();
        for mib in 16..90 {
            let image = root.path().join("image");
            let id = SnapshotId(mib);
            templates
                .instantiate(wanted(Fs::Ext4, mib), &image, id)
                .unwrap();
        }
        assert_eq!(templates.list().unwrap().len(), COUNT_MAX);
        fs::write(root.path().join("templates/new-7"), "").unwrap();
        templates.clear_unfinished().unwrap();
        assert_eq!(templates.list().unwrap().len(), COUNT_MAX);
    }

    #[test]
    fn what_mkfs_says_is_passed_on() {
        let root = tempfile::tempdir().unwrap();
        let templates = Templates::new(root.path());
        let image = root.path().join("image");
        let error = templates
            .instantiate(wanted(Fs::Xfs, 1), &image, SnapshotId(1))
            .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("Exited(1)"), "{source}");
        assert_eq!(templates.list().unwrap(), []);
    }
}
