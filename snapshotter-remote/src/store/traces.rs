//! The traces of a store: for each disk the last one of each of so many hosts, and what they agree on, which is what hosts get.
//!
//! ```text
//!  DIR/traces/1/CHAINID         what most agree on, as `trace` writes it
//!  DIR/traces/1/CHAINID.hosts   for each host its name and its trace, the last that came last
//! ```
//!
//! Both are hints: lost, or replaced by what another server of the same store has put, they cost time and nothing else, so nothing
//! is synced.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use disk::Digest;
use nix::libc::O_NOFOLLOW;
use object_store::PutMode;

use super::{
    directory::{entries, unreadable},
    objects::Objects,
};
use crate::{
    error::{Error, Result},
    fields::{self, Fields},
    signature::digest,
    trace::{self, Trace},
};

/// What the names of files begin with that were to become others.
const UNFINISHED: &str = ".tmp";

/// One that is as old is of a server that was killed.
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);

/// Hosts that have a vote; with one more, the one that came first has none.
const HOSTS_MAX: usize = 16;

/// Length of a host's name.
const NAME_BYTES_MAX: usize = 256;

/// Length of a file of votes.
const VOTES_BYTES_MAX: usize = HOSTS_MAX * (8 + NAME_BYTES_MAX + trace::BYTES_MAX) + 8;

/// Where the traces of a store lie, below its directory.
pub(super) fn directory(store: &Path) -> PathBuf {
    store.join(below())
}

/// The same below any store.
fn below() -> PathBuf {
    Path::new("traces").join(trace::VERSION.to_string())
}

/// The traces of a store.
#[derive(Debug)]
pub struct Traces {
    ground: Ground,
    /// One changes votes at a time.
    changing: Mutex<()>,
}

#[derive(Debug)]
enum Ground {
    /// The directory that they are in.
    Directory(PathBuf),
    Bucket(Objects),
}

impl Traces {
    /// Of the store in that directory.
    #[must_use]
    pub fn of(store: &Path) -> Self {
        Self {
            ground: Ground::Directory(directory(store)),
            changing: Mutex::default(),
        }
    }

    /// Of the store in a bucket.
    pub(super) fn of_bucket(objects: Objects) -> Self {
        Self {
            ground: Ground::Bucket(objects),
            changing: Mutex::default(),
        }
    }

    /// What hosts agree on, if there is something.
    ///
    /// # Errors
    /// What the file system or the bucket answers.
    pub fn get(&self, chain_id: Digest) -> Result<Option<Vec<u8>>> {
        self.ground.read(&chain_id.to_string(), trace::BYTES_MAX)
    }

    /// Takes the vote of a host, in place of its last one.
    ///
    /// # Errors
    /// What the file system or the bucket answers.
    pub fn put(&self, chain_id: Digest, host: &str, trace: Trace) -> Result<()> {
        let _mine = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let name = votes_of(chain_id);
        let kept = self.ground.read(&name, VOTES_BYTES_MAX)?;
        // What cannot be read any more is begun anew.
        let kept = kept.and_then(|bytes| decode(&name, &bytes).ok());
        let mut votes = kept.unwrap_or_default();
        let host = &host[..host.floor_char_boundary(NAME_BYTES_MAX)];
        votes.retain(|(name, _)| name != host);
        votes.push((host.to_owned(), trace));
        let first = votes.len().saturating_sub(HOSTS_MAX);
        votes.drain(..first);
        let traces: Vec<Trace> = votes.iter().map(|(_, trace)| trace.clone()).collect();
        self.ground.replace(&name, encode(&votes))?;
        let merged = Trace::merged(&traces).encode();
        self.ground.replace(&chain_id.to_string(), merged)
    }

    /// The disk is gone.
    ///
    /// # Errors
    /// What the file system or the bucket answers.
    pub fn remove(&self, chain_id: Digest) -> Result<()> {
        self.ground.remove(&chain_id.to_string())?;
        self.ground.remove(&votes_of(chain_id))
    }

    /// Files of disks that are not among these, and what servers that were killed left half, below the store, with their lengths.
    pub(super) fn waste(&self, disks: &BTreeSet<Digest>) -> Result<Vec<(PathBuf, u64)>> {
        let mut found = match &self.ground {
            Ground::Directory(directory) => waste_in(directory, disks)?,
            Ground::Bucket(objects) => {
                let listed = objects.list(&below().display().to_string())?.into_iter();
                let waste = listed.filter_map(|object| {
                    let name = object.location.filename()?;
                    // Nothing in a bucket is half.
                    is_waste(name, false, disks).then(|| (below().join(name), object.size))
                });
                waste.collect()
            }
        };
        found.sort();
        Ok(found)
    }
}

fn votes_of(chain_id: Digest) -> String {
    format!("{chain_id}.hosts")
}

impl Ground {
    fn read(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Directory(directory) => read(&directory.join(name), bytes_max),
            Self::Bucket(objects) => objects.read(&at(name), bytes_max),
        }
    }

    fn replace(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        match self {
            Self::Directory(directory) => {
                fs::create_dir_all(directory).map_err(failed("making", directory))?;
                replace(&directory.join(name), &bytes)
            }
            Self::Bucket(objects) => {
                let put = objects.write(&at(name), bytes, PutMode::Overwrite);
                put.map(drop)
            }
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(failed("removing", &path)(error))
                    }
                    _ => Ok(()),
                }
            }
            // It says nothing of what was not there.
            Self::Bucket(objects) => objects.delete(&at(name)),
        }
    }
}

/// An object of a bucket by its name among traces.
fn at(name: &str) -> String {
    below().join(name).display().to_string()
}

