//! The one error of this crate; a variant for each thing a caller does differently.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::call::Refusal;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one per crate, named as everywhere here: `runv::Error`"
)]
#[non_exhaustive]
pub enum Error {
    /// A value in a request or on the command line.
    #[error("{0}")]
    Usage(String),
    /// The id is taken.
    #[error("container {0} exists already")]
    Exists(String),
    /// The process, or the machine it was in, has ended.
    #[error("process not running")]
    NotRunning,
    /// config.json.
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
    /// There is no guest to start.
    #[error(
        "no guest image: {} does not exist; make one by `runv image build{option} --kernel VMLINUZ --modules DIR`",
        .path.display()
    )]
    NoGuest {
        /// The file that is not there.
        path: PathBuf,
        /// ` --name NAME`, or nothing for the default.
        option: String,
    },
    /// QEMU is not there.
    #[error("qemu-system-x86_64 is not on the PATH: install qemu-system-x86")]
    NoQemu,
    /// Nobody can serve volumes to a guest.
    #[error(
        "no virtiofsd that runs: install virtiofsd, or qemu-system-common where it has one (Debian 12)"
    )]
    NoVirtiofsd,
    /// The kernel cannot make a mount read-only that nobody sees.
    #[error("volumes are shared from Linux 5.12 on: this kernel has no mount_setattr(2)")]
    NoMountSetattr,
    /// The guest did not come up.
    #[error("the virtual machine did not come up: {why}{console}")]
    NotUp {
        /// How that was seen.
        why: String,
        /// The tail of its console, beginning with `; its console: `, or nothing.
        console: String,
    },
    /// The agent is of another version.
    #[error(
        "the agent in the guest image speaks version {theirs} and this shim {}: build the image anew by `runv image build`",
        guest::VERSION
    )]
    OtherAgent {
        /// Its version.
        theirs: u32,
    },
    /// The guest refused.
    #[error("{}", .0.message)]
    Guest(Refusal),
    /// What the guest said is no answer.
    #[error("the guest gave an answer that does not fit the question")]
    Answer,
    /// The guest did not answer in time.
    #[error("{what} took the guest longer than {limit:?}")]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// A message.
    #[error(transparent)]
    Wire(#[from] guest::wire::Error),
    /// A hook on the host.
    #[error(transparent)]
    Launch(#[from] launch::Error),
    /// QEMU refuses, or says what is no answer.
    #[error("QEMU's monitor: {0}")]
    Monitor(String),
    /// A container of a pod that is not there.
    #[error("sandbox {0} has no virtual machine here: its shim or its machine has ended")]
    NoSandbox(String),
    /// Its network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] cgroups::Error),
    /// A root file system that cannot be a disk.
    #[error("make a disk of the root file system")]
    Disk(#[from] disk::Error),
    /// A kernel that cannot be a guest.
    #[error("{0}")]
    Kernel(String),
    /// What a container's shim says.
    #[error(transparent)]
    Shim(#[from] shim_core::ShimError),
    /// A file of ours that is not.
    #[error("{}: {why}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
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
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// Names a failed step on a path, for `map_err`.
    pub(crate) fn on<'a, E: Into<io::Error>>(
        verb: &'a str,
        path: &'a Path,
    ) -> impl FnOnce(E) -> Self + 'a {
        move |source| Self::Io {
            what: format!("{verb} {}", path.display()),
            source: source.into(),
        }
    }

    /// Message and causes in one line, as people read it.
    #[must_use]
    pub fn chain(&self) -> String {
        shim_core::chain(self)
    }
}
