//! Where runv keeps what outlives a container: the guest image and disks of root file systems.
//!
//! ```text
//!   HOME/guest/kernel            what QEMU boots
//!   HOME/guest/initramfs         modules and the agent
//!   HOME/guest/release           of the kernel, for who lists guest images
//!   HOME/guests/NAME/            the same of another guest, for containers that ask for it by name
//!   HOME/layers/KEY.erofs        root file systems of images
//!   HOME/templates/              where templates of machines are found (`template/place.rs`)
//! ```

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::image::Name;
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

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of templates.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    /// The folder of a guest image.
    #[must_use]
    pub fn guest(&self, name: &Name) -> PathBuf {
        match name.named() {
            None => self.0.join("guest"),
            Some(name) => self.guests().join(name),
        }
    }

    /// The folder of guest images that have names.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.0.join("guests")
    }

    /// The folder of root file systems.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.0.join("layers")
    }
}

/// Names in a folder that may not be there, in order; those that are no text are not ours.
///
/// # Errors
/// What reading says.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::on("list", folder))?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let names = names.map_err(Error::on("list", folder))?.into_iter();
    let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}
