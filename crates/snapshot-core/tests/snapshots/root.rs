//! A root with snapshots in it, and what can be seen of it from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use snapshot_core::{
    CommitRequest, Filter, Info, Key, Labels, Limits, Mount, Result, Snapshots, Threads,
};

use crate::driver::TestDriver;

pub(crate) struct Root {
    pub(crate) folder: tempfile::TempDir,
    at: PathBuf,
    pub(crate) driver: Arc<TestDriver>,
    /// None while it is closed.
    open: Option<Snapshots>,
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Threads of a service whose requests wait as long as a test may take.
pub(crate) fn threads(threads_max: usize) -> Threads {
    let long = Duration::from_secs(60);
    let limits = Limits {
        wait: long,
        run: long,
    };
    Threads::new(threads_max, limits)
}

impl Root {
    pub(crate) fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    pub(crate) fn within(folder: tempfile::TempDir) -> Self {
        let at = folder.path().to_owned();
        Self::of(folder, at)
    }

    /// Below a directory that somebody else takes away.
    pub(crate) fn at(path: &Path) -> Self {
        Self::of(tempfile::tempdir().unwrap(), path.join("root"))
    }

    fn of(folder: tempfile::TempDir, at: PathBuf) -> Self {
        let mut this = Self {
            folder,
            at,
            driver: TestDriver::new(),
            open: None,
        };
        this.reopen();
        this
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.at.join(below)
    }

    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    pub(crate) fn try_open(&mut self) -> Result<()> {
        self.open = None;
        let driver = Arc::clone(&self.driver);
        self.open = Some(Snapshots::open(&self.at, driver)?);
        Ok(())
    }

    pub(crate) fn reopen(&mut self) {
        self.try_open().unwrap();
    }

    pub(crate) fn snapshots(&self) -> &Snapshots {
        self.open.as_ref().unwrap()
    }

    pub(crate) fn prepare(&self, name: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        let parent = parent.map(key);
        self.snapshots()
            .prepare(&key(name), parent.as_ref(), Labels::new())
    }

    pub(crate) fn view(&self, name: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        let parent = parent.map(key);
        self.snapshots()
            .view(&key(name), parent.as_ref(), Labels::new())
    }

    pub(crate) fn commit(&self, name: &str, active: &str, parent: Option<&str>) -> Result<()> {
        self.snapshots().commit(CommitRequest {
            name: key(name),
            key: key(active),
            parent: parent.map(key),
            labels: Labels::new(),
        })
    }

    /// A committed snapshot.
    pub(crate) fn layer(&self, name: &str, parent: Option<&str>) {
        self.prepare("layer in the making", parent).unwrap();
        self.commit(name, "layer in the making", None).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.snapshots().remove(&key(name))
    }

    pub(crate) fn list(&self, filters: &[&str]) -> Vec<Info> {
        let filter = Filter::parse(filters).unwrap();
        let pages = self.snapshots().listing(filter).unwrap();
        pages.flat_map(Result::unwrap).collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let infos = self.list(&[]).into_iter();
        infos.map(|info| info.name.to_string()).collect()
    }

    /// The names below `snapshots`, sorted.
    pub(crate) fn directories(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("snapshots"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The directory of an active snapshot or a view, by its mounts.
    pub(crate) fn directory_of(&self, name: &str) -> PathBuf {
        directory(&self.snapshots().mounts(&key(name)).unwrap())
    }

    /// What the file beside the contents says.
    pub(crate) fn sidecar(directory: &Path) -> serde_json::Value {
        let text = fs::read(directory.join("snapshot.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

/// The directory of a snapshot that is mounted writable, or has no parent.
pub(crate) fn directory(mounts: &[Mount]) -> PathBuf {
    let [mount] = mounts else {
        panic!("{mounts:?}");
    };
    let upper = mount
        .options
        .iter()
        .find_map(|word| word.strip_prefix("upperdir="));
    let contents = Path::new(upper.unwrap_or(&mount.source));
    contents.parent().unwrap().to_owned()
}
