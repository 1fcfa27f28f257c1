//! Paths below a root directory that nothing in it can lead out of; must not mount anything.
//!
//! A path is walked component by component, each opened without following links from a descriptor
//! of the directory before it. Links are read and their text is walked instead, with the root
//! directory as `/`; `..` goes back to a descriptor that was passed on the way, so that renames by
//! others on the way lead nowhere else. The kernel itself never follows a link, so magic links of
//! a procfs are only texts too. It is one way for all kernels: openat2(2) (5.6) can do no more for
//! paths that must be made, answers EAGAIN while anybody renames or mounts, and a second way would be
//! the one that is not tested.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};

use crate::error::{Error, Result};

/// As many as the kernel follows in one path.
const LINKS_MAX: u32 = 40;

/// PATH_MAX.
const PATH_BYTES_MAX: usize = 4096;

/// A directory that is `/` for the paths looked up in it.
#[derive(Debug)]
pub struct RootDir {
    directory: OwnedFd,
    path: PathBuf,
}

/// What to make when a path does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, mode 0755 less umask.
    Directory,
    /// An empty file, mode 0644 less umask.
    File,
}

/// What to do when the last component of a path is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// Go where it points, inside the root.
    Follow,
    /// Fail with ELOOP.
    Refuse,
}

/// Something that exists below a root.
#[derive(Debug)]
pub struct Place {
    /// Directory and name in it; none for the root itself.
    parent: Option<(OwnedFd, OsString)>,
    fd: OwnedFd,
    inside: PathBuf,
}

