//! Chunks that were read last, opened: a client reads a few KiB at a time, and a chunk has hundreds.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use disk::BLOCK_BYTES;

use crate::chunk::ChunkId;

/// So many bytes of chunks, and no more, whoever reads them.
#[derive(Debug)]
pub(super) struct Cache {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With the time of their last use.
    chunks: HashMap<ChunkId, (Arc<Vec<u8>>, u64)>,
    /// By that time, of which no two have the same.
    by_use: BTreeMap<u64, ChunkId>,
    bytes: usize,
    /// Counts uses.
    now: u64,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// A chunk of so many blocks; one of another length is not the one that is meant, whoever has signed that it is.
    pub(super) fn get(&self, id: ChunkId, blocks: u32) -> Option<Arc<Vec<u8>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State {
            chunks,
            by_use,
            now,
            ..
        } = &mut *state;
        let (contents, used) = chunks.get_mut(&id)?;
        if contents.len() as u64 != u64::from(blocks) * BLOCK_BYTES {
            return None;
        }
        *now += 1;
        by_use.remove(used);
        by_use.insert(*now, id);
        *used = *now;
        Some(Arc::clone(contents))
    }

    /// Those that were used longest ago make room for it.
    pub(super) fn put(&self, id: ChunkId, contents: Arc<Vec<u8>>) {
        if contents.len() > self.bytes_max {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now += 1;
        let now = state.now;
        state.bytes += contents.len();
        state.by_use.insert(now, id);
        // Another may have read the same.
        if let Some((same, used)) = state.chunks.insert(id, (contents, now)) {
            state.bytes -= same.len();
            state.by_use.remove(&used);
        }
        while state.bytes > self.bytes_max {
            let oldest = state.by_use.pop_first();
            let (_, oldest) = oldest.expect("something has the bytes");
            let gone = state.chunks.remove(&oldest);
            state.bytes -= gone.map_or(0, |(contents, _)| contents.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let cache = Cache::new(10 << 12);
        let id = |first| ChunkId([first; 32]);
        let put = |first, blocks: usize| cache.put(id(first), Arc::new(vec![first; blocks << 12]));
        let is = |first, blocks| {
            let found = cache.get(id(first), blocks);
            found.is_some_and(|chunk| chunk[0] == first)
        };
        let has = |first| is(first, 4);
        put(1, 4);
        put(2, 4);
        put(2, 4);
        assert!(has(2) && has(1));
        assert!(!is(2, 3) && !is(2, 5), "of another length");
        put(3, 4);
        assert!(has(1) && !has(2) && has(3));
        put(4, 10);
        assert!(!has(1) && !has(3) && is(4, 10));
        put(5, 11);
        assert!(is(4, 10) && !is(5, 11), "it has no room for it at all");
        let state = cache.state.lock().unwrap();
        assert_eq!(
            (state.chunks.len(), state.by_use.len(), state.bytes),
            (1, 1, 10 << 12)
        );
    }
}
