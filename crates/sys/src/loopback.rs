//! The loopback device of this network namespace; must not touch any other.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::ioctl;

/// linux/sockios.h; libc has it with a type that not every C library's ioctl(2) takes.
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// Brings `lo` up, which gives it its addresses.
///
/// # Errors
/// What the kernel says.
pub fn loopback_up() -> io::Result<()> {
    let kind = SockType::Datagram;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zero bytes are valid: a structure of numbers and of a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).expect("it is 1");
    // SAFETY: SIOCSIFFLAGS only reads one struct ifreq.
    unsafe { ioctl::with(socket.as_fd(), SIOCSIFFLAGS, &mut request) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_network_gets_its_loopback() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let bound = || std::net::UdpSocket::bind("127.0.0.1:0");
            let sent = || bound().and_then(|socket| socket.send_to(b"x", "127.0.0.1:9"));
            assert!(sent().is_err());
            loopback_up().unwrap();
            sent().unwrap();
        })
        .join()
        .unwrap();
    }
}
