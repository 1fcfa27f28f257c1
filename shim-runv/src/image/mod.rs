//! The guest image: a distribution's kernel, and an initramfs of the modules that the guest needs and
//! the agent as its /init.

mod build;
mod cpio;
mod header;
mod modules;
mod name;
mod unpack;

pub use build::{Source, build};
pub use name::Name;

use std::path::{Path, PathBuf};

use crate::home::{Home, names};
use crate::{Error, Result};

/// File name of the kernel.
const KERNEL: &str = "kernel";

/// File name of the initramfs.
const INITRAMFS: &str = "initramfs";

/// File name of what names the kernel.
const RELEASE: &str = "release";

/// A guest image on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it is called.
    pub name: Name,
    /// What QEMU boots.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
}

impl Image {
    /// The one of that name.
    ///
    /// # Errors
    /// [`Error::NoGuest`] with the file that is missing.
    pub fn find(home: &Home, name: &Name) -> Result<Self> {
        let folder = home.guest(name);
        let [kernel, initramfs] = [KERNEL, INITRAMFS].map(|file| folder.join(file));
        for path in [&kernel, &initramfs] {
            if !path.is_file() {
                let option = name.named().map(|name| format!(" --name {name}"));
                return Err(Error::NoGuest {
                    path: path.clone(),
                    option: option.unwrap_or_default(),
                });
            }
        }
        Ok(Self {
            name: name.clone(),
            kernel,
            initramfs,
        })
    }

    /// Names and kernels of all that are there, the default first.
    ///
    /// # Errors
    /// What reading says.
    pub fn all(home: &Home) -> Result<Vec<(Name, String)>> {
        // What has no name that could be asked for is not ours.
        let named = names(&home.guests())?;
        let names = named.iter().filter_map(|name| name.parse().ok());
        let names = names.filter(|name| *name != Name::default());
        let all = std::iter::once(Name::default()).chain(names);
        let there = all.filter(|name| Self::find(home, name).is_ok());
        let told = there.map(|name| {
            let release = release(&home.guest(&name));
            (name, release)
        });
        Ok(told.collect())
    }

    /// Removes one, also what a build that was killed has left; machines that run keep theirs.
    ///
    /// # Errors
    /// [`Error::NoGuest`], or what removing says.
    pub fn remove(home: &Home, name: &Name) -> Result<()> {
        let folder = home.guest(name);
        if !folder.is_dir() {
            return Self::find(home, name).map(drop);
        }
        std::fs::remove_dir_all(&folder).map_err(Error::on("remove", &folder))
    }
}

/// What the image of this folder says of its kernel; those of older versions say nothing.
fn release(folder: &Path) -> String {
    std::fs::read_to_string(folder.join(RELEASE)).unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_build_has_left_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path()).unwrap();
        let name: Name = "5.10".parse().unwrap();
        let folder = home.guest(&name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(KERNEL), "").unwrap();
        assert!(Image::find(&home, &name).is_err());
        Image::remove(&home, &name).unwrap();
        assert!(!folder.exists());
        let none = Image::remove(&home, &name);
        assert!(matches!(none, Err(Error::NoGuest { .. })));
    }
}
