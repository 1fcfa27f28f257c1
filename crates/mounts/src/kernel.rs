//! mount(2) and umount2(2) with our flags; must not decide which to call.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

/// What mount(2) is told besides where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) source: Option<&'a str>,
    pub(crate) fstype: Option<&'a str>,
    pub(crate) flags: u64,
    pub(crate) data: &'a str,
}

/// mount(2).
///
/// # Errors
/// E2BIG for data that does not fit a page: the kernel would cut it off without a word.
pub(crate) fn mount(call: Call<'_>, target: &Path) -> nix::Result<()> {
    if call.data.len() >= page_bytes() {
        return Err(nix::errno::Errno::E2BIG);
    }
    let data = Some(call.data).filter(|data| !data.is_empty());
    nix::mount::mount(call.source, target, call.fstype, ms(call.flags), data)
}

/// mount(2) on what is mounted at `target` already.
pub(crate) fn change(target: &Path, flags: u64) -> nix::Result<()> {
    let call = Call {
        source: None,
        fstype: None,
        flags,
        data: "",
    };
    mount(call, target)
}

/// How much data mount(2) copies, the NUL at its end included.
pub(crate) fn page_bytes() -> usize {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let page = page.ok().flatten();
    page.and_then(|page| usize::try_from(page).ok())
        .unwrap_or(4096)
}

fn ms(flags: u64) -> MsFlags {
    // All flags fit 32 bits, as wide as unsigned long is at least.
    MsFlags::from_bits_retain(nix::libc::c_ulong::try_from(flags).expect("32 bits"))
}

/// A directory by a descriptor that only names it.
pub(crate) fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// A path that leads to what a descriptor stands for, whatever its own path has become.
///
/// It works on kernels without open_tree(2), and only with a procfs at /proc.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
