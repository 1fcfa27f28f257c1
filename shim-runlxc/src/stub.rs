//! Where runlxc-init is, the one of our version, and an image of it that no container can write.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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

/// The stub as it was when it was first needed.
#[derive(Debug)]
struct Installed {
    path: PathBuf,
    /// A shim lives longer than what is installed: this one understands it after an upgrade, too.
    file: File,
}

/// Absolute path of the stub: beside our own executable, else in [`FOLDERS`], else on the PATH.
/// Looked for once.
///
/// # Errors
/// [`Error::StubMissing`] with the places.
pub fn path() -> Result<&'static Path> {
    Ok(&installed()?.path)
}

/// What pid 1 runs.
#[derive(Debug)]
pub enum Program {
    /// The installed file, which pid 1 has bound over itself read-only.
    Installed(&'static Path),
    /// An image of the one that was found, when another lies in its place by now. It is not bound:
    /// its file is on no mount of the container.
    Kept(Image),
}

impl Program {
    /// The stub that this process understands; `dir` is where a copy is made if it has to be.
    ///
    /// # Errors
    /// As [`Image::get`].
    pub fn get(dir: &StateDir) -> Result<Self> {
        let Installed { path, file } = installed()?;
        match still_there(path, file) {
            true => Ok(Self::Installed(path)),
            false => Image::get(dir).map(Self::Kept),
        }
    }
}

fn still_there(path: &Path, file: &File) -> bool {
    match (path.metadata(), file.metadata()) {
        (Ok(now), Ok(then)) => (now.dev(), now.ino()) == (then.dev(), then.ino()),
        _ => false,
    }
}

/// Its file as it was found, read from its beginning.
fn reopened(file: &File) -> std::io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn installed() -> Result<&'static Installed> {
    static FOUND: OnceLock<Installed> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let path = find()?;
    let file = File::open(&path).map_err(Error::on("open", &path))?;
    Ok(FOUND.get_or_init(|| Installed { path, file }))
}

fn find() -> Result<PathBuf> {
    let beside = std::env::current_exe().map_err(Error::io("read /proc/self/exe"))?;
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.parent().map(Path::to_path_buf).into_iter();
    let folders = folders
        .chain(FOLDERS.iter().map(PathBuf::from))
        .chain(std::env::split_paths(&search_path));
    let mut places = folders.map(|folder| folder.join(NAME));
    places
        .find(|path| path.is_absolute() && path.is_file())
        .ok_or_else(|| {
            let mut searched: Vec<_> = FOLDERS.iter().map(|&folder| folder.to_owned()).collect();
            searched.push("the PATH".to_owned());
            Error::StubMissing { beside, searched }
        })
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

/// What runs while the container sees it and nothing is bound over it. Root in there could write through
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
        let Installed { path, file } = installed()?;
        let program = reopened(file).map_err(Error::on("open", path))?;
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
