//! The version of the running kernel; must not be used where a feature can be probed by calling it.

use std::io;

/// A kernel version, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// `6` of 6.1.55.
    pub major: u32,
    /// `1` of 6.1.55.
    pub minor: u32,
    /// `55` of 6.1.55; 0 when the release has none.
    pub patch: u32,
}

impl Kernel {
    /// The kernel this process runs on, by uname(2).
    ///
    /// # Errors
    /// `InvalidData` when the release does not begin with two numbers.
    pub fn running() -> io::Result<Self> {
        let uname = nix::sys::utsname::uname()?;
        let release = uname.release().to_string_lossy();
        Self::parse(&release).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("kernel release {release} is no version"),
            )
        })
    }

    /// Reads a release such as `2.6.32-642.el6.x86_64`, `6.18.44-fc` or `4.4`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut rest = release;
        let mut number = || {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let value = rest[..digits].parse().ok();
            rest = rest[digits..].strip_prefix('.').unwrap_or_default();
            value
        };
        let (major, minor) = (number()?, number()?);
        let patch = number().unwrap_or(0);
        Some(Self {
            major,
            minor,
            patch,
        })
    }

    /// Whether this is `major.minor` or later.
    #[must_use]
    pub fn at_least(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        let check = |release: &str, expected| {
            let version = Kernel::parse(release).map(|k| (k.major, k.minor, k.patch));
            assert_eq!(version, expected, "{release}");
        };
        check("2.6.32-642.el6.x86_64", Some((2, 6, 32)));
        check("3.10.0-1160.el7.x86_64", Some((3, 10, 0)));
        check("6.18.44-fc-v509", Some((6, 18, 44)));
        check("4.4", Some((4, 4, 0)));
        check("4.4-rc1", Some((4, 4, 0)));
        check("5", None);
        check("x.y", None);
        check("", None);
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        let kernel = Kernel::running().unwrap();
        assert!(kernel.at_least(2, 6));
        assert!(!kernel.at_least(1000, 0));
    }
}
