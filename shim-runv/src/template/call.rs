//! What is asked of holders, and what they answer.
//!
//! ```text
//!   TAKE          ->  a report, with memory and state as descriptors
//!   LOOK          ->  a report
//!   END           ->  a report, and the holder is gone
//!   REFUSE why    ->  the same, and nobody makes another one for a while
//! ```
//! Each on a connection of its own, whose end is that of the question, and of the answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::make::STATE_BYTES_MAX;
use super::place::{Retry, contents};
use super::{Key, Places};
use crate::{Error, Result};

/// The words.
pub(crate) const TAKE: u8 = b't';
pub(crate) const LOOK: u8 = b'l';
pub(crate) const END: u8 = b'e';
pub(crate) const REFUSE: u8 = b'r';

/// What each side waits for the other: whoever does not answer at once is not there.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// What a holder says of its template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The holder.
    pub pid: u32,
    /// Memory of the machine in MiB.
    pub memory_mib: u64,
    /// Its processors.
    pub processors: u32,
    /// Its links.
    pub links: usize,
    /// None as long as it is being made.
    pub held: Option<HeldReport>,
}

/// What of one that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReport {
    /// What the host gives for it, in bytes: what its machine had touched when it was stopped.
    pub bytes: u64,
    /// Since it was made.
    pub age_s: u64,
    /// Since somebody took it.
    pub unused_s: u64,
    /// How often that was.
    pub uses: u64,
}

/// A template, for a machine to go on from.
#[derive(Debug)]
pub struct Template {
    pub(crate) key: Key,
    memory: OwnedFd,
    state: Arc<Vec<u8>>,
    places: Places,
}

/// Who keeps the state of a key's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// It is there.
    Held(Report),
    /// Somebody makes it.
    Making,
    /// It could not be made, and why.
    Failed(String),
    /// Somebody was killed who made or held it.
    Left,
}

fn ask(places: &Places, key: &Key, word: &[u8]) -> Option<(Report, Vec<OwnedFd>)> {
    let mut holder = places.connect(key)?;
    // One that breaks off is one that is not there.
    answer(&mut holder, word).ok()
}

fn answer(holder: &mut UnixStream, word: &[u8]) -> io::Result<(Report, Vec<OwnedFd>)> {
    holder.set_read_timeout(Some(LIMIT))?;
    holder.set_write_timeout(Some(LIMIT))?;
    holder.write_all(word)?;
    holder.shutdown(Shutdown::Write)?;
    let mut buffer = [0; ANSWER_BYTES_MAX];
    let (first, files, _) = sys::recv_with_fds(&*holder, &mut buffer)?;
    let mut text = buffer[..first].to_vec();
    let rest = ANSWER_BYTES_MAX.saturating_sub(first);
    holder.take(rest as u64).read_to_end(&mut text)?;
    let report = serde_json::from_slice(&text).map_err(io::Error::other)?;
    Ok((report, files))
}

/// Takes the template of that key; none when there is none.
pub(crate) fn take(places: &Places, key: &Key) -> Option<Template> {
    let (_, files) = ask(places, key, &[TAKE])?;
    let [memory, state] = <[OwnedFd; 2]>::try_from(files).ok()?;
    let state = contents(&File::from(state), STATE_BYTES_MAX).ok()?;
    Some(Template {
        key: key.clone(),
        memory,
        state: Arc::new(state),
        places: places.clone(),
    })
}

impl Template {
    /// Its memory, and a pipe with the state of its devices, for one machine that goes on from it.
    pub(crate) fn parts(&self) -> Result<(OwnedFd, OwnedFd)> {
        let failed = || Error::io("make a pipe");
        let (state, out) = sys::pipe_cloexec().map_err(failed())?;
        let bytes = Arc::clone(&self.state);
        let thread = std::thread::Builder::new().name("state".to_owned());
        thread
            .spawn(move || {
                // A QEMU that has ended takes no more, and says itself why.
                let _gone = File::from(out).write_all(&bytes);
            })
            .map_err(Error::io("start a thread"))?;
        let memory = self.memory.try_clone();
        let memory = memory.map_err(Error::io("duplicate a descriptor"))?;
        Ok((memory, state))
    }

    /// No machine could go on from it: it is thrown away, and none like it made for a while.
    pub(crate) fn refuse(&self, why: &str) {
        let mut word = vec![REFUSE];
        word.extend_from_slice(why.as_bytes());
        // A holder that is gone holds none.
        let _gone = ask(&self.places, &self.key, &word);
    }
}

/// Whether the template of that key can be taken.
pub(crate) fn is_held(places: &Places, key: &Key) -> bool {
    ask(places, key, &[LOOK]).is_some_and(|(report, _)| report.held.is_some())
}

/// All that is known of templates, by their keys.
///
/// # Errors
/// When their folder cannot be read.
pub fn list(places: &Places) -> Result<Vec<(Key, Listed)>> {
    let look = |key: Key| {
        let listed = match ask(places, &key, &[LOOK]) {
            Some((report, _)) if report.held.is_some() => Listed::Held(report),
            Some(_) => Listed::Making,
            None if places.is_claimed(&key) => Listed::Making,
            None => places.failure(&key).map_or(Listed::Left, Listed::Failed),
        };
        (key, listed)
    };
    Ok(places.keys()?.into_iter().map(look).collect())
}

/// Throws away the template of that key, also one that is being made, and all that is left of one.
///
/// # Errors
/// [`Error::Usage`] for one whose holder does not answer.
pub fn end(places: &Places, key: &Key) -> Result<()> {
    // Once it has answered, its files are gone; it is when the connection ends.
    let ended = ask(places, key, &[END]);
    places.sweep(key, Retry::Now)?;
    match ended.is_none() && places.is_claimed(key) {
        true => Err(Error::Usage(format!(
            "template {key}: its holder does not answer"
        ))),
        false => Ok(()),
    }
}
