//! Trees as hostile containers make them.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{mkdirat, mknod},
    unistd::mkfifo,
};

use super::*;

const GO_ON: &(dyn Fn() -> bool + Sync) = &|| true;
const CROSSINGS: [Crossing; 2] = [Crossing::Refused, Crossing::LookedFor];

/// A folder with `tree` in it, and something beside it that must stay.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("tree")).unwrap();
        fs::create_dir_all(folder.path().join("beside/deep")).unwrap();
        fs::write(folder.path().join("beside/deep/file"), "stays").unwrap();
        Self { folder }
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    fn delete(&self, crossing: Crossing) -> io::Result<()> {
        let folder = File::open(self.folder.path()).unwrap();
        Ok(remove(crossing, folder.as_fd(), c"tree", &|_| Ok(()))?)
    }

    fn assert_only_tree_is_gone(&self) {
        assert!(!self.tree().exists());
        let beside = self.folder.path().join("beside/deep/file");
        assert_eq!(fs::read_to_string(beside).unwrap(), "stays");
    }
}

/// As many directories in each other as no path could name.
fn make_deep(tree: &Path, depth: usize) {
    let mut here: OwnedFd = File::open(tree).unwrap().into();
    for _ in 0..depth {
        mkdirat(&here, "d", Mode::S_IRWXU).unwrap();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        here = openat(&here, "d", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn odd_files_go_and_links_are_not_followed() {
    for crossing in CROSSINGS {
        let scene = Scene::new();
        let tree = scene.tree();
        symlink("../beside", tree.join("up")).unwrap();
        symlink(scene.folder.path().join("beside"), tree.join("absolute")).unwrap();
        symlink("nowhere", tree.join("dangling")).unwrap();
        mkfifo(&tree.join("fifo"), Mode::S_IRWXU).unwrap();
        mknod(&tree.join("whiteout"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        fs::create_dir(tree.join("closed")).unwrap();
        fs::write(tree.join("closed/file"), "x").unwrap();
        fs::hard_link(
            scene.folder.path().join("beside/deep/file"),
            tree.join("second name"),
        )
        .unwrap();
        for number in 0..300 {
            fs::create_dir_all(tree.join(format!("wide/{number}/x"))).unwrap();
        }
        scene.delete(crossing).unwrap();
        scene.assert_only_tree_is_gone();
        // What is gone already is success.
        scene.delete(crossing).unwrap();
    }
}

#[test]
fn depth_needs_few_descriptors_and_no_stack() {
    for crossing in CROSSINGS {
        let scene = Scene::new();
        make_deep(&scene.tree(), 2100);
        assert_eq!(usage(&scene.tree()).unwrap().inodes, 2101);
        scene.delete(crossing).unwrap();
        scene.assert_only_tree_is_gone();
    }
}

#[test]
fn more_directories_than_are_remembered_go_all() {
    let scene = Scene::new();
    for number in 0..40 {
        fs::create_dir_all(scene.tree().join(format!("{number}/x/y"))).unwrap();
    }
    let folder = File::open(scene.folder.path()).unwrap();
    let mut walk = Walk {
        crossing: Crossing::Refused,
        names_max: 3,
        levels: Vec::new(),
    };
    walk.run(folder.as_fd(), c"tree", &mut |met| match met {
        Met::Entry(directory, name) => unlinkat(directory, name, UnlinkatFlags::NoRemoveDir),
        Met::Directory(directory, name) => unlinkat(directory, name, UnlinkatFlags::RemoveDir),
    })
    .unwrap();
    scene.assert_only_tree_is_gone();
}

/// A bind mount that goes with it.
struct Bound(PathBuf);

impl Bound {
    fn new(source: &Path, at: &Path) -> Self {
        let bind = MsFlags::MS_BIND;
        mount(Some(source), at, None::<&str>, bind, None::<&str>).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_large_tree_is_deleted_by_several() {
    let scene = Scene::new();
    let deep = scene.tree().join("fs/a/b");
    fs::create_dir_all(&deep).unwrap();
    make_deep(&deep, 300);
    for number in 0..60 {
        let folder = scene.tree().join(format!("fs/usr/{number}/x"));
        fs::create_dir_all(&folder).unwrap();
        symlink("../../../../../beside", folder.join("link")).unwrap();
        for file in 0..50 {
            File::create(folder.join(file.to_string())).unwrap();
        }
    }
    let folder = File::open(scene.folder.path()).unwrap();
    delete(&folder, "tree", &scene.tree(), GO_ON).unwrap();
    scene.assert_only_tree_is_gone();
}

#[test]
fn several_stop_at_what_is_mounted() {
    let scene = Scene::new();
    for number in 0..100 {
        fs::create_dir_all(scene.tree().join(format!("{number}/x/y"))).unwrap();
    }
    let at = scene.tree().join("77/x/y");
    let bound = Bound::new(&scene.folder.path().join("beside"), &at);
    let folder = File::open(scene.folder.path()).unwrap();
    let together = || together::delete(Crossing::Refused, folder.as_fd(), c"tree", GO_ON);
    let refusal = together().unwrap_err();
    assert_eq!(refusal.raw_os_error(), Some(nix::libc::EXDEV));
    drop(bound);
    together().unwrap();
    scene.delete(Crossing::Refused).unwrap();
    scene.assert_only_tree_is_gone();
}

#[test]
fn what_is_mounted_in_a_tree_is_kept() {
    let scene = Scene::new();
    let at = scene.tree().join("a/b");
    fs::create_dir_all(&at).unwrap();
    let bound = Bound::new(&scene.folder.path().join("beside"), &at);
    let cross = |outcome: io::Result<()>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EXDEV));
    };
    cross(scene.delete(Crossing::Refused));
    cross(usage(&scene.tree()).map(drop));
    cross(look_for_mounts(&scene.tree()).map(drop));
    drop(bound);
    assert_eq!(look_for_mounts(&scene.tree()).unwrap(), Crossing::LookedFor);
    scene.delete(Crossing::Refused).unwrap();
    scene.assert_only_tree_is_gone();
}

#[test]
fn a_tree_that_others_write_to_goes_or_is_refused_but_never_followed_out() {
    let scene = Scene::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let beside = scene.folder.path().join("beside");
            while !stop.load(Ordering::Relaxed) {
                // Any of these may fail as the tree goes away.
                let at = scene.tree().join("a");
                let _made = fs::create_dir_all(at.join("b/c"));
                let _gone = fs::remove_dir_all(at.join("b"));
                let _link = symlink(&beside, at.join("b"));
                let _gone = fs::remove_file(at.join("b"));
            }
        });
        for _ in 0..300 {
            let _either = scene.delete(Crossing::Refused);
        }
        stop.store(true, Ordering::Relaxed);
    });
    scene.delete(Crossing::Refused).unwrap();
    scene.assert_only_tree_is_gone();
}

