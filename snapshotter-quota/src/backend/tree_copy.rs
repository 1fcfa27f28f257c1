//! A tree as it is, into another file system: types, contents, holes, links, owners, modes, times
//! and extended attributes. What goes away meanwhile is left out. Must not follow links or leave
//! either tree.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{
            FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat, linkat, symlinkat},
};
use rustix::fs::XattrFlags;
use snapshot_core::{Error, Result};

use super::{directories, sparse_copy};

/// Directories of each tree that stay open on the way down.
const OPEN_MAX: usize = 32;

/// Looks at a name that is something else each time.
const ATTEMPTS_MAX: usize = 16;

/// A path with its NUL (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;

/// Makes the empty directory `to` equal to `from`, attributes of both included.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |error| Error::io("copy", from)(error);
    let mut copy = Copy::begin(directories::open(from)?, directories::open(to)?).map_err(failed)?;
    let done = copy.run();
    done.map_err(|error| Error::io("copy", from.join(&copy.place))(error))
}

type Identity = (u64, u64);

struct Copy {
    /// The root of the copy.
    target: File,
    /// The way down.
    levels: Vec<Level>,
    /// Where it is, below the root.
    place: PathBuf,
    /// Where the first of several names of an inode was copied to, below the root.
    several: BTreeMap<Identity, PathBuf>,
}

/// A directory on the way down.
struct Level {
    /// In both trees; none when it was closed to save descriptors.
    open: Option<Both<File>>,
    identity: Both<Identity>,
    seen: Seen,
    /// What is still to be copied.
    names: Vec<CString>,
}

struct Both<T> {
    from: T,
    to: T,
}

/// What became of a name.
#[derive(PartialEq, Eq)]
enum Step {
    Done,
    /// It is a directory, and the new level.
    Down,
}

impl Copy {
    fn begin(from: File, to: File) -> io::Result<Self> {
        let mut this = Self {
            target: to.try_clone()?,
            levels: Vec::new(),
            place: PathBuf::new(),
            several: BTreeMap::new(),
        };
        let seen = Seen::of_open(&from)?;
        this.enter(Both { from, to }, seen)?;
        Ok(this)
    }

    /// When it fails, `place` is where.
    fn run(&mut self) -> io::Result<()> {
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.names.pop() {
                self.place.push(OsStr::from_bytes(name.to_bytes()));
                if self.entry(&name)? == Step::Done {
                    self.place.pop();
                }
            } else {
                self.leave()?;
                self.place.pop();
            }
        }
        Ok(())
    }

    fn enter(&mut self, open: Both<File>, seen: Seen) -> io::Result<()> {
        self.levels.push(Level {
            identity: Both {
                from: identity(&fstat(&open.from)?),
                to: identity(&fstat(&open.to)?),
            },
            names: names(open.from.as_fd())?,
            open: Some(open),
            seen,
        });
        if let Some(far) = self.levels.len().checked_sub(OPEN_MAX) {
            self.levels[far].open = None;
        }
        Ok(())
    }

    /// Goes up when all in a directory was copied.
    fn leave(&mut self) -> io::Result<()> {
        let Some(Level { open, seen, .. }) = self.levels.pop() else {
            return Ok(());
        };
        let open = open.ok_or(Errno::EBADF)?;
        seen.give(open.to.as_fd(), c".")?;
        if let Some(above) = self.levels.last_mut().filter(|above| above.open.is_none()) {
            above.open = Some(Both {
                from: reopen(open.from.as_fd(), above.identity.from)?,
                to: reopen(open.to.as_fd(), above.identity.to)?,
            });
        }
        Ok(())
    }

    fn entry(&mut self, name: &CStr) -> io::Result<Step> {
        let open = self.levels.last().and_then(|level| level.open.as_ref());
        let Both { from, to } = open.ok_or(Errno::EBADF)?;
        let to = to.as_fd();
        let Some((seen, what)) = look(from.as_fd(), name)? else {
            return Ok(Step::Done);
        };
        let about = &seen.about;
        if !matches!(what, What::Directory(_)) && about.st_nlink > 1 {
            let inode = identity(about);
            if let Some(first) = self.several.get(&inode) {
                linkat(&self.target, first, to, name, AtFlags::empty())?;
                return Ok(Step::Done);
            }
            // Beyond that no call takes it, and the other names become files of their own.
            if self.place.as_os_str().len() < PATH_BYTES_MAX {
                self.several.insert(inode, self.place.clone());
            }
        }
        match what {
            What::Directory(from) => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let to = open_directory(to, name)?;
                self.enter(Both { from, to }, seen)?;
                return Ok(Step::Down);
            }
            What::File(from) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let new = openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                sparse_copy::copy(&from, &File::from(new))?;
            }
            What::Link(text) => symlinkat(text.as_os_str(), to, name)?,
            // Also whiteouts of overlay, which are character devices 0:0.
            What::Other => mknodat(to, name, seen.kind(), Mode::S_IRUSR, about.st_rdev)?,
        }
        seen.give(to, name)?;
        Ok(Step::Done)
    }
}

