//! Mounting what a snapshotter answers, in the way containerd does: what containerd could not mount must fail here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::chdir,
};
use proto::types::Mount;
use sys::{LoopAccess, LoopDevice};

use crate::wait::{SOON, Sources, until};

/// The kernel takes one page of options, and containerd shortens them before they fill it.
const OPTIONS_BYTES_MAX: usize = 4096;
const OPTIONS_BYTES_LONG: usize = OPTIONS_BYTES_MAX - 512;

/// Options that are flags: set, or (false) cleared.
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("atime", false, MsFlags::MS_NOATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("dev", false, MsFlags::MS_NODEV),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("mand", true, MsFlags::MS_MANDLOCK),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("nodev", true, MsFlags::MS_NODEV),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("nomand", false, MsFlags::MS_MANDLOCK),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("suid", false, MsFlags::MS_NOSUID),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
];

/// What is mounted at a directory, until it is unmounted or dropped.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    is_mounted: bool,
}

/// Mounts all of them, one over the other or below it.
pub fn mount_all(mounts: &[Mount], point: &Path) -> Result<Mounted> {
    let mounted = Mounted {
        point: point.to_owned(),
        is_mounted: true,
    };
    for mount in mounts {
        let at = point.join(mount.target.trim_start_matches('/'));
        mount_one(mount, &at).with_context(|| format!("mounting {mount:?}"))?;
    }
    Ok(mounted)
}

impl Mounted {
    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts all that is mounted there, as somebody does who has closed every file.
    pub fn unmount(mut self) -> Result<()> {
        self.is_mounted = false;
        let what = format!("{} is unmounted", self.point.display());
        // EBUSY for a moment: a process that another thread starts holds copies of our descriptors.
        until(&what, SOON, Sources::none().mounts()?, || {
            loop {
                match umount2(&self.point, MntFlags::UMOUNT_NOFOLLOW) {
                    Ok(()) => {}
                    Err(Errno::EINVAL) => return Ok(Some(())),
                    Err(Errno::EBUSY) => return Ok(None),
                    Err(error) => return Err(error).context(what.clone()),
                }
            }
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The case has failed; what lies below the directory is deleted next and must not be the
        // snapshot. EINVAL ends it: nothing is mounted there any more.
        while self.is_mounted && umount2(&self.point, MntFlags::MNT_DETACH).is_ok() {}
    }
}

#[derive(Debug)]
struct Options {
    flags: MsFlags,
    data: Vec<String>,
    is_on_loop: bool,
}

fn parse(options: &[String]) -> Result<Options> {
    let mut parsed = Options {
        flags: MsFlags::empty(),
        data: Vec::new(),
        is_on_loop: false,
    };
    for option in options {
        if let Some((_, is_set, flag)) = FLAGS.iter().find(|(name, ..)| name == option) {
            parsed.flags.set(*flag, *is_set);
        } else if option == "loop" {
            parsed.is_on_loop = true;
        } else if ["X-containerd.", "uidmap=", "gidmap=", "remount"]
            .iter()
            .any(|prefix| option.starts_with(prefix))
        {
            bail!("option {option:?} is not one the suite can mount with");
        } else if option != "defaults" {
            parsed.data.push(option.clone());
        }
    }
    Ok(parsed)
}

fn mount_one(asked: &Mount, at: &Path) -> Result<()> {
    ensure!(
        !asked.r#type.contains(['/', '.']),
        "type {:?} is of containerd's mount manager or of a mount helper, which the suite has not",
        asked.r#type
    );
    let Options {
        flags,
        mut data,
        is_on_loop,
    } = parse(&asked.options)?;
    let mut directory = None;
    let length: usize = asked.options.iter().map(String::len).sum();
    if asked.r#type == "overlay"
        && length >= OPTIONS_BYTES_LONG
        && let Some((common, shorter)) = compacted(&data)
    {
        directory = Some(common);
        data = shorter;
    }
    let data = data.join(",");
    ensure!(
        data.len() <= OPTIONS_BYTES_MAX,
        "{} bytes of options are more than a page: lower directories must have one parent in common",
        data.len()
    );
    let access = if flags.contains(MsFlags::MS_RDONLY) {
        LoopAccess::ReadOnly
    } else {
        LoopAccess::ReadWrite
    };
    let device = is_on_loop
        .then(|| LoopDevice::attach(Path::new(&asked.source), access))
        .transpose()?;
    let source = device
        .as_ref()
        .map_or(Path::new(&asked.source), LoopDevice::path);
    let call = || {
        mount(
            Some(source),
            at,
            Some(asked.r#type.as_str()),
            flags,
            Some(data.as_str()),
        )
    };
    match &directory {
        Some(directory) => within(directory, call)?,
        None => call()?,
    }
    let read_only_bind = MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    if flags.contains(read_only_bind) {
        let nothing = None::<&str>;
        mount(nothing, at, nothing, flags | MsFlags::MS_REMOUNT, nothing)
            .context("making the bind mount read-only")?;
    }
    Ok(())
}

/// Calls on a thread with a working directory of its own.
fn within(directory: &Path, call: impl FnOnce() -> nix::Result<()> + Send) -> nix::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            chdir(directory)?;
            call()
        });
        thread.join().expect("it does not panic")
    })
}

