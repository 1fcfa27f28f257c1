//! Options longer than mount(2) takes, for which it has one page: given to the kernel one by one
//! (5.2). Before that they are refused; the kernel itself would cut them off without a word.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use sys::FsContext;
use sys::mount_api as api;

use crate::flags as ms;
use crate::kernel::{self, Call};

/// Flags of mount(2) that belong to the file system, by the words that fsconfig(2) has for them.
const WORDS: [(u64, &CStr); 5] = [
    (ms::RDONLY, c"ro"),
    (ms::SYNCHRONOUS, c"sync"),
    (ms::DIRSYNC, c"dirsync"),
    (ms::MANDLOCK, c"mand"),
    (ms::LAZYTIME, c"lazytime"),
];

/// Flags of mount(2) that belong to the mount.
const ATTRIBUTES: [(u64, u64); 8] = [
    (ms::RDONLY, api::MOUNT_ATTR_RDONLY),
    (ms::NOSUID, api::MOUNT_ATTR_NOSUID),
    (ms::NODEV, api::MOUNT_ATTR_NODEV),
    (ms::NOEXEC, api::MOUNT_ATTR_NOEXEC),
    (ms::NOATIME, api::MOUNT_ATTR_NOATIME),
    (ms::STRICTATIME, api::MOUNT_ATTR_STRICTATIME),
    (ms::NODIRATIME, api::MOUNT_ATTR_NODIRATIME),
    (ms::NOSYMFOLLOW, api::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Mounts a new file system at `target`, which is what `place` names.
///
/// # Errors
/// As mount(2); E2BIG for long options before Linux 5.2, EINVAL for a word of more than 255 bytes.
pub(crate) fn mount(call: Call<'_>, target: &Path, place: BorrowedFd<'_>) -> nix::Result<()> {
    if call.data.len() < kernel::page_bytes() {
        return kernel::mount(call, target);
    }
    by_words(call, place).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ENOSYS) => Errno::E2BIG,
        code => code.map_or(Errno::EINVAL, Errno::from_raw),
    })
}

fn by_words(call: Call<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let context = FsContext::open(&CString::new(call.fstype.unwrap_or_default())?)?;
    if let Some(source) = call.source {
        context.set(c"source", &CString::new(source)?)?;
    }
    for (flag, word) in WORDS {
        if call.flags & flag != 0 {
            context.set_flag(word)?;
        }
    }
    for word in words(call.data) {
        match word.split_once('=') {
            Some((key, value)) => {
                let value = value.replace('"', "");
                context.set(&CString::new(key)?, &CString::new(value)?)?;
            }
            None => context.set_flag(&CString::new(word)?)?,
        }
    }
    let attributes = ATTRIBUTES
        .iter()
        .filter(|(flag, _)| call.flags & flag != 0)
        .fold(0, |all, (_, attribute)| all | attribute);
    let attributes = u32::try_from(attributes).expect("MOUNT_ATTR_* fit 32 bits");
    let detached = context.mount(attributes)?;
    api::move_mount(&detached, place)
}

/// Words between commas; a comma within quotes is part of its word (a label of SELinux).
fn words(data: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    data.split(move |letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    })
    .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::namespace::{self, Scratch, mount};
    use crate::{RootDir, apply_under};

    #[test]
    fn words_end_at_commas_outside_of_quotes() {
        let all: Vec<_> = words("a=1,,b=\"x,y\",c").collect();
        assert_eq!(all, ["a=1", "b=\"x,y\"", "c"]);
    }

    #[test]
    fn options_of_any_length_all_count() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = RootDir::open(&scratch.directory("root")).unwrap();
            let mut options = vec!["size=1m,nr_inodes=55"; 500];
            options.extend(["nosuid", "noexec", "nr_inodes=77", "mode=711"]);
            let none = Path::new("none");
            apply_under(&root, &mount(none, "tmpfs", "/t", &options)).unwrap();
            let at = scratch.path("root/t");
            let about = nix::sys::statvfs::statvfs(&at).unwrap();
            assert_eq!(about.files(), 77);
            assert_eq!(about.blocks() * about.fragment_size(), 1 << 20);
            let flags = about.flags();
            assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
            assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOEXEC));
            let mode = std::fs::metadata(&at).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o711);

            options.push("no_such_word=1");
            let error = apply_under(&root, &mount(none, "tmpfs", "/u", &options)).unwrap_err();
            assert_eq!(error.errno(), Some(nix::libc::EINVAL));
        });
    }
}
