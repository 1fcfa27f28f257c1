//! Numbers of the protocol (doc/proto.md, "Values"), as it names them.

/// Bytes that one request may ask for: what the protocol lets a client take for granted (`NBD_INFO_BLOCK_SIZE`).
pub const READ_BYTES_MAX: u32 = 32 << 20;

/// What is told as the best length of a request: blocks of the disk.
pub(super) const PREFERRED_BYTES: u32 = 4096;

pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_C_FIXED_NEWSTYLE`.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
/// `NBD_FLAG_NO_ZEROES` and `NBD_FLAG_C_NO_ZEROES`.
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// `NBD_FLAG_HAS_FLAGS`, `_READ_ONLY` and `_CAN_MULTI_CONN`: what nobody writes is the same on every connection.
pub(super) const TRANSMISSION_FLAGS: u16 = 1 << 0 | 1 << 1 | 1 << 8;

/// `NBD_OPT_...`
pub(super) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
}

/// `NBD_REP_...`
pub(super) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub(crate) const ERR_POLICY: u32 = (1 << 31) + 2;
    pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
    pub(crate) const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// `NBD_INFO_...`
pub(super) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// `NBD_CMD_...`
pub(super) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
}

/// `NBD_REPLY_TYPE_...`
pub(super) mod chunk {
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
}

/// `NBD_REPLY_FLAG_DONE`
pub(super) const DONE: u16 = 1;

/// Why a request is not answered with what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// `NBD_EPERM`: it would write.
    ReadOnly,
    /// `NBD_EIO`: the store cannot read it, or what it reads is not what was signed.
    Unreadable,
    /// `NBD_EINVAL`: it is no request that this server takes.
    Invalid,
}

impl Failure {
    /// As it is sent.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::ReadOnly => 1,
            Self::Unreadable => 5,
            Self::Invalid => 22,
        }
    }

    /// For metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Unreadable => "unreadable",
            Self::Invalid => "invalid",
        }
    }
}
