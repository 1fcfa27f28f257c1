//! Which accelerator QEMU can use on this host. A `/dev/kvm` that opens is no proof: nested
//! virtualisation without hardware support has one, and stops a stock kernel for ever.

use std::fmt;
use std::path::Path;

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By translation: works everywhere.
    Tcg,
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `/dev/kvm` can be opened.
    pub device: bool,
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
        let mut options = std::fs::File::options();
        let device = options.read(true).write(true).open(root.join("dev/kvm"));
        Self {
            device: device.is_ok(),
            module: DRIVERS.iter().map(|it| it.0).find(|it| is_loaded(it)),
            extension: DRIVERS.iter().map(|it| it.1).find(|it| has(it)),
        }
    }

    /// What they allow.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        match (self.device, self.module, self.extension) {
            (true, Some(_), Some(_)) => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match (self.device, self.module, self.extension) {
            (false, ..) => "/dev/kvm cannot be opened".to_owned(),
            (true, None, _) => "neither kvm_intel nor kvm_amd is loaded".to_owned(),
            (true, Some(module), None) => {
                format!("{module} is loaded, but /proc/cpuinfo has neither vmx nor svm")
            }
            (true, Some(module), Some(flag)) => format!("{module} is loaded, the CPU has {flag}"),
        };
        match self.accelerator() {
            Accelerator::Kvm => write!(f, "kvm: {why}"),
            Accelerator::Tcg => write!(f, "tcg: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_alone_is_no_proof() {
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
        write("sys/module/kvm_pvm/x", "");
        write("proc/cpuinfo", "flags\t: fpu vme\n");
        check("tcg: neither kvm_intel nor kvm_amd is loaded");
        write("sys/module/kvm_amd/x", "");
        check("tcg: kvm_amd is loaded, but /proc/cpuinfo has neither vmx nor svm");
        write("proc/cpuinfo", "flags\t: fpu svm\n");
        check("kvm: kvm_amd is loaded, the CPU has svm");
    }
}
