//! Kernels of Debian's cloud flavour, from the release that has them.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::Suite,
    cache,
    process::{command, output_of},
};

/// The series we test on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// bullseye's.
    V5_10,
    /// bookworm's.
    V6_1,
    /// trixie's.
    V6_12,
    /// The backports' to trixie.
    V7_2,
}

impl Series {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7_2];

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::V7_2 => "trixie-backports",
        }
    }

    /// `6.1`.
    #[must_use]
    pub fn number(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|series| series.number() == text)
            .with_context(|| format!("no kernel series {text}: 5.10, 6.1, 6.12 or 7.2"))
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The compressed image for QEMU's `-kernel`.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`, plain `.ko` files with a fresh modules.dep.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of the series, from the cache or from Debian.
    pub fn get(series: Series) -> Result<Self> {
        let name = format!("kernel-{}", series.number());
        let entry = cache::entry(&name, |dir| download(series, dir))?;
        Self::in_tree(&entry)
    }

    fn in_tree(tree: &Path) -> Result<Self> {
        let release = only_entry(&tree.join("lib/modules"))?;
        let name = release.file_name().context("a release has a name")?;
        // Newer releases keep the image beside its modules.
        let places = [
            tree.join("boot")
                .join(format!("vmlinuz-{}", name.to_string_lossy())),
            release.join("vmlinuz"),
        ];
        let image = places.into_iter().find(|place| place.exists());
        let image = image.with_context(|| format!("no vmlinuz below {}", tree.display()))?;
        Ok(Self {
            image,
            modules: release,
        })
    }
}

fn download(series: Series, dir: &Path) -> Result<()> {
    let suite = Suite::open(series.suite(), &dir.join("apt"))?;
    // Newer releases split the image package into binary and modules.
    let mut found = false;
    for part in ["binary", "image", "modules"] {
        let prefix = format!("linux-{part}-{}.", series.number());
        let names = suite.names(&prefix)?;
        if let Some(newest) = names.iter().rfind(|name| name.ends_with("-cloud-amd64")) {
            suite.unpack(newest, dir)?;
            found = true;
        }
    }
    if !found {
        bail!(
            "{} has no cloud kernel of series {}",
            series.suite(),
            series.number()
        );
    }
    fs::remove_dir_all(dir.join("apt"))?;
    // From trixie on the modules lie below usr/lib.
    if !dir.join("lib/modules").exists() {
        fs::create_dir_all(dir.join("lib"))?;
        fs::rename(dir.join("usr/lib/modules"), dir.join("lib/modules"))?;
    }
    let release = only_entry(&dir.join("lib/modules"))?;
    let limit = Duration::from_secs(120);
    let unpack = "find \"$1\" -name '*.ko.xz' -exec xz -d {} +";
    output_of(
        command("sh").args(["-c", unpack, "sh"]).arg(&release),
        limit,
    )?;
    let version = release.file_name().context("a release has a name")?;
    output_of(command("depmod").arg("-b").arg(dir).arg(version), limit)?;
    Ok(())
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let first = entries
        .next()
        .with_context(|| format!("{} is empty", dir.display()))??;
    if entries.next().is_some() {
        bail!("{} has more than one entry", dir.display());
    }
    Ok(first.path())
}
