//! Where runlxc-init is, and an image of it that no container can write.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use launch::control::FailureKind;
use nix::errno::Errno;
use sys::Spawn;

use crate::state_dir::StateDir;
use crate::{Error, Result, answer};

/// File name of the stub.
pub const NAME: &str = "runlxc-init";

/// Where it is looked for after the folder of our own executable.
const FOLDERS: [&str; 2] = [
    "/usr/libexec/pouch-plugins",
    "/usr/local/libexec/pouch-plugins",
];

/// Absolute path of the stub: beside our own executable, else in [`FOLDERS`], else on the PATH.
/// Looked for once.
///
/// # Errors
/// [`Error::StubMissing`] with the places.
pub fn path() -> Result<&'static Path> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = FOUND.get() {
        return Ok(path);
    }
    let beside = std::env::current_exe().map_err(Error::io("read /proc/self/exe"))?;
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.parent().map(Path::to_path_buf).into_iter();
    let folders = folders
        .chain(FOLDERS.iter().map(PathBuf::from))
        .chain(std::env::split_paths(&search_path));
    match folders
        .map(|folder| folder.join(NAME))
        .find(|path| path.is_absolute() && path.is_file())
    {
        Some(path) => Ok(FOUND.get_or_init(|| path)),
        None => {
            let mut searched: Vec<_> = FOLDERS.iter().map(|&folder| folder.to_owned()).collect();
            searched.push("the PATH".to_owned());
            Err(Error::StubMissing { beside, searched })
        }
    }
}

/// How long it may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// Longest version of it that is read, in bytes.
const VERSION_BYTES_MAX: usize = 256;

/// The version of a stub that belongs to this program, in its words.
fn own_version() -> String {
    match crate::REVISION {
        "" => format!("{NAME} {}", crate::VERSION),
        revision => format!("{NAME} {} ({revision})", crate::VERSION),
    }
}

/// The error, with a hint when the stub and we did not understand each other and it is of another
/// version: one of the two was forgotten at an upgrade.
pub(crate) fn explain(error: Error) -> Error {
    if !is_misunderstanding(&error) {
        return error;
    }
    let Ok(path) = path() else {
        return error;
    };
    let asked = Spawn::new(path).args(["--version"]);
    let theirs = answer::first_line(
        asked,
        "runlxc-init --version",
        VERSION_LIMIT,
        VERSION_BYTES_MAX,
    );
    // What is no stub at all does not tell either.
    let theirs = theirs.unwrap_or_default();
    let ours = own_version();
    if theirs == ours {
        return error;
    }
    Error::OtherStub {
        failed: Box::new(error),
        path: path.to_owned(),
        theirs,
        ours,
    }
}

fn is_misunderstanding(error: &Error) -> bool {
    match error {
        Error::Vanished { .. } | Error::Lxc { .. } => true,
        Error::Launch(error) => matches!(
            error,
            launch::Error::Malformed(_)
                | launch::Error::CutOff { .. }
                | launch::Error::TooLong { .. }
                | launch::Error::Socket { .. }
        ),
        // Its refusal of a message.
        Error::Inside(failure) => failure.kind == FailureKind::Host && failure.errno == 0,
        _ => false,
    }
}

/// What an exec runs while the container sees it. Root in there could write through
/// `/proc/PID/exe` (CVE-2019-5736), so it is never the installed file.
#[derive(Debug)]
pub enum Image {
    /// A sealed copy in memory, made once per process.
    Sealed(&'static OwnedFd),
    /// Before kernel 3.17: a copy of its own for each exec, without a name.
    Copy(OwnedFd),
}

impl Image {
    /// The image; `dir` is where a copy is made if it has to be in a file.
    ///
    /// # Errors
    /// When the stub cannot be read or copied.
    pub fn get(dir: &StateDir) -> Result<Self> {
        static SEALED: OnceLock<OwnedFd> = OnceLock::new();
        if let Some(file) = SEALED.get() {
            return Ok(Self::Sealed(file));
        }
        let path = path()?;
        let program = File::open(path).map_err(Error::on("open", path))?;
        match sys::memfd_sealed(c"runlxc-init", &program) {
            Ok(file) => Ok(Self::Sealed(SEALED.get_or_init(|| file))),
            Err(e) if e.raw_os_error() == Some(Errno::ENOSYS as i32) => {
                copy(program, dir).map(Self::Copy)
            }
            Err(e) => Err(Error::on("copy into memory", path)(e)),
        }
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Sealed(file) => file.as_fd(),
            Self::Copy(file) => file.as_fd(),
        }
    }
}

fn copy(mut program: File, dir: &StateDir) -> Result<OwnedFd> {
    let path = dir.path().join(format!("{NAME}.{}", std::process::id()));
    let failed = || Error::on("copy runlxc-init to", &path);
    let mut options = File::options();
    let mut written = options
        .write(true)
        .create_new(true)
        .mode(0o500)
        .open(&path)
        .map_err(failed())?;
    let copied = std::io::copy(&mut program, &mut written);
    drop(written); // Open for writing it cannot be executed.
    let opened = copied.and_then(|_bytes| File::open(&path));
    std::fs::remove_file(&path).map_err(failed())?;
    Ok(opened.map_err(failed())?.into())
}
