//! The guest image: a distribution's kernel, and an initramfs of the modules that the guest needs and
//! the agent as its /init.

mod build;
mod cpio;
mod modules;

pub use build::{Source, build};

use std::path::PathBuf;

use crate::home::Home;
use crate::{Error, Result};

/// File name of the kernel.
const KERNEL: &str = "kernel";

/// File name of the initramfs.
const INITRAMFS: &str = "initramfs";

/// A guest image on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What QEMU boots.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
}

impl Image {
    /// The one of this place.
    ///
    /// # Errors
    /// [`Error::NoGuest`] with the file that is missing.
    pub fn find(home: &Home) -> Result<Self> {
        let [kernel, initramfs] = [KERNEL, INITRAMFS].map(|name| home.guest().join(name));
        for path in [&kernel, &initramfs] {
            if !path.is_file() {
                return Err(Error::NoGuest(path.clone()));
            }
        }
        Ok(Self { kernel, initramfs })
    }
}
