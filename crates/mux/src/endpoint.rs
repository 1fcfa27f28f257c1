//! One end's knowledge of all streams: bytes in, bytes out, no thread and no file.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;

use crate::frame::{Body, CREDIT_BYTES, DATA_BYTES_MAX, Frame, Violation, find_hello};

/// Most streams at once: three for each of three hundred processes.
const STREAMS_MAX: usize = 1024;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Host,
    Guest,
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The other end writes no more, and all was read.
    End,
}

/// One direction of a stream, from where it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// So many bytes may still be sent.
    Open(u32),
    /// Ended by this end, or refused by the other.
    Over,
}

#[derive(Debug)]
struct State {
    sending: Sending,
    received: VecDeque<u8>,
    /// So many more may come before credit is given back.
    expected: u32,
    /// Read by this end, and not given back yet.
    read: u32,
    /// The other end writes no more.
    ended: bool,
    /// This end reads no more.
    deaf: bool,
    /// Nobody at this end uses it any more: forgotten once both directions are over.
    dropped: bool,
}

impl State {
    fn new() -> Self {
        Self {
            sending: Sending::Open(CREDIT_BYTES),
            received: VecDeque::new(),
            expected: CREDIT_BYTES,
            read: 0,
            ended: false,
            deaf: false,
            dropped: false,
        }
    }

    fn is_over(&self) -> bool {
        self.dropped && self.sending == Sending::Over && self.ended
    }
}

/// One end of the mux.
#[derive(Debug)]
pub struct Endpoint {
    side: Side,
    epoch: u16,
    /// The other end has said Hello in this epoch.
    met: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    streams: BTreeMap<u32, State>,
    /// The highest stream that was ever opened in this epoch.
    last: u32,
    arrived: VecDeque<u32>,
}

impl Endpoint {
    /// The host's end; `epoch` differs from that of any link the same guest had before.
    #[must_use]
    pub fn host(epoch: u16) -> Self {
        let mut this = Self::new(Side::Host, epoch);
        this.say(0, Body::Hello);
        this
    }

    /// The guest's end, which waits for the host.
    #[must_use]
    pub fn guest() -> Self {
        Self::new(Side::Guest, 0)
    }

    fn new(side: Side, epoch: u16) -> Self {
        Self {
            side,
            epoch,
            met: false,
            input: Vec::new(),
            output: Vec::new(),
            streams: BTreeMap::new(),
            last: 0,
            arrived: VecDeque::new(),
        }
    }

    /// Whether both ends have said Hello.
    #[must_use]
    pub fn has_met(&self) -> bool {
        self.met
    }

