//! What works on this host and what does not, tried now: for an operator, while the daemon runs or not.

use std::{fmt, fs::File, io, os::unix::net::UnixStream, path::Path, time::Duration};

use nix::fcntl::{Flock, FlockArg};

use super::{attach, client::Client, config::Config, files, metrics::Measured, status};
use crate::error::Result;

/// How long another doctor may take: longer than each of its tries.
const TURN: Duration = Duration::from_secs(30);

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It is as it should be.
    Ok,
    /// It works, not as well as it could.
    Warning,
    /// Somebody must act.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What it is, and what to do.
    pub what: String,
}

/// Looks at everything.
///
/// # Errors
/// What keeps it from looking at all: a configuration that nobody could serve with.
pub fn doctor(config: &Config) -> Result<Vec<Finding>> {
    config.check()?;
    let mut findings = vec![daemon(&config.address)];
    findings.extend(back_ends(config)?);
    let client = Client::new(&config.store, Measured::default())?;
    findings.extend(
        client
            .health()
            .into_iter()
            .map(|(store, health)| match health {
                Ok(()) => ok(format!("store {store} answers")),
                Err(what) => Finding {
                    severity: Severity::Error,
                    what: format!("store {store} does not answer: {what}"),
                },
            }),
    );
    match config.store.keys() {
        Ok(keys) => {
            findings.push(ok(format!("{} keys are trusted", keys.len())));
            if config.root.join(super::disks::DISKS).is_dir() {
                let disks = status(&config.root, &keys)?.disks;
                findings.push(ok(format!(
                    "{} disks in {}",
                    disks.len(),
                    config.root.display()
                )));
                let bad = disks.into_iter().filter_map(Result::err);
                findings.extend(bad.map(|error| Finding {
                    severity: Severity::Warning,
                    what: format!(
                        "a disk here is asked for anew when it is mounted: {}",
                        snapshot_core::one_line(&error)
                    ),
                }));
            }
        }
        Err(error) => findings.push(Finding {
            severity: Severity::Error,
            what: snapshot_core::one_line(&error),
        }),
    }
    Ok(findings)
}

fn ok(what: String) -> Finding {
    let severity = Severity::Ok;
    Finding { severity, what }
}

fn daemon(address: &Path) -> Finding {
    match UnixStream::connect(address) {
        Ok(_) => ok(format!("somebody serves {}", address.display())),
        Err(error) => Finding {
            severity: Severity::Error,
            what: format!(
                "nobody serves {} ({error}): systemctl start snapshotter-remote",
                address.display()
            ),
        },
    }
}

/// Tried in a directory of its own, as the daemon may be trying in its root; on the same file system, if there is a root.
fn back_ends(config: &Config) -> Result<Vec<Finding>> {
    if config.root.is_dir() {
        let directory = config.root.join("doctor");
        let _turn = turn(&directory)?;
        return back_ends_at(config, &directory);
    }
    let directory = tempfile::Builder::new().prefix("doctor-").tempdir();
    let directory = directory.map_err(|source| crate::Error::File {
        doing: "making a directory below",
        path: std::env::temp_dir(),
        source,
    })?;
    back_ends_at(config, directory.path())
}

/// One doctor at a time tries there, and takes away what one that was killed has left; the directory stays.
fn turn(directory: &Path) -> Result<Flock<File>> {
    files::make_directory(directory)?;
    let locked = File::open(directory)
        .and_then(|file| sys::lock_within(file, FlockArg::LockExclusive, TURN));
    let failed = |source| crate::Error::File {
        doing: "locking",
        path: directory.to_owned(),
        source,
    };
    let locked = locked.map_err(failed)?;
    locked.ok_or_else(|| {
        failed(io::Error::new(
            io::ErrorKind::TimedOut,
            "another doctor is at it",
        ))
    })
}

fn back_ends_at(config: &Config, directory: &Path) -> Result<Vec<Finding>> {
    let tried = attach::choose(config.attach.kind, directory)?;
    let rejected = tried.rejected.iter().map(|rejected| Finding {
        severity: Severity::Warning,
        what: format!("back end {} does not work: {}", rejected.kind, rejected.why),
    });
    let mut findings: Vec<Finding> = rejected.collect();
    findings.push(match tried.chosen {
        Some((kind, carrier)) => ok(format!("back end {kind}, {carrier}")),
        None => Finding {
            severity: Severity::Error,
            what: "no back end works: the kernel needs EROFS, from files (6.12) or from loop devices (5.16)"
                .to_owned(),
        },
    });
    Ok(findings)
}
