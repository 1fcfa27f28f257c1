//! Where runv keeps what outlives a container: the guest image and disks of root file systems.
//!
//! ```text
//!   HOME/guest/kernel       what QEMU boots
//!   HOME/guest/initramfs    modules and the agent
//!   HOME/layers/KEY.erofs   root file systems of images
//! ```

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Environment variable that names another place; containerd passes its own environment to shims.
pub const VARIABLE: &str = "RUNV_HOME";

/// The place without it.
pub const USUAL: &str = "/var/lib/runv";

/// The place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// What the environment says, or the usual place.
    ///
    /// # Errors
    /// [`Error::Usage`] for a path that is not absolute.
    pub fn find() -> Result<Self> {
        let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
        Self::at(&path.map_or_else(|| PathBuf::from(USUAL), PathBuf::from))
    }

    /// This place.
    ///
    /// # Errors
    /// [`Error::Usage`] for a path that is not absolute.
    pub fn at(path: &Path) -> Result<Self> {
        if path.is_absolute() {
            return Ok(Self(path.to_owned()));
        }
        let path = path.display();
        Err(Error::Usage(format!("{VARIABLE}: {path} is not absolute")))
    }

    /// The folder of the guest image.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        self.0.join("guest")
    }

    /// The folder of root file systems.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.0.join("layers")
    }
}