fn waste_in(directory: &Path, disks: &BTreeSet<Digest>) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in entries(directory)? {
        let about = entry.metadata();
        let about = about.map_err(|source| unreadable(&entry.path(), source))?;
        let age = about.modified().ok().and_then(|at| at.elapsed().ok());
        let is_old = age.is_some_and(|age| age >= UNFINISHED_FOR);
        let name = entry.file_name();
        let is_waste = name
            .to_str()
            .is_some_and(|name| is_waste(name, is_old, disks));
        if about.is_file() && is_waste {
            found.push((below().join(name), about.len()));
        }
    }
    Ok(found)
}

/// What has another name is not ours.
fn is_waste(name: &str, is_old: bool, disks: &BTreeSet<Digest>) -> bool {
    let chain_id = digest(name.strip_suffix(".hosts").unwrap_or(name));
    match chain_id {
        Some(chain_id) => !disks.contains(&chain_id),
        None => is_old && name.starts_with(UNFINISHED),
    }
}

fn failed<'p>(doing: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |source| Error::File {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// A file that is no link; longer ones are not there.
fn read(path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW)
        .open(path);
    let file: File = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| unreadable(path, source))?,
    };
    let mut bytes = Vec::new();
    let read = file.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| unreadable(path, source))?;
    Ok(Some(bytes).filter(|bytes| bytes.len() <= bytes_max))
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().expect("it lies in a directory of ours");
    let file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory);
    let mut file = file.map_err(failed("making a file in", directory))?;
    file.write_all(bytes).map_err(failed("writing", path))?;
    let placed = file.persist(path).map_err(|error| error.error);
    placed.map(drop).map_err(failed("writing", path))
}

fn encode(votes: &[(String, Trace)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&fields::count(votes.len()));
    for (host, trace) in votes {
        let trace = trace.encode();
        for part in [host.as_bytes(), &trace] {
            bytes.extend_from_slice(&fields::count(part.len()));
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

fn decode(object: &str, bytes: &[u8]) -> Result<Vec<(String, Trace)>> {
    let mut fields = Fields::new(object, bytes);
    let mut votes = Vec::new();
    for _ in 0..fields.count(8)? {
        let host = fields.bytes()?;
        let host = String::from_utf8(host.to_vec());
        let host = host.map_err(|_not_utf8| Error::damaged(object, "a host's name is no text"))?;
        votes.push((host, Trace::decode(object, fields.bytes()?)?));
    }
    fields.finish()?;
    Ok(votes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Step;

    fn trace(pieces: impl IntoIterator<Item = u32>) -> Trace {
        Trace::new(pieces.into_iter().map(|piece| Step { device: 0, piece }))
    }

    fn agreed(traces: &Traces) -> Option<Trace> {
        let bytes = traces.get(Digest([1; 32])).unwrap()?;
        Some(Trace::decode("trace", &bytes).unwrap())
    }

    #[test]
    fn each_host_has_one_vote_and_those_who_came_first_make_room() {
        let store = tempfile::tempdir().unwrap();
        let traces = Traces::of(store.path());
        let put = |host: &str, trace| traces.put(Digest([1; 32]), host, trace).unwrap();
        assert_eq!(agreed(&traces), None);
        put("a", trace([1, 2]));
        assert_eq!(agreed(&traces), Some(trace([1, 2])));
        for _ in 0..5 {
            put("b", trace([3]));
        }
        assert_eq!(agreed(&traces), Some(trace([1, 3, 2])), "one vote each");
        put("c", trace([3, 1]));
        assert_eq!(agreed(&traces), Some(trace([1, 3])));
        for host in 0..HOSTS_MAX {
            put(&format!("host{host}"), trace([7]));
        }
        assert_eq!(agreed(&traces), Some(trace([7])));
        let votes = store
            .path()
            .join(format!("traces/1/{}.hosts", Digest([1; 32])));
        fs::write(&votes, [9]).unwrap();
        put(&"long".repeat(100), trace([8]));
        assert_eq!(agreed(&traces), Some(trace([8])), "begun anew");
        traces.remove(Digest([1; 32])).unwrap();
        assert!(agreed(&traces).is_none() && !votes.exists());
        traces.remove(Digest([1; 32])).unwrap();
    }

    #[test]
    fn traces_of_disks_that_are_gone_are_waste_and_what_was_left_half() {
        let store = tempfile::tempdir().unwrap();
        let traces = Traces::of(store.path());
        let [gone, stays] = [Digest([1; 32]), Digest([2; 32])];
        let disks = BTreeSet::from([stays]);
        assert_eq!(traces.waste(&disks).unwrap(), []);
        for chain_id in [gone, stays] {
            traces.put(chain_id, "a", trace([1])).unwrap();
        }
        let at = |name: &str| Path::new("traces/1").join(name);
        for (name, hours) in [(".tmpOLD", 2), (".tmpNEW", 0), ("note", 2)] {
            let file = File::create(store.path().join(at(name))).unwrap();
            let time = std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
            file.set_modified(time).unwrap();
        }
        let found = traces.waste(&disks).unwrap().into_iter();
        let found: Vec<PathBuf> = found.map(|(path, _)| path).collect();
        let expected = [".tmpOLD", &gone.to_string(), &format!("{gone}.hosts")].map(at);
        assert_eq!(found, expected);
    }

    #[test]
    fn links_are_not_followed() {
        let store = tempfile::tempdir().unwrap();
        let traces = Traces::of(store.path());
        let directory = store.path().join("traces/1");
        fs::create_dir_all(&directory).unwrap();
        let secret = store.path().join("key");
        fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, directory.join(Digest([1; 32]).to_string())).unwrap();
        assert!(traces.get(Digest([1; 32])).is_err());
    }
}
