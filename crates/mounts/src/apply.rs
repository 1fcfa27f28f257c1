//! Makes mounts on the host and under a container's root; must not undo them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::stat;

use crate::error::{Error, Result};
use crate::flags as ms;
use crate::kernel::{self, Call, fd_path};
use crate::mount::{Extension, IdMap, Mount};
use crate::root_dir::{Kind, LastLink, Place, RootDir};
use crate::{context, copy_up, guard, id_map, mapped_overlay, overlay, recursive, remount};

/// Makes a mount on the host, as containerd sends them for a container's root file system.
///
/// `target` must exist; the mount's own target is not used. Overlay options that do not fit a page
/// are shortened by the folder that all layers share; that starts a thread, and so does an overlay
/// with [`Extension::IdMap`], for as long as the mount takes. The option `loop` makes a loop device
/// of the source.
///
/// # Errors
/// [`Error::Mount`] with the step that failed as its source.
pub fn apply_host(mount: &Mount, target: &Path) -> Result<()> {
    on_host(mount, target).map_err(|cause| failed(mount, &target.to_string_lossy(), cause))
}

fn on_host(mount: &Mount, target: &Path) -> Result<()> {
    if copies_up(mount) {
        return Err(Error::refused("tmpcopyup is for mounts in a container"));
    }
    let target = std::path::absolute(target)
        .map_err(|error| Error::kernel(format!("find {}", target.display()), error))?;
    if let Some(map) = mount.id_map() {
        mapped(map, mount, &target)?;
    } else if mount.is_bind() {
        bind(mount, &target)?;
    } else if let Some(data) = without_loop(&mount.options.data) {
        of_loop_device(mount, &data, &target)?;
    } else {
        let call = fresh_call(mount, &mount.options.data);
        overlay::mount(call, &target).map_err(|errno| refused(mount, errno))?;
    }
    finish(&target, mount)
}

/// What shows its owners mapped.
fn mapped(map: &IdMap, mount: &Mount, target: &Path) -> Result<()> {
    let at = kernel::open_directory(target)
        .map_err(|errno| Error::kernel(format!("open {}", target.display()), errno))?;
    if mount.is_bind() {
        let users = id_map::users(map)?;
        return id_map::attach(id_map::tree(map, mount, &users)?.as_fd(), at.as_fd());
    }
    if mount.fstype != "overlay" {
        return Err(Error::refused(format!(
            "options uidmap= and gidmap= are for an overlay or a bind, not for type {}",
            mount.fstype
        )));
    }
    mapped_overlay::mount(
        map,
        fresh_call(mount, &mount.options.data),
        target,
        at.as_fd(),
    )
}

/// The data without the word `loop` of mount(8); none if it is not there.
fn without_loop(data: &str) -> Option<String> {
    let words = data.split(',');
    let others: Vec<_> = words.clone().filter(|word| *word != "loop").collect();
    (others.len() < words.count()).then(|| others.join(","))
}

/// Mounts a file by a loop device, as for containerd's blockfile and erofs snapshotters.
fn of_loop_device(mount: &Mount, data: &str, target: &Path) -> Result<()> {
    let access = match mount.options.flags_set & ms::RDONLY {
        0 => sys::LoopAccess::ReadWrite,
        _ => sys::LoopAccess::ReadOnly,
    };
    let step = || format!("make a loop device of {}", mount.source);
    let device = sys::LoopDevice::attach(Path::new(&mount.source), access)
        .map_err(|error| Error::kernel(step(), error))?;
    let device = device.path().to_str().expect("/dev/loopN is ASCII");
    let call = Call {
        source: Some(device),
        ..fresh_call(mount, data)
    };
    kernel::mount(call, target).map_err(|errno| refused(mount, errno))
}

