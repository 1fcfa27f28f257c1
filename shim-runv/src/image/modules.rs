//! Which modules of a kernel the guest needs, in the order in which they must be loaded.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Modules without which there is no container in a guest.
const NEEDED: [&str; 7] = [
    "virtio_mmio",
    "virtio_console",
    "virtio_scsi",
    "sd_mod",
    "virtio_net",
    "erofs",
    "overlay",
];

/// Loaded where the kernel has them: what others ask for without saying so in modules.dep, what makes
/// a guest better, and volumes.
const WELCOME: [&str; 4] = ["crc32c_generic", "virtio_pci", "virtio_rng", "virtiofs"];

/// What is before the release in a module's own words, which are strings one behind the other.
const VERMAGIC: &[u8] = b"\0vermagic=";

/// Paths of the modules to load below the kernel's folder, each after what it needs.
///
/// `dependencies` is its modules.dep, `built_in` its modules.builtin; without that, what is no module is
/// taken to be built in.
///
/// # Errors
/// [`Error::Kernel`] with the module that it does not have.
pub(crate) fn order<'a>(dependencies: &'a str, built_in: Option<&str>) -> Result<Vec<&'a str>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let known: BTreeMap<String, (&str, &str)> = lines
        .map(|(path, needs)| (name(path), (path, needs)))
        .collect();
    let is_built_in =
        |wanted: &str| built_in.is_none_or(|paths| paths.lines().any(|path| name(path) == wanted));
    let mut order = Vec::new();
    for wanted in WELCOME.into_iter().chain(NEEDED) {
        match known.get(wanted) {
            // The list of what it needs ends with what must be first.
            Some((path, needs)) => {
                let needs = needs.split_whitespace().rev();
                order.extend(needs.chain(std::iter::once(*path)));
            }
            None if is_built_in(wanted) || WELCOME.contains(&wanted) => {}
            None => {
                return Err(Error::Kernel(format!(
                    "the kernel has no {wanted}, neither as a module nor built in"
                )));
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    order.retain(|path| seen.insert(*path));
    Ok(order)
}

/// The release of the kernel that a module is for, by what it says of itself (`vermagic`).
pub(crate) fn release(module: &[u8]) -> Option<&str> {
    let at = module
        .windows(VERMAGIC.len())
        .position(|window| window == VERMAGIC)?;
    let text = &module[at + VERMAGIC.len()..];
    let end = text.iter().position(|byte| *byte == b' ' || *byte == 0)?;
    std::str::from_utf8(&text[..end]).ok()
}

/// A module's name by the path of its file.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split('.').next().unwrap_or(file);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT_IN: &str = "kernel/drivers/net/virtio_net.ko\nkernel/fs/overlayfs/overlay.ko\nkernel/drivers/virtio/virtio_mmio.ko\n";

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dependencies = "kernel/c/virtio_console.ko: kernel/v/virtio_ring.ko kernel/v/virtio.ko\n\
                            kernel/b/virtio-scsi.ko: kernel/v/virtio_ring.ko kernel/v/virtio.ko\n\
                            kernel/b/sd_mod.ko:\n\
                            kernel/e/erofs.ko: kernel/l/libcrc32c.ko\n\
                            kernel/x/crc32c_generic.ko:\n\
                            kernel/o/other.ko:\n";
        let expected = [
            "kernel/x/crc32c_generic.ko",
            "kernel/v/virtio.ko",
            "kernel/v/virtio_ring.ko",
            "kernel/c/virtio_console.ko",
            "kernel/b/virtio-scsi.ko",
            "kernel/b/sd_mod.ko",
            "kernel/l/libcrc32c.ko",
            "kernel/e/erofs.ko",
        ];
        assert_eq!(order(dependencies, Some(BUILT_IN)).unwrap(), expected);
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let check = |dependencies: &str, expected: &str| {
            let error = order(dependencies, Some(BUILT_IN)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "no virtio_console");
        let some = "a/virtio_console.ko.xz:\na/virtio_scsi.ko.xz:\na/sd_mod.ko.xz:\n";
        check(some, "no erofs");
        assert_eq!(order("a/erofs.ko:\n", None).unwrap(), ["a/erofs.ko"]);
    }

    #[test]
    fn a_module_says_which_kernel_it_is_for() {
        let module = b"\0license=GPL\0vermagic=6.1.0-56-cloud-amd64 SMP preempt mod_unload \0";
        assert_eq!(release(module), Some("6.1.0-56-cloud-amd64"));
        for other in [&b"\0license=GPL\0"[..], b"\0vermagic=6.1", b""] {
            assert_eq!(release(other), None);
        }
    }
}
