//! Objects by name: each is put once, whole and synced, or is not there.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use disk::{Digest, FORMAT_VERSION};
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, path::Path as ObjectPath,
};

use super::{
    Traces,
    bucket::{self, Bucket},
    directory::Directory,
    name::Name,
    place::Place,
};
use crate::{
    chunk::ChunkId,
    driver::Driver,
    error::{Error, Result},
    signature::digest,
};

/// How often an object is put that another one puts, which may take as long as it may to send it.
const PUTS_MAX: u32 = 60;
const PUT_PAUSE: Duration = Duration::from_secs(2);

/// How long a server of a bucket waits for the next bytes of an answer: its hosts may turn to another.
const READ_SILENCE: Duration = Duration::from_secs(20);

/// The objects of a store; copies are of the same.
#[derive(Debug, Clone)]
pub struct Objects {
    objects: Arc<dyn ObjectStore>,
    /// Carries what is asynchronous for callers that are not.
    driver: Arc<Driver>,
    ground: Ground,
}

/// What a store stands on.
#[derive(Debug, Clone)]
pub(super) enum Ground {
    Directory(Directory),
    Bucket(Bucket),
}

impl Objects {
    /// Those of a store there; a directory is made if it is not there, a bucket has to be.
    pub(crate) fn at(place: &Place) -> Result<Self> {
        let (ground, objects) = match place {
            Place::Directory(path) => {
                let directory = Directory::create(path)?;
                let objects: Arc<dyn ObjectStore> = Arc::new(directory.objects()?);
                (Ground::Directory(directory), objects)
            }
            Place::Bucket(name, config) => {
                let (bucket, objects) = Bucket::reach(name, config)?;
                (Ground::Bucket(bucket), objects)
            }
        };
        let driver = Driver::start("store-objects").map_err(|source| Error::File {
            doing: "starting the thread of",
            path: place.to_string().into(),
            source,
        })?;
        Ok(Self {
            objects,
            driver: Arc::new(driver),
            ground,
        })
    }

    /// Those of a bucket in this process's memory.
    #[cfg(test)]
    pub(super) fn in_memory(pace: super::lease::Pace) -> Self {
        Self {
            objects: Arc::new(object_store::memory::InMemory::new()),
            driver: Arc::new(Driver::start("store-objects").expect("a thread")),
            ground: Ground::Bucket(Bucket::nowhere(pace)),
        }
    }

    /// The same for somebody who knows that one is dead.
    #[cfg(test)]
    pub(super) fn forgetting(&self, word: &str) -> Self {
        let mut this = self.clone();
        if let Ground::Bucket(bucket) = &mut this.ground {
            bucket.forget.push(word.parse().expect("a word"));
        }
        this
    }

    /// What they stand on.
    pub(super) fn ground(&self) -> &Ground {
        &self.ground
    }

    /// What hosts have told of its disks.
    pub(super) fn traces(&self) -> Traces {
        match &self.ground {
            Ground::Directory(directory) => Traces::of(directory.path()),
            Ground::Bucket(_) => Traces::of_bucket(self.clone()),
        }
    }

    /// A file without a name that has room for a blob.
    pub(super) fn scratch(&self) -> Result<File> {
        match &self.ground {
            Ground::Directory(directory) => directory.scratch(),
            Ground::Bucket(_) => Bucket::scratch(),
        }
    }

    /// Waits until the names in an object's directory are on the disk, whoever made or removed them. What
    /// has a name has its contents on the disk, but another who puts it may not have come further; so
    /// this comes between finding an object and putting one that leads to it. What a bucket has is there for good.
    pub(super) fn sync_directory_of(&self, name: Name) -> Result<()> {
        match &self.ground {
            Ground::Directory(directory) => directory.sync(name),
            Ground::Bucket(_) => Ok(()),
        }
    }

    /// Refuses a store in which disks of another format are.
    pub(super) fn only_our_format(&self) -> Result<()> {
        match &self.ground {
            Ground::Directory(directory) => directory.only_our_format(),
            Ground::Bucket(_) => self.only_our_format_below("disks"),
        }
    }

    /// What was to become objects, with its lengths. It is waste while nobody adds.
    pub(super) fn leftovers(&self) -> Result<Vec<(PathBuf, u64)>> {
        match &self.ground {
            Ground::Directory(directory) => directory.leftovers(),
            // What is not whole is not there; who was killed is forgotten by who has the lease.
            Ground::Bucket(_) => Ok(Vec::new()),
        }
    }