/// Makes a mount at its target under a container's root, making the target when it is missing: an
/// empty file for a bind of anything but a directory, else a directory.
///
/// Nothing in the image can send it outside: links are resolved inside the root. A tmpfs takes its
/// mode from what it covers. What [`Mount::is_filled_later`] says is not read-only yet, whatever its
/// options: the caller makes it so when all is made in it.
///
/// A bind that shows owners mapped is made by way of [`owners_of`] and [`tree_of`], whose conditions
/// hold.
///
/// # Errors
/// [`Error::Mount`] with the step that failed or the reason of a refusal as its source.
pub fn apply_under(root: &RootDir, mount: &Mount) -> Result<()> {
    if mount.id_map().is_none() {
        let made = under_root(root, mount, None);
        return made.map_err(|cause| failed(mount, &mount.target, cause));
    }
    let tree = tree_of(mount, owners_of(mount)?.as_ref())?;
    apply_tree_under(root, mount, tree.as_fd())
}

/// As [`apply_under`]: mounts the tree of [`tree_of`] instead of what is at the source of a bind. A tree of
/// another kind keeps its flags.
///
/// # Errors
/// As [`apply_under`].
pub fn apply_tree_under(root: &RootDir, mount: &Mount, tree: BorrowedFd<'_>) -> Result<()> {
    under_root(root, mount, Some(tree)).map_err(|cause| failed(mount, &mount.target, cause))
}

/// The user namespace that says how a bind shows owners; none for one that shows them as they are.
///
/// `/proc` must be of the caller's own pid namespace.
///
/// # Errors
/// [`Error::Mount`]: maps that the kernel refuses.
pub fn owners_of(mount: &Mount) -> Result<Option<OwnedFd>> {
    let owners = mount.id_map().map(id_map::users).transpose();
    owners.map_err(|cause| failed(mount, &mount.target, cause))
}

/// The source of a bind as a mount that is nowhere yet (Linux 5.2), which ends with its descriptor.
/// It shows owners as those of [`owners_of`] say (Linux 5.12).
///
/// For whoever may look the source up, or has the rights of its file system's user namespace, where
/// a process in a container's user namespace has not.
///
/// # Errors
/// [`Error::Mount`]: not a bind, ENOSYS before those kernels, EINVAL for a file system that cannot
/// show owners mapped.
pub fn tree_of(mount: &Mount, owners: Option<&OwnedFd>) -> Result<OwnedFd> {
    let made = match (mount.id_map(), owners) {
        _ if !mount.is_bind() => Err(Error::refused("only a bind has a tree")),
        (Some(map), Some(owners)) => id_map::tree(map, mount, owners),
        (Some(_), None) => Err(Error::refused("its owners are to be mapped")),
        (None, _) => id_map::copy_of_source(mount),
    };
    made.map_err(|cause| failed(mount, &mount.target, cause))
}

fn failed(mount: &Mount, target: &str, cause: Error) -> Error {
    Error::Mount {
        what: mount.source.clone(),
        target: target.to_owned(),
        cause: Box::new(cause),
    }
}

fn under_root(root: &RootDir, mount: &Mount, tree: Option<BorrowedFd<'_>>) -> Result<()> {
    if copies_up(mount) && (mount.is_bind() || mount.fstype != "tmpfs") {
        return Err(Error::refused("tmpcopyup is for a tmpfs only"));
    }
    let target = Path::new(&mount.target);
    let (found, last) = if guard::is_view_of_self(mount) {
        let found = guard::find_ordinary_directory(root, mount)?;
        (found, LastLink::Refuse)
    } else {
        (root.find(target, LastLink::Follow)?, LastLink::Follow)
    };
    if let Some(place) = found {
        guard::check_target(&place, mount)?;
        let data = data_over_existing(&place, mount)?;
        return on_place(&place, mount, &data, tree);
    }
    let kind = if let Some(tree) = tree {
        kind_of(&fd_path(tree))?
    } else if mount.is_bind() {
        kind_of(Path::new(&mount.source))?
    } else {
        Kind::Directory
    };
    let place = root.make(target, kind, last)?;
    guard::check_target(&place, mount)?;
    on_place(&place, mount, &mount.options.data, tree)
}

fn kind_of(source: &Path) -> Result<Kind> {
    let about =
        stat(source).map_err(|errno| Error::kernel(format!("stat {}", source.display()), errno))?;
    let directory = nix::libc::S_IFDIR;
    Ok(if about.st_mode & nix::libc::S_IFMT == directory {
        Kind::Directory
    } else {
        Kind::File
    })
}

