//! Which mounts have a blob open, and whether it is told of their reads: of a file that is watched the kernel decides that when it is opened, and
//! for as long as it is open. A chunk may be taken away only from those of whom it tells.
//!
//! `ROOT/blobs/TABLE/opened` is a line with the number of this start of the machine, and a line for each mount: `told`, `untold` or
//! `served`, and the number of its device. After another start nobody has anything open. Without the file, or where it is damaged, nobody knows, so
//! that a mount is noted that is never seen: until the machine starts anew.

use std::{collections::BTreeMap, fs, path::Path};

use disk::Digest;
use snapshot_core::{Error, Result};

use super::files;

/// The kernel's number of this start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Many more mounts than blobs have.
const BYTES_MAX: usize = 1 << 20;

/// No mount has this number.
const UNKNOWN: u64 = 0;

/// Whether reads of who has a file open are events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// When the file is watched.
    Told,
    /// Never: it was not watched when it was opened.
    Untold,
    /// Always: it is no file of this host's disk that is open, but one whose readers are given bytes by the daemon.
    Served,
}

/// Who has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opens {
    boot: String,
    /// By device number of the mount.
    by: BTreeMap<u64, Reads>,
}

impl Opens {
    /// Of the blob in that directory, whose file is new or not.
    ///
    /// # Errors
    /// What keeps it from being read, or written down for a new one.
    pub(super) fn read(directory: &Path, is_new: bool) -> Result<Self> {
        let boot = fs::read_to_string(BOOT_ID).map_err(Error::io("read", BOOT_ID))?;
        let boot = boot.trim().to_owned();
        if is_new {
            let by = BTreeMap::new();
            let this = Self { boot, by };
            this.place(directory)?;
            return Ok(this);
        }
        let bytes = files::read(&directory.join("opened"), BYTES_MAX)?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some(by) = text.and_then(|text| parsed(&text, &boot)) {
            return Ok(Self { boot, by });
        }
        let by = BTreeMap::from([(UNKNOWN, Reads::Untold)]);
        let this = Self { boot, by };
        // Without room it stays unknown, and is written down another time.
        drop(this.place(directory));
        Ok(this)
    }

    /// A mount of that device has it open from now on.
    ///
    /// # Errors
    /// What keeps that from being written down.
    pub(super) fn add(&mut self, directory: &Path, device: u64, reads: Reads) -> Result<()> {
        self.by.insert(device, reads);
        self.place(directory)
    }

    /// The mount of that device is gone.
    ///
    /// # Errors
    /// What keeps that from being written down.
    pub(super) fn remove(&mut self, directory: &Path, device: u64) -> Result<()> {
        match self.by.remove(&device) {
            Some(_) => self.place(directory),
            None => Ok(()),
        }
    }

    /// The same, for a blob that is not open here.
    ///
    /// # Errors
    /// As `remove`.
    pub(super) fn close(blobs: &Path, blob: [u8; 32], device: u64) -> Result<()> {
        let directory = blobs.join(Digest(blob).to_string());
        Self::read(&directory, false)?.remove(&directory, device)
    }

    /// The devices of all who have it open, if it is told of all their reads.
    pub(super) fn told(&self) -> Option<Vec<u64>> {
        let are_all = !self.has(Reads::Untold);
        are_all.then(|| self.by.keys().copied().collect())
    }

    /// Whether somebody has it open whose reads are such.
    pub(super) fn has(&self, wanted: Reads) -> bool {
        self.by.values().any(|reads| *reads == wanted)
    }

    /// The devices of those.
    pub(super) fn devices(&self, wanted: Reads) -> impl Iterator<Item = u64> {
        let those = self.by.iter().filter(move |(_, reads)| **reads == wanted);
        those.map(|(device, _)| *device)
    }

    /// Over what was there. It need not be on the disk: after a loss of power it says nothing any more.
    fn place(&self, directory: &Path) -> Result<()> {
        let mut text = format!("{}\n", self.boot);
        for (device, reads) in &self.by {
            let word = match reads {
                Reads::Told => "told",
                Reads::Untold => "untold",
                Reads::Served => "served",
            };
            text += &format!("{word} {device}\n");
        }
        files::replace(&directory.join("opened"), text.as_bytes())
    }
}

/// None for what this does not write.
fn parsed(text: &str, boot: &str) -> Option<BTreeMap<u64, Reads>> {
    let mut lines = text.lines();
    if lines.next()? != boot {
        return Some(BTreeMap::new());
    }
    let line = |line: &str| {
        let (word, device) = line.split_once(' ')?;
        let reads = match word {
            "told" => Reads::Told,
            "untold" => Reads::Untold,
            "served" => Reads::Served,
            _ => return None,
        };
        Some((device.parse().ok()?, reads))
    };
    lines.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_it_open_is_known_until_the_machine_starts_anew() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert_eq!(Opens::read(at, false).unwrap().told(), None, "nobody knows");
        let mut opens = Opens::read(at, true).unwrap();
        assert_eq!(opens.told(), Some(vec![]));
        opens.add(at, 40, Reads::Told).unwrap();
        opens.add(at, 39, Reads::Told).unwrap();
        assert_eq!(opens.told(), Some(vec![39, 40]));
        opens.add(at, 38, Reads::Served).unwrap();
        assert_eq!(opens.told(), Some(vec![38, 39, 40]));
        assert!(opens.has(Reads::Told) && opens.has(Reads::Served) && !opens.has(Reads::Untold));
        assert!(opens.devices(Reads::Served).eq([38]));
        opens.add(at, 41, Reads::Untold).unwrap();
        assert_eq!(opens.told(), None);
        let mut again = Opens::read(at, false).unwrap();
        assert_eq!(again, opens);
        again.remove(at, 41).unwrap();
        again.remove(at, 38).unwrap();
        again.remove(at, 7).unwrap();
        assert_eq!(Opens::read(at, false).unwrap().told(), Some(vec![39, 40]));
        let text = fs::read_to_string(at.join("opened")).unwrap();
        let check = |text: &str, expected: Option<Vec<u64>>| {
            fs::write(at.join("opened"), text).unwrap();
            assert_eq!(Opens::read(at, false).unwrap().told(), expected, "{text}");
        };
        check(&text.replace("told 40\n", ""), Some(vec![39]));
        check(&text.replace("told 40", "told"), None);
        check(&text.replace("told 40", "seen 40"), None);
        check("", None);
        fs::remove_file(at.join("opened")).unwrap();
        assert_eq!(Opens::read(at, false).unwrap().told(), None);
        let unknown = fs::read_to_string(at.join("opened")).unwrap();
        let boot = unknown.lines().next().unwrap();
        check(&unknown, None);
        check(&unknown.replace(boot, "another-start"), Some(vec![]));
        check("another-start\nuntold 7\n", Some(vec![]));
    }
}
