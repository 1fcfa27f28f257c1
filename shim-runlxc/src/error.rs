//! The one error of this crate; a variant for each thing a caller does differently.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::out_of_memory::Victim;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command failed. Where people and scripts parse runc's words, these are runc's words.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one per crate, named as everywhere here: `runlxc::Error`"
)]
#[non_exhaustive]
pub enum Error {
    /// The id is no plain name.
    #[error("{why}")]
    InvalidId {
        /// The rule it breaks.
        why: &'static str,
    },
    /// The id is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// No container of this id.
    #[error("container does not exist")]
    NotFound,
    /// The container's init, or the process meant, has ended.
    #[error("container not running")]
    NotRunning,
    /// The request does not fit the state of the container.
    #[error("{0}")]
    State(String),
    /// A value on the command line or in a request.
    #[error("{0}")]
    Usage(String),
    /// config.json, process.json or resources.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// Known, but not to be had here.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// What is in the way.
        why: String,
    },
    /// There is no LXC.
    #[error("lxc-start is not on the PATH: install lxc")]
    LxcMissing,
    /// LXC ended before our stub ran.
    #[error("lxc-start failed: {said}")]
    Lxc {
        /// The last error line of its log, or how it ended.
        said: String,
    },
    /// CRIU could not dump or restore the processes.
    #[error("criu failed: {said}")]
    Criu {
        /// The reason from its log, and where that is.
        said: String,
    },
    /// A checkpoint failed, and so did the thaw after it.
    #[error("{}; then the container could not be thawed: {thaw}", failed.chain())]
    LeftFrozen {
        /// Why there is no checkpoint.
        failed: Box<Error>,
        /// Why its processes may be frozen.
        thaw: String,
    },
    /// runlxc-init is nowhere to be found.
    #[error("runlxc-init is neither beside {} nor in {}", beside.display(), searched.join(", "))]
    StubMissing {
        /// Our own executable.
        beside: PathBuf,
        /// The other places.
        searched: Vec<String>,
    },
    /// Something went wrong between us and runlxc-init, which is of another version.
    #[error(
        "{}; {} says that it is {theirs:?}, and {ours:?} belongs to this program: install both from \
         one release",
        failed.chain(),
        path.display()
    )]
    OtherStub {
        /// What went wrong.
        failed: Box<Error>,
        /// The stub.
        path: PathBuf,
        /// What it says.
        theirs: String,
        /// What ours would say.
        ours: String,
    },
    /// A step inside the container failed.
    #[error("{0}")]
    Inside(launch::control::Failure),
    /// A hook on the host failed, or a message to the stub.
    #[error(transparent)]
    Launch(#[from] launch::Error),
    /// A hook of a rich container failed.
    #[error("{key} ({command:?}): {what}")]
    RichHook {
        /// Its annotation.
        key: &'static str,
        /// What was to run, or the beginning of it.
        command: String,
        /// How it failed, and its last words.
        what: String,
    },
    /// The stub went away without a word.
    #[error("{what} ended unexpectedly{hint}")]
    Vanished {
        /// Which process, and when.
        what: &'static str,
        /// What is known about it, beginning with `: `, or nothing.
        hint: String,
    },
    /// The kernel killed a process for memory before its program ran.
    #[error("{} was killed for want of memory: {}", who.as_str(), too_small(*who, *limit))]
    OutOfMemory {
        /// Which.
        who: Victim,
        /// Bytes of the container's own limit; none: a limit above it, or the host, ran out.
        limit: Option<u64>,
    },
    /// The program of a rich container is not ready in time.
    #[error(
        "{} ({value}): the program was not ready after {limit:?}",
        bundle::rich::ready::READY
    )]
    NotReady {
        /// What was waited for.
        value: String,
        /// How long.
        limit: Duration,
    },
    /// The program of a rich container, or its init, has ended before it was ready.
    #[error(
        "{} ({value}): the container ended before its program was ready",
        bundle::rich::ready::READY
    )]
    EndedUnready {
        /// What was waited for.
        value: String,
    },
    /// An operator's component that a rich container cannot have.
    #[error("component {name}: {why}")]
    Component {
        /// Its name.
        name: String,
        /// What is in the way.
        why: String,
    },
    /// A script of the operator's that a hook names and cannot have.
    #[error("script {name} of the host: {why}")]
    HostScript {
        /// Its name.
        name: String,
        /// What is in the way.
        why: String,
    },
    /// Limits of a container's network.
    #[error("{field}")]
    Traffic {
        /// Who asked, or where.
        field: String,
        /// What is in the way.
        #[source]
        source: network::Error,
    },
    /// Links that a container is to have.
    #[error("linux.netDevices")]
    NetDevices {
        /// What is in the way.
        #[source]
        source: network::Error,
    },
    /// The class of resctrl of a container.
    #[error("linux.intelRdt")]
    IntelRdt {
        /// What is in the way.
        #[source]
        source: cgroups::Error,
    },
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] cgroups::Error),
    /// systemd did not do what a container's scope needs.
    #[error("systemd: {what}: {why}")]
    Systemd {
        /// Of which kind that is.
        kind: SystemdFailure,
        /// What it was asked for.
        what: String,
        /// What it says, or what became of the connection.
        why: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was tried, with its operands.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// `state.json` is not ours or from a later version.
    #[error("{}: {why}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Things that `delete` could not remove.
    #[error("left behind: {}", what.join("; "))]
    Leftover {
        /// Each with its reason.
        what: Vec<String>,
    },
}

/// Why systemd did not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemdFailure {
    /// Another unit has the name.
    Taken,
    /// It does not take a property, or its value.
    Value,
    /// It said no otherwise.
    Refused,
    /// There was no answer in time.
    Late,
    /// The connection broke, or a job failed.
    Broken,
}

impl SystemdFailure {
    /// Whether systemd has answered that it will not do it.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Taken | Self::Value | Self::Refused)
    }
}

fn too_small(who: Victim, limit: Option<u64>) -> String {
    match (who, limit) {
        (Victim::Init, Some(bytes)) => {
            format!("the memory limit of {bytes} bytes is too small to start")
        }
        (Victim::Exec, Some(bytes)) => {
            format!("the memory limit of {bytes} bytes leaves no room for it")
        }
        (_, None) => {
            "the host, or a cgroup above the container's, has too little left to start".into()
        }
    }
}

impl Error {
    /// Asked for by name, and refused by name.
    pub(crate) fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported {
            what: what.into(),
            why: why.into(),
        }
    }

    /// Names a failed step, for `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// Names a failed step on a path, for `map_err`; the text is made only when it is needed.
    pub(crate) fn on<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            what: format!("{verb} {}", path.display()),
            source,
        }
    }

    /// Message and causes in one line, as people read it.
    #[must_use]
    pub fn chain(&self) -> String {
        shim_core::chain(self)
    }
}
