//! mkfs.ext4 and mkfs.xfs, the only programs that are started here.

use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use snapshot_core::{Error, Result};
use sys::{ExitStatus, Signal, Spawn};

use super::Fs;
use crate::limit::Inodes;

/// Where they are looked for.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// They take some milliseconds; a disk that hangs must not hold Prepare for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// Most of what they say that is passed on.
const SAID_BYTES_MAX: u64 = 1000;

/// The smallest file system that mkfs.xfs makes.
pub(super) const XFS_BYTES_MIN: u64 = 300 << 20;

/// How far beyond the end of a file that grows xfs allocates: else as much again as the file has,
/// and that counts, so that a container may be refused a new file at half of its limit.
pub(super) const XFS_PREALLOCATION: &str = "allocsize=1m";

impl Fs {
    /// Its name for mount(2).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// The program that makes it, if it is installed.
    pub(super) fn maker(self) -> Option<PathBuf> {
        let name = format!("mkfs.{}", self.name());
        let paths = FOLDERS.map(|folder| Path::new(folder).join(&name));
        paths.into_iter().find(|path| path.is_file())
    }

    /// Arguments of the program. Blocks and sectors of 4096 bytes, so that the loop device can do
    /// direct I/O on any disk.
    fn arguments(self, inodes: Option<Inodes>) -> Vec<String> {
        let mut words: Vec<String> = match self {
            Self::Xfs => vec!["-q".into(), "-s".into(), "size=4096".into()],
            // Nothing is written that is not needed: the tables are holes, and the blocks that
            // would be reserved for growing with an older layout are not (meta_bg grows without).
            Self::Ext4 => ["-q", "-F", "-b", "4096", "-m", "0", "-O"]
                .into_iter()
                .chain(["meta_bg,^resize_inode", "-E"])
                .chain(["lazy_itable_init=1,lazy_journal_init=1"])
                .map(str::to_owned)
                .collect(),
        };
        if let Some(inodes) = inodes {
            words.push("-N".to_owned());
            words.push(inodes.to_string());
        }
        words
    }
}

/// Makes a file system in a file that has its size already.
///
/// # Errors
/// [`Error::Precondition`] when the program is not installed; what it says when it fails.
pub(super) fn make(fs: Fs, file: &Path, inodes: Option<Inodes>) -> Result<()> {
    let program = fs.maker().ok_or_else(|| {
        let package = match fs {
            Fs::Ext4 => "e2fsprogs",
            Fs::Xfs => "xfsprogs",
        };
        let name = fs.name();
        Error::Precondition(format!("mkfs.{name} is not installed: install {package}"))
    })?;
    let failed = |action| Error::io(action, &program);
    let mut said = temporary(file)?;
    let mut child = Spawn::new(&program)
        .args(fs.arguments(inodes))
        .args([file])
        .stdout(said.as_fd())
        .stderr(said.as_fd())
        .spawn()
        .map_err(failed("start"))?;
    let Some(status) = child.wait_timeout(LIMIT).map_err(failed("wait for"))? else {
        // It ends by itself between the two calls at worst.
        drop(child.kill(Signal::SIGKILL));
        child.wait().map_err(failed("wait for"))?;
        let text = format!("did not end within {} s", LIMIT.as_secs());
        return Err(failed("run")(std::io::Error::other(text)));
    };
    if status == ExitStatus::Exited(0) {
        return Ok(());
    }
    let mut text = Vec::new();
    said.rewind().map_err(failed("read what was said by"))?;
    said.take(SAID_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(failed("read what was said by"))?;
    let text = String::from_utf8_lossy(&text).trim().replace('\n', " ");
    let text = format!("{status:?}: {text}");
    Err(failed("run")(std::io::Error::other(text)))
}

/// A file without a name, beside the image.
fn temporary(beside: &Path) -> Result<File> {
    let folder = beside.parent().unwrap_or(Path::new("/"));
    let flags = nix::fcntl::OFlag::O_TMPFILE.bits();
    let mut options = File::options();
    options.read(true).write(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    options
        .open(folder)
        .map_err(Error::io("make a temporary file in", folder))
}
