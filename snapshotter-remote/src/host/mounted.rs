//! The files of a disk that is mounted, by where their contents lie in its blobs, and whether somebody reads them: the kernel makes
//! room in its memory for what it is about to read before it asks for it, so who reads is seen there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use disk::BLOCK_BYTES;
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc::O_NOFOLLOW,
};
use sys::page_cache::{extents_of, pages_in_memory};

/// Who wants more is not looked at: its contents stay.
const FILES_MAX: usize = 1 << 20;

/// The kernel keeps files in pieces of up to so much, and drops only those that lie in what it is told to drop with both ends.
const FOLIO_BYTES_MAX: u64 = 8 << 20;

/// What becomes of what the kernel has in memory of a chunk, and nobody uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// It stays, and the chunk with it.
    Kept,
    /// It goes.
    Dropped,
}

/// All files of a mount.
#[derive(Debug)]
pub(super) struct MountedFiles {
    device: u64,
    paths: Vec<PathBuf>,
    /// By where they begin below.
    runs: Vec<Run>,
    longest: u64,
}

#[derive(Debug)]
struct Run {
    /// In a blob; in which is not told, so what is true of one is taken to be true of each.
    below: Range<u64>,
    /// In the file.
    at: u64,
    path: usize,
}

impl MountedFiles {
    /// Those below a directory on which a disk of that device number is mounted.
    ///
    /// # Errors
    /// What keeps one of them from being looked at.
    pub(super) fn of(root: &Path, device: u64) -> io::Result<Self> {
        let mut this = Self {
            device,
            paths: Vec::new(),
            runs: Vec::new(),
            longest: 0,
        };
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            // What is mounted over it hides files.
            let opened = this.open(&directory)?;
            for entry in fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()))? {
                let entry = entry?;
                let path = directory.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    directories.push(path);
                } else if kind.is_file() {
                    this.add(path)?;
                }
            }
        }
        this.runs.sort_by_key(|run| run.below.start);
        Ok(this)
    }

    fn add(&mut self, path: PathBuf) -> io::Result<()> {
        if self.paths.len() == FILES_MAX {
            return Err(io::Error::other("it has too many files"));
        }
        for extent in extents_of(self.open(&path)?)? {
            let bytes = extent.bytes.next_multiple_of(BLOCK_BYTES);
            self.longest = self.longest.max(bytes);
            self.runs.push(Run {
                below: extent.below..extent.below.saturating_add(bytes),
                at: extent.at,
                path: self.paths.len(),
            });
        }
        self.paths.push(path);
        Ok(())
    }

    /// Whether the kernel has nothing in memory, and reads nothing, of what lies in that range of a blob.
    ///
    /// # Errors
    /// What keeps a file from being looked at.
    pub(super) fn are_idle(&self, range: &Range<u64>, memory: Memory) -> io::Result<bool> {
        let earliest = range.start.saturating_sub(self.longest);
        let first = self.runs.partition_point(|run| run.below.start < earliest);
        let runs = self.runs[first..].iter();
        let runs = runs.take_while(|run| run.below.start < range.end);
        for run in runs.filter(|run| run.below.end > range.start) {
            let file = self.open(&self.paths[run.path])?;
            let from = run.below.start.max(range.start) - run.below.start;
            let to = run.below.end.min(range.end) - run.below.start;
            let part = run.at + from..run.at + to;
            if memory == Memory::Dropped {
                let first = part.start.saturating_sub(FOLIO_BYTES_MAX);
                let count = part.end + FOLIO_BYTES_MAX - first;
                let [at, count] = [first, count].map(i64::try_from);
                let (at, count) = (
                    at.map_err(io::Error::other)?,
                    count.map_err(io::Error::other)?,
                );
                // What is in use stays, and is seen below.
                posix_fadvise(&file, at, count, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            }
            if pages_in_memory(&file, part)? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(O_NOFOLLOW).open(path)?;
        if file.metadata()?.dev() != self.device {
            return Err(io::Error::other("something else is mounted over it"));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_the_disk_is_an_error_wherever_it_lies() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("below/it");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("file"), []).unwrap();
        let device = fs::metadata(&below).unwrap().dev();
        assert_eq!(
            MountedFiles::of(root.path(), device).unwrap().paths,
            [below.join("file")]
        );
        let other = MountedFiles::of(root.path(), device + 1);
        assert!(other.unwrap_err().to_string().contains("mounted over it"));
    }
}
