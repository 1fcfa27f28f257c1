//! The images the tests run: OCI archives the harness makes itself, the same bytes every time, cached.
//!
//! Nothing is pulled from anywhere; Debian's come from Debian packages, Ubuntu's from Ubuntu's.

mod archive;
mod busybox;
mod debian;
mod large;
mod layer;
mod layers;
mod stored;
mod ubuntu;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::{apt::Unreachable, cache, skip::skip};

pub use archive::{Description, write as write_archive};
pub use layer::{Content, Device, Entry, Layer};
pub use layers::expected as expected_of_layers;
pub use stored::Stored;

/// Environment variable that limits the images behaviours are checked with: words such as
/// `busybox debian`.
pub const IMAGES: &str = "POUCH_IMAGES";

/// An image the harness can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Image {
    /// Static busybox, hard links for all applets; no `/proc`, no `/sys`.
    Busybox,
    /// The same with an inittab and a script that it runs first.
    BusyboxInit,
    /// Busybox that stays until it is killed: a pod's sandbox.
    Pause,
    /// Debian 12, minimal.
    Debian,
    /// Debian 12 with systemd, D-Bus, cron, syslog and an ssh server.
    DebianSystemd,
    /// Debian 12 with sysvinit, its scripts run in parallel, and cron.
    DebianSysvinit,
    /// Ubuntu 16.04 with upstart and cron.
    UbuntuUpstart,
    /// Busybox below many layers with everything a layer can say.
    Layers,
    /// Busybox and half a gigabyte in small files.
    Large,
}

impl Image {
    /// What a container runtime meets in daily life.
    pub const STANDARD: [Self; 3] = [Self::Busybox, Self::Debian, Self::DebianSystemd];

    /// Those of `images` that `POUCH_IMAGES` does not leave out, which is reported as skipped.
    pub fn wanted(images: &[Self]) -> Result<Vec<Self>> {
        let Ok(wanted) = std::env::var(IMAGES) else {
            return Ok(images.to_vec());
        };
        let is_wanted = |image: &&Self| wanted.split_whitespace().any(|name| name == image.name());
        for image in images.iter().filter(|image| !is_wanted(image)) {
            let name = format!("image {}", image.name());
            skip(&name, &format!("{IMAGES} leaves it out"));
        }
        let left: Vec<_> = images.iter().filter(is_wanted).copied().collect();
        ensure!(!left.is_empty(), "{IMAGES} leaves no image to test with");
        Ok(left)
    }

    /// Those of `images` whose packages are to be had; of the others it is reported that they are skipped.
    pub(crate) fn to_be_had(images: &[Self]) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for &image in images {
            match image.archive() {
                Ok(_) => found.push(image),
                Err(error) if error.downcast_ref::<Unreachable>().is_some() => {
                    skip(&format!("image {}", image.name()), &format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Its name, and the version of its recipe: to be raised when the recipe changes.
    const fn recipe(self) -> (&'static str, u32) {
        match self {
            Self::Busybox => ("busybox", 1),
            Self::BusyboxInit => ("busybox-init", 1),
            Self::Pause => ("pause", 1),
            Self::Debian => ("debian", 1),
            Self::DebianSystemd => ("debian-systemd", 1),
            Self::DebianSysvinit => ("debian-sysvinit", 1),
            Self::UbuntuUpstart => ("ubuntu-upstart", 1),
            Self::Layers => ("layers", 1),
            Self::Large => ("large", 1),
        }
    }

    /// What it is called in registries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.recipe().0
    }

    /// Name and recipe version, for names of files.
    #[must_use]
    pub fn key(self) -> String {
        let (name, recipe) = self.recipe();
        format!("{name}.{recipe}")
    }

    /// What it is called in containerd.
    #[must_use]
    pub fn reference(self) -> String {
        format!("pouch.test/{}:1", self.name())
    }

    /// The OCI archive, made if it is not there.
    pub fn archive(self) -> Result<PathBuf> {
        let directory = cache::entry(&format!("image-{}", self.key()), |into| self.make(into))?;
        Ok(directory.join("image.tar"))
    }

    fn make(self, into: &Path) -> Result<()> {
        let (layers, command) = match self {
            Self::Busybox => (vec![busybox::layer()?], "sh"),
            Self::BusyboxInit => (vec![busybox::layer()?, busybox::inittab()], "sh"),
            Self::Pause => (vec![busybox::layer()?], "sleep 1000000000"),
            Self::Debian => (vec![debian::layer(debian::MINIMAL)?], "bash"),
            Self::DebianSystemd => (vec![debian::layer(debian::WITH_SYSTEMD)?], "bash"),
            Self::DebianSysvinit => (vec![debian::layer(debian::WITH_SYSVINIT)?], "bash"),
            Self::UbuntuUpstart => (vec![ubuntu::layer()?], "bash"),
            Self::Layers => {
                let mut layers = vec![busybox::layer()?];
                layers.extend(layers::layers());
                (layers, "sh")
            }
            Self::Large => (vec![busybox::layer()?, large::layer()], "sh"),
        };
        let reference = self.reference();
        let description = Description {
            reference: &reference,
            layers: &layers,
            command,
        };
        archive::write(&description, &into.join("image.tar"))
    }
}
