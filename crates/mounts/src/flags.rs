//! The MS_* flags of mount(2) by value (linux/mount.h); must not know any option words.

/// Read-only.
pub const RDONLY: u64 = 1;
/// No set-user-id.
pub const NOSUID: u64 = 1 << 1;
/// No devices.
pub const NODEV: u64 = 1 << 2;
/// No programs.
pub const NOEXEC: u64 = 1 << 3;
/// Written through at once.
pub const SYNCHRONOUS: u64 = 1 << 4;
/// Change an existing mount.
pub const REMOUNT: u64 = 1 << 5;
/// Mandatory locks (gone with 5.15).
pub const MANDLOCK: u64 = 1 << 6;
/// Directories are written through at once.
pub const DIRSYNC: u64 = 1 << 7;
/// Symbolic links are not followed (5.10).
pub const NOSYMFOLLOW: u64 = 1 << 8;
/// No access times.
pub const NOATIME: u64 = 1 << 10;
/// No access times of directories.
pub const NODIRATIME: u64 = 1 << 11;
/// Show a directory elsewhere.
pub const BIND: u64 = 1 << 12;
/// With everything mounted below.
pub const REC: u64 = 1 << 14;
/// Fewer kernel messages.
pub const SILENT: u64 = 1 << 15;
/// Propagation type.
pub const UNBINDABLE: u64 = 1 << 17;
/// Propagation type.
pub const PRIVATE: u64 = 1 << 18;
/// Propagation type.
pub const SLAVE: u64 = 1 << 19;
/// Propagation type.
pub const SHARED: u64 = 1 << 20;
/// Access times when older than the modification.
pub const RELATIME: u64 = 1 << 21;
/// Inode versions.
pub const I_VERSION: u64 = 1 << 23;
/// Access times always.
pub const STRICTATIME: u64 = 1 << 24;
/// Times are written late (4.0).
pub const LAZYTIME: u64 = 1 << 25;

/// The access-time flags of which a mount has one.
pub const ATIME_MODES: u64 = NOATIME | RELATIME | STRICTATIME;
/// All access-time flags.
pub const ATIME: u64 = ATIME_MODES | NODIRATIME;
/// What a mount that came from another user namespace may not lose (MNT_LOCK_* in the kernel).
pub const LOCKABLE: u64 = RDONLY | NODEV | NOEXEC | NOSUID | ATIME;
