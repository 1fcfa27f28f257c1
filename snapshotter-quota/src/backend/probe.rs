//! Which back ends work here: each is tried as it will be used. A snapshot with a limit is made,
//! mounted by overlay and written to until that fails; then all of it is taken away again.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use snapshot_core::{Error, Key, Result, SnapshotId};
use sys::btrfs::{self, QuotaMode};

use super::{
    Abilities, Backend, Btrfs, Full, Held, Image, ImageOptions, Kind, Left, Plain, Pool,
    PoolOptions, Prjquota, ProjectRange, Record, Tmpfs, directories,
    filesystem_maker::XFS_BYTES_MIN, mounted,
};
use crate::limit::{Limit, Mode, Size};

/// What back ends are opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// For `prjquota` and `pool`.
    pub projects: ProjectRange,
    /// For `image`.
    pub image: ImageOptions,
    /// For `pool`.
    pub pool: PoolOptions,
}

/// The order in which one is chosen that works; the others come by configuration only.
pub const AUTOMATIC: [Kind; 4] = [Kind::Prjquota, Kind::Btrfs, Kind::Pool, Kind::Image];

/// The limit that is tried.
const BYTES: u64 = 8 << 20;

/// Numbers at the end of the range that are tried; a real snapshot has none of them for a long
/// time, and if it has, the quota of its id is seen and left alone.
const ATTEMPTS_MAX: u64 = 16;

/// Tries a back end on the file system of `root`, which is there; nothing stays.
///
/// # Errors
/// Why it does not work there, and what to do.
pub fn probe(kind: Kind, root: &Path, options: &Options) -> Result<Abilities> {
    let trial = Trial::new(kind, root)?;
    match kind {
        Kind::Prjquota => trial.run(&Prjquota::open(root, options.projects)?, options.projects),
        Kind::Btrfs => {
            let quota = BtrfsQuota::of(root)?;
            let tried = Btrfs::open(root).and_then(|backend| trial.run(&backend, options.projects));
            quota.restore(root)?;
            tried
        }
        Kind::Pool => trial.pool(options.projects),
        Kind::Image => {
            let options = ImageOptions {
                fs: None,
                ..options.image
            };
            let backend = Image::new(&trial.folder, options);
            trial.run(&backend, ProjectRange::default())
        }
        Kind::Tmpfs => trial.run(&Tmpfs, options.projects),
        Kind::None => Ok(Plain::default().abilities()),
    }
}

/// Whether quota was on before.
struct BtrfsQuota(Option<QuotaMode>);

impl BtrfsQuota {
    fn of(root: &Path) -> Result<Self> {
        let open = directories::open(root)?;
        let is_btrfs = btrfs::is_btrfs(&open).map_err(Error::io("look at", root))?;
        let mode = is_btrfs.then(|| btrfs::quota_mode(&open));
        let mode = mode.transpose();
        Ok(Self(
            mode.map_err(Error::io("ask for the quota mode of", root))?,
        ))
    }

    /// Whoever only asks must not find quota on afterwards.
    fn restore(&self, root: &Path) -> Result<()> {
        if self.0 != Some(QuotaMode::Off) {
            return Ok(());
        }
        let open = directories::open(root)?;
        btrfs::disable_quota(&open).map_err(Error::io("switch quota off for", root))
    }
}

/// A folder for one trial; whatever comes of it, it is gone afterwards.
#[derive(Debug)]
struct Trial {
    kind: Kind,
    folder: PathBuf,
}

impl Trial {
    fn new(kind: Kind, root: &Path) -> Result<Self> {
        let root = root.canonicalize().map_err(Error::io("find", root))?;
        clear_stale(&root)?;
        let this = Self {
            kind,
            folder: root.join(format!("probe-{}-{kind}", std::process::id())),
        };
        for path in [&this.folder, &this.lower(), &this.merged()] {
            directories::make_one(path, 0o700)?;
        }
        Ok(this)
    }

    fn lower(&self) -> PathBuf {
        self.folder.join("empty")
    }

    fn merged(&self) -> PathBuf {
        self.folder.join("merged")
    }

    /// A whole pool, as small as can be.
    fn pool(&self, projects: ProjectRange) -> Result<Abilities> {
        let options = PoolOptions {
            bytes: Some(XFS_BYTES_MIN),
        };
        let pool = Pool::open(&self.folder, options)?;
        let backend = pool.backend(projects)?;
        self.run_in(pool.root(), &backend, projects)
    }

