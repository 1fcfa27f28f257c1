//! The contents of one file into another, holes left out; must not know what is in it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::AsFd, unix::fs::FileExt},
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek64},
};

/// Makes an empty file equal to another: by sharing all blocks where the file system can (FICLONE:
/// btrfs, xfs), else by copying what is no hole.
pub(super) fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    each_range(from, to, |start, end| copy_range(from, to, start, end))
}

/// The same without sharing, and with a hole wherever there is nothing but zeros.
pub(super) fn copy_lean(from: &File, to: &File) -> io::Result<()> {
    each_range(from, to, |start, end| copy_filled(from, to, start, end))
}

fn each_range(from: &File, to: &File, copy: impl Fn(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while let Some((start, end)) = data(from, at, length)? {
        copy(start, end)?;
        at = end;
    }
    Ok(())
}

/// What file systems allocate at least, on most hosts.
const BLOCK_BYTES: usize = 4096;

fn copy_filled(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK_BYTES * 64];
    let mut at = start;
    while at < end {
        let most = (end - at).min(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(most).map_err(io::Error::other)?];
        from.read_exact_at(part, at)?;
        for block in part.chunks(BLOCK_BYTES) {
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, at)?;
            }
            at += block.len() as u64;
        }
    }
    Ok(())
}

/// The first range of data from an offset on. File systems that know no holes have one for all.
fn data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let seek = |at: u64, whence| -> io::Result<Option<u64>> {
        let at = i64::try_from(at).map_err(io::Error::other)?;
        match lseek64(file.as_fd(), at, whence) {
            // Nothing but a hole follows.
            Err(Errno::ENXIO) => Ok(None),
            other => Ok(Some(u64::try_from(other?).map_err(io::Error::other)?)),
        }
    };
    let Some(start) = seek(at, Whence::SeekData)? else {
        return Ok(None);
    };
    let end = seek(start, Whence::SeekHole)?.unwrap_or(length);
    Ok(Some((start, end.min(length))))
}

fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    // Between two files this is copy_file_range(2) where that works.
    let copied = io::copy(&mut from.take(end - start), &mut to)?;
    if copied < end - start {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::MetadataExt};

    use super::*;

    fn check(write: impl Fn(&mut File)) {
        check_with(copy, &write);
        check_with(copy_lean, &write);
    }

    fn check_with(copy: fn(&File, &File) -> io::Result<()>, write: impl Fn(&mut File)) {
        let folder = tempfile::tempdir().unwrap();
        let open = |name| {
            let path = folder.path().join(name);
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            options.open(path).unwrap()
        };
        let (mut from, to) = (open("from"), open("to"));
        write(&mut from);
        from.sync_all().unwrap();
        copy(&from, &to).unwrap();
        to.sync_all().unwrap();
        let contents = |name| std::fs::read(folder.path().join(name)).unwrap();
        assert!(contents("from") == contents("to"));
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from), "holes stay holes");
    }

    #[test]
    fn zeros_become_holes_when_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut bytes = vec![0; 1 << 20];
        (bytes[300_000], bytes[999_999]) = (7, 8);
        std::fs::write(&from, &bytes).unwrap();
        let to_file = File::create(&to).unwrap();
        copy_lean(&File::open(&from).unwrap(), &to_file).unwrap();
        to_file.sync_all().unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes);
        let blocks = std::fs::metadata(&to).unwrap().blocks();
        assert!(blocks <= 16, "{blocks}");
    }

    #[test]
    fn contents_are_copied_and_holes_stay_holes() {
        check(|_| {});
        check(|file| file.write_all(b"text").unwrap());
        check(|file| file.set_len(10 << 20).unwrap());
        check(|file| {
            file.seek(SeekFrom::Start(5 << 20)).unwrap();
            file.write_all(&[7; 10_000]).unwrap();
            file.seek(SeekFrom::Start(9 << 20)).unwrap();
            file.write_all(&[8; 10_000]).unwrap();
            file.set_len(20 << 20).unwrap();
        });
    }
}