/// The options of a tmpfs begin with the mode of what it covers (as runc's do); later ones win.
fn data_over_existing(place: &Place, mount: &Mount) -> Result<String> {
    let data = &mount.options.data;
    if mount.fstype != "tmpfs" || mount.is_bind() {
        return Ok(data.clone());
    }
    let about = stat(&fd_path(place.as_fd()))
        .map_err(|errno| Error::kernel(format!("stat {}", mount.target), errno))?;
    let mode = format!("mode={:04o}", about.st_mode & 0o7777);
    Ok(if data.is_empty() {
        mode
    } else {
        format!("{mode},{data}")
    })
}

fn on_place(place: &Place, mount: &Mount, data: &str, tree: Option<BorrowedFd<'_>>) -> Result<()> {
    let target = fd_path(place.as_fd());
    if let Some(tree) = tree {
        id_map::attach(tree, place.as_fd())?;
    } else if mount.is_bind() {
        bind(mount, &target)?;
    } else {
        let mut call = fresh_call(mount, data);
        if mount.is_filled_later() {
            call.flags &= !ms::RDONLY;
        }
        context::mount(call, &target, place.as_fd()).map_err(|errno| refused(mount, errno))?;
    }
    // The descriptor of `place` stands for what is covered now.
    let top = place
        .again()
        .map_err(|errno| Error::kernel("find the new mount", errno))?;
    if copies_up(mount) {
        copy_up::copy(place, &top)
            .map_err(|error| Error::kernel(format!("copy {} up", mount.target), error))?;
    }
    finish(&fd_path(top.as_fd()), mount)
}

/// A FUSE may look a name up anew, and so take it from the file that was found, before that is bound
/// (ENOENT). It is there the next time.
const BINDS_MAX: usize = 8;

fn bind(mount: &Mount, target: &Path) -> Result<()> {
    if mount.is_remount() {
        return Ok(());
    }
    let call = Call {
        source: Some(&mount.source),
        fstype: None,
        flags: mount.options.flags_set & (ms::BIND | ms::REC | ms::SILENT),
        data: "",
    };
    let is_there = || stat(mount.source.as_str()).is_ok();
    for _again in 1..BINDS_MAX {
        match kernel::mount(call, target) {
            Err(Errno::ENOENT) if is_there() => {}
            result => return result.map_err(|errno| refused(mount, errno)),
        }
    }
    kernel::mount(call, target).map_err(|errno| refused(mount, errno))
}

fn refused(mount: &Mount, errno: Errno) -> Error {
    let step = match mount.is_bind() {
        true => format!("bind {}", mount.source),
        false => format!("mount {} of type {}", mount.source, mount.fstype),
    };
    Error::kernel(step, errno)
}

fn copies_up(mount: &Mount) -> bool {
    mount.options.extensions.contains(&Extension::TmpCopyUp)
}

fn fresh_call<'a>(mount: &'a Mount, data: &'a str) -> Call<'a> {
    Call {
        source: Some(&mount.source),
        fstype: Some(&mount.fstype),
        flags: mount.options.flags_set,
        data,
    }
}

