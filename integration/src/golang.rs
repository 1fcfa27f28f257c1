//! Programs built from Go modules, for what no Debian package has in the version wanted.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{command, output_of};

/// A cold build of containerd takes a minute and a half on two cores; slow networks take longer.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// The `go` command, when the machine has one.
#[must_use]
pub fn compiler() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([
            PathBuf::from("/usr/local/go/bin"),
            PathBuf::from("/usr/lib/go/bin"),
        ])
        .map(|directory| directory.join("go"))
        .find(|go| go.is_file())
}

/// `go install PACKAGES@VERSION` into `directory`.
pub fn install(go: &Path, directory: &Path, packages: &[String]) -> Result<()> {
    output_of(
        command(go)
            .arg("install")
            .args(packages)
            .env("GOBIN", directory)
            .env("GOFLAGS", "-mod=mod"),
        BUILD_LIMIT,
    )
    .map(drop)
}

/// Builds a program that needs a module: its one source file, as a module made for that.
pub fn build_program(go: &Path, program: &Path, requirement: &str, source: &str) -> Result<()> {
    let module = tempfile::tempdir()?;
    fs::write(
        module.path().join("go.mod"),
        format!("module build\n\ngo 1.23.0\n\nrequire {requirement}\n"),
    )?;
    fs::write(module.path().join("main.go"), source)?;
    let mut build = command(go);
    build
        .args(["build", "-o"])
        .arg(program)
        .arg(".")
        .env("GOFLAGS", "-mod=mod")
        .current_dir(module.path());
    output_of(&mut build, BUILD_LIMIT)
        .with_context(|| format!("building a program on {requirement}"))
        .map(drop)
}

/// Builds a package from a copy of its module's own tree, verified as any download is, without some of
/// its files and some of what it requires: for what is there for the module's own tests alone.
pub fn build_without(
    go: &Path,
    program: &Path,
    (module, package): (&str, &str),
    left_out: (&[&str], &[&str]),
) -> Result<()> {
    let (files, requirements) = left_out;
    let directory = tempfile::tempdir()?;
    let tree = directory.path().join("tree");
    let mut download = command(go);
    download
        .args(["mod", "download", "-json", module])
        .current_dir(directory.path());
    let told = output_of(&mut download, BUILD_LIMIT)?;
    let told: Download = serde_json::from_str(&told).context("what go tells of a download")?;
    let mut copy = command("cp");
    copy.args(["-r", "--no-preserve=mode"])
        .arg(&told.directory)
        .arg(&tree);
    output_of(&mut copy, BUILD_LIMIT)?;
    for file in files {
        fs::remove_file(tree.join(file)).with_context(|| format!("leaving {file} out"))?;
    }
    let mut edit = command(go);
    edit.args(["mod", "edit"]).current_dir(&tree);
    for name in requirements {
        edit.arg(format!("-droprequire={name}"));
    }
    output_of(&mut edit, BUILD_LIMIT)?;
    let mut build = command(go);
    build
        .args(["build", "-o"])
        .arg(program)
        .arg(package)
        .env("GOFLAGS", "-mod=mod")
        .current_dir(&tree);
    output_of(&mut build, BUILD_LIMIT)
        .with_context(|| format!("building {package} of {module}"))
        .map(drop)
}

/// What go tells of a module that it has downloaded.
#[derive(Debug, Deserialize)]
struct Download {
    #[serde(rename = "Dir")]
    directory: PathBuf,
}

/// Builds packages of a module that `go install` refuses: as a dependency of a module made for that.
pub fn build_as_dependency(
    go: &Path,
    directory: &Path,
    requirement: &str,
    packages: &[&str],
) -> Result<()> {
    let module = tempfile::tempdir()?;
    fs::write(
        module.path().join("go.mod"),
        format!("module build\n\ngo 1.23.0\n\nrequire {requirement}\n"),
    )?;
    let imports: String = packages
        .iter()
        .map(|p| format!("import _ \"{p}\"\n"))
        .collect();
    fs::write(
        module.path().join("tools.go"),
        format!("//go:build tools\n\npackage tools\n\n{imports}"),
    )?;
    for package in packages {
        output_of(
            command(go)
                .args(["build", "-o"])
                .arg(directory.join(package.rsplit('/').next().expect("split gives one part")))
                .arg(package)
                .env("GOFLAGS", "-mod=mod")
                .current_dir(module.path()),
            BUILD_LIMIT,
        )
        .with_context(|| format!("building {package} of {requirement}"))?;
    }
    Ok(())
}
