//! Why a profile cannot be compiled.

/// The one error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
pub enum Error {
    /// `index` of a condition is not 0..=5.
    #[error("system call {name}: argument index {index} is not below 6")]
    ArgumentIndex {
        /// The system call.
        name: String,
        /// The index.
        index: u32,
    },
    /// A rule names the empty system call.
    #[error("a rule with an empty system call name")]
    EmptyName,
    /// An errno beyond what the kernel returns.
    #[error("errno {errno} is above 4095")]
    Errno {
        /// The number.
        errno: u32,
    },
    /// An errno with an action that returns none (config-linux.md, Seccomp: "MUST print an error").
    #[error("action {action:?} takes no errno, {errno} was given")]
    ErrnoWithoutUse {
        /// The action.
        action: crate::Action,
        /// The number.
        errno: u32,
    },
    /// The same conditions on one system call with two actions (EEXIST in libseccomp).
    #[error("system call {name}: the same conditions have two different actions")]
    Conflict {
        /// The system call.
        name: String,
    },
    /// More instructions than the kernel takes.
    #[error("the program has {instructions} instructions, the kernel takes {max}")]
    TooLarge {
        /// How many.
        instructions: usize,
        /// BPF_MAXINSNS.
        max: usize,
    },
}
