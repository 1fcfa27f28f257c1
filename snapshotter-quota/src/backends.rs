//! The back ends of one root: the one that new snapshots are made with, and those that made what
//! is there. They are opened here and nowhere else.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use snapshot_core::{Error, Result, newest_notes};

use crate::{
    backend::{
        AUTOMATIC, Backend, Btrfs, Image, Kind, Options, Plain, Pool, Prjquota, Record, Tmpfs,
        probe,
    },
    config::Choice,
    hindrance::Hindrance,
};

/// One for new snapshots, others for old ones.
#[derive(Debug)]
pub struct Backends {
    root: PathBuf,
    options: Options,
    chosen: Arc<dyn Backend>,
    others: RwLock<Vec<Arc<dyn Backend>>>,
}

/// A back end, and where its snapshots are.
#[derive(Debug)]
struct Opened {
    backend: Arc<dyn Backend>,
    root: PathBuf,
}

fn open(kind: Kind, root: &Path, options: &Options) -> Result<Opened> {
    let at_root = |backend: Arc<dyn Backend>| Opened {
        backend,
        root: root.to_owned(),
    };
    Ok(match kind {
        Kind::Prjquota => at_root(Arc::new(Prjquota::open(root, options.projects)?)),
        Kind::Btrfs => at_root(Arc::new(Btrfs::open(root)?)),
        Kind::Image => at_root(Arc::new(Image::new(root, options.image))),
        Kind::Tmpfs => at_root(Arc::new(Tmpfs)),
        Kind::None => at_root(Arc::new(Plain::default())),
        Kind::Pool => {
            let pool = Pool::open(root, options.pool)?;
            Opened {
                backend: Arc::new(pool.backend(options.projects)?),
                root: pool.root().to_owned(),
            }
        }
    })
}

impl Backends {
    /// Tries the one that is named, or one after the other, as it will be used, and opens it.
    /// Where snapshots are already and the trial finds no room, or may not write, the one that is
    /// named or made them is opened without it.
    ///
    /// # Errors
    /// Why it does not work; when none does, what was tried and why none of it works.
    pub fn choose(root: &Path, choice: Choice, options: &Options) -> Result<Self> {
        let tried = match choice {
            Choice::Only(kind) => probe(kind, root, options)
                .map(|_abilities| kind)
                .map_err(|error| Untried::new(root, error)),
            Choice::Auto => first_that_works(root, options),
        };
        let kind = match tried {
            Ok(kind) => kind,
            Err(untried) => untried.go_on(root, choice, options)?,
        };
        let opened = open(kind, root, options)?;
        Ok(Self::new(opened.root, opened.backend, *options))
    }

    pub(crate) fn new(root: PathBuf, chosen: Arc<dyn Backend>, options: Options) -> Self {
        let others: Vec<Arc<dyn Backend>> = match chosen.kind() {
            Kind::None => Vec::new(),
            // Views are plain, whatever the rest is.
            _ => vec![Arc::new(Plain::default())],
        };
        Self {
            root,
            options,
            chosen,
            others: RwLock::new(others),
        }
    }

    /// Plain directories alone.
    #[cfg(test)]
    pub(crate) fn plain(root: &Path) -> Self {
        let chosen = Arc::new(Plain::default());
        Self::new(root.to_owned(), chosen, Options::default())
    }

    /// The root of the snapshots; not the one that was configured when they are in a pool.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The one for new snapshots.
    #[must_use]
    pub fn chosen(&self) -> &dyn Backend {
        self.chosen.as_ref()
    }

    /// All that are open.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<dyn Backend>> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = std::iter::once(&self.chosen);
        chosen.chain(others.iter()).map(Arc::clone).collect()
    }

    /// The one that made a snapshot.
    ///
    /// # Errors
    /// [`Error::Precondition`] when it is not open.
    pub fn of(&self, record: &Record) -> Result<Arc<dyn Backend>> {
        let all = self.all();
        let found = all.iter().find(|backend| is_of(backend.kind(), record));
        found.map(Arc::clone).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|backend| backend.kind().name()).collect();
            Error::Precondition(format!(
                "the snapshot was made by a back end that does not work now ({}); those that do \
                 are {}; see `snapshotter-quota probe`",
                record.to_note().0,
                names.join(", ")
            ))
        })
    }

    /// Opens what made these and is not open yet: the configuration may have chosen another since.
    /// What does not work is told in the log, and by [`Self::of`] when it is asked for.
    pub fn open_for<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        for record in records {
            if self.of(record).is_ok() {
                continue;
            }
            let kind = kind_of(record);
            match open(kind, &self.root, &self.options) {
                Ok(Opened { backend, .. }) => {
                    tracing::info!(%kind, "snapshots of another back end than the chosen one are there");
                    let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
                    others.push(backend);
                }
                Err(error) => {
                    let error = error.in_one_line();
                    tracing::error!(%kind, error, "snapshots are there whose back end does not work");
                }
            }
        }
    }
}

