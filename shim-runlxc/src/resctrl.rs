//! The class of resctrl that config.json asks for: found before anything is done, and made for the
//! container. How, `cgroups` knows.

use std::path::{Path, PathBuf};

use bundle::Plan;
use cgroups::resctrl::{Class, RESCTRL};

use crate::journal::Journal;
use crate::{Error, Result};

const FIELD: &str = "linux.intelRdt";

/// The class that a container is to be in.
///
/// # Errors
/// [`Error::Unsupported`] where no resctrl is mounted; a class that does not fit.
pub(crate) fn class(plan: &Plan) -> Result<Option<Class>> {
    let Some(wanted) = &plan.intel_rdt else {
        return Ok(None);
    };
    let Some(root) = mount_point()? else {
        let why = "no resctrl file system is mounted: mount -t resctrl resctrl /sys/fs/resctrl, where \
                   the kernel and the CPUs have it";
        return Err(Error::unsupported(FIELD, why));
    };
    Class::of(&root, &plan.id, wanted).map(Some).map_err(failed)
}

/// Makes it, and puts these threads into it.
///
/// # Errors
/// The kernel's refusal; what keeps it from knowing the threads.
pub(crate) fn enter(
    plan: &Plan,
    journal: &Journal,
    threads: impl FnOnce() -> Result<Vec<i32>>,
) -> Result<()> {
    let (Some(wanted), Some(class)) = (&plan.intel_rdt, &journal.resctrl) else {
        return Ok(());
    };
    class.make(wanted).map_err(failed)?;
    class.assign(&threads()?).map_err(failed)
}

/// Puts a process into the class of the container that it joins.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn join(journal: &Journal, process: i32) -> Result<()> {
    match &journal.resctrl {
        Some(class) => class.assign(&[process]).map_err(failed),
        None => Ok(()),
    }
}

/// Refuses to change what a container has not.
///
/// # Errors
/// [`Error::Unsupported`] without a class.
pub(crate) fn check_changeable(journal: &Journal) -> Result<()> {
    if journal.resctrl.is_some() {
        return Ok(());
    }
    Err(Error::unsupported(
        "--l3-cache-schema or --mem-bw-schema",
        "the container was made without linux.intelRdt",
    ))
}

/// Gives the class of a container, if it has one, other parts of caches and bandwidth.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn change(journal: &Journal, lines: &[String]) -> Result<()> {
    match &journal.resctrl {
        Some(class) => class.write(lines).map_err(failed),
        None => Ok(()),
    }
}

fn failed(source: cgroups::Error) -> Error {
    Error::IntelRdt { source }
}

/// Where it is mounted, the usual place first.
fn mount_point() -> Result<Option<PathBuf>> {
    let mounts = mounts::mountinfo::read().map_err(Error::io("read the mounts"))?;
    let all = mounts.into_iter().filter(|mount| mount.fstype == "resctrl");
    let all: Vec<_> = all.map(|mount| PathBuf::from(mount.mount_point)).collect();
    let usual = all.iter().find(|path| *path == Path::new(RESCTRL));
    Ok(usual.or(all.first()).cloned())
}
