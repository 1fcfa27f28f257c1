//! The mounts of a view, added to a plan; must not mount anything.

use std::path::{Component, Path, PathBuf};

use bundle::Plan;
use launch::plan::PlannedMount;
use mounts::flags::{BIND, NODEV, NOEXEC, NOSUID, PRIVATE, RDONLY};
use mounts::{Mount, MountOptions};
use serde::{Deserialize, Serialize};

use super::source::{CPUS, Lxcfs, Mounted};
use crate::{Error, Result};

/// How each is mounted. Some of what is below `/sys` could be written to.
pub(crate) const FLAGS: u64 = BIND | RDONLY | NOSUID | NODEV | NOEXEC;

/// The view that a container was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct View {
    /// Where lxcfs is mounted on the host.
    pub root: PathBuf,
    /// Where it shows something in the container.
    pub targets: Vec<String>,
    /// Masked paths in what it shows: they are to be masked again in what takes its place.
    pub masked: Vec<String>,
    /// The label of masks, with SELinux.
    pub mount_label: Option<String>,
}

/// Adds what shows a container its limits to its mounts, if it asks for that. Behind all others, so
/// that nothing of config.json is covered but what the kernel made; what masks and write-protects
/// comes later yet.
///
/// # Errors
/// [`Error::Unsupported`] without an lxcfs, unless it is optional; [`Error::Bundle`] when config.json
/// has no `/proc` to show it in.
pub(crate) fn bind(plan: &mut Plan, lxcfs: &Lxcfs) -> Result<Option<View>> {
    if plan.view == bundle::View::Host {
        return Ok(None);
    }
    let places = places(&plan.init.mounts)?;
    let found = Mounted::at(&lxcfs.root).and_then(|mounted| {
        let targets = mounted.targets()?;
        Ok((mounted, targets))
    });
    let (mounted, targets) = match found {
        Ok(found) => found,
        Err(error) if lxcfs.is_optional => {
            plan.warnings
                .push(format!("{}: the container sees the host's", error.chain()));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut shown = Vec::new();
    for target in targets {
        match places.covers(target) {
            Cover::Nothing => {
                plan.init.mounts.push(mount(&mounted, target)?);
                shown.push(target.to_owned());
            }
            Cover::Mount(own) => plan.notes.push(format!(
                "{target} is not shown by lxcfs: mounts of config.json has {own}"
            )),
            Cover::NoSysfs => plan.notes.push(format!(
                "{target} is not shown by lxcfs: mounts of config.json has no /sys"
            )),
        }
    }
    let masked = plan.init.masked_paths.iter();
    let masked = masked.filter(|path| clean(path).starts_with(CPUS) && clean(path) != *CPUS);
    Ok(Some(View {
        root: mounted.root,
        targets: shown,
        masked: masked.cloned().collect(),
        mount_label: plan.init.mount_label.clone(),
    }))
}

fn mount(mounted: &Mounted, target: &str) -> Result<PlannedMount> {
    let source = mounted.source(target);
    let source = source.to_str().ok_or_else(|| {
        Error::Usage(format!(
            "lxcfs root {} is not UTF-8",
            mounted.root.display()
        ))
    })?;
    Ok(PlannedMount::Plain(Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        fstype: "bind".to_owned(),
        options: MountOptions {
            flags_set: FLAGS,
            // Else it is a peer of the host's: what is mounted in one appears in the other.
            propagation: vec![PRIVATE],
            ..MountOptions::none()
        },
    }))
}

/// Where config.json mounts something.
struct Places {
    targets: Vec<PathBuf>,
    has_sysfs: bool,
}

/// What is in the way of a view at a target.
#[derive(Debug, PartialEq, Eq)]
enum Cover {
    Nothing,
    /// The container's own mount, there or on the way there.
    Mount(String),
    NoSysfs,
}

/// Looks at the mounts of config.json.
fn places(mounts: &[PlannedMount]) -> Result<Places> {
    let mut places = Places {
        targets: Vec::new(),
        has_sysfs: false,
    };
    let mut proc = None;
    for planned in mounts {
        let (PlannedMount::Plain(mount) | PlannedMount::Cgroup { mount, .. }) = planned;
        let target = clean(&mount.target);
        match target.to_str() {
            // What is no procfs there is refused when it is mounted.
            Some("/proc") => proc = Some(mount),
            Some("/sys") => places.has_sysfs = mount.is_bind() || mount.fstype == "sysfs",
            _ => places.targets.push(target),
        }
    }
    let Some(proc) = proc else {
        return Err(refused("mounts has no /proc to show it in"));
    };
    if proc
        .options
        .data
        .split(',')
        .any(|word| word == "subset=pid")
    {
        return Err(refused(
            "/proc is mounted with subset=pid, without the files it shows",
        ));
    }
    Ok(places)
}

fn refused(why: &str) -> Error {
    bundle::Error::Invalid {
        field: format!("annotations.{}", bundle::view::VIEW),
        why: format!("lxcfs, but {why}"),
    }
    .into()
}

impl Places {
    fn covers(&self, target: &str) -> Cover {
        let is_sys = target == CPUS;
        if is_sys && !self.has_sysfs {
            return Cover::NoSysfs;
        }
        let target = Path::new(target);
        let mut own = self.targets.iter();
        match own.find(|own| target.starts_with(own) || own.starts_with(target)) {
            Some(own) => Cover::Mount(own.display().to_string()),
            None => Cover::Nothing,
        }
    }
}

/// The path without single dots, doubled slashes and what `..` takes back.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(entries: &[(&str, &str, &str)]) -> Vec<PlannedMount> {
        let mount = |&(fstype, target, data): &(&str, &str, &str)| {
            PlannedMount::Plain(Mount {
                source: "x".to_owned(),
                target: target.to_owned(),
                fstype: fstype.to_owned(),
                options: MountOptions {
                    data: data.to_owned(),
                    ..MountOptions::none()
                },
            })
        };
        entries.iter().map(mount).collect()
    }

    #[test]
    fn a_view_is_shown_in_a_procfs_and_a_sysfs_where_nothing_else_is() {
        let ordinary = mounts(&[
            ("proc", "/proc", ""),
            ("tmpfs", "/dev", ""),
            ("sysfs", "/sys/", ""),
            ("cgroup", "/sys/fs/cgroup", ""),
        ]);
        let ordinary = places(&ordinary).unwrap();
        for target in super::super::source::TARGETS {
            assert_eq!(ordinary.covers(target), Cover::Nothing, "{target}");
        }
        let own = mounts(&[
            ("proc", "/proc", "hidepid=2"),
            ("bind", "/proc/../proc//meminfo", ""),
            ("sysfs", "/sys", ""),
            ("tmpfs", "/sys/devices", ""),
        ]);
        let own = places(&own).unwrap();
        let covered = |target: &str| Cover::Mount(target.to_owned());
        assert_eq!(own.covers("/proc/meminfo"), covered("/proc/meminfo"));
        assert_eq!(own.covers("/proc/stat"), Cover::Nothing);
        assert_eq!(own.covers(CPUS), covered("/sys/devices"));
        let without = places(&mounts(&[("proc", "/proc", "")])).unwrap();
        assert_eq!(without.covers(CPUS), Cover::NoSysfs);
    }

    #[test]
    fn a_container_without_the_files_of_proc_is_refused() {
        let refusal = |entries: &[(&str, &str, &str)]| {
            let error = places(&mounts(entries)).err().map(|error| error.chain());
            error.unwrap_or_default()
        };
        let none = refusal(&[("sysfs", "/sys", "")]);
        assert_eq!(
            none,
            "annotations.org.pouch.view: lxcfs, but mounts has no /proc to show it in"
        );
        let subset = refusal(&[("proc", "/proc", "hidepid=2,subset=pid")]);
        assert!(subset.contains("subset=pid"), "{subset}");
    }
}
