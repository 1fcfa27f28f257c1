//! What overlayfs can do on the file system of a root, found by doing it. It leaves nothing behind:
//! its mounts are in a mount namespace of a thread of its own, and end with it.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use mounts::{Extension, IdMap, IdRange, MountOptions, RootDir, Scope};
use nix::{
    mount::MsFlags,
    sched::{CloneFlags, unshare},
};

use crate::{Error, OverlayOptions, Owners, Result, one_line, tree};

const NAME: &str = "probe";

/// An id that no file has by chance.
const MAPPED_ROOT: u32 = 1_666_777;

/// What overlayfs takes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlaySupport {
    /// `index=off` is known (kernel 4.13).
    pub index_off: bool,
    /// `userxattr` is needed, as the daemon is in a user namespace (kernel 5.11).
    pub user_xattr: bool,
    /// `volatile` is known (kernel 5.10).
    pub volatile: bool,
    /// Lower directories may be mapped mounts (kernel 5.19).
    pub mapped_lowers: bool,
}

impl OverlaySupport {
    /// The options that suit all snapshots.
    #[must_use]
    pub fn options(self) -> OverlayOptions {
        OverlayOptions {
            index_off: self.index_off,
            user_xattr: self.user_xattr,
            volatile: false,
            owners: if self.mapped_lowers {
                Owners::MappedByMount
            } else {
                Owners::Kept
            },
            empty_lower: None,
        }
    }
}

/// Tries overlayfs below `root`, which exists and is used by nobody else meanwhile.
///
/// # Errors
/// [`Error::Precondition`] says why containers could not run from there.
pub fn probe(root: &Path) -> Result<OverlaySupport> {
    let root = root.canonicalize().map_err(Error::io("find", root))?;
    let at = root.join(NAME);
    let folder = File::open(&root).map_err(Error::io("open", &root))?;
    let delete = || tree::delete(&folder, NAME, &at, &|| true).map_err(Error::io("delete", &at));
    delete()?;
    let tried = on_a_thread(&root, On::Root);
    delete()?;
    tried
}

/// As [`probe`], on a tmpfs that nobody else sees in the place of `root`: for a root that cannot be
/// written now. What the kernel can do is found; what only some file systems can may be missed.
///
/// # Errors
/// As for [`probe`].
pub fn probe_in_memory(root: &Path) -> Result<OverlaySupport> {
    let root = root.canonicalize().map_err(Error::io("find", root))?;
    on_a_thread(&root, On::Tmpfs)
}

/// What it is tried on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Root,
    Tmpfs,
}

fn on_a_thread(root: &Path, on: On) -> Result<OverlaySupport> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-probe".to_owned())
            .spawn_scoped(scope, || apart(root, on))
            .map_err(Error::io("start a thread for", root))?;
        thread
            .join()
            .unwrap_or_else(|_panic| Err(refused("the probe panicked")))
    })
}

/// Leaves the mount namespace of the process, for this thread.
fn apart(root: &Path, on: On) -> Result<OverlaySupport> {
    let here = || Error::io("keep the mounts of the probe apart at", root);
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| here()(errno.into()))?;
    let none = None::<&str>;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    nix::mount::mount(none, "/", none, private, none).map_err(|errno| here()(errno.into()))?;
    if on == On::Tmpfs {
        let tmpfs = Some("tmpfs");
        nix::mount::mount(tmpfs, root, tmpfs, MsFlags::empty(), none)
            .map_err(|errno| here()(errno.into()))?;
    }
    support(&root.join(NAME))
}

fn support(at: &Path) -> Result<OverlaySupport> {
    tells_types(at)?;
    let user_xattr = match works(&at.join("plain"), &[]) {
        Ok(()) => false,
        Err(plain) => match works(&at.join("userxattr"), &["userxattr"]) {
            Ok(()) => true,
            Err(_) => return Err(plain),
        },
    };
    let with = |name: &str, word: &'static str| {
        let words: &[&str] = if user_xattr {
            &[word, "userxattr"]
        } else {
            &[word]
        };
        works(&at.join(name), words).is_ok()
    };
    Ok(OverlaySupport {
        index_off: with("index", "index=off"),
        user_xattr,
        volatile: with("volatile", "volatile"),
        mapped_lowers: maps_lowers(&at.join("mapped")).is_ok(),
    })
}

fn refused(why: &str) -> Error {
    Error::Precondition(format!("overlayfs does not work here: {why}"))
}

/// overlayfs hides whiteouts by the types that readdir(3) tells (d_type).
fn tells_types(at: &Path) -> Result<()> {
    let directory = at.join("types");
    make(&directory)?;
    let file = directory.join("file");
    File::create(&file).map_err(Error::io("make", &file))?;
    let failed = |errno: nix::Error| Error::io("list", &directory)(errno.into());
    let flags = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let mode = nix::sys::stat::Mode::empty();
    let mut listed = nix::dir::Dir::open(&directory, flags, mode).map_err(failed)?;
    for entry in listed.iter() {
        if entry.map_err(failed)?.file_type().is_none() {
            return Err(refused(&format!(
                "the file system of {} tells no file types to readdir(3); an xfs must be made \
                 anew with ftype=1",
                at.display()
            )));
        }
    }
    Ok(())
}

