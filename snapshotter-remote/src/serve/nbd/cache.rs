//! Chunks that were read last, opened: a client reads a few KiB at a time, and a chunk has hundreds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

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

    pub(super) fn get(&self, id: ChunkId) -> Option<Arc<Vec<u8>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now += 1;
        let now = state.now;
        let (contents, used) = state.chunks.get_mut(&id)?;
        *used = now;
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
        // Another may have read the same.
        if let Some((same, _)) = state.chunks.insert(id, (contents, now)) {
            state.bytes -= same.len();
        }
        while state.bytes > self.bytes_max {
            let oldest = state.chunks.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = oldest.map(|(id, _)| *id).expect("something has the bytes");
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
        let cache = Cache::new(10);
        let id = |first| ChunkId([first; 32]);
        let put = |first, bytes| cache.put(id(first), Arc::new(vec![first; bytes]));
        let has = |first| cache.get(id(first)).is_some_and(|chunk| chunk[0] == first);
        put(1, 4);
        put(2, 4);
        put(2, 4);
        assert!(has(2) && has(1));
        put(3, 4);
        assert!(has(1) && !has(2) && has(3));
        put(4, 10);
        assert!(!has(1) && !has(3) && has(4));
        put(5, 11);
        assert!(has(4) && !has(5), "it has no room for it at all");
    }
}