/// What can only be set on a mount that is there.
fn finish(at: &Path, mount: &Mount) -> Result<()> {
    for flags in &mount.options.propagation {
        kernel::change(at, *flags)
            .map_err(|errno| Error::kernel(format!("set propagation {flags:#x}"), errno))?;
    }
    if mount.is_bind() {
        remount::set_bind_flags(at, &mount.options)?;
    }
    recursive::set_attributes(at, &mount.options)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};

    use super::*;
    use crate::namespace::{self, Scratch, has, mount, mount_at};

    const NONE: &str = "none";

    fn root(scratch: &Scratch) -> RootDir {
        RootDir::open(&scratch.directory("root")).unwrap()
    }

    fn why(error: &Error) -> String {
        let Error::Mount { cause, .. } = error else {
            return error.to_string();
        };
        cause.to_string()
    }

    #[test]
    fn target_is_made_like_the_source_of_a_bind() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let folder = scratch.directory("host/folder");
            let file = scratch.file("host/file", "text");
            apply_under(&root, &mount(&folder, "bind", "/a/b", &["bind"])).unwrap();
            apply_under(&root, &mount(&file, "bind", "/c/d", &["bind", "ro"])).unwrap();
            assert!(fs::metadata(scratch.path("root/a/b")).unwrap().is_dir());
            let bound = scratch.path("root/c/d");
            assert_eq!(fs::read_to_string(&bound).unwrap(), "text");
            let refused = fs::write(&bound, "").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
            let node = mount(Path::new("/dev/null"), "bind", "/dev/null", &["bind"]);
            apply_under(&root, &node).unwrap();
            let about = fs::metadata(scratch.path("root/dev/null")).unwrap();
            assert!(about.file_type().is_char_device());

            let missing = scratch.path("host/missing");
            let error = apply_under(&root, &mount(&missing, "bind", "/e", &["bind"])).unwrap_err();
            assert_eq!(error.errno(), Some(nix::libc::ENOENT));
            assert!(!scratch.path("root/e").exists(), "nothing made for it");
        });
    }

    #[test]
    fn links_in_the_image_lead_nowhere_outside() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let outside = scratch.directory("outside");
            let source = scratch.file("host/file", "text");
            scratch.link("root/absolute", &outside);
            scratch.link("root/up", "../../../../../..");
            scratch.link("root/dangling", outside.join("new"));
            scratch.link("root/last", outside.join("file"));
            for target in ["/absolute/f", "/up/g", "/dangling", "/last", "/../../h"] {
                apply_under(&root, &mount(&source, "bind", target, &["bind"])).unwrap();
            }
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
            let below = |path: &str| {
                let inside = outside.strip_prefix("/").unwrap();
                root.path().join(inside).join(path)
            };
            for at in [below("f"), below("new"), below("file")] {
                assert_eq!(fs::read_to_string(at).unwrap(), "text");
            }
            for at in ["g", "h"] {
                assert_eq!(fs::read_to_string(root.path().join(at)).unwrap(), "text");
            }
        });
    }

    #[test]
    fn what_would_make_proc_lie_is_refused() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let source = scratch.file("host/file", "text");
            let folder = scratch.directory("host/folder");
            let refuse = |what: &Mount, text: &str| {
                let error = apply_under(&root, what).unwrap_err();
                assert!(why(&error).contains(text), "{}", why(&error));
                assert_eq!(error.errno(), None);
            };
            scratch.link("root/proc", "elsewhere");
            scratch.file("root/sys", "");
            scratch.directory("root/x");
            scratch.directory("root/a");
            scratch.directory("root/elsewhere");
            let ordinary = "must be mounted on ordinary directory";
            refuse(&mount(NONE, "proc", "/proc", &[]), ordinary);
            refuse(&mount(NONE, "proc", "/x/../proc/.", &[]), ordinary);
            refuse(&mount(NONE, "sysfs", "/sys", &[]), ordinary);
            fs::remove_file(scratch.path("root/proc")).unwrap();

            let of_type = "cannot be mounted because it is not of type proc";
            refuse(&mount(&folder, "bind", "/proc", &["bind"]), of_type);
            refuse(&mount(NONE, "tmpfs", "/proc", &[]), of_type);
            let inside = "cannot be mounted because it is inside /proc";
            refuse(
                &mount(&source, "bind", "/proc/self/attr", &["bind"]),
                inside,
            );
            scratch.link("root/way", "proc/sys");
            refuse(&mount(NONE, "tmpfs", "/way/kernel", &[]), inside);
            refuse(&mount(NONE, "tmpfs", "/", &[]), "on the top of rootfs");
            refuse(&mount(NONE, "tmpfs", "/a/..", &[]), "on the top of rootfs");

            apply_under(&root, &mount(NONE, "proc", "/proc", &["nosuid"])).unwrap();
            assert_eq!(mount_at(&scratch.path("root/proc")).fstype, "proc");
            let covered = mount(&source, "bind", "/proc/meminfo", &["bind"]);
            apply_under(&root, &covered).unwrap();
            let proc = mount(Path::new("/proc"), "bind", "/proc", &["rbind"]);
            apply_under(&root, &proc).unwrap();
        });
    }

    #[test]
    fn tmpfs_takes_the_mode_of_what_it_covers_and_stays_writable() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let at = scratch.directory("root/tmp");
            fs::set_permissions(&at, fs::Permissions::from_mode(0o1777)).unwrap();
            let tmp = mount(NONE, "tmpfs", "/tmp", &["ro", "nosuid", "noatime"]);
            apply_under(&root, &tmp).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
            assert_eq!(mode(&at), 0o1777);
            assert!(has(&at, "rw") && has(&at, "nosuid"));
            fs::write(at.join("made later"), "").unwrap();
            assert!(tmp.is_filled_later() && has(&at, "noatime"));

            scratch.directory("root/run");
            let run = mount(NONE, "tmpfs", "/run", &["mode=700", "size=64k"]);
            apply_under(&root, &run).unwrap();
            assert_eq!(mode(&scratch.path("root/run")), 0o700);
            let new = mount(NONE, "tmpfs", "/new/one", &[]);
            apply_under(&root, &new).unwrap();
            assert_eq!(
                mode(&scratch.path("root/new/one")),
                0o1777,
                "the kernel's own"
            );
        });
    }

    #[test]
    fn copy_up_brings_types_modes_owners_and_contents() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let file = scratch.file("root/etc/deep/er/file", "text");
            chown(&file, Some(1234), Some(5678)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
            scratch.link("root/etc/link", "/no/where");
            let fifo = scratch.path("root/etc/fifo");
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
            let options = ["tmpcopyup", "nosuid"];
            apply_under(&root, &mount(NONE, "tmpfs", "/etc", &options)).unwrap();
            let at = scratch.path("root/etc");
            assert_eq!(mount_at(&at).fstype, "tmpfs");
            let about = fs::metadata(&file).unwrap();
            assert_eq!((about.uid(), about.gid()), (1234, 5678));
            assert_eq!(about.mode() & 0o7777, 0o4755);
            assert_eq!(fs::read_to_string(&file).unwrap(), "text");
            let link = fs::read_link(at.join("link")).unwrap();
            assert_eq!(link, Path::new("/no/where"));
            assert!(fs::metadata(at.join("fifo")).unwrap().file_type().is_fifo());
            fs::write(at.join("new"), "").unwrap();
            crate::unmount_tree(&at).unwrap();
            assert!(!at.join("new").exists() && file.exists());

            let folder = scratch.directory("host");
            let bind = mount(&folder, "bind", "/x", &["bind", "tmpcopyup"]);
            assert!(why(&apply_under(&root, &bind).unwrap_err()).contains("tmpfs only"));
        });
    }

    #[test]
    fn propagation_is_set_in_order() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let source = scratch.directory("host");
            let check = |words: &[&str], expected: &[&str]| {
                let target = format!("/{}", words.join("-"));
                let words = [&["bind"], words].concat();
                apply_under(&root, &mount(&source, "bind", &target, &words)).unwrap();
                let at = root.path().join(&target[1..]);
                let found = mount_at(&at).propagation;
                let kinds = found.iter().map(|word| word.split(':').next().unwrap());
                assert_eq!(kinds.collect::<Vec<_>>(), expected, "{words:?}");
            };
            check(&["private"], &[]);
            check(&["shared"], &["shared"]);
            check(&["rshared", "rslave"], &[]);
            check(&["runbindable"], &["unbindable"]);
        });
    }

    #[test]
    fn flags_of_a_bind_are_those_asked_for_if_any_are() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let check = |source: &[&str], words: &[&str], yes: &[&str], no: &[&str]| {
                let from = scratch.directory("flagged");
                apply_host(&mount(NONE, "tmpfs", "", source), &from).unwrap();
                let words = [&["bind"], words].concat();
                apply_under(&root, &mount(&from, "bind", "/mnt", &words)).unwrap();
                let at = root.path().join("mnt");
                let found = mount_at(&at).options;
                assert!(yes.iter().all(|word| has(&at, word)), "{words:?}: {found}");
                assert!(!no.iter().any(|word| has(&at, word)), "{words:?}: {found}");
                crate::unmount_tree(&at).unwrap();
                crate::unmount_tree(&from).unwrap();
            };
            let all = ["noexec", "nosuid", "nodev", "noatime"];
            check(&all, &[], &all, &[]);
            check(&all, &["ro"], &["ro", "noatime"], &all[..3]);
            check(&all, &["dev"], &["rw"], &all[..3]);
            check(&all, &["relatime"], &["relatime"], &["noatime"]);
            check(
                &[],
                &["nosuid", "nodev", "ro"],
                &["ro", "nosuid"],
                &["noexec"],
            );
        });
    }

    #[test]
    fn locked_flags_are_kept_or_the_mount_is_refused() {
        let locked = ["nosuid", "nodev", "noexec"];
        namespace::run_with_locked(&locked, |from| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            apply_under(&root, &mount(from, "bind", "/a", &["rbind", "ro"])).unwrap();
            let at = root.path().join("a");
            let found = mount_at(&at).options;
            let locked = ["ro", "nosuid", "nodev", "noexec"];
            assert!(locked.iter().all(|word| has(&at, word)), "{found}");
            let refuse = |word: &str, text: &str| {
                let clear = mount(from, "bind", "/b", &["rbind", "ro", word]);
                let error = apply_under(&root, &clear).unwrap_err();
                assert_eq!(error.errno(), Some(nix::libc::EPERM));
                assert!(why(&error).contains(text), "{}", why(&error));
            };
            refuse("exec", "clear the locked mount flags 0x8");
            refuse("noatime", "change the locked access time flags");
        });
    }

    /// Binds a tree of three mounts with attributes for all of them.
    fn check_attributes() {
        let scratch = Scratch::new();
        for below in ["tree", "tree/below", "tree/below/it"] {
            let at = scratch.directory(below);
            apply_host(&mount(NONE, "tmpfs", "", &["nodev"]), &at).unwrap();
        }
        let root = root(&scratch);
        let source = scratch.path("tree");
        let words = ["rbind", "rro", "rnoatime", "rnosuid"];
        apply_under(&root, &mount(&source, "bind", "/new", &words)).unwrap();
        let at = root.path().join("new");
        for mount in [at.clone(), at.join("below"), at.join("below/it")] {
            let found = mount_at(&mount).options;
            let all = ["ro", "nosuid", "nodev", "noatime"];
            assert!(
                all.iter().all(|word| has(&mount, word)),
                "{mount:?}: {found}"
            );
        }
        assert!(has(&source, "rw"), "the source keeps its own");
        let back = mount(NONE, "", "/new", &["bind", "remount", "rrw"]);
        apply_under(&root, &back).unwrap();
        assert!(has(&at.join("below/it"), "rw"));
    }

    #[test]
    fn attributes_reach_the_whole_tree() {
        namespace::run(|| {
            check_attributes();
        });
    }

    #[test]
    fn attributes_reach_the_whole_tree_on_kernel_2_6_32() {
        namespace::run_on_2_6_32(|| {
            check_attributes();
        });
    }

    #[test]
    fn kernel_2_6_32_is_enough_for_plain_mounts() {
        namespace::run_on_2_6_32(|| {
            let scratch = Scratch::new();
            let source = scratch.file("host/file", "text");
            let root = root(&scratch);
            let file = mount(&source, "bind", "/a/file", &["bind", "ro", "rprivate"]);
            apply_under(&root, &file).unwrap();
            scratch.file("root/b/file", "text");
            apply_under(&root, &mount(NONE, "tmpfs", "/b", &["tmpcopyup"])).unwrap();
            assert!(has(&root.path().join("a/file"), "ro"));
            assert!(root.path().join("b/file").exists());
            crate::unmount_tree(root.path()).unwrap();
            assert!(crate::mountinfo::below(root.path()).unwrap().is_empty());
        });
    }

    #[test]
    fn existing_mount_is_changed_by_remount() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            apply_under(&root, &mount(NONE, "tmpfs", "/t", &[])).unwrap();
            let again = mount(NONE, "ramfs", "/t", &["remount", "noexec", "size=1m"]);
            apply_under(&root, &again).unwrap();
            let at = root.path().join("t");
            assert!(has(&at, "noexec"));
            assert!(mount_at(&at).super_options.contains("size=1024k"));
            let nowhere = mount(NONE, "tmpfs", "/u", &["remount"]);
            assert!(apply_under(&root, &nowhere).is_err());
        });
    }

    #[test]
    fn owners_are_mapped_where_the_kernel_can() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let root = root(&scratch);
            let file = scratch.file("host/file", "");
            chown(&file, Some(5), Some(6)).unwrap();
            let folder = scratch.path("host");
            let mut bind = mount(&folder, "bind", "/m", &["rbind", "ridmap", "ro"]);
            let error = owners_of(&bind).unwrap_err();
            assert!(why(&error).contains("needs uidMappings"), "{}", why(&error));
            let error = apply_under(&root, &bind).unwrap_err();
            assert!(why(&error).contains("needs uidMappings"), "{}", why(&error));
            let range = crate::IdRange {
                inside: 0,
                outside: 1000,
                count: 100,
            };
            bind.options.extensions = vec![Extension::IdMap(IdMap {
                scope: crate::Scope::Tree,
                uids: vec![range],
                gids: vec![range],
            })];
            let owners = owners_of(&bind).unwrap();
            match tree_of(&bind, owners.as_ref()) {
                Ok(tree) => {
                    apply_tree_under(&root, &bind, tree.as_fd()).unwrap();
                    let about = fs::metadata(root.path().join("m/file")).unwrap();
                    assert_eq!((about.uid(), about.gid()), (1005, 1006));
                    assert!(has(&root.path().join("m"), "ro"));
                    bind.source = file.to_string_lossy().into_owned();
                    bind.target = "/f".to_owned();
                    let tree = tree_of(&bind, owners.as_ref()).unwrap();
                    apply_tree_under(&root, &bind, tree.as_fd()).unwrap();
                    let about = fs::metadata(root.path().join("f")).unwrap();
                    assert!(about.is_file() && about.uid() == 1005, "{about:?}");
                    bind.target = "/by-itself".to_owned();
                    apply_under(&root, &bind).unwrap();
                    let about = fs::metadata(root.path().join("by-itself")).unwrap();
                    assert_eq!(about.uid(), 1005);
                }
                // Before 5.12, or a tmpfs before 6.3.
                Err(error) => assert!(
                    matches!(error.errno(), Some(nix::libc::ENOSYS | nix::libc::EINVAL)),
                    "{error:?}"
                ),
            }
        });
    }

    #[test]
    fn host_mounts_are_those_containerd_sends() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let target = scratch.directory("bundle/rootfs");
            let snapshot = scratch.directory("snapshot");
            scratch.file("snapshot/file", "text");
            let bind = mount(&snapshot, "bind", "", &["ro", "rbind"]);
            apply_host(&bind, &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "text");
            assert!(has(&target, "ro"));
            crate::unmount_tree(&target).unwrap();

            let image = scratch.file("image", "");
            fs::File::options()
                .write(true)
                .open(&image)
                .unwrap()
                .set_len(4 << 20)
                .unwrap();
            let mut mkfs = sys::Spawn::new(Path::new("/sbin/mke2fs"))
                .args([Path::new("-q"), &image])
                .spawn()
                .unwrap();
            assert_eq!(mkfs.wait().unwrap(), sys::ExitStatus::Exited(0));
            let file = mount(&image, "ext2", "", &["loop", "errors=continue"]);
            apply_host(&file, &target).unwrap();
            assert!(mount_at(&target).source.starts_with("/dev/loop"));
            assert!(target.join("lost+found").is_dir());
            crate::unmount_tree(&target).unwrap();

            let error = apply_host(&bind, &scratch.path("missing")).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("error mounting"), "{text}");
            assert!(text.contains("missing"), "{text}");
            assert_eq!(error.errno(), Some(nix::libc::ENOENT));
            let extended = mount(NONE, "tmpfs", "", &["tmpcopyup"]);
            assert!(why(&apply_host(&extended, &target).unwrap_err()).contains("in a container"));
            let unknown = mount(NONE, "no-such-fs", "", &[]);
            let error = apply_host(&unknown, &target).unwrap_err();
            assert_eq!(error.errno(), Some(nix::libc::ENODEV));
        });
    }
}