/// The directory all lower directories lie below, and the options with their names relative to it.
fn compacted(options: &[String]) -> Option<(PathBuf, Vec<String>)> {
    let lower = options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let directories: Vec<&str> = lower.split(':').collect();
    let first = directories.first()?;
    let shared = directories
        .iter()
        .map(|directory| shared_bytes(first, directory))
        .min()?;
    // Not in the middle of a name, and not the root.
    let common = &first[..first[..shared].rfind('/').filter(|&end| end > 0)?];
    let shorter: Option<Vec<&str>> = directories
        .iter()
        .map(|directory| directory.get(common.len() + 1..))
        .map(|name| name.filter(|name| !name.is_empty()))
        .collect();
    let shorter = format!("lowerdir={}", shorter?.join(":"));
    let others = options
        .iter()
        .filter(|option| !option.starts_with("lowerdir="))
        .cloned();
    Some((PathBuf::from(common), others.chain([shorter]).collect()))
}

fn shared_bytes(one: &str, other: &str) -> usize {
    let differs = one
        .char_indices()
        .zip(other.chars())
        .find(|((_, a), b)| a != b);
    differs.map_or(one.len().min(other.len()), |((at, _), _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn options_are_flags_or_data_and_the_last_one_counts() {
        let parsed = parse(&words(&["ro", "rbind", "nosuid", "suid", "lowerdir=/a:/b"])).unwrap();
        assert_eq!(
            parsed.flags,
            MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REC
        );
        assert_eq!(parsed.data, words(&["lowerdir=/a:/b"]));
        assert!(parse(&words(&["loop"])).unwrap().is_on_loop);
        assert!(parse(&words(&["uidmap=0:1:1"])).is_err());
    }

    #[test]
    fn lower_directories_are_shortened_below_what_they_share() {
        for (lower, expected) in [
            (
                "/r/snapshots/1/fs:/r/snapshots/12/fs",
                Some(("/r/snapshots", "1/fs:12/fs")),
            ),
            (
                "/r/12/fs:/r/1/fs:/r/100/fs",
                Some(("/r", "12/fs:1/fs:100/fs")),
            ),
            ("/a/fs:/b/fs", None),
            ("a/fs:a/b", Some(("a", "fs:b"))),
        ] {
            let options = words(&["workdir=/w", &format!("lowerdir={lower}"), "upperdir=/u"]);
            let expected = expected.map(|(common, shorter)| {
                let options = words(&["workdir=/w", "upperdir=/u", &format!("lowerdir={shorter}")]);
                (PathBuf::from(common), options)
            });
            assert_eq!(compacted(&options), expected, "{lower}");
        }
        assert_eq!(compacted(&words(&["ro"])), None);
    }
}
