//! What is read first of a disk: chunks in the order in which a host touched them. Hints for who fetches ahead and nothing
//! more: whatever a trace says, what it leads to is verified as all else.
//!
//! ```text
//!  host: reads of the first seconds --PUT--> store: the last of each of so many hosts --votes--> one for all --GET--> hosts
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    fields::{self, Fields},
    manifest::Manifest,
};

/// Raised when bytes change.
pub const VERSION: u32 = 1;

/// Chunks that a trace may have: some ten gigabytes of ordinary ones.
pub const STEPS_MAX: usize = 1 << 15;

/// Length that an encoded trace may have.
pub const BYTES_MAX: usize = 8 + 8 * STEPS_MAX;

/// A piece of the table of one of a disk's blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// Which of the disk's devices, in the order of its manifest.
    pub device: u32,
    /// Which piece of its table.
    pub piece: u32,
}

/// Steps, each once, the first touched first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace(Vec<Step>);

impl Trace {
    /// Of these, each at its first place; more than there may be are left out.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let mut seen = BTreeSet::new();
        let first = steps.into_iter().filter(|step| seen.insert(*step));
        Self(first.take(STEPS_MAX).collect())
    }

    /// From the first touched on.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// What all but a few agree on: what at least half of them touched, in the order in which it was touched on average.
    #[must_use]
    pub fn merged(traces: &[Self]) -> Self {
        // Votes, and the sum of places.
        let mut found: BTreeMap<Step, (usize, u64)> = BTreeMap::new();
        for trace in traces {
            for (place, step) in (0..).zip(&trace.0) {
                let (votes, places) = found.entry(*step).or_default();
                *votes += 1;
                *places += place;
            }
        }
        let agreed = found.into_iter();
        let agreed = agreed.filter(|(_, (votes, _))| votes * 2 >= traces.len());
        let mut agreed: Vec<(u64, Step)> = agreed
            .map(|(step, (votes, places))| (places / votes as u64, step))
            .collect();
        agreed.sort_unstable();
        Self::new(agreed.into_iter().map(|(_, step)| step))
    }

    /// Version, count; for each step its device and piece.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + 8 * self.0.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&fields::count(self.0.len()));
        for step in &self.0 {
            bytes.extend_from_slice(&step.device.to_le_bytes());
            bytes.extend_from_slice(&step.piece.to_le_bytes());
        }
        bytes
    }

    /// The trace of these bytes, whoever made them.
    ///
    /// # Errors
    /// [`Error::OtherVersion`], [`Error::Damaged`].
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(object, bytes);
        let found = fields.number()?;
        if found != VERSION {
            return Err(Error::OtherVersion {
                object: object.to_owned(),
                found,
                known: VERSION,
            });
        }
        let count = fields.count(8)?;
        if count > STEPS_MAX {
            return Err(fields.damaged("it has more steps than a trace may have"));
        }
        let mut steps = Vec::with_capacity(count);
        for _ in 0..count {
            steps.push(Step {
                device: fields.number()?,
                piece: fields.number()?,
            });
        }
        let trace = Self::new(steps);
        if trace.0.len() != count {
            return Err(fields.damaged("it has a step twice"));
        }
        fields.finish()?;
        Ok(trace)
    }

    /// Whether the disk of a manifest has all that it touches, as far as the manifest tells.
    #[must_use]
    pub fn is_of(&self, manifest: &Manifest) -> bool {
        self.0.iter().all(|step| {
            let device = usize::try_from(step.device).ok();
            let device = device.and_then(|device| manifest.devices.get(device));
            // A piece has at least one block.
            device.is_some_and(|device| step.piece < device.blocks)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(pieces: &[u32]) -> Trace {
        let step = |piece: &u32| Step {
            device: 0,
            piece: *piece,
        };
        Trace::new(pieces.iter().map(step))
    }

    #[test]
    fn what_half_of_all_touched_is_kept_in_the_order_of_most() {
        let check = |traces: &[&[u32]], expected: &[u32]| {
            let traces: Vec<Trace> = traces.iter().map(|pieces| trace(pieces)).collect();
            assert_eq!(Trace::merged(&traces), trace(expected), "{traces:?}");
        };
        check(&[], &[]);
        check(&[&[3, 1, 2]], &[3, 1, 2]);
        check(&[&[3, 1, 3, 2, 1]], &[3, 1, 2]);
        check(&[&[1, 2], &[1, 3]], &[1, 2, 3]);
        check(&[&[1, 2, 9], &[1, 2], &[2, 1]], &[1, 2]);
        check(&[&[5, 1], &[5, 1], &[1, 5], &[7, 5, 1]], &[5, 1]);
    }

    #[test]
    fn other_bytes_than_those_that_are_written_are_refused() {
        let check = |bytes: &[u8], what: &str| {
            let error = Trace::decode("trace", bytes).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        let good = trace(&[1, 2]).encode();
        check(&good[..good.len() - 1], "it says more than it has");
        check(&[&good[..], &[0]].concat(), "more follows");
        check(&[], "it ends too early");
        let mut twice = good.clone();
        twice[20] = 1;
        check(&twice, "it has a step twice");
        let mut other = good;
        other[0] = 2;
        check(&other, "is of version 2");
    }

    #[test]
    fn a_trace_is_as_long_as_it_may_be() {
        let all: Vec<u32> = (0..=u32::try_from(STEPS_MAX).unwrap()).collect();
        let trace = trace(&all);
        assert_eq!(trace.steps().len(), STEPS_MAX);
        assert_eq!(trace.encode().len(), BYTES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pieces in prop::collection::vec(any::<u32>(), 0..50)) {
            let trace = trace(&pieces);
            prop_assert_eq!(Trace::decode("trace", &trace.encode()).unwrap(), trace);
        }

        #[test]
        fn whatever_bytes_come_nothing_breaks(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(trace) = Trace::decode("trace", &bytes) {
                prop_assert_eq!(trace.encode(), bytes);
            }
        }
    }
}
