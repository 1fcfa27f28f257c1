//! A non-blocking descriptor and how to wait until it is ready. Moves nothing.
//!
//! A terminal is not waited for through tokio directly. Its master reports a hang-up when no
//! process has it open, which a later process may undo; tokio keeps a hang-up for ever, and waiting
//! would become spinning. An epoll set of its own, edge-triggered, reports each change once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::place::set_nonblocking;

/// Which way bytes go through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Out of it.
    Read,
    /// Into it.
    Write,
}

/// One end of a copy.
#[derive(Debug)]
pub(crate) enum Port {
    /// A pipe or a fifo.
    Pipe(AsyncFd<OwnedFd>),
    /// The master of a terminal, for one direction.
    Terminal {
        master: Arc<OwnedFd>,
        changes: AsyncFd<Changes>,
    },
}

/// An epoll set that tells of changes of one terminal.
#[derive(Debug)]
pub(crate) struct Changes(Epoll);

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// What waiting has brought.
#[derive(Debug)]
pub(crate) struct Ready<'a>(Option<AsyncFdReadyGuard<'a, OwnedFd>>);

/// What a copy has waited for before its next step.
#[derive(Debug)]
pub(crate) enum Waited<'a> {
    /// Nothing.
    Not,
    /// Something to read.
    ForSource(Ready<'a>),
    /// Room to write.
    ForSink(Ready<'a>),
}

impl Port {
    /// A port of a pipe or a fifo.
    pub(crate) fn pipe(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let interest = match direction {
            Direction::Read => Interest::READABLE,
            Direction::Write => Interest::WRITABLE,
        };
        Ok(Self::Pipe(watched_by_tokio(fd, interest)?))
    }

    /// A port of a non-blocking master.
    pub(crate) fn terminal(master: &Arc<OwnedFd>, direction: Direction) -> io::Result<Self> {
        let changes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = match direction {
            Direction::Read => EpollFlags::EPOLLIN,
            Direction::Write => EpollFlags::EPOLLOUT,
        };
        changes.add(master, EpollEvent::new(events | EpollFlags::EPOLLET, 0))?;
        Ok(Self::Terminal {
            master: Arc::clone(master),
            changes: watched_by_tokio(Changes(changes), Interest::READABLE)?,
        })
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(fd) => fd.get_ref().as_fd(),
            Self::Terminal { master, .. } => master.as_fd(),
        }
    }

    /// Waits until it may be ready. Cancelling loses nothing.
    pub(crate) async fn wait(&self, direction: Direction) -> io::Result<Ready<'_>> {
        match self {
            Self::Pipe(fd) => {
                let guard = match direction {
                    Direction::Read => fd.readable().await?,
                    Direction::Write => fd.writable().await?,
                };
                Ok(Ready(Some(guard)))
            }
            Self::Terminal { changes, .. } => {
                let mut guard = changes.readable().await?;
                let mut events = [EpollEvent::empty()];
                guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO)?;
                guard.clear_ready();
                Ok(Ready(None))
            }
        }
    }
}

impl Ready<'_> {
    /// It was not ready after all: wait for the next change.
    pub(crate) fn clear(&mut self) {
        if let Some(guard) = &mut self.0 {
            guard.clear_ready();
        }
    }

    /// The other side of a pipe has gone, which tokio will report from now on.
    pub(crate) fn is_closed(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|guard| guard.ready().is_read_closed())
    }
}

/// Registers a descriptor with the runtime.
#[expect(
    deprecated,
    reason = "the new name is unsafe, for types that may lose their descriptor; all of ours own it"
)]
pub(crate) fn watched_by_tokio<T>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>>
where
    T: AsFd + AsRawFd,
{
    AsyncFd::with_interest(fd, interest)
}
