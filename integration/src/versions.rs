//! The stock containerds, and nerdctl, that the tests drive: where each comes from.
//!
//! Nothing is patched: Debian's package, and upstream's Go modules built as they are.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    apt::Suite,
    cache, golang,
    process::{command, output_of},
    skip::skip,
    wait::SOON,
};

/// Environment variable that limits the versions: words such as `1.6 2.4`.
pub const VERSIONS: &str = "POUCH_VERSIONS";

pub(crate) const NO_GO: &str = "it is built from its Go module, and this machine has no Go";

/// A line of containerd; within it one release is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.6.20 of Debian 12.
    V1_6,
    /// 1.7.35 from Go modules; 1.7.24 of Debian 13 where there is no Go.
    V1_7,
    /// 2.4.2 from Go modules.
    V2_4,
}

/// Something to be had on this machine, or the reason why not.
#[derive(Debug, Clone)]
pub enum Availability<T> {
    /// It is there.
    Ready(T),
    /// It cannot be there; the text says why.
    Absent(String),
}

/// One containerd with its tools.
#[derive(Debug, Clone)]
pub struct Installed {
    /// Which line it is of.
    pub version: Version,
    /// The daemon.
    pub containerd: PathBuf,
    /// Its client of the same release.
    pub ctr: PathBuf,
    /// Its shim of the same release.
    pub shim_runc: PathBuf,
    /// Debian's runc.
    pub runc: PathBuf,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line())
    }
}

impl Version {
    /// All that are tested, oldest first.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_4];

    /// `1.6`, `1.7` or `2.4`.
    #[must_use]
    pub const fn line(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_4 => "2.4",
        }
    }

    /// The config file version it is given.
    #[must_use]
    pub const fn config_version(self) -> u32 {
        match self {
            Self::V1_6 | Self::V1_7 => 2,
            Self::V2_4 => 3,
        }
    }

    /// Every version that this machine can have and `POUCH_VERSIONS` does not leave out.
    /// The absent ones are reported as skipped.
    pub fn available() -> Result<Vec<Installed>> {
        let wanted = std::env::var(VERSIONS).ok();
        let mut installed = Vec::new();
        for version in Self::ALL {
            if wanted
                .as_ref()
                .is_some_and(|w| !w.split_whitespace().any(|v| v == version.line()))
            {
                skip(
                    &format!("containerd {version}"),
                    &format!("{VERSIONS} leaves it out"),
                );
                continue;
            }
            match version.install()? {
                Availability::Ready(found) => installed.push(found),
                Availability::Absent(why) => skip(&format!("containerd {version}"), &why),
            }
        }
        ensure!(!installed.is_empty(), "no containerd to test with");
        Ok(installed)
    }

    /// Finds it, or builds it into the cache.
    pub fn install(self) -> Result<Availability<Installed>> {
        let go = golang::compiler();
        let directory = match (self, go) {
            (Self::V1_6, _) => PathBuf::from("/usr/bin"),
            (Self::V1_7, Some(go)) => cache::entry("containerd-1.7.35", |into| {
                let command = "github.com/containerd/containerd/cmd";
                golang::build_as_dependency(
                    &go,
                    into,
                    "github.com/containerd/containerd v1.7.35",
                    &[
                        &format!("{command}/containerd"),
                        &format!("{command}/ctr"),
                        &format!("{command}/containerd-shim-runc-v2"),
                    ],
                )
            })?,
            (Self::V1_7, None) => cache::entry("containerd-1.7-of-trixie", |into| {
                let lists = tempfile::tempdir()?;
                Suite::open("trixie", lists.path())?.unpack("containerd", into)
            })?
            .join("usr/bin"),
            (Self::V2_4, Some(go)) => cache::entry("containerd-2.4.2", |into| {
                let packages = ["containerd", "ctr", "containerd-shim-runc-v2"]
                    .map(|name| format!("github.com/containerd/containerd/v2/cmd/{name}@v2.4.2"));
                golang::install(&go, into, &packages)
            })?,
            (Self::V2_4, None) => return Ok(Availability::Absent(NO_GO.to_owned())),
        };
        Ok(Availability::Ready(self.in_directory(&directory)?))
    }

    fn in_directory(self, directory: &Path) -> Result<Installed> {
        let installed = Installed {
            version: self,
            containerd: directory.join("containerd"),
            ctr: directory.join("ctr"),
            shim_runc: directory.join("containerd-shim-runc-v2"),
            runc: system_program("runc")?,
        };
        let said = output_of(command(&installed.containerd).arg("--version"), SOON)
            .context("run `make setup`")?;
        ensure!(
            said.split(' ')
                .any(|w| w.trim_start_matches('v').starts_with(self.line())),
            "{} is not of the {self} line: {said}",
            installed.containerd.display()
        );
        Ok(installed)
    }
}

/// nerdctl 1.7.7, built from its Go module.
pub fn nerdctl() -> Result<Availability<PathBuf>> {
    let Some(go) = golang::compiler() else {
        return Ok(Availability::Absent(NO_GO.to_owned()));
    };
    let directory = cache::entry("nerdctl-1.7.7", |into| {
        golang::build_as_dependency(
            &go,
            into,
            "github.com/containerd/nerdctl v1.7.7",
            &["github.com/containerd/nerdctl/cmd/nerdctl"],
        )
    })?;
    Ok(Availability::Ready(directory.join("nerdctl")))
}

/// nerdctl 2.2.2, built from its Go module without the helpers of its own tests, one of which lies
/// among its commands and needs a module that nobody serves.
pub fn nerdctl_2() -> Result<Availability<PathBuf>> {
    let Some(go) = golang::compiler() else {
        return Ok(Availability::Absent(NO_GO.to_owned()));
    };
    let directory = cache::entry("nerdctl-2.2.2", |into| {
        golang::build_without(
            &go,
            &into.join("nerdctl"),
            ("github.com/containerd/nerdctl/v2@v2.2.2", "./cmd/nerdctl"),
            (
                &["cmd/nerdctl/helpers/testing_linux.go"],
                &["github.com/containerd/nerdctl/mod/tigron"],
            ),
        )
    })?;
    Ok(Availability::Ready(directory.join("nerdctl")))
}

/// A program of the system by its name.
pub fn system_program(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not installed: run `make setup`"))
}
