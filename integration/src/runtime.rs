//! The runtimes under test: ours, and stock runc as the peer that proves the harness.
//!
//! Where a runtime's binaries are missing a test fails; it is never skipped.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};

use crate::{
    guest::{Kernel, Series},
    process::{command, output_of},
    wait::SOON,
};

/// Until a machine has booted under emulation, beside all that other tests do.
pub const BOOT: Duration = Duration::from_secs(120);

/// What containerd runs containers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// Stock runc by containerd's own shim.
    Runc,
    /// Our LXC containers by our shim.
    Runlxc,
    /// Our virtual machines by our shim.
    Runv,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Runlxc => "runlxc",
            Self::Runv => "runv",
        })
    }
}

impl Runtime {
    /// All that share the host's kernel.
    pub const ALL: [Self; 2] = [Self::Runc, Self::Runlxc];

    /// The name containerd is told.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Runlxc => "io.containerd.runlxc.v2",
            Self::Runv => "io.containerd.runv.v2",
        }
    }

    /// The shim's file name, which is also how its command line begins.
    #[must_use]
    pub const fn shim(self) -> &'static str {
        match self {
            Self::Runc => "containerd-shim-runc-v2",
            Self::Runlxc => "containerd-shim-runlxc-v2",
            Self::Runv => "containerd-shim-runv-v2",
        }
    }

    /// The binaries of ours it needs, built by this workspace; none for stock runc.
    pub fn binaries(self) -> Result<Vec<PathBuf>> {
        let names: &[&str] = match self {
            Self::Runc => &[],
            Self::Runlxc => &["containerd-shim-runlxc-v2", "runlxc", "runlxc-init"],
            Self::Runv => &["containerd-shim-runv-v2", "runv", "runv-agent"],
        };
        names.iter().map(|name| built(name)).collect()
    }

    /// What its shims need beside binaries, and a template of machines with so many links; all is gone with
    /// this value.
    pub fn home(self, links: usize) -> Result<Option<Home>> {
        match self {
            Self::Runc | Self::Runlxc => Ok(None),
            Self::Runv => Home::make_in(&std::env::temp_dir(), links).map(Some),
        }
    }
}

/// A place of runv's own, with a guest image of a Debian kernel.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    /// Release of the kernel, as `uname -r` prints it in a guest.
    pub release: String,
}

impl Home {
    /// One in that directory, with a template of machines with so many links.
    pub fn make_in(parent: &Path, links: usize) -> Result<Self> {
        let kernel = Kernel::get(Series::V6_1)?;
        let release = kernel.modules.file_name().context("a release has a name")?;
        let this = Self {
            directory: tempfile::tempdir_in(parent).context("a place for runv")?,
            release: release.to_string_lossy().into_owned(),
        };
        this.build(&kernel, &[])?;
        let links = links.to_string();
        this.runv(&["template", "make", "--links", &links])?;
        Ok(this)
    }

    /// Adds a guest image of another kernel, under the number of its series.
    pub fn add(&self, series: Series) -> Result<()> {
        self.build(&Kernel::get(series)?, &["--name", series.number()])
    }

    fn build(&self, kernel: &Kernel, options: &[&str]) -> Result<()> {
        let mut build = command(built("runv")?);
        build
            .args(["image", "build"])
            .args(options)
            .arg("--kernel")
            .arg(&kernel.image)
            .arg("--modules")
            .arg(&kernel.modules)
            .envs([self.variable()]);
        output_of(&mut build, SOON).map(drop)
    }

    /// What `runv` prints here.
    pub fn runv(&self, words: &[&str]) -> Result<String> {
        let mut command = command(built("runv")?);
        output_of(command.args(words).envs([self.variable()]), BOOT)
    }

    /// The environment variable by which shims find it.
    #[must_use]
    pub fn variable(&self) -> (String, String) {
        let path = self.directory.path().display().to_string();
        ("RUNV_HOME".to_owned(), path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Those that do not end see by themselves that their place is gone.
        let _ended = self.runv(&["template", "rm", "--all"]);
    }
}

/// Environment variable that says `release` or `debug` where not just the newest build is wanted.
pub const BUILD: &str = "POUCH_BUILD";

/// One of this workspace's binaries, beside this test program: the newest build, or the one named
/// by `POUCH_BUILD`.
pub fn built(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("where this program lies")?;
    let Some(tuple) = this.ancestors().find(|dir| {
        dir.file_name()
            .is_some_and(|name| name == "debug" || name == "release")
    }) else {
        // In a guest all lie together.
        let beside = this.with_file_name(name);
        ensure!(beside.exists(), "{} does not exist", beside.display());
        return Ok(beside);
    };
    let tuple = tuple.parent().expect("it has a file name");
    let profiles = match std::env::var(BUILD) {
        Ok(profile) => vec![profile],
        Err(_) => ["release", "debug"].map(str::to_owned).to_vec(),
    };
    let candidates: Vec<_> = profiles
        .iter()
        .map(|profile| tuple.join(profile).join(name))
        .collect();
    newest(&candidates).with_context(|| {
        format!(
            "{name} is not built below {}: run `make build`",
            tuple.display()
        )
    })
}

fn newest(candidates: &[PathBuf]) -> Option<PathBuf> {
    let built_at = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    candidates
        .iter()
        .filter_map(|path| Some((built_at(path)?, path)))
        .max_by_key(|(time, _)| *time)
        .map(|(_, path)| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_build_is_taken_and_absent_ones_are_no_candidates() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
        assert_eq!(newest(&[old.clone(), new.clone()]), None);
        let file = fs::File::create(&old).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(newest(&[old.clone(), new.clone()]), Some(old.clone()));
        fs::write(&new, "").unwrap();
        assert_eq!(newest(&[old, new.clone()]), Some(new));
    }
}
