//! How a container's init ended, kept on disk so that the answer outlives every process of ours.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, names};

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// Host pid of the process.
    pub pid: i32,
    /// 0..=255, or 128 + signal.
    pub code: u32,
    /// When, in nanoseconds since 1970.
    pub exited_at_ns: u64,
}

impl ExitRecord {
    /// Writes the record into `dir`, atomically and durably: temporary file, fsync, rename, fsync
    /// of the directory. A record that is there already is replaced.
    ///
    /// # Errors
    /// [`Error::Write`] with the file and the system's reason.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(names::EXIT);
        let failed = |source| Error::Write {
            path: path.clone(),
            source,
        };
        let mut text = serde_json::to_vec(self).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        let temporary = dir.join(format!(".{}.{}", names::EXIT, std::process::id()));
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
    }

    /// Reads the record of `dir`; none when nothing was recorded.
    ///
    /// # Errors
    /// [`Error::Read`] when the file is there but unreadable, [`Error::Text`] when it is no record.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(names::EXIT);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path, source }),
        };
        match serde_json::from_slice(&text) {
            Ok(record) => Ok(Some(record)),
            Err(e) => Err(Error::Text {
                path,
                why: e.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: ExitRecord = ExitRecord {
        pid: 42,
        code: 137,
        exited_at_ns: u64::MAX,
    };

    #[test]
    fn a_record_is_read_as_it_was_written_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ExitRecord::read(dir.path()).unwrap(), None);
        let earlier = ExitRecord { pid: 1, ..RECORD };
        for record in [earlier, RECORD] {
            record.write(dir.path()).unwrap();
            assert_eq!(ExitRecord::read(dir.path()).unwrap(), Some(record));
        }
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn what_is_no_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(names::EXIT), "{\"pid\": 1}").unwrap();
        let error = ExitRecord::read(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Text { .. }), "{error}");
        assert!(
            error.to_string().contains("exit.json: missing field"),
            "{error}"
        );
        let missing = RECORD.write(&dir.path().join("nowhere")).unwrap_err();
        assert!(matches!(missing, Error::Write { .. }), "{missing}");
    }
}
