//! An overlay whose lower directories show their owners mapped (kernel 5.19), for which containerd
//! asks by `uidmap=` and `gidmap=`; must not be used by the stub, since it starts a thread.
//!
//! Overlay takes lower directories by path, and before 6.15 only from the caller's own mount
//! namespace. So they are mapped, and the overlay is made, in a mount namespace that only a thread
//! has; what leaves it is a descriptor of the overlay. Whenever the thread or the process ends, the
//! kernel takes all of it away: there is nothing to undo.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use sys::mount_api as api;

use crate::error::{Error, Result};
use crate::flags as ms;
use crate::id_map;
use crate::kernel::{self, Call};
use crate::mount::{IdMap, Scope};
use crate::overlay::split;

/// Mounts it at `target`, which is what `place` names.
///
/// # Errors
/// [`Error::Refused`] without lower directories; [`Error::Kernel`] says what is missing: ENOSYS
/// before 5.12, EINVAL before 5.19 and for a file system that cannot map owners.
pub(crate) fn mount(
    map: &IdMap,
    call: Call<'_>,
    target: &Path,
    place: BorrowedFd<'_>,
) -> Result<()> {
    let layers = Layers::new(call.data)
        .ok_or_else(|| Error::refused("options uidmap= and gidmap= need a lowerdir="))?;
    let users = id_map::users(map)?;
    let detached = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-mapped".to_owned())
            .spawn_scoped(scope, || apart(&layers, call, &users, target))
            .map_err(|error| Error::kernel("start a thread to mount in", error))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    api::move_mount(&detached, place)
        .map_err(|error| Error::kernel("move the mapped overlay to its target", error))
}

/// Makes the overlay in a mount namespace of this thread, where `target` is a folder to work in.
fn apart(layers: &Layers, call: Call<'_>, users: &OwnedFd, target: &Path) -> Result<OwnedFd> {
    let step = |what: &'static str| move |errno: Errno| Error::kernel(what, errno);
    // The working directory of this thread becomes its own, too.
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace to map owners in"))?;
    // What the host unmounts meanwhile is not kept busy here; nothing made here reaches the host.
    kernel::change(Path::new("/"), ms::SLAVE | ms::REC)
        .map_err(step("keep mounts from the host"))?;
    let folder = Call {
        source: Some("none"),
        fstype: Some("tmpfs"),
        flags: 0,
        data: "mode=700",
    };
    kernel::mount(folder, target).map_err(step("mount a folder to map owners in"))?;
    nix::unistd::chdir(target).map_err(step("enter the folder to map owners in"))?;
    for (number, lower) in layers.lowers.iter().enumerate() {
        map_lower(lower, &number.to_string(), users)?;
    }
    let merged = "merged";
    nix::unistd::mkdir(merged, Mode::S_IRWXU).map_err(step("make a mount point"))?;
    let call = Call {
        data: &layers.data,
        ..call
    };
    kernel::mount(call, Path::new(merged)).map_err(step(
        "mount overlay over mapped lower directories (options uidmap=, gidmap=; Linux 5.19)",
    ))?;
    id_map::copy(Path::new(merged), Scope::Mount)
}

/// Shows a lower directory mapped below the working directory.
fn map_lower(lower: &Path, name: &str, users: &OwnedFd) -> Result<()> {
    let step = |error: std::io::Error| {
        let what = format!(
            "map the owners of {} (options uidmap=, gidmap=; Linux 5.19 and a file system that can)",
            lower.display()
        );
        Error::kernel(what, error)
    };
    let detached = id_map::copy(lower, Scope::Mount)?;
    id_map::map_owners(&detached, users, Scope::Mount).map_err(step)?;
    nix::unistd::mkdir(name, Mode::S_IRWXU).map_err(|errno| step(errno.into()))?;
    let place = kernel::open_directory(Path::new(name)).map_err(|errno| step(errno.into()))?;
    api::move_mount(&detached, place).map_err(step)
}

/// The lower directories, and the options with numbers in their place.
#[derive(Debug, PartialEq, Eq)]
struct Layers {
    lowers: Vec<PathBuf>,
    data: String,
}

