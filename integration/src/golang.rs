//! Programs built from Go modules, for what no Debian package has in the version wanted.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

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