    /// One of these, or of [`Traces::waste`].
    pub(super) fn remove_leftover(&self, below: &Path) -> Result<()> {
        match &self.ground {
            Ground::Directory(directory) => directory.remove_leftover(below),
            Ground::Bucket(_) => self.delete(&below.display().to_string()),
        }
    }

    /// An object's bytes.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Damaged`] for more than `bytes_max`, what the store answers.
    pub fn get(&self, name: Name, bytes_max: usize) -> Result<Vec<u8>> {
        let object = name.to_string();
        match self.read(&object, bytes_max)? {
            Some(bytes) => Ok(bytes),
            None => Err(Error::Absent { object }),
        }
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// What the store answers.
    pub fn has(&self, name: Name) -> Result<bool> {
        Ok(self.look(&name.to_string())?.is_some())
    }

    /// What is known of what lies at a path below the store, if something does.
    pub(super) fn look(&self, path: &str) -> Result<Option<ObjectMeta>> {
        let at = ObjectPath::from(path);
        match self.driver.block_on(self.objects.head(&at)) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if bucket::is_absent(&error) => Ok(None),
            Err(source) => Err(self.failed("looking for", &path, source)),
        }
    }

    /// Puts an object, if it is not there: what has its name is the same.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) fn put(&self, name: Name, bytes: Vec<u8>) -> Result<()> {
        let payload = PutPayload::from(bytes);
        let mut puts = 0;
        loop {
            puts += 1;
            let options = PutOptions::from(PutMode::Create);
            let path = name.path();
            let put = self.objects.put_opts(&path, payload.clone(), options);
            match self.driver.block_on(put) {
                Ok(_) => return Ok(()),
                Err(source @ object_store::Error::AlreadyExists { .. }) => match &self.ground {
                    Ground::Directory(directory) => return directory.sync(name),
                    Ground::Bucket(_) if self.has(name)? => return Ok(()),
                    // Another was at it at the same time, and did not get there.
                    Ground::Bucket(_) if puts < PUTS_MAX => {
                        self.pause(PUT_PAUSE);
                        if self.has(name)? {
                            return Ok(());
                        }
                    }
                    Ground::Bucket(_) => return Err(self.failed("writing", &name, source)),
                },
                Err(source) => return Err(self.failed("writing", &name, source)),
            }
        }
    }

    /// Takes an object away.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) fn remove(&self, name: Name) -> Result<()> {
        self.delete(&name.to_string())
    }

    /// All disks, by chainID.
    ///
    /// # Errors
    /// What the store answers.
    pub fn disks(&self) -> Result<Vec<Digest>> {
        let disks = self.names(&format!("disks/{FORMAT_VERSION}"))?;
        Ok(disks.into_iter().map(|(name, _)| name).collect())
    }

    /// All stored layers, by diffID, with their lengths.
    pub(crate) fn layers(&self) -> Result<Vec<(Digest, u64)>> {
        self.names(&format!("layers/{FORMAT_VERSION}"))
    }

    /// All tables of blobs, with their lengths.
    pub(crate) fn tables(&self) -> Result<Vec<([u8; 32], u64)>> {
        let names = self.names("tables")?.into_iter();
        Ok(names.map(|(name, bytes)| (name.0, bytes)).collect())
    }

    /// All chunks whose names begin with that byte, with their lengths in the store.
    pub(crate) fn chunks(&self, first: u8) -> Result<Vec<(ChunkId, u64)>> {
        let names = self.names(&format!("chunks/{first:02x}"))?.into_iter();
        Ok(names
            .map(|(name, bytes)| (ChunkId(name.0), bytes))
            .collect())
    }

    /// What in that directory is the name of an object; anything else is not ours.
    fn names(&self, directory: &str) -> Result<Vec<(Digest, u64)>> {
        let listed = self.list(directory)?;
        let names = listed
            .iter()
            .filter_map(|object| Some((digest(object.location.filename()?)?, object.size)));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Everything right below a directory.
    pub(super) fn list(&self, directory: &str) -> Result<Vec<ObjectMeta>> {
        let prefix = ObjectPath::from(directory);
        let listed = self.objects.list_with_delimiter(Some(&prefix));
        let listed = self.driver.block_on(listed);
        let listed = listed.map_err(|source| self.failed("listing", &directory, source))?;
        Ok(listed.objects)
    }

    fn only_our_format_below(&self, directory: &str) -> Result<()> {
        let prefix = ObjectPath::from(directory);
        let listed = self.objects.list_with_delimiter(Some(&prefix));
        let listed = self.driver.block_on(listed);
        let listed = listed.map_err(|source| self.failed("listing", &directory, source))?;
        let ours = FORMAT_VERSION.to_string();
        let mut formats = listed.common_prefixes.iter();
        match formats.find(|format| format.filename() != Some(ours.as_str())) {
            Some(other) => Err(Error::OtherFormat {
                object: format!("{}/{other}", self.shown()),
            }),
            None => Ok(()),
        }
    }

    /// What lies at a path below the store, if something does.
    pub(super) fn read(&self, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let at = ObjectPath::from(path);
        let read = async {
            let answer = self.objects.get_opts(&at, GetOptions::default()).await?;
            if answer.meta.size > u64::try_from(bytes_max).unwrap_or(u64::MAX) {
                return Ok(None);
            }
            answer.bytes().await.map(Some)
        };
        match self.driver.block_on(read) {
            Ok(Some(bytes)) => Ok(Some(bytes.into())),
            Ok(None) => Err(Error::damaged(path, "it is longer than it may be")),
            Err(error) if bucket::is_absent(&error) => Ok(None),
            Err(source) => Err(self.failed("reading", &path, source)),
        }
    }

    /// Begins to read what lies at a path below the store from a byte on, if something does; `version` is that which it has to be.
    pub(super) fn begin(
        &self,
        path: &str,
        at: u64,
        version: Option<&str>,
    ) -> Result<Option<GetResult>> {
        let options = GetOptions {
            range: (at > 0).then_some(GetRange::Offset(at)),
            if_match: version.map(str::to_owned),
            ..GetOptions::default()
        };
        let location = ObjectPath::from(path);
        match self.in_time(self.objects.get_opts(&location, options)) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if bucket::is_absent(&error) => Ok(None),
            Err(source) => Err(self.failed("reading", &path, source)),
        }
    }

    /// Waits for a part of an answer, not too long.
    pub(super) fn in_time<T>(
        &self,
        part: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let in_time = async { tokio::time::timeout(READ_SILENCE, part).await };
        let silent = |elapsed| object_store::Error::Generic {
            store: "S3",
            source: Box::new(elapsed),
        };
        self.driver.block_on(in_time).map_err(silent).flatten()
    }

    /// What a broken answer means.
    pub(super) fn broken(&self, name: Name, source: std::io::Error) -> Error {
        let source = object_store::Error::Generic {
            store: "S3",
            source: Box::new(source),
        };
        self.failed("reading", &name, source)
    }

    /// Puts something at a path below the store; says whether it did, or what is there, or is not, is in the way of it.
    pub(super) fn write(&self, path: &str, bytes: Vec<u8>, mode: PutMode) -> Result<bool> {
        let at = ObjectPath::from(path);
        let put = self
            .objects
            .put_opts(&at, PutPayload::from(bytes), PutOptions::from(mode));
        match self.driver.block_on(put) {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(source) => Err(self.failed("writing", &path, source)),
        }
    }

    /// Takes away what lies at a path below the store.
    pub(super) fn delete(&self, path: &str) -> Result<()> {
        let at = ObjectPath::from(path);
        let removed = self.driver.block_on(self.objects.delete(&at));
        removed.map_err(|source| self.failed("removing", &path, source))
    }

    /// Lets time go by.
    pub(super) fn pause(&self, time: Duration) {
        self.driver
            .block_on(async { tokio::time::sleep(time).await });
    }

    /// The store, as people are told of it.
    pub(super) fn shown(&self) -> String {
        match &self.ground {
            Ground::Directory(directory) => directory.path().display().to_string(),
            Ground::Bucket(bucket) => bucket.name.to_string(),
        }
    }

    fn failed(
        &self,
        doing: &'static str,
        object: &dyn fmt::Display,
        source: object_store::Error,
    ) -> Error {
        let object = object.to_string();
        match &self.ground {
            Ground::Directory(_) => Error::Objects {
                doing,
                object,
                source: Box::new(source),
            },
            Ground::Bucket(bucket) => bucket.failed(doing, object, &source),
        }
    }
}
