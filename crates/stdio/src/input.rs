//! Copies what a client writes to a process's standard input.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use nix::unistd::write;
use tokio::task::coop::consume_budget;

use crate::mover::{Mover, Step};
use crate::port::{Direction, Port, Waited};

/// From a fifo to the process's pipe or terminal.
#[derive(Debug)]
pub(crate) struct InputCopy {
    pub(crate) source: Port,
    pub(crate) sink: Port,
}

impl InputCopy {
    /// Copies until the fifo ends or nobody reads.
    pub(crate) async fn run(self) {
        let mut mover = match self.sink {
            Port::Pipe(_) => Mover::between_pipes(),
            Port::Terminal { .. } => Mover::with_terminal(),
        };
        let end = self.copy(&mut mover).await;
        if end == Step::End && matches!(self.sink, Port::Terminal { .. }) {
            end_line_discipline_input(self.sink.fd(), mover.last());
        }
    }

    async fn copy(&self, mover: &mut Mover) -> Step {
        let mut step = Step::Moved;
        loop {
            let waited = match step {
                Step::Moved => {
                    consume_budget().await;
                    Ok(Waited::Not)
                }
                Step::SourceEmpty => {
                    let ready = self.source.wait(Direction::Read).await;
                    ready.map(Waited::ForSource)
                }
                Step::SinkFull => {
                    let ready = self.sink.wait(Direction::Write).await;
                    ready.map(Waited::ForSink)
                }
                end => return end,
            };
            // Only when the runtime shuts down.
            let Ok(waited) = waited else {
                return Step::SinkBroken;
            };
            step = mover.step(self.source.fd(), self.sink.fd());
            match (step, waited) {
                // The last writer has closed it, and another one has opened it since.
                (Step::SourceEmpty, Waited::ForSource(ready)) if ready.is_closed() => {
                    return Step::End;
                }
                (Step::SourceEmpty, Waited::ForSource(mut ready))
                | (Step::SinkFull, Waited::ForSink(mut ready)) => ready.clear(),
                _ => {}
            }
        }
    }
}

/// A terminal has no end of input of its own: a line discipline in canonical mode has a character
/// for it, which also ends a line begun. In other modes there is nothing that says it.
fn end_line_discipline_input(master: BorrowedFd<'_>, last: Option<u8>) {
    let Ok(settings) = tcgetattr(master.as_fd()) else {
        return;
    };
    if !settings.local_flags.contains(LocalFlags::ICANON) {
        return;
    }
    let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
    let line_begun = last.is_some_and(|byte| byte != b'\n' && byte != b'\r' && byte != end);
    let ends: &[u8] = if line_begun { &[end, end] } else { &[end] };
    // A terminal that takes nothing has no reader who could miss it.
    let _ignored = write(master, ends);
}