#[test]
fn deleting_ends_early_when_it_is_not_to_go_on() {
    let scene = Scene::new();
    for number in 0..10 {
        fs::write(scene.tree().join(number.to_string()), "").unwrap();
    }
    let asked = AtomicUsize::new(0);
    let folder = File::open(scene.folder.path()).unwrap();
    let five = || asked.fetch_add(1, Ordering::Relaxed) < 5;
    let refusal = delete(&folder, "tree", &scene.tree(), &five).unwrap_err();
    assert_eq!(refusal.kind(), io::ErrorKind::Interrupted);
    assert_eq!(fs::read_dir(scene.tree()).unwrap().count(), 5);
}

#[test]
fn usage_counts_each_inode_once_and_blocks_not_lengths() {
    let scene = Scene::new();
    let tree = scene.tree();
    let blocks = |path: &Path| fs::symlink_metadata(path).unwrap().blocks() * 512;
    fs::create_dir(tree.join("d")).unwrap();
    fs::write(tree.join("d/file"), vec![1; 100_000]).unwrap();
    fs::hard_link(tree.join("d/file"), tree.join("again")).unwrap();
    File::create(tree.join("sparse"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    symlink("/", tree.join("link")).unwrap();
    let held = usage(&tree).unwrap();
    assert_eq!(held.inodes, 5);
    let expected = blocks(&tree) + blocks(&tree.join("d")) + blocks(&tree.join("d/file"));
    assert_eq!(held.bytes, expected + blocks(&tree.join("link")));
    assert!(usage(&tree.join("none")).is_err());
    assert!(usage(Path::new("/")).is_err());
}