/// What a name stands for.
enum What {
    Directory(File),
    File(File),
    Link(OsString),
    Other,
}

/// `None` when it is gone. A container may put one thing into the place of another meanwhile.
fn look(from: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<(Seen, What)>> {
    let mut attempts = 1..ATTEMPTS_MAX;
    loop {
        let error = match look_once(from, name) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => error,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => return Ok(None),
            Some(Errno::ESTALE | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO | Errno::EINVAL)
                if attempts.next().is_some() => {}
            _ => return Err(error),
        }
    }
}

fn look_once(from: BorrowedFd<'_>, name: &CStr) -> io::Result<(Seen, What)> {
    let about = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = kind(&about);
    let what = match kind {
        SFlag::S_IFDIR => What::Directory(open_directory(from, name)?),
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            What::File(openat(from, name, flags, Mode::empty())?.into())
        }
        SFlag::S_IFLNK => What::Link(readlinkat(from, name)?),
        _ => What::Other,
    };
    let seen = match &what {
        What::Directory(open) | What::File(open) => Seen::of_open(open)?,
        What::Link(_) | What::Other => {
            let attributes = extended_attributes(&path(from, name))?;
            Seen { about, attributes }
        }
    };
    if seen.kind() != kind {
        return Err(Errno::ESTALE.into());
    }
    Ok((seen, what))
}

/// What a copy is given besides contents.
struct Seen {
    about: FileStat,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Seen {
    fn of_open(open: &File) -> io::Result<Self> {
        Ok(Self {
            about: fstat(open)?,
            attributes: extended_attributes_of(open)?,
        })
    }

    fn kind(&self) -> SFlag {
        kind(&self.about)
    }

    /// Owner first: changing it takes set-user-id and capabilities away. Times last.
    fn give(&self, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let about = &self.about;
        let (user, group) = (Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid));
        let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(to, name, Some(user), Some(group), nofollow)?;
        let path = path(to, name);
        if self.kind() != SFlag::S_IFLNK {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(about.st_mode & 0o7777);
            std::fs::set_permissions(&path, mode)?;
        }
        for (key, value) in &self.attributes {
            match rustix::fs::lsetxattr(&path, key, value, XattrFlags::empty()) {
                // A label of SELinux comes from the policy where files cannot carry it.
                Err(rustix::io::Errno::OPNOTSUPP) if key.as_bytes() == b"security.selinux" => {}
                other => other?,
            }
        }
        let accessed = TimeSpec::new(about.st_atime, about.st_atime_nsec);
        let modified = TimeSpec::new(about.st_mtime, about.st_mtime_nsec);
        let nofollow = UtimensatFlags::NoFollowSymlink;
        utimensat(to, name, &accessed, &modified, nofollow)?;
        Ok(())
    }
}

fn kind(about: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(about.st_mode & SFlag::S_IFMT.bits())
}

fn identity(about: &FileStat) -> Identity {
    (about.st_dev, about.st_ino)
}

/// Finds the parent of a directory again.
fn reopen(below: BorrowedFd<'_>, expected: Identity) -> io::Result<File> {
    let above = open_directory(below, c"..")?;
    if identity(&fstat(&above)?) != expected {
        // The tree was moved about: what is above now may be none of ours.
        return Err(Errno::ESTALE.into());
    }
    Ok(above)
}

