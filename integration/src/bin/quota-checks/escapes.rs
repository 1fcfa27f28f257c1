//! What a snapshotter must know to lay out its directories, and cannot prevent by quota.

use std::{
    fs::{self, File, OpenOptions},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use integration::{
    process::{Running, command},
    wait::SOON,
};
use nix::errno::Errno;
use sys::project_quota::{Inherit, Limits, ProjectId, project_of, set_project};

use crate::{
    disk::{Disk, MIB},
    project::{Overlay, Project, bytes, refused, write},
};

/// overlay makes files in the work directory and moves them: EXDEV between projects.
pub(crate) fn quota_on_upper_alone_breaks_copy_up(disk: &Disk) -> Result<()> {
    let outside = Project::new(disk, 1008, &Limits::default())?;
    let upper = disk.path().join("upper");
    let work = disk.path().join("work");
    for directory in [&upper, &work] {
        fs::create_dir(directory)?;
    }
    set_project(File::open(&upper)?, outside.id, Inherit::Yes)?;
    let overlay = Overlay::new(disk, &upper, &work)?;
    let opened = OpenOptions::new()
        .append(true)
        .open(overlay.path().join("big"));
    refused(opened, Errno::EXDEV).context("copy-up")?;
    let removed = fs::remove_file(overlay.path().join("note"));
    refused(removed, Errno::EXDEV).context("whiteout")
}

/// In the first user namespace; there the only defence is to look for usage of other projects, or
/// a seccomp filter.
pub(crate) fn root_takes_a_file_out(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1009, &bytes(30 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    let path = overlay.path().join("x");
    write(&path, 8)?;
    let before = project.usage()?;
    set_project(File::open(&path)?, ProjectId(0), Inherit::No).context("taking it out")?;
    let real = File::open(project.upper().join("x"))?;
    ensure!(
        project_of(real)?.id == ProjectId(0),
        "the real file is still in"
    );
    let after = project.usage()?;
    ensure!(
        after.bytes + 8 * MIB <= before.bytes,
        "{before:?} and now {after:?}"
    );
    Ok(())
}

/// The program runs itself in a user namespace, where the file's owner is root.
pub(crate) fn user_namespace_keeps_a_file_in(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1013, &bytes(30 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    let path = overlay.path().join("x");
    write(&path, 1)?;
    let mut unshare = command("unshare");
    let own = std::env::current_exe()?;
    let end = Running::start(
        unshare
            .args(["--user", "--map-root-user"])
            .arg(own)
            .arg(&path),
    )?
    .finish(SOON)?;
    ensure!(end.stdout() == "refused with 22\n", "{end}");
    let id = project_of(File::open(&path)?)?.id;
    ensure!(id == project.id, "it is in {id:?} now");
    Ok(())
}

/// What [`user_namespace_keeps_a_file_in`] runs: tries, and tells what came of it.
pub(crate) fn take_out(path: &Path) -> Result<String> {
    let taken = set_project(File::open(path)?, ProjectId(0), Inherit::No);
    Ok(match taken {
        Ok(()) => "taken out".to_owned(),
        Err(error) => format!("refused with {}", error.raw_os_error().unwrap_or(0)),
    })
}
