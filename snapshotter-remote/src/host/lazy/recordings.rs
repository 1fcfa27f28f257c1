//! What is read first of disks, as data: of each disk that was mounted for the first time, which pieces were touched, in order.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use disk::Digest;
use sys::FileId;

use crate::trace::{STEPS_MAX, Step, Trace};

/// Disks of which it is noted.
#[derive(Debug, Default)]
pub(super) struct Recordings(HashMap<Digest, Recording>);

#[derive(Debug)]
struct Recording {
    /// The disk's devices by file.
    devices: HashMap<FileId, u32>,
    steps: Vec<Step>,
    seen: HashSet<Step>,
}

impl Recordings {
    /// From now on, what is read of a disk is noted; not anew, if it is already.
    pub(super) fn begin(&mut self, disk: Digest, devices: impl IntoIterator<Item = (FileId, u32)>) {
        self.0.entry(disk).or_insert_with(|| Recording {
            devices: devices.into_iter().collect(),
            steps: Vec::new(),
            seen: HashSet::new(),
        });
    }

    /// Somebody reads these pieces of a file.
    pub(super) fn touched(&mut self, file: FileId, pieces: Range<usize>) {
        for recording in self.0.values_mut() {
            let Some(&device) = recording.devices.get(&file) else {
                continue;
            };
            for piece in pieces.clone() {
                let Ok(piece) = u32::try_from(piece) else {
                    continue;
                };
                let step = Step { device, piece };
                if recording.steps.len() < STEPS_MAX && recording.seen.insert(step) {
                    recording.steps.push(step);
                }
            }
        }
    }

    /// Whether it is noted who reads that file.
    pub(super) fn has(&self, file: FileId) -> bool {
        let mut all = self.0.values();
        all.any(|recording| recording.devices.contains_key(&file))
    }

    /// That file is no blob any more; another may get its number.
    pub(super) fn forget(&mut self, file: FileId) {
        for recording in self.0.values_mut() {
            recording.devices.remove(&file);
        }
    }

    /// Nothing more is noted of a disk: what was read until now.
    pub(super) fn end(&mut self, disk: Digest) -> Option<Trace> {
        let recording = self.0.remove(&disk)?;
        Some(Trace::new(recording.steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_noted_once_for_each_disk_that_has_it() {
        let file = |inode| FileId { device: 1, inode };
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        let mut recordings = Recordings::default();
        recordings.begin(one, [(file(1), 0), (file(2), 1)]);
        recordings.touched(file(2), 3..5);
        recordings.begin(other, [(file(2), 0)]);
        recordings.begin(one, []);
        recordings.touched(file(2), 4..6);
        recordings.touched(file(1), 0..1);
        recordings.touched(file(9), 0..1);
        assert!(recordings.has(file(1)) && !recordings.has(file(9)));
        recordings.forget(file(1));
        assert!(!recordings.has(file(1)));
        recordings.touched(file(1), 7..8);
        let steps = |all: &[(u32, u32)]| {
            let step = |&(device, piece): &(u32, u32)| Step { device, piece };
            Some(Trace::new(all.iter().map(step)))
        };
        assert_eq!(
            recordings.end(one),
            steps(&[(1, 3), (1, 4), (1, 5), (0, 0)])
        );
        assert_eq!(recordings.end(other), steps(&[(0, 4), (0, 5)]));
        assert_eq!(recordings.end(one), None);
    }
}
