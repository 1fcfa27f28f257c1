//! Architectures: what the kernel calls them, and how wide their arguments are.

/// An architecture whose system calls can be filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// `SCMP_ARCH_X86_64`.
    X86_64,
    /// `SCMP_ARCH_X32`: the kernel calls it x86_64; bit 30 of the number is set.
    X32,
    /// `SCMP_ARCH_X86`.
    X86,
    /// `SCMP_ARCH_AARCH64`.
    Aarch64,
    /// `SCMP_ARCH_ARM`, EABI.
    Arm,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::X86_64, Self::X32, Self::X86, Self::Aarch64, Self::Arm];

    /// The one this program was built for; none where there is no table of ours.
    #[must_use]
    pub const fn native() -> Option<Self> {
        if cfg!(all(target_arch = "x86_64", target_pointer_width = "32")) {
            Some(Self::X32)
        } else if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "x86") {
            Some(Self::X86)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else if cfg!(target_arch = "arm") {
            Some(Self::Arm)
        } else {
            None
        }
    }

    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X32 => "SCMP_ARCH_X32",
            Self::X86 => "SCMP_ARCH_X86",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// AUDIT_ARCH_* of `struct seccomp_data`.
    #[must_use]
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether only the lower half of an argument counts.
    pub(crate) fn is_32_bit(self) -> bool {
        matches!(self, Self::X32 | Self::X86 | Self::Arm)
    }
}
