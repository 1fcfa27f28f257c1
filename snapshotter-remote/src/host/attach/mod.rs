//! Back ends: how a blob of the cache becomes what the kernel reads. Which works is tried, not assumed.
//!
//! | back end | needs | a container starts | without the daemon |
//! |---|---|---|---|
//! | `lazy` | pre-content events of fanotify (6.14), EROFS from files, fd-holder | at once: what is read is fetched then | readers of what is not here wait |
//! | `fuse` | FUSE, EROFS from files that go past the kernel's memory of them (6.13) or from loop devices (5.16), fd-holder | the same | all readers wait |
//! | `copy` | EROFS from files (6.12) or loop devices (5.16) | when the whole disk is here | goes on |

mod copy;
mod fuse;
mod lazy;
mod mount;

use std::{fmt, fs::File, path::Path, str::FromStr, sync::Arc};

use disk::Digest;
use serde::Deserialize;
use snapshot_core::{Error, Result, daemon::suggestion};

pub(super) use copy::Copy;
pub(super) use fuse::Fuse;
pub(super) use lazy::Lazy;
pub(super) use mount::{Carrier, Memory, is_mounted, mount};

use super::{
    blob::{Blob, Hidden},
    lazy::{Faults, MountedDisk},
    opens::Reads,
    probe::Trial,
};

/// A back end.
pub(super) trait Attach: fmt::Debug + Send + Sync {
    /// Which it is.
    fn kind(&self) -> Kind;

    /// What the kernel gets the files by.
    fn carrier(&self) -> Carrier;

    /// Blobs that are open from the beginning; told once.
    fn opened(&self) -> Vec<Arc<Blob>>;

    /// The files by which these blobs can be mounted: from when this returns, whoever reads of them reads
    /// what was verified, or an error.
    ///
    /// # Errors
    /// What keeps them from being fetched.
    fn open(&self, blobs: &[Arc<Blob>]) -> Result<Vec<File>>;

    /// These blobs have been mounted, or could not be.
    fn settle(&self, blobs: &[Arc<Blob>]);

    /// A disk has just been mounted, and nobody has read of it yet.
    fn mounted(&self, _disk: MountedDisk) {}

    /// Nobody uses a disk any more.
    fn unused(&self, _disk: Digest) {}

    /// Whether it is told of the reads of what is mounted.
    fn reads(&self) -> Reads;

    /// Hides these chunks of a blob, so that they can go, if nobody has begun to mount it since `mountings`; none when that
    /// cannot be now.
    ///
    /// # Errors
    /// What keeps readers from being told of.
    fn hide<'a>(
        &self,
        blob: &'a Arc<Blob>,
        pieces: &[usize],
        mountings: u64,
    ) -> Result<Option<Hidden<'a>>>;

    /// The blob goes from the cache; it is mounted nowhere.
    fn forget(&self, blob: &Blob);

    /// The daemon ends: nothing more is fetched.
    fn finish(&self);
}

/// Each blob's own file.
fn own_files(blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
    let files = blobs.iter().map(|blob| blob.data().try_clone());
    let files = files.zip(blobs);
    files
        .map(|(file, blob)| file.map_err(Error::io("open again", blob.path())))
        .collect()
}

/// Of a blob whose file nobody has open but who gives bytes of it, chunks are hidden just so; of others, if the kernel can tell of who
/// reads.
fn hide<'a>(
    faults: Option<&Faults>,
    blob: &'a Arc<Blob>,
    pieces: &[usize],
    mountings: u64,
) -> Result<Option<Hidden<'a>>> {
    match (blob.told(), faults) {
        (Some(_), _) if !blob.is_told_of() => Ok(blob.hide(pieces, mountings)),
        (Some(_), Some(faults)) => faults.hide(blob, pieces, mountings),
        _ => Ok(None),
    }
}

/// The back ends there are, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What is read is fetched when it is read.
    Lazy,
    /// The same, by way of the daemon.
    Fuse,
    /// Everything is fetched before it is mounted.
    Copy,
}

/// A back end, or whichever works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Choice {
    /// The first that works.
    #[default]
    Auto,
    /// This one, or none at all.
    Pinned(Kind),
}

/// Why a back end was not taken.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Which.
    pub kind: Kind,
    /// What it said when it was tried.
    pub why: String,
}

impl Kind {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::Lazy, Self::Fuse, Self::Copy];

    /// As it is written in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Fuse => "fuse",
            Self::Copy => "copy",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        found.map(Self::Pinned).ok_or_else(|| {
            let names: Vec<&str> = ["auto"]
                .into_iter()
                .chain(Kind::ALL.map(Kind::name))
                .collect();
            format!(
                "there is no back end {text:?}; {}",
                suggestion(text, &names)
            )
        })
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What was found out about the back ends.
#[derive(Debug)]
pub(super) struct Tried {
    /// The one to take.
    pub(super) chosen: Option<(Kind, Carrier)>,
    /// Those before it that do not work.
    pub(super) rejected: Vec<Rejected>,
}

impl Tried {
    /// What was chosen, to be read by [`Tried::parse`].
    pub(super) fn text(&self) -> Option<String> {
        let (kind, carrier) = self.chosen?;
        Some(format!("{kind}: {carrier}\n"))
    }

    /// What an earlier start has chosen, if it may be taken now.
    pub(super) fn parse(text: &[u8], choice: Choice) -> Option<Self> {
        let kinds = Kind::ALL.into_iter();
        let all = kinds.flat_map(|kind| Carrier::ALL.map(|carrier| (kind, carrier)));
        let mut all = all.map(|chosen| Self {
            chosen: Some(chosen),
            rejected: Vec::new(),
        });
        let found = all.find(|one| one.text().is_some_and(|known| known.as_bytes() == text))?;
        let (kind, _) = found.chosen?;
        (choice == Choice::Auto || choice == Choice::Pinned(kind)).then_some(found)
    }
}

/// Tries the back ends that may be taken, one after the other, below that directory.
///
/// # Errors
/// What keeps them from being tried at all.
pub(super) fn choose(choice: Choice, root: &Path) -> Result<Tried> {
    let mut rejected = Vec::new();
    let trial = Trial::make(&root.join("probe"))?;
    for kind in Kind::ALL {
        if choice != Choice::Auto && choice != Choice::Pinned(kind) {
            continue;
        }
        let works = match kind {
            Kind::Lazy => trial.lazy(),
            Kind::Fuse => trial.served(),
            Kind::Copy => trial.carrier(),
        };
        match works {
            Ok(carrier) => {
                let chosen = Some((kind, carrier));
                return Ok(Tried { chosen, rejected });
            }
            Err(why) => rejected.push(Rejected { kind, why }),
        }
    }
    Ok(Tried {
        chosen: None,
        rejected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_is_read_as_it_was_written_where_it_may_be_taken() {
        let tried = |kind, carrier| Tried {
            chosen: Some((kind, carrier)),
            rejected: Vec::new(),
        };
        for kind in Kind::ALL {
            for carrier in Carrier::ALL {
                let text = tried(kind, carrier).text().unwrap();
                let parsed = Tried::parse(text.as_bytes(), Choice::Auto).unwrap();
                assert_eq!(parsed.chosen, Some((kind, carrier)));
                let other = Kind::ALL.into_iter().find(|one| *one != kind).unwrap();
                assert!(Tried::parse(text.as_bytes(), Choice::Pinned(kind)).is_some());
                assert!(Tried::parse(text.as_bytes(), Choice::Pinned(other)).is_none());
            }
        }
        assert!(Tried::parse(b"lazy", Choice::Auto).is_none());
    }
}
