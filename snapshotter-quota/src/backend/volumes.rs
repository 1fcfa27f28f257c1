//! Project quota for directories of the host that containers have as volumes, by Pouch's rules.
//!
//! A directory's own project id is the record: who limits it again finds it there. It must be empty
//! the first time, since nothing here walks trees to give files another project.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use snapshot_core::{Error, Result};
use sys::project_quota::{
    Inherit, Limits, ProjectId, Quota, QuotaState, Usage, project_of, set_project,
};

use super::{ProjectRange, directories};
use crate::limit::{ContainerPath, PathRules, Place, Size};

/// How often another process may have been faster to take an id.
const ATTEMPTS_MAX: u32 = 64;

/// A directory of the host and where a container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where in the container.
    pub path: ContainerPath,
    /// Where on the host.
    pub directory: PathBuf,
}

/// A volume with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitedVolume {
    /// Which.
    pub volume: Volume,
    /// The id of its project, which others may share.
    pub project: u32,
    /// Most bytes.
    pub size: Size,
}

/// The ids that volumes get unless the configuration says else: below those of snapshots, which
/// are given back when they have no snapshot.
///
/// # Panics
/// Never: the range is a constant that is one.
#[must_use]
pub fn volume_projects() -> ProjectRange {
    ProjectRange::new(0x3000_0000, 0x3FFF_FFFF)
        .expect("it has 2^28 ids, and neither end is special")
}

/// Limits those of the volumes that a rule is for; the snapshot's own rule is not applied here.
///
/// # Errors
/// [`Error::Invalid`] for a volume that cannot be limited, before any is, unless another process
/// changes them meanwhile.
pub fn limit_volumes(
    rules: &PathRules,
    volumes: &[Volume],
    projects: ProjectRange,
) -> Result<Vec<LimitedVolume>> {
    let mut accounts: Vec<(Size, Vec<Opened<'_>>)> = Vec::new();
    for rule in rules.rules() {
        let of_rule = volumes
            .iter()
            .filter(|volume| !volume.path.is_root() && rules.rule_for(&volume.path) == Some(rule))
            .map(|volume| Opened::new(volume, projects));
        let opened = of_rule.collect::<Result<Vec<_>>>()?;
        match &rule.place {
            Place::Each => accounts.extend(opened.into_iter().map(|one| (rule.size, vec![one]))),
            Place::Together(paths) if !opened.is_empty() => {
                check_together(paths, &opened)?;
                accounts.push((rule.size, opened));
            }
            Place::Together(_) => {}
        }
    }
    let mut limited = Vec::new();
    for (size, members) in accounts {
        let project = limit(size, &members, projects)?;
        limited.extend(members.into_iter().map(|member| LimitedVolume {
            volume: member.volume.clone(),
            project: project.0,
            size,
        }));
    }
    Ok(limited)
}

/// A volume's directory, found fit to be limited.
#[derive(Debug)]
struct Opened<'a> {
    volume: &'a Volume,
    open: File,
    device: u64,
    inode: u64,
    /// Its project, when it has one of ours.
    project: Option<ProjectId>,
}

impl<'a> Opened<'a> {
    fn new(volume: &'a Volume, projects: ProjectRange) -> Result<Self> {
        let directory = &volume.directory;
        let open = directories::open(directory)?;
        let about = open.metadata().map_err(Error::io("look at", directory))?;
        let quota = Quota::open(directory).map_err(Error::io("find the quota of", directory))?;
        let state = quota
            .state()
            .map_err(Error::io("ask for the quota of", directory))?;
        if state != QuotaState::Enforcing {
            return Err(refused(volume, "is on a file system without project quota"));
        }
        let found = project_of(&open).map_err(Error::io("read the project of", directory))?;
        let project = match found.id {
            ProjectId(0) if is_empty(directory)? => None,
            ProjectId(0) => {
                return Err(refused(
                    volume,
                    "is not empty: what is in it would not be counted; limit it before it is used",
                ));
            }
            ours if projects.contains(ours) => Some(ours),
            ProjectId(other) => {
                return Err(refused(
                    volume,
                    &format!("is in project {other}, which is somebody else's"),
                ));
            }
        };
        Ok(Self {
            volume,
            open,
            device: about.dev(),
            inode: about.ino(),
            project,
        })
    }