    /// What is to be sent, in order; it is empty then.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// Takes bytes of the other end, cut anywhere.
    ///
    /// # Errors
    /// What it must not say: the host ends the link then. A guest forgets all streams instead and looks
    /// for the next Hello.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        let outcome = loop {
            if !self.met {
                match find_hello(rest) {
                    Ok(at) => rest = &rest[at..],
                    Err(all) => rest = &rest[all..],
                }
            }
            match Frame::parse(rest) {
                Ok(None) => break Ok(()),
                Ok(Some((frame, length))) => match self.take(frame) {
                    Ok(()) => rest = &rest[length..],
                    Err(violation) if self.side == Side::Host => break Err(violation),
                    Err(_resync) => rest = self.lose(rest),
                },
                Err(violation @ Violation::Version(_)) => break Err(violation),
                Err(violation) if self.side == Side::Host && self.met => break Err(violation),
                Err(_resync) => rest = self.lose(rest),
            }
        };
        self.input = rest.to_vec();
        outcome
    }

    /// Forgets the conversation and the first byte of what may belong to it.
    fn lose<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        self.forget();
        rest.get(1..).unwrap_or_default()
    }

    /// The other end went away: all streams are gone, and with them what was to be sent.
    pub fn forget(&mut self) {
        self.met = false;
        self.input.clear();
        self.output.clear();
        self.streams.clear();
        self.arrived.clear();
        self.last = 0;
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        if frame.body == Body::Hello {
            return self.meet(frame.epoch);
        }
        if !self.met {
            // Of an earlier conversation that ended without a word.
            return Ok(());
        }
        if frame.epoch != self.epoch {
            return Err(Violation::Epoch {
                theirs: frame.epoch,
                ours: self.epoch,
            });
        }
        if frame.body == Body::Open {
            return self.take_open(frame.stream);
        }
        let Some(state) = self.streams.get_mut(&frame.stream) else {
            // It may have crossed what ended the stream.
            return match (1..=self.last).contains(&frame.stream) {
                true => Ok(()),
                false => Err(Violation::Stream(frame.stream)),
            };
        };
        let id = frame.stream;
        match frame.body {
            Body::Data(data) => {
                let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let left = state.expected.checked_sub(bytes).filter(|_| !state.ended);
                state.expected = left.ok_or(Violation::Data(id))?;
                if !state.deaf {
                    state.received.extend(data);
                }
            }
            Body::Fin => state.ended = true,
            // Answered by a Fin, unless one is on its way: the other end forgets the stream by it.
            Body::Reset => return self.refused(id),
            Body::Credit(bytes) => {
                if let Sending::Open(left) = &mut state.sending {
                    let more = left.checked_add(bytes).filter(|all| *all <= CREDIT_BYTES);
                    *left = more.ok_or(Violation::Credit(id))?;
                }
            }
            Body::Hello | Body::Open => {}
        }
        self.forget_if_over(id);
        Ok(())
    }

    fn refused(&mut self, id: u32) -> Result<(), Violation> {
        self.finish(id);
        Ok(())
    }

    fn meet(&mut self, epoch: u16) -> Result<(), Violation> {
        match self.side {
            Side::Host if epoch == self.epoch && !self.met => self.met = true,
            // Its answer to a host before this one.
            Side::Host if !self.met => {}
            Side::Host => {
                return Err(Violation::Epoch {
                    theirs: epoch,
                    ours: self.epoch,
                });
            }
            Side::Guest => {
                self.forget();
                self.epoch = epoch;
                self.met = true;
                self.say(0, Body::Hello);
            }
        }
        Ok(())
    }

    fn take_open(&mut self, id: u32) -> Result<(), Violation> {
        if self.side == Side::Host || id <= self.last {
            return Err(Violation::Open(id));
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(Violation::Streams(STREAMS_MAX));
        }
        self.last = id;
        self.streams.insert(id, State::new());
        self.arrived.push_back(id);
        Ok(())
    }

    /// Opens a stream, at the host.
    ///
    /// # Errors
    /// [`Violation::Streams`] when there are too many, [`Violation::Open`] at a guest.
    pub fn open(&mut self) -> Result<u32, Violation> {
        let id = self.last.wrapping_add(1);
        if self.side == Side::Guest || id == 0 {
            return Err(Violation::Open(id));
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(Violation::Streams(STREAMS_MAX));
        }
        self.last = id;
        self.streams.insert(id, State::new());
        self.say(id, Body::Open);
        Ok(id)
    }

    /// The next stream that the host has opened, at the guest.
    pub fn accept(&mut self) -> Option<u32> {
        self.arrived.pop_front()
    }

    /// Sends as much of `data` as there is credit for; gives how much, or none when the other end reads
    /// no more.
    pub fn write(&mut self, id: u32, data: &[u8]) -> Option<usize> {
        let Sending::Open(credit) = self.streams.get(&id)?.sending else {
            return None;
        };
        let bytes = data.len().min(usize::try_from(credit).unwrap_or(0));
        for part in data[..bytes].chunks(DATA_BYTES_MAX) {
            self.say(id, Body::Data(part));
        }
        if let Some(state) = self.streams.get_mut(&id) {
            let used = u32::try_from(bytes).expect("it is at most the credit");
            state.sending = Sending::Open(credit - used);
        }
        Some(bytes)
    }

    /// Takes what has come, as much as fits.
    pub fn read(&mut self, id: u32, buffer: &mut [u8]) -> Got {
        let Some(state) = self.streams.get_mut(&id) else {
            return Got::End;
        };
        let bytes = state.received.read(buffer).expect("memory can be read");
        if bytes == 0 && !buffer.is_empty() {
            return if state.ended || state.deaf {
                Got::End
            } else {
                Got::Nothing
            };
        }
        state.read += u32::try_from(bytes).expect("no more was received than there was credit");
        if state.read >= CREDIT_BYTES / 2 && !state.ended {
            let bytes = std::mem::take(&mut state.read);
            state.expected += bytes;
            self.say(id, Body::Credit(bytes));
        }
        Got::Bytes(bytes)
    }

    /// Says that this end writes no more.
    pub fn finish(&mut self, id: u32) {
        let Some(state) = self.streams.get_mut(&id) else {
            return;
        };
        if state.sending != Sending::Over {
            state.sending = Sending::Over;
            self.say(id, Body::Fin);
        }
        self.forget_if_over(id);
    }

    /// Says that this end reads no more; what comes is thrown away.
    pub fn stop_reading(&mut self, id: u32) {
        let Some(state) = self.streams.get_mut(&id) else {
            return;
        };
        state.received.clear();
        if !state.deaf && !state.ended {
            state.deaf = true;
            self.say(id, Body::Reset);
        }
    }

    /// Nobody uses the stream any more at this end.
    pub fn drop_stream(&mut self, id: u32) {
        self.finish(id);
        self.stop_reading(id);
        if let Some(state) = self.streams.get_mut(&id) {
            state.dropped = true;
        }
        self.forget_if_over(id);
    }

    /// How many streams are known.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    fn forget_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(State::is_over) {
            self.streams.remove(&id);
        }
    }

    fn say(&mut self, stream: u32, body: Body<'_>) {
        let frame = Frame {
            epoch: self.epoch,
            stream,
            body,
        };
        frame.write(&mut self.output);
    }
}

#[cfg(test)]
mod tests;