/// A trial that failed.
#[derive(Debug)]
struct Untried {
    error: Error,
    hindrance: Option<Hindrance>,
}

impl From<Error> for Untried {
    fn from(error: Error) -> Self {
        Self {
            error,
            hindrance: None,
        }
    }
}

impl Untried {
    fn new(root: &Path, error: Error) -> Self {
        let hindrance = Hindrance::of(&error, root);
        Self { error, hindrance }
    }

    /// What to open nevertheless.
    fn go_on(self, root: &Path, choice: Choice, options: &Options) -> Result<Kind> {
        let Some(hindrance) = self.hindrance else {
            return Err(self.error);
        };
        let there = What::is_there(root)?;
        let kind = match (there, choice) {
            (What::Nothing, _) => return Err(self.error),
            (_, Choice::Only(kind)) => Some(kind),
            (What::Pool, Choice::Auto) => Some(Kind::Pool),
            (What::Limited(kind), Choice::Auto) => Some(kind),
            (What::Plain, Choice::Auto) => {
                let mut kinds = AUTOMATIC.into_iter().filter(|kind| *kind != Kind::Pool);
                kinds.find(|kind| open(*kind, root, options).is_ok())
            }
        };
        let Some(kind) = kind else {
            return Err(self.error);
        };
        let why = self.error.in_one_line();
        tracing::warn!(%kind, why, %hindrance, "the back end is used without a trial");
        Ok(kind)
    }
}

/// What a root has already.
enum What {
    Nothing,
    /// A pool, and the snapshots in it.
    Pool,
    /// Snapshots without a limit.
    Plain,
    /// The newest snapshot with a limit was made by this.
    Limited(Kind),
}

impl What {
    fn is_limited_by(&self, kind: Kind) -> bool {
        matches!(self, Self::Limited(made) if *made == kind)
    }

    fn is_there(root: &Path) -> Result<Self> {
        let mut notes = newest_notes(root)?.peekable();
        if notes.peek().is_none() {
            let is_pool = root.join("pool.img").exists();
            return Ok(if is_pool { Self::Pool } else { Self::Nothing });
        }
        let records = notes.filter_map(|note| Record::from_note(&note?).ok());
        let mut limited = records.map(|record| kind_of(&record));
        let newest = limited.find(|kind| *kind != Kind::None);
        Ok(newest.map_or(Self::Plain, Self::Limited))
    }
}

/// Its refused predecessors are told in the log.
fn first_that_works(root: &Path, options: &Options) -> Result<Kind, Untried> {
    let mut refusals = Vec::new();
    let mut hindrance = None;
    for kind in AUTOMATIC {
        match probe(kind, root, options) {
            Ok(_abilities) => {
                for refusal in refusals {
                    tracing::info!(refusal, "a back end does not work here");
                }
                return Ok(kind);
            }
            Err(error) => {
                refusals.push(format!("{kind}: {}", error.in_one_line()));
                let of_this = Untried::new(root, error).hindrance;
                hindrance = hindrance.or(of_this);
                if of_this.is_some() && What::is_there(root)?.is_limited_by(kind) {
                    // Another might need less room, and would be no better for that.
                    break;
                }
            }
        }
    }
    Err(Untried {
        hindrance,
        error: Error::Precondition(format!(
            "no back end works here ({}); to run without limits set backend.kind = \"none\"",
            refusals.join("; ")
        )),
    })
}

fn kind_of(record: &Record) -> Kind {
    match record {
        Record::Plain => Kind::None,
        Record::Prjquota { .. } => Kind::Prjquota,
        Record::Btrfs { .. } => Kind::Btrfs,
        Record::Image { .. } => Kind::Image,
        Record::Tmpfs { .. } => Kind::Tmpfs,
    }
}

/// Whether a back end understands a record.
fn is_of(kind: Kind, record: &Record) -> bool {
    match record {
        Record::Prjquota { .. } => matches!(kind, Kind::Prjquota | Kind::Pool),
        _ => kind == kind_of(record),
    }
}
