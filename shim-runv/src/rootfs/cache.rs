//! Disks by key, each made once, whoever comes first; the ones not used for longest go when there are too
//! many bytes. A machine that runs keeps its disk open, so any may go at any time.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::{Error, Result};

/// What all disks may have together, in bytes.
const BYTES_MAX: u64 = 16 << 30;

/// Ends the name of a disk.
const SUFFIX: &str = ".erofs";

/// Begins the name of one that is being made (tempfile).
const UNFINISHED: &str = ".tmp";

/// One that nobody has written to for so long was its maker's who is gone: it was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The disk of that key, made by `make` if it is not there.
pub(crate) fn get(
    folder: &Path,
    key: [u8; 32],
    make: impl FnOnce(File) -> Result<()>,
) -> Result<PathBuf> {
    get_within(folder, key, BYTES_MAX, make)
}

fn get_within(
    folder: &Path,
    key: [u8; 32],
    bytes_max: u64,
    make: impl FnOnce(File) -> Result<()>,
) -> Result<PathBuf> {
    let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("{name}{SUFFIX}"));
    if let Ok(file) = File::open(&path) {
        let now = FileTimes::new().set_modified(SystemTime::now());
        file.set_times(now).map_err(Error::on("touch", &path))?;
        return Ok(path);
    }
    fs::create_dir_all(folder).map_err(Error::on("create", folder))?;
    let file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(folder);
    let file = file.map_err(Error::on("make a file in", folder))?;
    let failed = Error::on("write", &path);
    let out = file.reopen().map_err(failed)?;
    make(out)?;
    // Two that make the same disk at once write the same bytes.
    let persisted = file.persist(&path);
    persisted.map_err(|error| Error::on("write", &path)(error.error))?;
    shrink(folder, &path, bytes_max)?;
    Ok(path)
}

/// Removes disks, the one used longest ago first, but not `kept`; and unfinished ones that were abandoned.
fn shrink(folder: &Path, kept: &Path, bytes_max: u64) -> Result<()> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::on("list", folder))? {
        let path = entry.map_err(Error::on("list", folder))?.path();
        // Another may have removed it meanwhile.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let used = metadata.modified().map_err(Error::on("stat", &path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(SUFFIX) {
            disks.push((used, metadata.len(), path));
        } else if name.starts_with(UNFINISHED)
            && used.elapsed().is_ok_and(|age| age > ABANDONED_AFTER)
        {
            // Another may have removed it meanwhile.
            let _gone = fs::remove_file(path);
        }
    }
    disks.sort();
    let mut bytes: u64 = disks.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, length, path) in disks.iter().filter(|(.., path)| path != kept) {
        if bytes <= bytes_max {
            break;
        }
        bytes -= length;
        // Another may have removed it meanwhile.
        let _gone = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_disk_is_made_once_and_the_longest_unused_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("layers");
        let get = |key: u8| {
            let mut made = false;
            let path = get_within(&folder, [key; 32], 25, |mut file| {
                made = true;
                file.write_all(&[key; 10]).map_err(Error::io("write"))
            });
            (path.unwrap(), made)
        };
        let age = |path: &Path, seconds: u64| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let file = File::options().append(true).open(path).unwrap();
            file.set_times(FileTimes::new().set_modified(at)).unwrap();
        };
        let ((first, true), (second, true)) = (get(1), get(2)) else {
            panic!("both are new")
        };
        age(&first, 1);
        age(&second, 2);
        // Of one that was killed long ago, and of one that is at work.
        let [abandoned, unfinished] = [".tmpOld", ".tmpNew"].map(|name| folder.join(name));
        for path in [&abandoned, &unfinished] {
            fs::write(path, "").unwrap();
        }
        age(&abandoned, 1);
        assert_eq!(get(1), (first.clone(), false));
        let (third, _) = get(3);
        assert!(first.exists() && !second.exists() && third.exists());
        assert!(!abandoned.exists() && unfinished.exists());
        fs::remove_file(&unfinished).unwrap();
        let failed = get_within(&folder, [4; 32], 25, |_| Err(Error::NotRunning));
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }
}
