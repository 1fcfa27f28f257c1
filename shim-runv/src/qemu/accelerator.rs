//! Which accelerator QEMU can use on this host. A `/dev/kvm` that opens is no proof: nested
//! virtualisation without hardware support has one, and stops a stock kernel for ever.

use std::fmt;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By translation: works everywhere.
    Tcg,
}

/// Who a device lets read and write, of those that QEMU may be: it is not root, and never of root's group, to which
/// files of the host and `/proc` are opener than to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    All,
    /// Members of this group.
    Group(u32),
    /// Nobody that QEMU may be.
    Root {
        /// The permissions.
        mode: u32,
        /// The group.
        gid: u32,
    },
}

impl Access {
    /// What these permissions say. Access control lists are not looked at.
    #[must_use]
    pub fn of(device: &Metadata) -> Self {
        let (mode, gid) = (device.mode() & 0o7777, device.gid());
        match (mode & 0o006, mode & 0o060, gid) {
            (0o006, ..) => Self::All,
            (_, 0o060, 1..) => Self::Group(gid),
            _ => Self::Root { mode, gid },
        }
    }

    /// The group without which it is not opened.
    #[must_use]
    pub fn group(self) -> Option<u32> {
        match self {
            Self::Group(gid) => Some(gid),
            Self::All | Self::Root { .. } => None,
        }
    }
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who may open `/dev/kvm`, if it can be opened at all.
    pub device: Option<Access>,
    /// The kernel module that drives the processor's extension, if it is loaded.
    pub module: Option<&'static str>,
    /// The processor has the extension (`vmx`, `svm`).
    pub extension: Option<&'static str>,
}

/// Modules that drive an extension, and its flag in `/proc/cpuinfo`.
const DRIVERS: [(&str, &str); 2] = [("kvm_intel", "vmx"), ("kvm_amd", "svm")];

impl Facts {
    /// Looks below `root` (`/` but in tests).
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let cpuinfo = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        let has = |flag: &str| flags.is_some_and(|line| line.split_whitespace().any(|f| f == flag));
        let is_loaded = |module: &str| root.join("sys/module").join(module).exists();
        let mut options = File::options();
        let device = options.read(true).write(true).open(root.join("dev/kvm"));
        let metadata = device.and_then(|it| it.metadata());
        Self {
            device: metadata.ok().as_ref().map(Access::of),
            module: DRIVERS.iter().map(|it| it.0).find(|it| is_loaded(it)),
            extension: DRIVERS.iter().map(|it| it.1).find(|it| has(it)),
        }
    }

    /// What they allow.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        match (self.device, self.module, self.extension) {
            (Some(Access::All | Access::Group(_)), Some(_), Some(_)) => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match (self.device, self.module, self.extension) {
            (None, ..) => "/dev/kvm cannot be opened".to_owned(),
            (Some(_), None, _) => "neither kvm_intel nor kvm_amd is loaded".to_owned(),
            (Some(_), Some(module), None) => {
                format!("{module} is loaded, but /proc/cpuinfo has neither vmx nor svm")
            }
            (Some(Access::Root { mode, gid }), Some(_), Some(_)) => format!(
                "/dev/kvm has mode {mode:04o} and group {gid}, so QEMU, which is not root, cannot open it: give it a \
                 group other than root's and mode 0660 (chgrp kvm /dev/kvm; chmod 0660 /dev/kvm), or mode 0666"
            ),
            (Some(Access::All | Access::Group(_)), Some(module), Some(flag)) => {
                format!("{module} is loaded, the CPU has {flag}")
            }
        };
        match self.accelerator() {
            Accelerator::Kvm => write!(f, "kvm: {why}"),
            Accelerator::Tcg => write!(f, "tcg: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_device_alone_is_no_proof_and_one_of_root_alone_is_of_no_use() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let check = |expected: &str| {
            assert_eq!(Facts::read(root.path()).to_string(), expected);
        };
        check("tcg: /dev/kvm cannot be opened");
        write("dev/kvm", "");
        let device = root.path().join("dev/kvm");
        let permit = |mode: u32, gid: u32| {
            std::fs::set_permissions(&device, Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&device, None, Some(gid)).unwrap();
        };
        permit(0o600, 0);
        write("sys/module/kvm_pvm/x", "");
        write("proc/cpuinfo", "flags\t: fpu vme\n");
        check("tcg: neither kvm_intel nor kvm_amd is loaded");
        write("sys/module/kvm_amd/x", "");
        check("tcg: kvm_amd is loaded, but /proc/cpuinfo has neither vmx nor svm");
        write("proc/cpuinfo", "flags\t: fpu svm\n");
        let check_refused = |mode: u32, gid: u32| {
            permit(mode, gid);
            let facts = Facts::read(root.path());
            assert_eq!(facts.accelerator(), Accelerator::Tcg);
            assert_eq!(facts.device.and_then(Access::group), None);
            let why = format!("tcg: /dev/kvm has mode {mode:04o} and group {gid}, so QEMU");
            let text = facts.to_string();
            assert!(
                text.starts_with(&why) && text.contains("chmod 0660"),
                "{text}"
            );
        };
        for (mode, gid) in [(0o600, 0), (0o660, 0), (0o600, 36), (0o640, 36), (0o664, 0)] {
            check_refused(mode, gid);
        }
        let check_usable = |(mode, gid): (u32, u32), group: Option<u32>| {
            permit(mode, gid);
            check("kvm: kvm_amd is loaded, the CPU has svm");
            let facts = Facts::read(root.path());
            assert_eq!(facts.device.and_then(Access::group), group);
        };
        check_usable((0o660, 36), Some(36));
        check_usable((0o666, 36), None);
        // Never root's group, and none that would be kept out.
        check_usable((0o666, 0), None);
        check_usable((0o606, 36), None);
    }
}