impl RootDir {
    /// The root at a path of the host.
    ///
    /// # Errors
    /// [`Error::Lookup`].
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty());
        let directory = directory.map_err(|errno| Error::Lookup {
            step: "open",
            path: PathBuf::from("/"),
            root: path.to_owned(),
            source: errno.into(),
        })?;
        Ok(Self {
            directory,
            path: path.to_owned(),
        })
    }

    /// Where it is on the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is at a path in it; none when any part of the path is missing.
    ///
    /// # Errors
    /// [`Error::Lookup`]: ELOOP for too many or refused links, ENOTDIR, EACCES.
    pub fn find(&self, path: &Path, last: LastLink) -> Result<Option<Place>> {
        match self.walk(path, last, None) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("find", path, errno)),
        }
    }

    /// What is at a path in it; what is missing is made first, directories on the way too.
    ///
    /// What exists is given as it is, of whatever kind.
    ///
    /// # Errors
    /// [`Error::Lookup`] as for [`RootDir::find`], and EROFS, ENOSPC and the like; ENOENT for `..`
    /// behind a part that is missing.
    pub fn make(&self, path: &Path, kind: Kind, last: LastLink) -> Result<Place> {
        self.walk(path, last, Some(kind))
            .map_err(|errno| self.failed("make", path, errno))
    }

    fn failed(&self, step: &'static str, path: &Path, errno: Errno) -> Error {
        Error::Lookup {
            step,
            path: path.to_owned(),
            root: self.path.clone(),
            source: errno.into(),
        }
    }

    fn walk(&self, path: &Path, last: LastLink, make: Option<Kind>) -> nix::Result<Place> {
        let mut walk = Walk {
            root: self.directory.as_fd(),
            passed: Vec::new(),
            todo: VecDeque::new(),
            links_left: LINKS_MAX,
        };
        walk.insert(path)?;
        while let Some(name) = walk.todo.pop_front() {
            walk.step(name, last, make)?;
        }
        walk.end()
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Place {
    /// Its path as seen in the root, without links.
    #[must_use]
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// The same name looked up again: what has been mounted there since is found on top.
    ///
    /// # Errors
    /// ELOOP for the root itself, which is reached by no name; what opening says.
    pub fn again(&self) -> nix::Result<OwnedFd> {
        let (directory, name) = self.parent.as_ref().ok_or(Errno::ELOOP)?;
        open_any(directory.as_fd(), name)
    }

    /// Whether it is the root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A walk that is under way.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// Name and descriptor of each component passed, from the root down.
    passed: Vec<(OsString, OwnedFd)>,
    todo: VecDeque<OsString>,
    links_left: u32,
}

impl Walk<'_> {
    /// Puts a path before what is to be done; an absolute one begins at the root again.
    fn insert(&mut self, path: &Path) -> nix::Result<()> {
        if path.as_os_str().len() >= PATH_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.todo.push_front(name.to_owned()),
                Component::ParentDir => self.todo.push_front(OsString::from("..")),
                Component::RootDir => self.passed.clear(),
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    fn step(&mut self, name: OsString, last: LastLink, make: Option<Kind>) -> nix::Result<()> {
        if name == ".." {
            self.passed.pop();
            return Ok(());
        }
        let is_last = self.todo.is_empty();
        let found = fstatat(self.here(), name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let kind = match found {
            Ok(found) => SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()),
            Err(Errno::ENOENT) => return self.make(name, make.ok_or(Errno::ENOENT)?),
            Err(errno) => return Err(errno),
        };
        if kind == SFlag::S_IFLNK {
            if is_last && last == LastLink::Refuse {
                return Err(Errno::ELOOP);
            }
            return self.follow(&name);
        }
        if !is_last && kind != SFlag::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let fd = open_any(self.here(), &name)?;
        self.passed.push((name, fd));
        Ok(())
    }

    fn follow(&mut self, name: &OsStr) -> nix::Result<()> {
        self.links_left = self.links_left.checked_sub(1).ok_or(Errno::ELOOP)?;
        let text = readlinkat(self.here(), name)?;
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.insert(Path::new(&text))
    }

    /// Makes a missing component: a directory, unless it is the last and to be a file.
    fn make(&mut self, name: OsString, kind: Kind) -> nix::Result<()> {
        if self.todo.iter().any(|name| name == "..") {
            return Err(Errno::ENOENT);
        }
        let made = if kind == Kind::Directory || !self.todo.is_empty() {
            mkdirat(
                self.here(),
                name.as_os_str(),
                Mode::from_bits_truncate(0o755),
            )
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
            let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mode = Mode::from_bits_truncate(0o644);
            openat(self.here(), name.as_os_str(), flags, mode).map(drop)
        };
        match made {
            // Another was faster: what it made is taken if it is no link.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let fd = open_any(self.here(), &name)?;
        self.passed.push((name, fd));
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        match self.passed.last() {
            Some((_, fd)) => fd.as_fd(),
            None => self.root,
        }
    }

    fn end(mut self) -> nix::Result<Place> {
        let names = self.passed.iter().map(|(name, _)| name);
        let inside = Path::new("/").join(names.collect::<PathBuf>());
        let Some((name, fd)) = self.passed.pop() else {
            return Ok(Place {
                parent: None,
                fd: duplicate(self.root)?,
                inside,
            });
        };
        let directory = match self.passed.pop() {
            Some((_, directory)) => directory,
            None => duplicate(self.root)?,
        };
        Ok(Place {
            parent: Some((directory, name)),
            fd,
            inside,
        })
    }
}

/// A close-on-exec copy, which dup(2) does not make.
fn duplicate(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let copy = fd.try_clone_to_owned();
    copy.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// Opens what a name stands for, but no link.
///
/// Before 2.6.39 O_PATH means nothing and this opens for reading: O_NONBLOCK and O_NOCTTY keep a
/// fifo or terminal from harm then, and a link is refused all the same.
fn open_any(directory: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let fd = openat(directory, name, flags, Mode::empty())?;
    // With O_PATH a link that came in between would be opened itself.
    let kind =
        fstatat(&fd, "", AtFlags::AT_EMPTY_PATH).map(|found| found.st_mode & SFlag::S_IFMT.bits());
    if kind == Ok(SFlag::S_IFLNK.bits()) {
        return Err(Errno::ELOOP);
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::fd_path;

    struct Tree {
        folder: tempfile::TempDir,
        root: RootDir,
    }

    impl Tree {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("root/a/b")).unwrap();
            fs::write(folder.path().join("root/a/file"), "").unwrap();
            fs::create_dir(folder.path().join("outside")).unwrap();
            let root = RootDir::open(&folder.path().join("root")).unwrap();
            Self { folder, root }
        }

        fn link(&self, name: &str, to: &str) {
            symlink(to, self.root.path().join(name)).unwrap();
        }

        /// Where a path leads, as seen in the root and as the kernel names it on the host.
        fn find(&self, path: &str) -> Option<PathBuf> {
            let place = self.root.find(Path::new(path), LastLink::Follow).unwrap()?;
            let inside = place.inside().strip_prefix("/").unwrap();
            let on_host = fs::read_link(fd_path(place.as_fd())).unwrap();
            assert_eq!(
                on_host,
                self.root.path().join(inside).components().as_path()
            );
            Some(place.inside().to_owned())
        }

        fn refused(&self, path: &str) -> i32 {
            let error = self.root.find(Path::new(path), LastLink::Follow);
            error.unwrap_err().errno().unwrap()
        }
    }

    #[test]
    fn paths_lead_to_places_inside() {
        let tree = Tree::new();
        tree.link("abs", "/a");
        tree.link("a/rel", "../a/b");
        tree.link("up", "../../../..");
        tree.link("chain", "abs/rel/../file");
        tree.link("gone", "/a/none");
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(
                tree.find(path).as_deref(),
                expected.map(Path::new),
                "{path}"
            );
        };
        check("/", Some("/"));
        check("", Some("/"));
        check("../..", Some("/"));
        check("/a/b", Some("/a/b"));
        check("a//b/./", Some("/a/b"));
        check("/a/b/../file", Some("/a/file"));
        check("/abs/b", Some("/a/b"));
        check("/a/rel", Some("/a/b"));
        check("/up/a", Some("/a"));
        check("/chain", Some("/a/file"));
        check("/gone", None);
        check("/a/none/b", None);
        check("/outside", None);
    }

    #[test]
    fn endless_links_wrong_kinds_and_long_paths_are_refused() {
        let tree = Tree::new();
        tree.link("loop", "loop");
        tree.link("ping", "pong");
        tree.link("pong", "/ping");
        assert_eq!(tree.refused("/loop"), nix::libc::ELOOP);
        assert_eq!(tree.refused("/ping/x"), nix::libc::ELOOP);
        assert_eq!(tree.refused("/a/file/x"), nix::libc::ENOTDIR);
        assert_eq!(tree.refused(&"a/".repeat(3000)), nix::libc::ENAMETOOLONG);
        assert_eq!(tree.refused(&"n".repeat(300)), nix::libc::ENAMETOOLONG);
        tree.link("last", "a");
        let last = tree.root.find(Path::new("/last"), LastLink::Refuse);
        assert_eq!(last.unwrap_err().errno(), Some(nix::libc::ELOOP));
        let on_the_way = tree.root.find(Path::new("/last/b"), LastLink::Refuse);
        assert_eq!(on_the_way.unwrap().unwrap().inside(), Path::new("/a/b"));
        assert!(RootDir::open(&tree.root.path().join("a/file")).is_err());
    }

    #[test]
    fn missing_parts_are_made_inside() {
        let tree = Tree::new();
        let outside = tree.folder.path().join("outside");
        tree.link("out", outside.to_str().unwrap());
        let make = |path: &str, kind| {
            let place = tree
                .root
                .make(Path::new(path), kind, LastLink::Follow)
                .unwrap();
            (
                place.inside().to_owned(),
                fs::metadata(fd_path(place.as_fd())).unwrap().is_dir(),
            )
        };
        assert_eq!(make("/x/y/z", Kind::Directory), ("/x/y/z".into(), true));
        assert_eq!(make("/x/y/f", Kind::File), ("/x/y/f".into(), false));
        assert_eq!(make("/x/y/f", Kind::Directory), ("/x/y/f".into(), false));
        let (inside, _) = make("/out/new", Kind::File);
        assert_eq!(inside, outside.join("new"));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let up = tree
            .root
            .make(Path::new("/none/../q"), Kind::File, LastLink::Follow);
        assert_eq!(up.unwrap_err().errno(), Some(nix::libc::ENOENT));
        let through = tree
            .root
            .make(Path::new("/a/file/q"), Kind::File, LastLink::Follow);
        let error = through.unwrap_err();
        assert_eq!(error.errno(), Some(nix::libc::ENOTDIR));
        assert!(
            error.to_string().starts_with("make /a/file/q below /"),
            "{error}"
        );
    }

    #[test]
    fn magic_links_are_texts_and_lead_nowhere() {
        let proc = RootDir::open(Path::new("/proc")).unwrap();
        let find = |path: &str| proc.find(Path::new(path), LastLink::Follow);
        assert!(
            find("/self/root")
                .unwrap()
                .is_some_and(|place| place.is_root())
        );
        assert!(find("/self/exe").unwrap().is_none());
        assert!(find("/self/status").unwrap().is_some());
    }

    #[test]
    fn every_descriptor_is_closed_on_exec() {
        let tree = Tree::new();
        for path in ["/", "/a", "/a/b", "/a/new"] {
            let place = tree
                .root
                .make(Path::new(path), Kind::Directory, LastLink::Follow);
            let place = place.unwrap();
            let parent = place.parent.iter().map(|(fd, _)| fd.as_fd());
            for fd in parent.chain([place.as_fd(), tree.root.as_fd()]) {
                let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD);
                assert_eq!(flags, Ok(nix::libc::FD_CLOEXEC), "{path}");
            }
        }
    }

    /// A path of few names, with `..`, absolute or not.
    fn paths() -> impl Strategy<Value = String> {
        let names = prop::collection::vec("a|b|c|f|\\.\\.", 1..5);
        (any::<bool>(), names).prop_map(|(absolute, names)| {
            format!("{}{}", if absolute { "/" } else { "" }, names.join("/"))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn walk_ends_where_the_kernels_own_does(
            directories in prop::collection::vec(paths(), 0..5),
            links in prop::collection::vec((paths(), paths()), 0..6),
            asked in prop::collection::vec(paths(), 1..6),
        ) {
            let tree = Tree::new();
            let base = tree.root.path();
            let clean = |path: &String| base.join(path.replace("..", "b").trim_start_matches('/'));
            for directory in &directories {
                // Where a link or file stands already it is in the way; what is made will do.
                let _made = fs::create_dir_all(clean(directory));
            }
            fs::write(base.join("f"), "").ok();
            for (at, to) in &links {
                let _made = symlink(to, clean(at));
            }
            for path in &asked {
                let how = nix::fcntl::OpenHow::new()
                    .flags(OFlag::O_PATH)
                    .resolve(nix::fcntl::ResolveFlag::RESOLVE_IN_ROOT);
                let inode = |fd| nix::sys::stat::fstat(fd).map(|about| about.st_ino);
                // EAGAIN: anybody renamed or mounted anything while it went through `..`.
                let theirs = loop {
                    match nix::fcntl::openat2(&tree.root, path.as_str(), how) {
                        Err(Errno::EAGAIN) => {}
                        Err(Errno::ENOSYS) => return Ok(()),
                        opened => break opened.and_then(inode),
                    }
                };
                let ours = tree.root.walk(Path::new(path), LastLink::Follow, None);
                prop_assert_eq!(ours.and_then(|place| inode(place.fd)), theirs, "{}", path);
            }
        }
    }

    #[test]
    fn renames_by_others_lead_nowhere_outside() {
        let tree = Tree::new();
        let base = tree.root.path().to_owned();
        let outside = tree.folder.path().join("outside");
        fs::create_dir_all(base.join("dir/sub")).unwrap();
        fs::create_dir(outside.join("sub")).unwrap();
        symlink(&outside, base.join("trap")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let swap = [
                    ("dir", "spare"),
                    ("trap", "dir"),
                    ("dir", "trap"),
                    ("spare", "dir"),
                ];
                while !done.load(Ordering::Relaxed) {
                    for (from, to) in swap {
                        fs::rename(base.join(from), base.join(to)).unwrap();
                    }
                }
            });
            for _ in 0..5000 {
                // Nothing or a refusal will do; only a place outside would be wrong.
                let found = tree.root.find(Path::new("/dir/sub"), LastLink::Follow);
                if let Ok(Some(place)) = found {
                    let on_host = fs::read_link(fd_path(place.as_fd())).unwrap();
                    assert!(on_host.starts_with(&base), "{on_host:?}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