/// The names in a directory, gathered before anything is done with them.
fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut listed = Dir::from_fd(open_directory(directory, c".")?.into())?;
    let mut names = Vec::new();
    for entry in listed.iter() {
        let name = entry?.file_name().to_owned();
        if ![&b"."[..], b".."].contains(&name.as_bytes()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The most that the kernel takes (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const ATTRIBUTE_BYTES_MAX: usize = 65536;

fn extended_attributes(path: &Path) -> io::Result<Vec<(CString, Vec<u8>)>> {
    attributes(
        |list| rustix::fs::llistxattr(path, list),
        |key, value| rustix::fs::lgetxattr(path, key, value),
    )
}

fn extended_attributes_of(open: &File) -> io::Result<Vec<(CString, Vec<u8>)>> {
    attributes(
        |list| rustix::fs::flistxattr(open, list),
        |key, value| rustix::fs::fgetxattr(open, key, value),
    )
}

fn attributes(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut keys = vec![0_u8; ATTRIBUTE_BYTES_MAX];
    let length = match list(&mut keys) {
        Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    for key in keys[..length].split(|byte| *byte == 0) {
        if key.is_empty() {
            continue;
        }
        let key = CString::new(key).expect("split at NUL");
        match get(&key, &mut value) {
            Ok(length) => found.push((key, value[..length].to_vec())),
            // It was taken away meanwhile.
            Err(rustix::io::Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty()).map(File::from)
}

/// For calls that take no descriptor: the last component is a name in an open directory, and is
/// not followed.
fn path(directory: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let folder = format!("/proc/self/fd/{}", directory.as_raw_fd());
    Path::new(&folder).join(OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    /// Makes one of each kind.
    fn fill(tree: &Path) {
        let at = |name: &str| tree.join(name);
        fs::create_dir_all(at("folder/below")).unwrap();
        fs::write(at("folder/file"), "text").unwrap();
        fs::hard_link(at("folder/file"), at("folder/below/again")).unwrap();
        fs::set_permissions(at("folder"), fs::Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::chown(at("folder/file"), Some(7), Some(8)).unwrap();
        fs::set_permissions(at("folder/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("/no/where", at("link")).unwrap();
        std::os::unix::fs::lchown(at("link"), Some(9), Some(9)).unwrap();
        let mode = Mode::from_bits_truncate(0o640);
        nix::unistd::mkfifo(&at("fifo"), mode).unwrap();
        nix::sys::stat::mknod(&at("whiteout"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(100 << 20).unwrap();
        fs::write(tree.join(OsStr::from_bytes(b"\xff\xfe")), "").unwrap();
        let set = |name: &str, key: &str, value: &[u8]| {
            rustix::fs::lsetxattr(at(name), key, value, XattrFlags::empty()).unwrap();
        };
        set("folder", "trusted.overlay.opaque", b"y");
        set(
            "folder/file",
            "security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        );
        set("link", "trusted.note", b"");
        let old = TimeSpec::new(1_000_000_000, 123_456_789);
        let nofollow = UtimensatFlags::NoFollowSymlink;
        for name in ["link", "folder/file", "folder", "."] {
            utimensat(nix::fcntl::AT_FDCWD, &at(name), &old, &old, nofollow).unwrap();
        }
    }

    /// Each path with all that can be seen of it.
    fn describe(tree: &Path) -> Vec<String> {
        fn walk(root: &Path, at: &Path, inodes: &mut Vec<u64>, found: &mut Vec<String>) {
            let about = fs::symlink_metadata(at).unwrap();
            let inode = inodes.iter().position(|known| *known == about.ino());
            let inode = inode.unwrap_or_else(|| {
                inodes.push(about.ino());
                inodes.len() - 1
            });
            let values = extended_attributes(at).unwrap();
            let contents = match about.file_type() {
                kind if kind.is_file() => format!("{} bytes", fs::read(at).unwrap().len()),
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(at).unwrap()),
                _ => String::new(),
            };
            found.push(format!(
                "{:?} {:o} {}:{} {} #{inode} {}.{} {values:?} {contents}",
                at.strip_prefix(root).unwrap(),
                about.mode(),
                about.uid(),
                about.gid(),
                about.rdev(),
                about.mtime(),
                about.mtime_nsec(),
            ));
            if about.is_dir() {
                let mut below: Vec<_> = fs::read_dir(at)
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .collect();
                below.sort();
                for path in below {
                    walk(root, &path, inodes, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(tree, tree, &mut Vec::new(), &mut found);
        found
    }

    #[test]
    fn a_copy_cannot_be_told_from_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fill(&from);
        copy(&from, &to).unwrap();
        assert_eq!(describe(&to), describe(&from));
        let mut value = [0; 2];
        let opaque = "trusted.overlay.opaque";
        let length = rustix::fs::lgetxattr(to.join("folder"), opaque, &mut value).unwrap();
        assert_eq!(&value[..length], b"y");
        assert!(fs::metadata(to.join("sparse")).unwrap().blocks() < 100);
    }

    /// More than there may be open files, and longer than a path can be.
    #[test]
    fn a_tree_of_any_depth_is_copied() {
        const DEPTH: usize = 3000;
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let mut at = File::open(&from).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "deep", Mode::S_IRWXU).unwrap();
            at = open_directory(at.as_fd(), c"deep").unwrap();
        }
        symlinkat("text", &at, "link").unwrap();
        copy(&from, &to).unwrap();
        let mut at = File::open(&to).unwrap();
        for _ in 0..DEPTH {
            at = open_directory(at.as_fd(), c"deep").unwrap();
        }
        assert_eq!(readlinkat(&at, "link").unwrap(), "text");
        for tree in [&from, &to] {
            snapshot_core::delete_tree(tree).unwrap();
        }
    }

    #[test]
    fn what_goes_away_meanwhile_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("folder/below")).unwrap();
        fs::create_dir(&to).unwrap();
        for name in ["file", "kept"] {
            fs::write(from.join(name), "text").unwrap();
        }
        symlink("text", from.join("link")).unwrap();
        let open = |path: &Path| File::open(path).unwrap();
        let mut copy = Copy::begin(open(&from), open(&to)).unwrap();
        fs::remove_dir_all(from.join("folder")).unwrap();
        for name in ["file", "link"] {
            fs::remove_file(from.join(name)).unwrap();
        }
        copy.run().unwrap();
        // But for the root, whose times were seen before.
        assert_eq!(describe(&to)[1..], describe(&from)[1..]);
        assert!(to.join("kept").exists());
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        fs::create_dir(&to).unwrap();
        let open = |path: &Path| File::open(path).unwrap();
        let mut copy = Copy::begin(open(&from), open(&to)).unwrap();
        fs::remove_dir(&to).unwrap();
        assert_eq!(copy.run().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(copy.place, Path::new("a"));
    }
}