impl Layers {
    /// None when there is no lower directory.
    fn new(data: &str) -> Option<Self> {
        let mut lowers = Vec::new();
        let words: Vec<String> = split(data, ',')
            .map(|word| match word.strip_prefix("lowerdir=") {
                Some(paths) => {
                    // The last word counts.
                    lowers.clear();
                    let names = split(paths, ':').map(|path| number(&mut lowers, path));
                    format!("lowerdir={}", names.collect::<Vec<_>>().join(":"))
                }
                None => word.to_owned(),
            })
            .collect();
        let data = words.join(",");
        (!lowers.is_empty()).then_some(Self { lowers, data })
    }
}

/// An empty path stays: two colons mean something to overlay.
fn number(lowers: &mut Vec<PathBuf>, path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    lowers.push(unescaped(path).into());
    (lowers.len() - 1).to_string()
}

/// As overlay reads it: what follows a backslash stands for itself.
fn unescaped(path: &str) -> String {
    let mut letters = path.chars();
    let mut text = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => text.extend(letters.next()),
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    use super::*;
    use crate::namespace::{self, Scratch, has, mount};
    use crate::{Mount, MountOptions, apply_host, mountinfo};

    const MAPS: [&str; 2] = ["uidmap=0:1000:100", "gidmap=0:2000:100"];

    fn with_words(source: &Path, fstype: &str, words: &[String]) -> Mount {
        let maps = MAPS.iter().map(|word| (*word).to_owned());
        let words: Vec<_> = words.iter().cloned().chain(maps).collect();
        Mount {
            options: MountOptions::parse_rootfs(&words).unwrap(),
            ..mount(source, fstype, "", &[])
        }
    }

    /// An ext4, whose owners can be mapped since 5.12; those of a tmpfs since 6.3.
    fn disk(scratch: &Scratch) -> PathBuf {
        let image = scratch.file("image", "");
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(8 << 20).unwrap();
        let mut mkfs = sys::Spawn::new(Path::new("/sbin/mke2fs"))
            .args([
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                image.to_str().unwrap(),
            ])
            .spawn()
            .unwrap();
        assert_eq!(mkfs.wait().unwrap(), sys::ExitStatus::Exited(0));
        let at = scratch.directory("disk");
        apply_host(&mount(&image, "ext4", "", &["loop"]), &at).unwrap();
        at
    }

    fn kernel_is_from(version: (u32, u32)) -> bool {
        let name = nix::sys::utsname::uname().unwrap();
        let release = name.release().to_str().unwrap().to_owned();
        let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap(), numbers.next().unwrap()) >= version
    }

    fn owner(path: &Path) -> (u32, u32) {
        let about = fs::metadata(path).unwrap();
        (about.uid(), about.gid())
    }

    fn cause(error: &Error) -> String {
        std::error::Error::source(error).unwrap().to_string()
    }

    #[test]
    fn lower_directories_show_owners_mapped_and_the_upper_one_keeps_them() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let disk = disk(&scratch);
            // As many layers as a page cannot hold by their paths, one with a name that is escaped.
            let layers: Vec<_> = (0..120).map(|n| disk.join(format!("layer:{n}"))).collect();
            for (number, layer) in layers.iter().enumerate() {
                fs::create_dir(layer).unwrap();
                let file = layer.join(format!("file{number}"));
                fs::write(&file, "text").unwrap();
                chown(&file, Some(5), Some(6)).unwrap();
            }
            let [upper, work] = ["upper", "work"].map(|name| disk.join(name));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            let escaped = layers
                .iter()
                .map(|l| l.display().to_string().replace(':', "\\:"));
            let words = [
                format!("upperdir={}", upper.display()),
                format!("workdir={}", work.display()),
                format!("lowerdir={}", escaped.collect::<Vec<_>>().join(":")),
                "nosuid".to_owned(),
            ];
            let target = scratch.directory("target");
            let before = mountinfo::below(Path::new("/")).unwrap().len();
            let overlay = with_words(Path::new("overlay"), "overlay", &words);
            let mounted = apply_host(&overlay, &target);
            if !kernel_is_from((5, 19)) {
                let error = mounted.unwrap_err();
                assert!(cause(&error).contains("uidmap="), "{}", cause(&error));
                let errno = error.errno();
                assert!(
                    matches!(errno, Some(nix::libc::ENOSYS | nix::libc::EINVAL)),
                    "{errno:?}"
                );
                assert_eq!(mountinfo::below(Path::new("/")).unwrap().len(), before);
                return;
            }
            mounted.unwrap();
            assert_eq!(mountinfo::below(Path::new("/")).unwrap().len(), before + 1);
            assert!(has(&target, "nosuid"));
            assert_eq!(fs::read_dir(&target).unwrap().count(), 120);
            let file = target.join("file119");
            assert_eq!(owner(&file), (1005, 2006));
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(owner(&upper.join("file119")), (1005, 2006), "copied up");
            assert_eq!(owner(&layers[119].join("file119")), (5, 6));
            assert_eq!(fs::read_dir(disk.join("work")).unwrap().count(), 1);
            crate::unmount_tree(&target).unwrap();
            // Nothing holds the disk.
            crate::unmount_tree(&disk).unwrap();
        });
    }

    #[test]
    fn a_bind_shows_owners_mapped_and_others_are_refused() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let disk = disk(&scratch);
            let file = disk.join("file");
            fs::write(&file, "").unwrap();
            chown(&file, Some(5), Some(6)).unwrap();
            let target = scratch.directory("target");
            let bind = with_words(&disk, "bind", &["rbind".to_owned(), "ro".to_owned()]);
            match apply_host(&bind, &target) {
                Ok(()) => {
                    assert_eq!(owner(&target.join("file")), (1005, 2006));
                    assert!(has(&target, "ro") && has(&disk, "rw"));
                }
                Err(error) => assert!(!kernel_is_from((5, 12)), "{error:?}"),
            }
            let refuse = |mount: &Mount, text: &str| {
                let at = scratch.directory("refused");
                let error = apply_host(mount, &at).unwrap_err();
                assert!(cause(&error).contains(text), "{}", cause(&error));
                assert!(mountinfo::below(&at).unwrap().is_empty());
            };
            let tmpfs = with_words(Path::new("none"), "tmpfs", &[]);
            refuse(&tmpfs, "uidmap= and gidmap= are for an overlay or a bind");
            let overlay =
                |word: &str| with_words(Path::new("overlay"), "overlay", &[word.to_owned()]);
            refuse(&overlay("volatile"), "need a lowerdir=");
            if kernel_is_from((5, 12)) {
                // Those of proc cannot be mapped.
                refuse(
                    &overlay("lowerdir=/proc/self"),
                    "map the owners of /proc/self",
                );
                refuse(&overlay("lowerdir=/no/where"), "open_tree of /no/where");
            }
        });
    }

    #[test]
    fn lower_directories_are_found_as_overlay_finds_them() {
        let check = |data: &str, lowers: &[&str], expected: &str| {
            let layers = Layers::new(data).unwrap();
            let found: Vec<_> = layers.lowers.iter().map(|p| p.to_str().unwrap()).collect();
            assert_eq!((&found[..], &*layers.data), (lowers, expected), "{data}");
        };
        check(
            r"index=off,upperdir=/u\,1,lowerdir=/a\:1:/b\,2:/c\\3,workdir=/w",
            &["/a:1", "/b,2", r"/c\3"],
            r"index=off,upperdir=/u\,1,lowerdir=0:1:2,workdir=/w",
        );
        check("lowerdir=/a::/data", &["/a", "/data"], "lowerdir=0::1");
        check(
            "lowerdir=/a:/b,lowerdir=/c",
            &["/c"],
            "lowerdir=0:1,lowerdir=0",
        );
        assert_eq!(Layers::new("upperdir=/a"), None);
        assert_eq!(Layers::new("lowerdir="), None);
    }
}
