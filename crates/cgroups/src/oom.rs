//! News of the kernel's OOM killer, as a descriptor that becomes readable.
//!
//! Version 1: an eventfd at memory.oom_control. Version 2: an epoll set of memory.events and
//! cgroup.events; not inotify, of which a host has few and whose end makes its owner wait.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::wait::Events;
use crate::{Error, Result, file};

/// Listens at one cgroup. Poll for readable, then [`Self::take`]. Close-on-exec, non-blocking.
#[derive(Debug)]
pub struct OomWatch {
    dir: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Legacy {
        event: EventFd,
        gone: bool,
    },
    Unified {
        changes: Epoll,
        memory: Events,
        cgroup: Events,
        seen: Seen,
    },
}

/// What was found in version 2 at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    kills: u64,
    /// Somebody is or was in the cgroup.
    lived: bool,
}

/// What happened since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomNews {
    /// Nothing of interest.
    Nothing,
    /// The cgroup ran out of memory.
    OutOfMemory,
    /// The cgroup is removed, or (version 2) nobody is in it any more. Out of memory is told
    /// first.
    Gone,
}

impl OomWatch {
    /// Version 1.
    pub(crate) fn legacy(dir: &Path) -> Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(
            |errno| Error::Kernel {
                call: "eventfd",
                source: errno.into(),
            },
        )?;
        let path = dir.join("memory.oom_control");
        let control = File::open(&path).map_err(|source| Error::Read { path, source })?;
        let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
        file::write(dir, "cgroup.event_control", &line)?;
        Ok(Self {
            dir: dir.to_owned(),
            source: Source::Legacy { event, gone: false },
        })
    }

    /// Version 2.
    pub(crate) fn unified(dir: &Path) -> Result<Self> {
        let changes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(epoll_failed)?;
        let open = |name| {
            let events = Events::open(dir, name)?;
            let change = EpollEvent::new(EpollFlags::EPOLLPRI, 0);
            changes.add(&events, change).map_err(epoll_failed)?;
            Ok(events)
        };
        let (memory, cgroup) = (open("memory.events")?, open("cgroup.events")?);
        let read = |events: &Events| {
            events.read().map_err(|source| Error::Read {
                path: dir.to_owned(),
                source,
            })
        };
        // From here on a change is told.
        let seen = Seen {
            kills: kills(&read(&memory)?),
            lived: is_populated(&read(&cgroup)?),
        };
        let source = Source::Unified {
            changes,
            memory,
            cgroup,
            seen,
        };
        Ok(Self {
            dir: dir.to_owned(),
            source,
        })
    }

    /// What happened, without waiting. Ask until it is [`OomNews::Nothing`] or
    /// [`OomNews::Gone`]; once more when the container has ended, before it is reported.
    pub fn take(&mut self) -> Result<OomNews> {
        match &mut self.source {
            Source::Legacy { event, gone } => take_legacy(&self.dir, event, gone),
            Source::Unified {
                changes,
                memory,
                cgroup,
                seen,
            } => take_unified(&self.dir, changes, (memory, cgroup), seen),
        }
    }
}

/// The kernel counts up once for each time out of memory, and once when the cgroup is removed.
fn take_legacy(dir: &Path, event: &EventFd, gone: &mut bool) -> Result<OomNews> {
    let count = match event.read() {
        Ok(count) => count,
        Err(Errno::EAGAIN) if *gone => return Ok(OomNews::Gone),
        Err(Errno::EAGAIN) => return Ok(OomNews::Nothing),
        Err(errno) => {
            return Err(Error::Kernel {
                call: "read an eventfd",
                source: errno.into(),
            });
        }
    };
    *gone = !file::exists(dir, "cgroup.event_control");
    if *gone && count == 1 {
        return Ok(OomNews::Gone);
    }
    Ok(OomNews::OutOfMemory)
}

