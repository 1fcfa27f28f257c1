//! Tap devices in the network namespace of the calling thread; must not configure them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::ioctl;

/// The device that makes them.
const DEVICE: &str = "/dev/net/tun";

/// linux/if_tun.h, `_IOW('T', 202, int)`; libc has none for every C library.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// linux/if_tun.h: Ethernet frames, nothing before them but virtio's header, and no device that is
/// there already (since 2.6.27 and 3.9).
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_TUN_EXCL: u16 = 0x8000;

/// Makes a tap with that name, which is gone with the last copy of the descriptor. Frames are read and
/// written with virtio's header before them.
///
/// # Errors
/// What the kernel says: EBUSY for a name that is taken, ENOENT without `/dev/net/tun`, InvalidInput for
/// a name that is no device's.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    // SAFETY: all zero bytes are valid: a structure of numbers and of a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: TUNSETIFF reads one struct ifreq and writes the device's name into it.
    unsafe { ioctl::with(device.as_fd(), TUNSETIFF, &mut request) }?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_is_there_as_long_as_its_descriptor() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let first = open_tap("tap0").unwrap();
            let again = open_tap("tap0").unwrap_err();
            assert_eq!(again.raw_os_error(), Some(libc::EBUSY));
            drop(first);
            open_tap("tap0").unwrap();
            let long = open_tap("a name that is too long").unwrap_err();
            assert_eq!(long.kind(), io::ErrorKind::InvalidInput);
        })
        .join()
        .unwrap();
    }
}