    fn set(&self, project: ProjectId, inherit: Inherit) -> Result<()> {
        set_project(&self.open, project, inherit)
            .map_err(Error::io("put into a project", &self.volume.directory))
    }
}

fn refused(volume: &Volume, why: &str) -> Error {
    Error::Invalid(format!(
        "the volume {} at {} {why}",
        volume.directory.display(),
        volume.path.as_str()
    ))
}

fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    Ok(entries.next().is_none())
}

/// What shares a limit must be in one project of one file system.
fn check_together(paths: &[ContainerPath], members: &[Opened<'_>]) -> Result<()> {
    let first = &members[0];
    if paths.iter().any(ContainerPath::is_root) {
        return Err(refused(
            first.volume,
            "cannot share a limit with /: it stays when the container goes",
        ));
    }
    if let Some(other) = members.iter().find(|other| other.device != first.device) {
        return Err(refused(
            other.volume,
            "is on another file system than those it shares a limit with",
        ));
    }
    let mut known = members.iter().filter_map(|member| member.project);
    if let Some(project) = known.next()
        && known.any(|other| other != project)
    {
        return Err(refused(
            first.volume,
            "has a limit already that it does not share",
        ));
    }
    Ok(())
}

/// Puts all members into one project and limits that.
fn limit(size: Size, members: &[Opened<'_>], projects: ProjectRange) -> Result<ProjectId> {
    let directory = &members[0].volume.directory;
    let quota = Quota::open(directory).map_err(Error::io("find the quota of", directory))?;
    let project = match members.iter().find_map(|member| member.project) {
        Some(project) => project,
        None => claim(&quota, &members[0], projects)?,
    };
    for member in members.iter().filter(|member| member.project.is_none()) {
        member.set(project, Inherit::Yes)?;
    }
    let limits = Limits {
        bytes_hard: Some(size.bytes()),
        ..Limits::default()
    };
    quota
        .set(project, &limits)
        .map_err(Error::io("limit a project on", directory))?;
    Ok(project)
}

/// Takes an id that nobody uses, beginning with one that follows from the directory.
fn claim(quota: &Quota, member: &Opened<'_>, projects: ProjectRange) -> Result<ProjectId> {
    let directory = &member.volume.directory;
    let usage = |project| {
        let usage = quota.get(project);
        usage.map_err(Error::io("read a project's quota on", directory))
    };
    for attempt in 0..ATTEMPTS_MAX {
        let number = member.inode.wrapping_add(u64::from(attempt) * 0x9E37_79B1);
        let project = projects.of(snapshot_core::SnapshotId(number));
        if usage(project)? != Usage::default() {
            continue;
        }
        member.set(project, Inherit::Yes)?;
        // More than the directory itself: another process took it at the same moment.
        if usage(project)?.inodes <= 1 {
            return Ok(project);
        }
        member.set(ProjectId(0), Inherit::No)?;
    }
    Err(Error::Exhausted(format!(
        "no free project id was found for {} among {projects}",
        directory.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_nothing_would_limit_is_refused() {
        let rules: PathRules = "/=1g&/data=2g".parse().unwrap();
        let volume = |path: &str| Volume {
            path: path.parse().unwrap(),
            // No kernel has quota there.
            directory: PathBuf::from("/proc/self"),
        };
        let limit = |path: &str| limit_volumes(&rules, &[volume(path)], volume_projects());
        let error = limit("/data").unwrap_err();
        assert!(
            matches!(error, Error::Io { .. }),
            "a link is not followed: {error}"
        );
        let mut fd = volume("/data");
        fd.directory = PathBuf::from("/proc/1");
        let error = limit_volumes(&rules, &[fd], volume_projects()).unwrap_err();
        assert!(
            error.to_string().contains("without project quota"),
            "{error}"
        );
        assert_eq!(limit("/other").unwrap(), []);
        assert_eq!(limit("/").unwrap(), []);
    }

    #[test]
    fn ids_of_volumes_are_not_those_of_snapshots() {
        let (volumes, snapshots) = (volume_projects(), ProjectRange::default());
        assert!(!snapshots.contains(volumes.first()) && !snapshots.contains(volumes.last()));
        assert!(!volumes.contains(snapshots.first()));
    }
}
