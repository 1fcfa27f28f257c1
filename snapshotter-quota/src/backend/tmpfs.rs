//! A tmpfs for each limited snapshot: fast, in memory (or swap), and gone with a reboot. By
//! configuration only. Snapshots without a limit are plain directories.

use std::path::Path;

use nix::{
    libc,
    unistd::{SysconfVar, sysconf},
};
use snapshot_core::{Error, Result, SnapshotId, Usage};

use super::{
    Abilities, Backend, Charge, Closed, Counting, Full, Held, Kept, Kind, Left, Record, Report,
    Resize, Support, directories, disk_usage, mounted, separate,
};
use crate::limit::{Inodes, Limit, Mode, Size};

/// Its root, which is not the container's.
const OWN_INODES: u64 = 1;

/// A tmpfs in each directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tmpfs;

/// More is EINVAL in some kernels.
const INODES_MAX: u64 = 1 << 50;

/// A size as the kernel takes it. Its own word for no limit, 0, cannot be taken back, and nobody
/// should fill the host's memory: without a limit it is as large as that, with as many inodes as
/// pages.
fn words(bytes: Option<u64>, inodes: Option<u64>) -> [String; 2] {
    let bytes = bytes.unwrap_or_else(memory_bytes);
    // Its root is one more than was asked for.
    let inodes = inodes.unwrap_or_else(memory_pages).min(INODES_MAX) + OWN_INODES;
    [format!("size={bytes}"), format!("nr_inodes={inodes}")]
}

/// Pages of the host's memory; those of 4 GiB when nobody tells.
fn memory_pages() -> u64 {
    told(SysconfVar::_PHYS_PAGES).unwrap_or(1 << 20)
}

fn memory_bytes() -> u64 {
    memory_pages() * told(SysconfVar::PAGE_SIZE).unwrap_or(4096)
}

fn told(variable: SysconfVar) -> Option<u64> {
    u64::try_from(sysconf(variable).ok()??).ok()
}

fn numbers(limit: &Limit) -> (Option<u64>, Option<u64>) {
    if limit.mode != Mode::Hard {
        return (None, None);
    }
    (
        limit.bytes.map(|size: Size| size.bytes().get()),
        limit.inodes.map(|inodes: Inodes| inodes.count().get()),
    )
}

fn mount(directory: &Path, bytes: Option<u64>, inodes: Option<u64>) -> Result<()> {
    let sizes = words(bytes, inodes);
    let words = [&sizes[..], &["mode=0711".to_owned()]].concat();
    mounted::mount(directory, "tmpfs", Path::new("tmpfs"), &words)?;
    directories::make(&mounted::place(directory))?;
    Ok(())
}

impl Backend for Tmpfs {
    fn kind(&self) -> Kind {
        Kind::Tmpfs
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            resize: Resize::AboveUsage,
            inodes: Support::Yes,
            soft: Support::No,
            groups: Support::No,
            full: Full::NoSpace,
            df: Support::Yes,
            counting: Counting::Exact,
        }
    }

    fn create(&self, directory: &Path, _: SnapshotId, limit: &Limit) -> Result<Record> {
        separate::check(limit, "a tmpfs")?;
        if limit.mode != Mode::Hard {
            directories::make(directory)?;
            return Ok(Record::Plain);
        }
        let (bytes, inodes) = numbers(limit);
        mount(directory, bytes, inodes)?;
        Ok(Record::Tmpfs { bytes, inodes })
    }

    fn attach(&self, held: &Held<'_>) -> Result<()> {
        let Record::Tmpfs { bytes, inodes } = held.record else {
            return Err(Error::Precondition(format!(
                "snapshot {held} is in no tmpfs: {:?}",
                held.record
            )));
        };
        if mounted::is_mounted(held.directory)? {
            return Ok(());
        }
        if Record::Plain.upper(held.directory).exists() {
            return Err(separate::interrupted(held));
        }
        tracing::warn!(
            snapshot = %held,
            "the tmpfs of a snapshot is gone, and with it what was written: it begins empty"
        );
        mount(held.directory, *bytes, *inodes)
    }

    fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        separate::check(limit, "a tmpfs")?;
        self.attach(held)?;
        let (bytes, inodes) = numbers(limit);
        let changed = mounted::remount(held.directory, "tmpfs", &words(bytes, inodes));
        changed.map_err(|error| match error {
            Error::Io { ref source, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
                Error::Invalid(format!(
                    "the limit of snapshot {held} cannot be made smaller than what is used in its \
                     tmpfs"
                ))
            }
            other => other,
        })
    }

    fn usage(&self, held: &Held<'_>) -> Result<Usage> {
        self.attach(held)?;
        let (bytes, inodes) = mounted::used(held.directory)?;
        Ok(Usage {
            bytes,
            inodes: inodes.saturating_sub(OWN_INODES),
        })
    }

    fn charge(&self, held: &Held<'_>) -> Result<Option<Charge>> {
        let Some(room) = mounted::room(held.directory)? else {
            return Ok(None);
        };
        Ok(Some(Charge {
            usage: Usage {
                bytes: room.bytes.saturating_sub(room.bytes_left),
                inodes: (room.inodes.saturating_sub(room.inodes_left)).saturating_sub(OWN_INODES),
            },
            bytes_max: Some(room.bytes).filter(|bytes| *bytes != memory_bytes()),
            bytes_soft: None,
            inodes_max: Some(room.inodes.saturating_sub(OWN_INODES))
                .filter(|inodes| *inodes != memory_pages()),
        }))
    }

    fn commit(&self, held: &Held<'_>) -> Result<Closed> {
        let layer = Record::Plain.upper(held.directory);
        // With the layer and without the mount, it was complete before a crash.
        let usage = if mounted::is_mounted(held.directory)? || !layer.exists() {
            self.attach(held)?;
            separate::copy_out(held, || Ok(()))?
        } else {
            disk_usage::of(&layer)?
        };
        Ok(Closed {
            usage: Some(usage),
            record: Record::Plain,
        })
    }

    fn committed(&self, held: &Held<'_>) -> Result<()> {
        separate::clear(held.directory)
    }

    fn uncommitted(&self, held: &Held<'_>) -> Result<()> {
        if mounted::is_mounted(held.directory)? {
            separate::drop_copy(held)?;
        }
        Ok(())
    }

    fn release(&self, left: &Left<'_>) -> Result<()> {
        mounted::unmount(left.directory)
    }

    fn forget(&self, _: &Left<'_>) -> Result<()> {
        Ok(())
    }

    fn recover(&self, kept: &[Kept<'_>]) -> Result<Report> {
        let mut report = Report::default();
        for Kept { held, limit } in kept {
            let (Record::Tmpfs { bytes, inodes }, Some(limit)) = (held.record, limit) else {
                continue;
            };
            separate::log(held, self.uncommitted(held));
            let is_new = (*bytes, *inodes) != numbers(limit);
            match self.attach(held).and_then(|()| self.set_limit(held, limit)) {
                Ok(()) => report.corrected += u64::from(is_new),
                Err(error) => tracing::warn!(
                    snapshot = %held,
                    %error,
                    "the limit of a snapshot is not what it should be"
                ),
            }
        }
        Ok(report)
    }
}