/// The directories of one overlay.
struct Scene {
    lowers: [PathBuf; 2],
    upper: PathBuf,
    work: PathBuf,
    merged: PathBuf,
}

impl Scene {
    fn make(at: &Path) -> Result<Self> {
        let directory = |name: &str| {
            let path = at.join(name);
            make(&path).map(|()| path)
        };
        let this = Self {
            lowers: [directory("lower-2")?, directory("lower-1")?],
            upper: directory("upper")?,
            work: directory("work")?,
            merged: directory("merged")?,
        };
        make(&this.lowers[1].join("folder/below"))?;
        let file = this.lowers[0].join("file");
        File::create(&file).map_err(Error::io("make", file))?;
        Ok(this)
    }

    fn mount(&self, words: &[&str]) -> Result<()> {
        let [first, second] = &self.lowers;
        let mut all = vec![
            format!("lowerdir={}:{}", first.display(), second.display()),
            format!("upperdir={}", self.upper.display()),
            format!("workdir={}", self.work.display()),
        ];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        let unfit = |error: mounts::OptionError| refused(&error.to_string());
        let mount = mounts::Mount {
            source: "overlay".to_owned(),
            target: String::new(),
            fstype: "overlay".to_owned(),
            options: MountOptions::parse(&all).map_err(unfit)?,
        };
        mounts::apply_host(&mount, &self.merged).map_err(|error| refused(&one_line(&error)))
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("make", path))
}

/// Mounts, copies up, removes and makes anew, as containers do.
fn works(at: &Path, words: &[&str]) -> Result<()> {
    let scene = Scene::make(at)?;
    scene.mount(words)?;
    let act = |what: &'static str, path: &Path| Error::io(what, path.to_owned());
    let (file, folder) = (scene.merged.join("file"), scene.merged.join("folder"));
    fs::write(&file, "copied up").map_err(act("write", &file))?;
    fs::remove_file(&file).map_err(act("remove", &file))?;
    fs::remove_dir_all(&folder).map_err(act("remove", &folder))?;
    fs::create_dir(&folder).map_err(act("make", &folder))?;
    let whiteout = scene.upper.join("file");
    let about = fs::symlink_metadata(&whiteout).map_err(act("look at", &whiteout))?;
    let is_opaque = fs::read_dir(&folder)
        .map_err(act("list", &folder))?
        .next()
        .is_none();
    if !about.file_type().is_char_device() || !is_opaque {
        return Err(refused("what is removed comes back"));
    }
    Ok(())
}

/// Whether a lower directory shows other owners when its mount maps them.
fn maps_lowers(at: &Path) -> Result<()> {
    let mut scene = Scene::make(at)?;
    let mapped = at.join("mapped-lower");
    make(&mapped)?;
    let range = || {
        vec![IdRange {
            inside: 0,
            outside: MAPPED_ROOT,
            count: 1,
        }]
    };
    let source = scene.lowers[0].display().to_string();
    let mut options = MountOptions::none();
    options.flags_set = MsFlags::MS_BIND.bits();
    options.extensions.push(Extension::IdMap(IdMap {
        scope: Scope::Mount,
        uids: range(),
        gids: range(),
    }));
    let mount = mounts::Mount {
        source,
        target: "mapped-lower".to_owned(),
        fstype: "bind".to_owned(),
        options,
    };
    let failed = |error: mounts::Error| refused(&one_line(&error));
    mounts::apply_under(&RootDir::open(at).map_err(failed)?, &mount).map_err(failed)?;
    scene.lowers[0] = mapped;
    scene.mount(&[])?;
    let file = scene.merged.join("file");
    let about = fs::metadata(&file).map_err(Error::io("look at", &file))?;
    if (about.uid(), about.gid()) == (MAPPED_ROOT, MAPPED_ROOT) {
        return Ok(());
    }
    Err(refused("a mapped lower directory shows its old owners"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_in_memory_finds_the_same_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let expected = probe(folder.path()).unwrap();
        let before = folder.path().metadata().unwrap().modified().unwrap();
        assert_eq!(probe_in_memory(folder.path()).unwrap(), expected);
        let after = folder.path().metadata().unwrap().modified().unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn a_probe_finds_what_works_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // As after a crash in the middle of another.
        fs::create_dir_all(folder.path().join("probe/plain/upper")).unwrap();
        let found = probe(folder.path()).unwrap();
        let release = nix::sys::utsname::uname().unwrap();
        let release = release.release().to_string_lossy().into_owned();
        let mut numbers = release
            .split('.')
            .map(|number| number.parse::<u32>().unwrap_or(0));
        let kernel = (numbers.next().unwrap(), numbers.next().unwrap());
        assert_eq!(found.index_off, kernel >= (4, 13));
        assert_eq!(found.volatile, kernel >= (5, 10));
        assert_eq!(found.mapped_lowers, kernel >= (5, 19));
        assert!(!found.user_xattr);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(mounts::mountinfo::below(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn a_file_system_that_cannot_be_an_upper_directory_is_refused() {
        let refusal = probe(Path::new("/proc/self/attr")).unwrap_err();
        assert!(matches!(refusal, Error::Io { .. }), "{refusal}");
    }
}
