//! Debian packages of other releases, downloaded and unpacked without being installed.
//!
//! An apt root of its own per suite; the machine's apt is only asked where its mirror is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::process::{command, output_of};

/// Downloads take as long as the mirror takes.
const DOWNLOAD: Duration = Duration::from_secs(600);

/// Nobody answers for an archive, or not as one: this machine has none of its packages.
#[derive(Debug, thiserror::Error)]
#[error("no packages are to be had of {0}")]
pub struct Unreachable(String);

/// The package lists of one suite.
#[derive(Debug)]
pub struct Suite {
    root: PathBuf,
}

impl Suite {
    /// Fetches the lists of `suite` (for example `trixie-backports`) into `root`.
    pub fn open(suite: &str, root: &Path) -> Result<Self> {
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [signed-by={keyring}] {} {suite} main", mirror()?);
        Self::of_source(&line, root)
    }

    /// The same of a line as in sources.list(5).
    ///
    /// # Errors
    /// [`Unreachable`] among others.
    pub fn of_source(line: &str, root: &Path) -> Result<Self> {
        for dir in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(root.join("status"), "")?;
        fs::write(root.join("etc/sources.list"), format!("{line}\n"))?;
        let opened = Self {
            root: root.to_owned(),
        };
        match opened.apt("apt-get", &["-qq", "--error-on=any", "update"]) {
            Ok(_) => Ok(opened),
            Err(error) if !opened.answers(line)? => {
                Err(error.context(Unreachable(line.to_owned())))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the archive of a line of sources.list(5) has the list of its suite.
    fn answers(&self, line: &str) -> Result<bool> {
        let words = line.rsplit(']').next().unwrap_or_default();
        let mut words = words.split_whitespace().skip_while(|word| *word == "deb");
        let (Some(archive), Some(suite)) = (words.next(), words.next()) else {
            bail!("{line:?} is no line of sources.list");
        };
        let list = format!("{archive}/dists/{suite}/Release");
        let into = self.root.join("release");
        let mut helper = self.command("/usr/lib/apt/apt-helper");
        helper.args(["download-file", &list]).arg(into);
        Ok(output_of(&mut helper, DOWNLOAD).is_ok())
    }

    /// The names of all packages that start with `prefix`, oldest version first (as `sort -V` orders names).
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let listed = self.apt("apt-cache", &["pkgnames", prefix])?;
        let sorted = output_of(
            command("sh").args(["-c", "printf '%s' \"$1\" | sort -V", "sort", &listed]),
            DOWNLOAD,
        )?;
        Ok(sorted.lines().map(str::to_owned).collect())
    }

    /// Downloads the newest version of a package and unpacks it below `into`.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let debs = self.root.join("debs").join(package);
        fs::create_dir_all(&debs)?;
        let mut download = self.command("apt-get");
        output_of(
            download
                .args(["-qq", "download", package])
                .current_dir(&debs),
            DOWNLOAD,
        )?;
        let Some(deb) = fs::read_dir(&debs)?.next() else {
            bail!("apt-get download {package} left no file");
        };
        output_of(
            command("dpkg").arg("-x").arg(deb?.path()).arg(into),
            DOWNLOAD,
        )?;
        fs::remove_dir_all(&debs)?;
        Ok(())
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output_of(self.command(program).args(arguments), DOWNLOAD)
    }

    fn command(&self, program: &str) -> std::process::Command {
        let mut apt = command(program);
        for (key, place) in [
            ("Dir::Etc::sourcelist", "etc/sources.list"),
            ("Dir::Etc::sourceparts", "etc/none"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            apt.arg("-o")
                .arg(format!("{key}={}", self.root.join(place).display()));
        }
        // apt drops to its own user for downloads, who may not enter our folders.
        apt.args(["-o", "APT::Sandbox::User=root"]);
        apt
    }
}

/// The URI of the Debian mirror this machine uses.
pub fn mirror() -> Result<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
    {
        texts.push(fs::read_to_string(entry?.path())?);
    }
    texts.extend(fs::read_to_string("/etc/apt/sources.list"));
    texts
        .iter()
        .find_map(|text| mirror_in(text))
        .context("no mirror of Debian in /etc/apt/sources.list or sources.list.d")
}

/// The first URI in a sources file that is Debian's main archive.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_read_from_both_forms_of_sources() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(mirror_in(text).as_deref(), expected, "{text}");
        };
        check(
            "deb http://a.example/debian bookworm main",
            Some("http://a.example/debian"),
        );
        check(
            "deb [arch=amd64] https://a.example/debian/ x main",
            Some("https://a.example/debian/"),
        );
        check(
            "Types: deb\n# http://old.example/debian\nURIs: http://b.example/debian\n",
            Some("http://b.example/debian"),
        );
        check("deb http://a.example/debian-security bookworm main", None);
        check("# deb http://a.example/debian bookworm main", None);
    }
}
