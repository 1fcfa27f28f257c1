//! What the kernel tells of limits by netlink, gathered: xfs tells each write that is refused, and a
//! container may try thousands a second. It knows no snapshots.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use nix::libc;
use sys::{
    project_quota::ProjectId,
    quota_events::{QuotaEvent, QuotaEvents, QuotaOwner, QuotaWarning},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::watched::Line;
use crate::backend::Device;

/// Messages that are taken at once: more than the kernel keeps for us.
const AT_ONCE_MAX: usize = 512;

/// Whoever floods us is left to overflow for so long after that many.
const BREATH: Duration = Duration::from_millis(5);

/// A project on a file system.
pub(super) type Place = (Device, ProjectId);

/// What was told of one project.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The limits that were met.
    pub(super) met: BTreeSet<Line>,
    /// How many writes were refused.
    pub(super) refused: u64,
}

/// What was told at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) of: BTreeMap<Place, Told>,
    /// Something was told that did not fit.
    pub(super) lost: bool,
    pub(super) count: usize,
}

/// The kernel's messages.
#[derive(Debug)]
pub(super) struct Kernel {
    messages: AsyncFd<QuotaEvents>,
    breath: Option<tokio::time::Instant>,
}

impl Heard {
    pub(super) fn add(&mut self, event: QuotaEvent) {
        self.count += 1;
        let QuotaOwner::Project(project) = event.owner else {
            return;
        };
        let device = Device {
            major: event.device_major,
            minor: event.device_minor,
        };
        let told = self.of.entry((device, project)).or_default();
        let (met, is_refusal) = match event.warning {
            QuotaWarning::BytesHardHit => (Some(Line::Bytes), true),
            QuotaWarning::InodesHardHit => (Some(Line::Inodes), true),
            QuotaWarning::BytesGraceOver => (Some(Line::Grace), true),
            QuotaWarning::BytesSoftHit => (Some(Line::Soft), false),
            // We set no soft limit of inodes. Getting below is found by looking, some time after
            // the last write was refused.
            QuotaWarning::InodesSoftHit
            | QuotaWarning::InodesGraceOver
            | QuotaWarning::BytesBelowHard
            | QuotaWarning::BytesBelowSoft
            | QuotaWarning::InodesBelowHard
            | QuotaWarning::InodesBelowSoft => (None, false),
        };
        told.met.extend(met);
        told.refused += u64::from(is_refusal);
    }
}

impl Kernel {
    /// Begins to listen, inside a runtime.
    ///
    /// # Errors
    /// NotFound where the kernel does not tell.
    pub(super) fn listen() -> io::Result<Self> {
        let events = QuotaEvents::open()?;
        Ok(Self {
            messages: register(events)?,
            breath: None,
        })
    }

    /// Waits for messages and takes those that are there. Nothing is lost when it is dropped.
    ///
    /// # Errors
    /// When there will be no more.
    pub(super) async fn hear(&mut self) -> io::Result<Heard> {
        if let Some(until) = self.breath {
            tokio::time::sleep_until(until).await;
            self.breath = None;
        }
        loop {
            let mut ready = self.messages.readable().await?;
            let mut heard = Heard::default();
            while heard.count < AT_ONCE_MAX {
                match ready.try_io(|messages| messages.get_ref().next()) {
                    Ok(Ok(event)) => heard.add(event),
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        heard.lost = true;
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => break,
                }
            }
            if heard.count == AT_ONCE_MAX || heard.lost {
                self.breath = Some(tokio::time::Instant::now() + BREATH);
            }
            if heard.count > 0 || heard.lost {
                return Ok(heard);
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe; the descriptor inside never changes"
)]
fn register(events: QuotaEvents) -> io::Result<AsyncFd<QuotaEvents>> {
    AsyncFd::with_interest(events, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_again_and_again_is_one_thing() {
        let mut heard = Heard::default();
        let mut add = |owner, warning, minor| {
            heard.add(QuotaEvent {
                device_major: 7,
                device_minor: minor,
                owner,
                warning,
            });
        };
        let project = |id| QuotaOwner::Project(ProjectId(id));
        for _ in 0..1000 {
            add(project(5), QuotaWarning::BytesHardHit, 1);
        }
        add(project(5), QuotaWarning::InodesHardHit, 1);
        add(project(5), QuotaWarning::BytesHardHit, 2);
        add(project(6), QuotaWarning::BytesSoftHit, 1);
        add(project(6), QuotaWarning::BytesGraceOver, 1);
        add(project(7), QuotaWarning::BytesBelowHard, 1);
        add(QuotaOwner::User(5), QuotaWarning::BytesHardHit, 1);
        add(QuotaOwner::Group(5), QuotaWarning::BytesHardHit, 1);
        let found: Vec<_> = heard
            .of
            .iter()
            .map(|((device, project), told)| {
                let met: Vec<_> = told.met.iter().copied().collect();
                (device.minor, project.0, met, told.refused)
            })
            .collect();
        let expected = [
            (1, 5, vec![Line::Bytes, Line::Inodes], 1001),
            (1, 6, vec![Line::Soft, Line::Grace], 1),
            (1, 7, vec![], 0),
            (2, 5, vec![Line::Bytes], 1),
        ];
        assert_eq!(found, expected);
        assert!(!heard.lost);
    }

    #[tokio::test]
    async fn kernel_that_does_not_tell_is_told_apart() {
        if let Err(error) = Kernel::listen() {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        }
    }
}
