//! What can go wrong with a cgroup, with the file and the value in it.

use std::io;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of this crate.
#[expect(
    clippy::error_impl_error,
    reason = "callers say cgroups::Error, as with every crate here"
)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a value.
    #[error("write {value:?} to {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A file could not be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds what this crate does not understand.
    #[error("{path} holds {text:?}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line or word.
        text: String,
    },
    /// A directory could not be made.
    #[error("make cgroup {path}", path = path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("remove cgroup {path}", path = path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroup exists and somebody runs in it: using it would mix two containers up.
    #[error("container's cgroup is not empty: {path} has {processes} processes", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// How many.
        processes: usize,
    },
    /// The cgroup exists and is frozen: nothing put there would ever run.
    #[error("container's cgroup unexpectedly frozen: {path}", path = path.display())]
    Frozen {
        /// The directory.
        path: PathBuf,
    },
    /// A process could not be moved into a cgroup below the container's.
    #[error("error adding pid {pid} to cgroup {below} below the container's", below = below.display())]
    Below {
        /// The process.
        pid: i32,
        /// The cgroup, relative to the container's.
        below: PathBuf,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A limit was asked for whose controller this host does not have.
    #[error("{field} needs the cgroup controller {controller}, which is not available")]
    NoController {
        /// What was asked for, as named in config.json.
        field: &'static str,
        /// The controller.
        controller: String,
    },
    /// A value that cannot be applied, known without asking the kernel.
    #[error("{field}: {why}")]
    Invalid {
        /// What was asked for, as named in config.json.
        field: &'static str,
        /// Why not.
        why: String,
    },
    /// A class of resctrl is not there, and nothing says what it would be.
    #[error(
        "there is no class of resctrl {path}: make it, or say what it has by schemata, l3CacheSchema or memBwSchema",
        path = path.display()
    )]
    NoClass {
        /// Its directory.
        path: PathBuf,
    },
    /// A class of resctrl is there and is not what was asked for.
    #[error("the class of resctrl {path} has not {asked}, but {has}", path = path.display())]
    OtherClass {
        /// Its directory.
        path: PathBuf,
        /// What it was to have.
        asked: String,
        /// What it has.
        has: String,
    },
    /// A class of resctrl could not be made or used.
    #[error("class of resctrl{status}")]
    Resctrl {
        /// What the kernel says of it, in brackets, or nothing.
        status: String,
        /// Which step, and its answer.
        #[source]
        source: Box<Error>,
    },
    /// No cgroup file system is mounted.
    #[error("no cgroup hierarchy is mounted")]
    NoHierarchy,
    /// It did not happen in time.
    #[error("{what} of {path} took longer than {limit_ms} ms", path = path.display())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// The limit.
        limit_ms: u64,
    },
    /// A kernel call that is not about one file.
    #[error("{call}")]
    Kernel {
        /// Name of the call.
        call: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The kernel's answer, if this is one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Write { source, .. }
            | Self::Read { source, .. }
            | Self::Make { source, .. }
            | Self::Remove { source, .. }
            | Self::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The file or the cgroup is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        let gone = [
            nix::errno::Errno::ENOENT as i32,
            nix::errno::Errno::ENODEV as i32,
        ];
        self.raw_os_error().is_some_and(|code| gone.contains(&code))
    }
}