    fn run(&self, backend: &dyn Backend, projects: ProjectRange) -> Result<Abilities> {
        self.run_in(&self.folder, backend, projects)
    }

    fn run_in(
        &self,
        root: &Path,
        backend: &dyn Backend,
        projects: ProjectRange,
    ) -> Result<Abilities> {
        let directory = root.join("snapshot");
        directories::make_one(&directory, 0o700)?;
        let (id, record) = create(backend, &directory, projects)?;
        let key = Key::new("trial")?;
        let held = Held {
            id,
            key: &key,
            directory: &directory,
            record: &record,
        };
        let tried = self.write_until_full(backend, &held);
        let left = Left {
            id,
            directory: &directory,
            record: Some(&record),
        };
        take_away(backend, &left)?;
        tried?;
        Ok(backend.abilities())
    }

    fn write_until_full(&self, backend: &dyn Backend, held: &Held<'_>) -> Result<()> {
        let merged = self.merged();
        let (upper, work) = (
            held.record.upper(held.directory),
            held.record.work(held.directory),
        );
        let words = [
            format!("lowerdir={}", self.lower().display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        mounted::apply(&merged, "overlay", Path::new("overlay"), &words)?;
        let refused = write(&merged.join("file"), 2 * BYTES);
        let unmounted = mounts::unmount_tree(&merged);
        unmounted.map_err(|error| Error::io("unmount", &merged)(std::io::Error::other(error)))?;
        let expected = match backend.abilities().full {
            Full::QuotaExceeded => Errno::EDQUOT,
            Full::NoSpace => Errno::ENOSPC,
            Full::Never => return Ok(()),
        };
        match refused {
            Err(error) if error.raw_os_error() == Some(expected as i32) => Ok(()),
            Err(error) => Err(Error::io("write to", &merged)(error)),
            Ok(()) => Err(Error::Precondition(format!(
                "a limit of {BYTES} bytes by {} was set, and {} were written nevertheless",
                self.kind,
                2 * BYTES
            ))),
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.folder) {
            let folder = self.folder.display();
            tracing::warn!(%folder, %error, "what a probe made could not be taken away");
        }
    }
}

/// A snapshot whose number nobody has.
fn create(
    backend: &dyn Backend,
    directory: &Path,
    projects: ProjectRange,
) -> Result<(SnapshotId, Record)> {
    let limit = Limit {
        mode: Mode::Hard,
        bytes: Size::from_bytes(BYTES),
        ..Limit::counted()
    };
    let last = u64::from(projects.last().0 - projects.first().0);
    let mut attempt = 0;
    loop {
        let id = SnapshotId(last - attempt);
        match backend.create(directory, id, &limit) {
            Ok(record) => return Ok((id, record)),
            Err(Error::Precondition(_)) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// As when a snapshot is removed; some file systems give things back in the background.
fn take_away(backend: &dyn Backend, left: &Left<'_>) -> Result<()> {
    backend.release(left)?;
    let folder = left.directory.parent().unwrap_or(left.directory);
    fs::remove_dir_all(left.directory).map_err(Error::io("remove", left.directory))?;
    backend.forget(left)?;
    let open = directories::open(folder)?;
    for _ in 0..100 {
        if backend.sweep()?.strays.is_empty() {
            return Ok(());
        }
        nix::unistd::syncfs(&open).map_err(|errno| Error::io("sync", folder)(errno.into()))?;
        if btrfs::is_btrfs(&open).map_err(Error::io("look at", folder))? {
            btrfs::sync(&open).map_err(Error::io("sync", folder))?;
        }
    }
    // What is left is found at the start of the daemon.
    Ok(())
}

/// Writes what no file system makes smaller.
fn write(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = Vec::with_capacity(1 << 16);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    while block.len() < 1 << 16 {
        // George Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    for number in 0..bytes >> 16 {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Takes away what a killed probe left.
fn clear_stale(root: &Path) -> Result<()> {
    let failed = || Error::io("list", root);
    for entry in fs::read_dir(root).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| {
            let (process, _) = name.strip_prefix("probe-")?.split_once('-')?;
            process.parse::<u32>().ok()
        });
        let is_stale =
            process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
        if is_stale {
            clear(&entry.path())?;
        }
    }
    Ok(())
}

fn clear(folder: &Path) -> Result<()> {
    mounts::unmount_tree(folder)
        .map_err(|error| Error::io("unmount", folder)(std::io::Error::other(error)))?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("remove", folder)),
    }
}
