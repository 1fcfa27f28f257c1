//! What an image is, looked at from the host: below its root, whatever links it holds.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use launch::image_init::style::{self, Style};
use mounts::{LastLink, Place, RootDir};

/// Which init lies below a root; what cannot be read is [`Style::Other`].
pub(crate) fn init_of(root: &Path) -> Style {
    let found = RootDir::open(root)
        .and_then(|root| root.find(Path::new(style::PATH), LastLink::Follow))
        .ok()
        .flatten();
    let read = |place: Place| {
        let content = content(&place)?;
        Some(Style::of(place.inside(), &content))
    };
    found.and_then(read).unwrap_or(Style::Other)
}

/// Of a regular file: the image could have put a fifo there, or a device.
fn content(place: &Place) -> Option<Vec<u8>> {
    let found = File::from(place.as_fd().try_clone_to_owned().ok()?);
    if !found.metadata().ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .ok()?;
    let mut content = Vec::new();
    file.take(style::BYTES_MAX).read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_init_is_found_below_the_root_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sbin")).unwrap();
        assert_eq!(init_of(&root), Style::Other);
        // On the host it would lead to this one.
        std::fs::write(dir.path().join("systemd"), "\x7fELF").unwrap();
        symlink("../../systemd", root.join("sbin/init")).unwrap();
        assert_eq!(init_of(&root), Style::Other);
        std::fs::write(root.join("systemd"), "\x7fELF").unwrap();
        assert_eq!(init_of(&root), Style::Systemd);
        std::fs::remove_file(root.join("systemd")).unwrap();
        let fifo = root.join("systemd");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(init_of(&root), Style::Other);
    }
}