fn take_unified(
    dir: &Path,
    changes: &Epoll,
    (memory, cgroup): (&Events, &Events),
    seen: &mut Seen,
) -> Result<OomNews> {
    let mut events = [EpollEvent::empty(); 2];
    let changed = changes.wait(&mut events, EpollTimeout::ZERO);
    if changed.map_err(epoll_failed)? > 0 {
        // Nothing but the first process changes a cgroup that never had one.
        seen.lived = true;
    }
    let read = memory
        .read()
        .and_then(|memory| Ok((memory, cgroup.read()?)));
    match read {
        Ok((memory, cgroup)) => Ok(seen.look(&memory, &cgroup)),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(OomNews::Gone),
        Err(source) => Err(Error::Read {
            path: dir.to_owned(),
            source,
        }),
    }
}

impl Seen {
    /// Takes note of memory.events and cgroup.events.
    fn look(&mut self, memory: &str, cgroup: &str) -> OomNews {
        let before = self.kills;
        self.kills = kills(memory);
        let populated = is_populated(cgroup);
        self.lived |= populated;
        if self.kills > before {
            OomNews::OutOfMemory
        } else if self.lived && !populated {
            OomNews::Gone
        } else {
            OomNews::Nothing
        }
    }
}

fn kills(memory_events: &str) -> u64 {
    file::value_of(memory_events, "oom_kill").unwrap_or(0)
}

fn is_populated(cgroup_events: &str) -> bool {
    file::value_of(cgroup_events, "populated") == Some(1)
}

fn epoll_failed(errno: Errno) -> Error {
    Error::Kernel {
        call: "epoll",
        source: errno.into(),
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Legacy { event, .. } => event.as_fd(),
            Source::Unified { changes, .. } => changes.0.as_fd(),
        }
    }
}

impl AsRawFd for OomWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn legacy_news_come_by_an_eventfd_that_the_kernel_was_told() {
        let dir = directory(&[("memory.oom_control", ""), ("cgroup.event_control", "")]);
        let mut watch = OomWatch::legacy(dir.path()).unwrap();
        let told = written(dir.path(), "cgroup.event_control");
        let number = told[0].split(' ').next().unwrap().to_owned();
        assert_eq!(number, watch.as_raw_fd().to_string());
        assert_eq!(watch.take().unwrap(), OomNews::Nothing);

        let Source::Legacy { event, .. } = &watch.source else {
            panic!("it is version 1")
        };
        event.write(1).unwrap();
        assert_eq!(watch.take().unwrap(), OomNews::OutOfMemory);
        assert_eq!(watch.take().unwrap(), OomNews::Nothing);
    }

    #[test]
    fn legacy_removal_does_not_hide_an_oom_before_it() {
        for (count, expected) in [
            (1, vec![OomNews::Gone]),
            (2, vec![OomNews::OutOfMemory, OomNews::Gone]),
        ] {
            let dir = directory(&[("memory.oom_control", ""), ("cgroup.event_control", "")]);
            let mut watch = OomWatch::legacy(dir.path()).unwrap();
            fs::remove_file(dir.path().join("cgroup.event_control")).unwrap();
            let Source::Legacy { event, .. } = &watch.source else {
                panic!("it is version 1")
            };
            event.write(count).unwrap();
            for news in expected {
                assert_eq!(watch.take().unwrap(), news);
            }
        }
    }

    #[test]
    fn unified_news_are_kills_then_an_empty_cgroup() {
        let mut seen = Seen {
            kills: 1,
            lived: false,
        };
        let mut look = |kills: u64, populated: u64| {
            let memory = format!("low 0\noom {kills}\noom_kill {kills}\n");
            seen.look(&memory, &format!("populated {populated}\nfrozen 0\n"))
        };
        assert_eq!(look(1, 0), OomNews::Nothing, "nobody yet");
        assert_eq!(look(1, 1), OomNews::Nothing);
        assert_eq!(look(2, 0), OomNews::OutOfMemory);
        assert_eq!(look(2, 0), OomNews::Gone);
    }
}
