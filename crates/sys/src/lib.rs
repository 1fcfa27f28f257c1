//! What nix and std lack at the system-call level; the only crate with unsafe code.
//!
//! Everything here is blocking, allocates only before a fork and says by its types who owns what.
//! It decides nothing: no paths of ours, no logging, no retries beyond EINTR. Each call works, or
//! fails with the kernel's errno, on Linux from 2.6.32; what is newer names its version.
#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper are made here and nowhere else"
)]

mod access;
pub mod bpf;
pub mod btrfs;
mod child;
mod event_journal;
mod fd;
pub mod filesystem;
mod fork;
mod fs_context;
mod fuse_device;
mod inherited;
mod ioctl;
mod kernel;
mod lock;
mod loop_device;
mod loopback;
pub mod memory;
pub mod mount_api;
#[cfg(test)]
mod mounted_image;
mod netlink;
#[cfg(test)]
mod old_kernel;
pub mod page_cache;
mod pointers;
mod pre_content;
pub mod process;
pub mod project_quota;
pub mod pty;
pub mod quota_events;
mod random;
mod raw;
mod report;
pub mod scheduling;
mod shared_slots;
mod socket;
mod spawn;
mod tap;
mod time_stamp_counter;
mod user;
mod user_namespace;
mod xattr;

pub use access::may_execute;
pub use child::{Child, ExitStatus, announce, reap, watch};
pub use event_journal::{EventJournal, Owed};
pub use fd::{memfd_sealed, pipe_cloexec, take_number, unread_bytes};
pub use fs_context::FsContext;
pub use fuse_device::{FuseDevice, REQUEST_BYTES, RequestJournal};
pub use inherited::{close_inherited_from, inherited_numbers, take_inherited_fd};
pub use kernel::Kernel;
pub use lock::lock_within;
pub use loop_device::{LoopAccess, LoopCache, LoopDevice, LoopOptions};
pub use loopback::loopback_up;
pub use nix::sched::CloneFlags;
pub use nix::sys::signal::Signal;
pub use nix::unistd::Pid;
pub use pre_content::{FileId, PreAccess, PreContent, Verdict};
pub use process::set_subreaper;
pub use random::reseed as reseed_random;
pub use socket::{
    Credentials, enable_passcred, recv_with_fds, send_with_fds, socketpair_stream_cloexec,
};
pub use spawn::{Place, Source, Spawn};
pub use tap::open_tap;
pub use time_stamp_counter::TimeStampCounter;
pub use user::User;
pub use user_namespace::user_namespace;
pub use xattr::set_xattr;
