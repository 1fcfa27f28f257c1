//! Removing everything that belongs to one instance, whatever state it is in.
//!
//! It finds things by the tag alone, so that a later program can sweep for one that was killed.
//! Processes are ended one by one by their id.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    census::{machine, processes},
    tag::{Tag, abandoned, data_directory, sockets_of_abandoned},
    wait::{Sources, until},
};

const LIMIT: Duration = Duration::from_secs(20);

/// Sweeps for test programs that were killed before they could do it themselves; says what was theirs.
pub fn sweep_abandoned() -> Result<Vec<Tag>> {
    let tags = abandoned()?;
    for tag in &tags {
        sweep(tag, &sockets_of_abandoned(tag)?)?;
    }
    Ok(tags)
}

/// Ends the processes of the instance, undoes its mounts, removes its cgroups, sockets and files.
pub fn sweep(tag: &Tag, sockets: &BTreeSet<PathBuf>) -> Result<()> {
    end_processes(tag)?;
    unmount(tag)?;
    remove_cgroups(tag)?;
    for socket in sockets {
        absent_is_fine(fs::remove_file(socket), socket)?;
    }
    for directory in [
        "/run/containerd/runc",
        "/run/containerd/runlxc",
        "/run/containerd/runv",
        "/run/lxc",
        "/run/netns",
    ] {
        for path in machine::entries(Path::new(directory))? {
            if tag.is_in(&path.display().to_string()) {
                remove(&path)?;
            }
        }
    }
    remove(&data_directory(tag))?;
    remove(&Path::new("/run").join(tag.as_str()))
}

fn end_processes(tag: &Tag) -> Result<()> {
    let own = i32::try_from(std::process::id()).expect("pid_max is below 2^22");
    until(
        &format!("the processes of {tag} have ended"),
        LIMIT,
        Sources::none(),
        || {
            // What was killed while frozen dies when thawed.
            thaw(tag)?;
            let mut all_ended = true;
            for process in processes()?.values() {
                if process.pid != own && tag.is_in(&process.owner) {
                    all_ended = false;
                    match kill(Pid::from_raw(process.pid), Signal::SIGKILL) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => {
                            return Err(error)
                                .with_context(|| format!("ending {}", process.command));
                        }
                    }
                }
            }
            Ok(all_ended.then_some(()))
        },
    )
}

fn cgroups_of(tag: &Tag) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for top in machine::hierarchies()? {
        machine::below(&top, usize::MAX, &mut |path, is_directory| {
            if is_directory && tag.is_in(&path.display().to_string()) {
                found.push(path.to_owned());
            }
        })?;
    }
    // Children before parents.
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

fn thaw(tag: &Tag) -> Result<()> {
    for cgroup in cgroups_of(tag)? {
        for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let file = cgroup.join(file);
            if file.exists() {
                absent_is_fine(fs::write(&file, thawed), &file)?;
            }
        }
    }
    Ok(())
}

fn remove_cgroups(tag: &Tag) -> Result<()> {
    until(
        &format!("the cgroups of {tag} are removed"),
        LIMIT,
        Sources::none(),
        || {
            let mut all_removed = true;
            for cgroup in cgroups_of(tag)? {
                // EBUSY while the last process is on its way out.
                all_removed &= fs::remove_dir(&cgroup).is_ok();
            }
            Ok(all_removed.then_some(()))
        },
    )
}

fn unmount(tag: &Tag) -> Result<()> {
    for point in mount_points_of(tag)?.iter().rev() {
        match umount2(point, MntFlags::MNT_DETACH) {
            // Gone with the mount it was below.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("unmounting {}", point.display()));
            }
        }
    }
    let left = mount_points_of(tag)?;
    ensure!(left.is_empty(), "still mounted: {left:?}");
    Ok(())
}

fn mount_points_of(tag: &Tag) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| tag.is_in(point))
        .map(|point| PathBuf::from(machine::unescape(point)))
        .collect())
}

/// Removes a file or a directory with all that is in it.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
    let removed = if is_directory {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    absent_is_fine(removed, path)
}

fn absent_is_fine(result: io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cleaning {}", path.display())),
    }
}
