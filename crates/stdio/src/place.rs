//! Opening the places a stream comes from or goes to. Nothing here waits for the other side.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Error, Result};

/// Where output goes.
#[derive(Debug)]
pub(crate) enum Place {
    /// A fifo, open for reading and writing: its writer never meets EPIPE, and what is in it
    /// stays for a reader that comes late. Non-blocking.
    Fifo(OwnedFd),
    /// The pipe of a log binary. Non-blocking.
    Pipe(OwnedFd),
    /// A regular file.
    File(LogFile),
    /// Nowhere.
    Null,
}

/// A fifo that a process's input comes from. Non-blocking.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) reader: OwnedFd,
    /// As long as it is open, no end of input is seen when clients come and go.
    pub(crate) keep_alive: OwnedFd,
}

/// A log file; never blocks a process whose disk is full.
#[derive(Debug)]
pub(crate) struct LogFile {
    file: File,
    path: PathBuf,
    failed: AtomicBool,
}

impl Input {
    /// Opens a fifo for reading, and for writing so that it does not end.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let stream = "stdin";
        let open = |options: &mut OpenOptions| {
            options.custom_flags(libc_flags(OFlag::O_NONBLOCK));
            options.open(path).map_err(failed(stream, path))
        };
        let reader = open(OpenOptions::new().read(true))?;
        match kind(&reader).map_err(failed(stream, path))? {
            Kind::Fifo => {}
            other => return Err(wrong_kind(stream, path, other, "a fifo")),
        }
        let keep_alive = open(OpenOptions::new().write(true))?;
        Ok(Self {
            reader: reader.into(),
            keep_alive: keep_alive.into(),
        })
    }
}

impl Place {
    /// Opens a fifo, or a regular file, that is there.
    pub(crate) fn open_fifo(stream: &'static str, path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.custom_flags(libc_flags(OFlag::O_NONBLOCK));
        let place = options
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed(stream, path))?;
        match kind(&place).map_err(failed(stream, path))? {
            Kind::Fifo => Ok(Self::Fifo(place.into())),
            Kind::File => {
                let append = FcntlArg::F_SETFL(OFlag::O_APPEND);
                fcntl(&place, append).map_err(|e| failed(stream, path)(e.into()))?;
                Ok(Self::File(LogFile::new(place, path)))
            }
            other => Err(wrong_kind(stream, path, other, "a fifo or a file")),
        }
    }

    /// Opens a file for appending; makes it and the folders above it as containerd's shim does.
    pub(crate) fn open_file(stream: &'static str, path: &Path) -> Result<Self> {
        let parent = path.parent().unwrap_or(path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed(stream, path))?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .custom_flags(libc_flags(OFlag::O_NONBLOCK))
            .open(path)
            .map_err(failed(stream, path))?;
        match kind(&file).map_err(failed(stream, path))? {
            Kind::File => Ok(Self::File(LogFile::new(file, path))),
            other => Err(wrong_kind(stream, path, other, "a file")),
        }
    }
}

impl LogFile {
    fn new(file: File, path: &Path) -> Self {
        Self {
            file,
            path: path.to_owned(),
            failed: AtomicBool::new(false),
        }
    }

    /// Appends. What cannot be written is lost, said once until writing works again: a full disk
    /// must not stop a service, and neither must we fill another disk with messages about it.
    pub(crate) fn append(&self, bytes: &[u8]) {
        let result = (&self.file).write_all(bytes);
        let failed_before = self.failed.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !failed_before => {
                tracing::warn!(path = %self.path.display(), %error, "output is lost");
            }
            Ok(()) if failed_before => {
                tracing::info!(path = %self.path.display(), "output is written again");
            }
            _ => {}
        }
    }
}

/// Makes our end of a pipe or a terminal non-blocking; the process's end of a pipe stays as it is.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Fifo,
    File,
    Other(&'static str),
}

fn kind(file: &File) -> io::Result<Kind> {
    let kind = file.metadata()?.file_type();
    Ok(if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_file() {
        Kind::File
    } else if kind.is_dir() {
        Kind::Other("a folder")
    } else {
        Kind::Other("a device")
    })
}

fn wrong_kind(stream: &'static str, path: &Path, found: Kind, expected: &'static str) -> Error {
    Error::WrongKind {
        stream,
        path: path.to_owned(),
        found: match found {
            Kind::Fifo => "a fifo",
            Kind::File => "a file",
            Kind::Other(name) => name,
        },
        expected,
    }
}

fn failed(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + Copy {
    move |source| Error::Open {
        stream,
        path: path.to_owned(),
        source,
    }
}

/// Flags as `OpenOptions` takes them; O_CLOEXEC it adds itself.
fn libc_flags(flags: OFlag) -> i32 {
    (flags | OFlag::O_NOCTTY).bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_loses_output_and_goes_on() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let log = LogFile::new(full, Path::new("/dev/full"));
        for _ in 0..2 {
            log.append(b"lost");
            assert!(log.failed.load(Ordering::Relaxed));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = LogFile {
            file: file.reopen().unwrap(),
            ..log
        };
        log.append(b"kept");
        assert!(!log.failed.load(Ordering::Relaxed));
        assert_eq!(std::fs::read(file.path()).unwrap(), b"kept");
    }
}
