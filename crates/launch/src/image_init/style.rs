//! Which program an image's `/sbin/init` is: by the name that it leads to, and by words that each
//! of them holds. Pure.

use std::path::Path;

/// Where pid 1 of a machine lies (the kernel's first choice, init/main.c).
pub const PATH: &str = "/sbin/init";

/// No init is larger; what follows is not looked at.
pub const BYTES_MAX: u64 = 16 << 20;

/// A family of inits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// systemd(1).
    Systemd,
    /// init(8) of sysvinit: `/etc/inittab` and runlevels.
    Sysv,
    /// init(8) of upstart: jobs in `/etc/init`.
    Upstart,
    /// BusyBox: an inittab without runlevels.
    Busybox,
    /// Something else: a shell, an application, a container's own.
    Other,
}

impl Style {
    /// Of a program with this name, once all links are followed, and this content.
    #[must_use]
    pub fn of(path: &Path, content: &[u8]) -> Self {
        if path.file_name().is_some_and(|name| name == "systemd") {
            return Self::Systemd;
        }
        let holds = |word: &[u8]| content.windows(word.len()).any(|part| part == word);
        // A script may speak of any of them.
        if !content.starts_with(b"\x7fELF") {
            return Self::Other;
        }
        if holds(b"BusyBox v") {
            return Self::Busybox;
        }
        if holds(b"com.ubuntu.Upstart") {
            return Self::Upstart;
        }
        if holds(b"/etc/inittab") && holds(b"/initctl") {
            return Self::Sysv;
        }
        Self::Other
    }

    /// What asks it to end all in order, as it is set up here (kill(2)). systemd would take TERM for a
    /// wish to execute itself anew, INT for one to reboot, and end by QUIT; sysvinit does what its
    /// inittab says for a failure of the power, and upstart what its jobs do; BusyBox executes another init.
    #[must_use]
    pub fn stop_signal(self) -> i32 {
        match self {
            Self::Systemd => super::systemd::SIGRTMIN_3,
            Self::Busybox => super::busybox::STOP,
            Self::Sysv | Self::Upstart | Self::Other => nix::libc::SIGPWR,
        }
    }

    /// What to call it in a message.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Sysv => "sysvinit",
            Self::Upstart => "upstart",
            Self::Busybox => "BusyBox",
            Self::Other => "of no kind that is known",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_known_by_its_name_or_its_words() {
        let sysv = b"\x7fELF../etc/inittab\0/run/initctl\0";
        for (path, content, style) in [
            ("/lib/systemd/systemd", &b"\x7fELF"[..], Style::Systemd),
            ("/sbin/init", sysv, Style::Sysv),
            ("/lib/sysvinit/init", sysv, Style::Sysv),
            (
                "/bin/busybox",
                b"\x7fELF BusyBox v1.35 /etc/inittab /initctl",
                Style::Busybox,
            ),
            (
                "/sbin/init",
                b"\x7fELF com.ubuntu.Upstart0_6",
                Style::Upstart,
            ),
            (
                "/sbin/init",
                b"#!/bin/sh /etc/inittab /run/initctl",
                Style::Other,
            ),
            ("/sbin/init", b"", Style::Other),
        ] {
            assert_eq!(Style::of(Path::new(path), content), style, "{path}");
        }
    }
}
