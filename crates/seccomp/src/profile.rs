//! A profile as the runtime specification has it (config-linux.md, Seccomp), and the instructions
//! it becomes.

use crate::{Arch, Error};

/// The profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For system calls that no rule matches.
    pub default_action: Action,
    /// The errno of `default_action`; none: EPERM.
    pub default_errno: Option<u32>,
    /// Beside the native one, which is always filtered.
    pub architectures: Vec<Arch>,
    /// The rules.
    pub rules: Vec<Rule>,
    /// How to load the program.
    pub flags: Vec<Flag>,
}

/// What to do on some system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The system calls; names that an architecture lacks are skipped there.
    pub names: Vec<String>,
    /// What to do.
    pub action: Action,
    /// The errno of `action`; none: EPERM.
    pub errno_ret: Option<u32>,
    /// All must hold. Several on one argument: any (runc's reading).
    pub args: Vec<Arg>,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// Which argument, 0..=5.
    pub index: u32,
    /// What it is compared with; the mask of [`Operator::MaskedEqual`].
    pub value: u64,
    /// What remains under the mask of [`Operator::MaskedEqual`]; else without meaning.
    pub value_two: u64,
    /// How.
    pub op: Operator,
}

/// Comparison of unsigned numbers: 64 bits, or the lower 32 on 32-bit architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// `SCMP_CMP_NE`.
    NotEqual,
    /// `SCMP_CMP_LT`.
    Less,
    /// `SCMP_CMP_LE`.
    LessOrEqual,
    /// `SCMP_CMP_EQ`.
    Equal,
    /// `SCMP_CMP_GE`.
    GreaterOrEqual,
    /// `SCMP_CMP_GT`.
    Greater,
    /// `SCMP_CMP_MASKED_EQ`.
    MaskedEqual,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NotEqual,
        Self::Less,
        Self::LessOrEqual,
        Self::Equal,
        Self::GreaterOrEqual,
        Self::Greater,
        Self::MaskedEqual,
    ];

    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEqual => "SCMP_CMP_NE",
            Self::Less => "SCMP_CMP_LT",
            Self::LessOrEqual => "SCMP_CMP_LE",
            Self::Equal => "SCMP_CMP_EQ",
            Self::GreaterOrEqual => "SCMP_CMP_GE",
            Self::Greater => "SCMP_CMP_GT",
            Self::MaskedEqual => "SCMP_CMP_MASKED_EQ",
        }
    }
}

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `SCMP_ACT_KILL`, `SCMP_ACT_KILL_THREAD`.
    KillThread,
    /// `SCMP_ACT_KILL_PROCESS` (kernel 4.14; before, it kills the thread).
    KillProcess,
    /// `SCMP_ACT_TRAP`: SIGSYS.
    Trap,
    /// `SCMP_ACT_ERRNO`.
    Errno,
    /// `SCMP_ACT_TRACE`: ask a tracer.
    Trace,
    /// `SCMP_ACT_NOTIFY`: ask a listener (kernel 5.0; [`NEW_LISTENER`] makes it).
    Notify,
    /// `SCMP_ACT_LOG`: allow and log (kernel 4.14).
    Log,
    /// `SCMP_ACT_ALLOW`.
    Allow,
}

const ERRNO_MAX: u32 = 4095;
const EPERM: u32 = 1;

impl Action {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::KillThread,
        Self::KillProcess,
        Self::Trap,
        Self::Errno,
        Self::Trace,
        Self::Notify,
        Self::Log,
        Self::Allow,
    ];

    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KillThread => "SCMP_ACT_KILL_THREAD",
            Self::KillProcess => "SCMP_ACT_KILL_PROCESS",
            Self::Trap => "SCMP_ACT_TRAP",
            Self::Errno => "SCMP_ACT_ERRNO",
            Self::Trace => "SCMP_ACT_TRACE",
            Self::Notify => "SCMP_ACT_NOTIFY",
            Self::Log => "SCMP_ACT_LOG",
            Self::Allow => "SCMP_ACT_ALLOW",
        }
    }

    /// Whether a new system call, unknown to the profile, gets through: the caller (or its tracer)
    /// sees the kernel's own answer, so none has to be made up.
    pub(crate) fn lets_through(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace)
    }

    /// The filter's return value, SECCOMP_RET_*.
    pub(crate) fn return_value(self, errno: Option<u32>) -> Result<u32, Error> {
        let takes_errno = matches!(self, Self::Errno | Self::Trace);
        let data = match errno {
            Some(errno) if !takes_errno => {
                return Err(Error::ErrnoWithoutUse {
                    action: self,
                    errno,
                });
            }
            Some(errno) if errno > ERRNO_MAX => return Err(Error::Errno { errno }),
            Some(errno) => errno,
            None => EPERM,
        };
        Ok(match self {
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
            Self::Trap => 0x0003_0000,
            Self::Errno => 0x0005_0000 | data,
            Self::Trace => 0x7ff0_0000 | data,
            Self::Notify => 0x7fc0_0000,
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        })
    }
}

/// A flag of seccomp(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// `SECCOMP_FILTER_FLAG_TSYNC`: without effect, the stub has one thread.
    Tsync,
    /// `SECCOMP_FILTER_FLAG_LOG` (kernel 4.14).
    Log,
    /// `SECCOMP_FILTER_FLAG_SPEC_ALLOW` (kernel 4.17).
    SpecAllow,
    /// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (kernel 5.19): a listener that has taken a call is
    /// interrupted by nothing but a deadly signal.
    WaitKillableRecv,
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` (kernel 5.0): loading gives the descriptor of the one that
/// [`Action::Notify`] asks. No word of the specification: it goes with the action.
pub const NEW_LISTENER: u32 = 1 << 3;

impl Flag {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Tsync,
        Self::Log,
        Self::SpecAllow,
        Self::WaitKillableRecv,
    ];

    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tsync => "SECCOMP_FILTER_FLAG_TSYNC",
            Self::Log => "SECCOMP_FILTER_FLAG_LOG",
            Self::SpecAllow => "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            Self::WaitKillableRecv => "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        }
    }

    /// The bit for seccomp(2); 0 for the flag that we never pass.
    #[must_use]
    pub fn bit(self) -> u32 {
        match self {
            Self::Tsync => 0,
            Self::Log => 1 << 1,
            Self::SpecAllow => 1 << 2,
            Self::WaitKillableRecv => 1 << 5,
        }
    }
}

/// One instruction of classic BPF, packed as struct sock_filter lies in memory on a little-endian
/// machine: `code | jt << 16 | jf << 24 | k << 32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction(pub u64);

impl Instruction {
    pub(crate) fn new(code: u16, jt: u8, jf: u8, k: u32) -> Self {
        Self(u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32)
    }

    /// Operation.
    #[must_use]
    pub fn code(self) -> u16 {
        u16::try_from(self.0 & 0xffff).expect("masked to 16 bits")
    }

    /// Instructions skipped when the comparison holds.
    #[must_use]
    pub fn jt(self) -> u8 {
        u8::try_from(self.0 >> 16 & 0xff).expect("masked to 8 bits")
    }

    /// Instructions skipped when it does not.
    #[must_use]
    pub fn jf(self) -> u8 {
        u8::try_from(self.0 >> 24 & 0xff).expect("masked to 8 bits")
    }

    /// Operand.
    #[must_use]
    pub fn k(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("32 bits remain")
    }
}
