//! The kernel's random numbers; must not draw any.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::ioctl;

/// The device whose requests those are (random(4)).
const DEVICE: &str = "/dev/urandom";

/// linux/random.h, `_IOW('R', 0x03, int[2])`: adds to the pool, and counts it.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// linux/random.h, `_IO('R', 0x07)`: draws a new key from the pool now (since 4.14).
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// linux/random.h, `struct rand_pool_info`.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    buffer_bytes: libc::c_int,
    buffer: [u8; 32],
}

/// Begins the kernel's random numbers anew with a seed that nobody else knows: none of those drawn from now
/// on follows from what was known before, as it would in one of two copies of a machine.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL before Linux 4.14.
pub fn reseed(seed: &[u8; 32]) -> io::Result<()> {
    let device = File::options().write(true).open(DEVICE)?;
    let mut pool = PoolInfo {
        entropy_bits: 256,
        buffer_bytes: 32,
        buffer: *seed,
    };
    // SAFETY: RNDADDENTROPY reads one struct rand_pool_info with as many bytes behind it as it says.
    unsafe { ioctl::with(device.as_fd(), RNDADDENTROPY, &mut pool) }?;
    // SAFETY: RNDRESEEDCRNG takes nothing.
    unsafe { ioctl::with_number(device.as_fd(), RNDRESEEDCRNG, 0) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_taken() {
        reseed(&[7; 32]).unwrap();
    }
}
