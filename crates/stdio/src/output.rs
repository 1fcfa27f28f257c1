//! Copies what a process writes to where its client wants it.

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::coop::consume_budget;

use crate::linger;
use crate::mover::{self, Mover, Step};
use crate::place::{LogFile, Place};
use crate::port::{Direction, Port, Waited};

/// Generation of a stream that has moved all there will ever be.
pub(crate) const MOVED: u64 = u64::MAX - 1;

/// As [`MOVED`], and without its copy nothing of that would be lost.
pub(crate) const ENDED: u64 = u64::MAX;

/// From a process's pipe or terminal to a place.
#[derive(Debug)]
pub(crate) struct OutputCopy {
    pub(crate) source: Arc<Port>,
    pub(crate) sink: Sink,
    /// Rises when somebody wants to know whether all was moved; above 0 the process has ended.
    pub(crate) asked: watch::Receiver<u64>,
    /// What was asked when the source was last seen empty.
    pub(crate) told: watch::Sender<u64>,
}

/// Where output goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// As [`Place::Fifo`].
    Fifo(Port),
    /// As [`Place::Pipe`].
    Pipe(Port),
    /// As [`Place::File`].
    File(Arc<LogFile>),
    /// As [`Place::Null`].
    Null,
}

impl Sink {
    /// Makes a place ready for copying.
    pub(crate) fn new(place: Place) -> std::io::Result<Self> {
        Ok(match place {
            Place::Fifo(fd) => Self::Fifo(Port::pipe(fd, Direction::Write)?),
            Place::Pipe(fd) => Self::Pipe(Port::pipe(fd, Direction::Write)?),
            Place::File(file) => Self::File(Arc::new(file)),
            Place::Null => Self::Null,
        })
    }

    async fn wait(&self) -> std::io::Result<Waited<'_>> {
        match self {
            Self::Fifo(port) | Self::Pipe(port) => {
                port.wait(Direction::Write).await.map(Waited::ForSink)
            }
            // These are never full.
            Self::File(_) | Self::Null => Ok(Waited::Not),
        }
    }
}

impl OutputCopy {
    /// Copies until the process and all that inherited its stream have closed it; then stays until
    /// a client has opened its fifo, so that it finds what is in it and its end.
    pub(crate) async fn run(mut self) {
        self.copy().await;
        let Self {
            source, sink, told, ..
        } = self;
        drop(source);
        if let Sink::Fifo(Port::Pipe(fifo)) = sink {
            let fifo = fifo.into_inner();
            if mover::has_data(fifo.as_fd()) {
                told.send_replace(MOVED);
            } else {
                told.send_replace(ENDED);
            }
            linger::until_opened(fifo).await;
        }
        told.send_replace(ENDED);
    }

    async fn copy(&mut self) {
        let Self {
            source,
            sink,
            asked,
            told,
        } = self;
        let mut mover = match **source {
            Port::Pipe(_) => Mover::between_pipes(),
            Port::Terminal { .. } => Mover::with_terminal(),
        };
        let mut step = Step::Moved;
        loop {
            let waited = match step {
                Step::Moved => {
                    consume_budget().await;
                    Ok(Waited::Not)
                }
                Step::SourceEmpty | Step::HungUp => tokio::select! {
                    biased;
                    changed = asked.changed() => match changed {
                        Ok(()) => Ok(Waited::Not),
                        Err(_copier_dropped) => return,
                    },
                    ready = source.wait(Direction::Read) => ready.map(Waited::ForSource),
                },
                Step::SinkFull => sink.wait().await,
                Step::SinkBroken => {
                    // The log binary has died. The process must not stop for that.
                    *sink = Sink::Null;
                    Ok(Waited::Not)
                }
                Step::End => return,
            };
            // Only when the runtime shuts down.
            let Ok(waited) = waited else { return };
            let generation = *asked.borrow_and_update();
            step = take_step(&mut mover, source, sink).await;
            match (step, waited) {
                (Step::SourceEmpty, Waited::ForSource(ready)) if ready.is_closed() => return,
                (Step::SourceEmpty, Waited::ForSource(mut ready))
                | (Step::SinkFull, Waited::ForSink(mut ready)) => ready.clear(),
                // As long as the process lives, it may open its terminal again.
                (Step::HungUp, _) if generation > 0 => return,
                _ => {}
            }
            if step == Step::SourceEmpty {
                told.send_replace(generation);
            }
        }
    }
}

async fn take_step(mover: &mut Mover, source: &Arc<Port>, sink: &Sink) -> Step {
    match sink {
        Sink::Fifo(port) | Sink::Pipe(port) => mover.step(source.fd(), port.fd()),
        Sink::Null => mover::discard(source.fd()),
        Sink::File(file) => {
            let (source, file) = (Arc::clone(source), Arc::clone(file));
            // Named work: append to a log file. A file blocks when its disk is slow.
            let work = move || mover::append(source.fd(), &file);
            // It fails only when the runtime shuts down.
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or(Step::End)
        }
    }
}
