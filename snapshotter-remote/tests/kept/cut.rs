//! Cutting: whatever comes is whole again, the same contents are the same chunks, zeros are nowhere.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use snapshotter_remote::{
    Error,
    chunk::{self, ChunkId},
    cut::cut,
    table::{Piece, Table},
};

const BLOCK: usize = 4096;

type Chunks = BTreeMap<ChunkId, Vec<u8>>;

fn cut_all(bytes: &[u8]) -> (Table, Chunks) {
    let mut chunks = Chunks::new();
    let blocks = u32::try_from(bytes.len() / BLOCK).unwrap();
    let table = cut(bytes, blocks, |id, contents| {
        chunks.insert(id, chunk::seal(contents)?);
        Ok(())
    });
    (table.unwrap(), chunks)
}

fn restored(table: &Table, chunks: &Chunks) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    table.restore(|id| Ok(chunks[&id].clone()), &mut out)?;
    Ok(out)
}

/// Blocks that no other seed gives.
fn blocks(seed: u64, count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count * BLOCK);
    for block in 0..count as u64 {
        let name = (seed << 32 | block).to_le_bytes();
        out.extend_from_slice(&name.repeat(BLOCK / 8));
    }
    out
}

/// Runs of contents (of a seed) and of zeros, each so many blocks long.
fn runs() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        3 => (1_u64..4, 1_usize..700).prop_map(|(seed, count)| blocks(seed, count)),
        2 => prop_oneof![1_usize..20, 200_usize..600].prop_map(|count| vec![0; count * BLOCK]),
    ];
    prop::collection::vec(run, 0..5).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn what_was_cut_is_whole_again_and_zeros_are_holes(bytes in runs()) {
        let (table, chunks) = cut_all(&bytes);
        prop_assert_eq!(table.blocks() as usize * BLOCK, bytes.len());
        prop_assert!(restored(&table, &chunks).unwrap() == bytes);
        for (id, blocks) in table.chunks() {
            let contents = chunk::open(&chunks[&id], id, blocks).unwrap();
            // Fifteen blocks of zeros may stand before a cut, and as many behind it.
            let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
            let runs = contents.chunks(BLOCK).collect::<Vec<_>>();
            let mut runs = runs.chunk_by(|a, b| is_zero(a) == is_zero(b));
            prop_assert!(runs.all(|run| !is_zero(run[0]) || run.len() < 16));
        }
    }
}

#[test]
fn lengths_are_within_bounds_and_about_what_is_meant() {
    let (table, _) = cut_all(&blocks(1, 8000));
    let lengths: Vec<u32> = table.pieces().iter().map(Piece::blocks).collect();
    let (_, all_but_last) = lengths.split_last().unwrap();
    assert!(
        all_but_last
            .iter()
            .all(|blocks| (16..=256).contains(blocks))
    );
    let average = 8000 / lengths.len();
    assert!((60..100).contains(&average), "{average}");
}

#[test]
fn contents_that_move_are_the_same_chunks_again() {
    let common = blocks(1, 2000);
    let first = cut_all(&common).1;
    let moved = [blocks(2, 77), common.clone(), blocks(3, 5)].concat();
    let second = cut_all(&moved).1;
    let shared = first.keys().filter(|id| second.contains_key(id)).count();
    assert!(
        shared * 10 >= first.len() * 9,
        "{shared} of {}",
        first.len()
    );
}

#[test]
fn cuts_are_where_they_always_were() {
    let zeros = vec![0; 40 * BLOCK];
    let bytes = [blocks(1, 300), zeros, blocks(2, 20)].concat();
    let shown: Vec<String> = cut_all(&bytes)
        .0
        .pieces()
        .iter()
        .map(|piece| match piece {
            Piece::Chunk { id, blocks } => format!("{blocks} {}", &id.to_string()[..8]),
            Piece::Hole { blocks } => format!("{blocks} hole"),
        })
        .collect();
    let expected = [
        "35 a0db7537",
        "82 53c0eeb3",
        "33 38568fd0",
        "74 f2ed90f9",
        "76 4908f927",
        "40 hole",
        "20 3933571d",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn a_source_that_ends_too_early_and_a_taker_that_fails_are_errors() {
    let bytes = blocks(1, 2);
    let short = cut(&bytes[..], 3, |_, _| Ok(())).unwrap_err();
    assert!(matches!(short, Error::Read(_)), "{short}");
    let full = || Error::Limit {
        what: "bytes in a test",
        limit: 1,
    };
    let failed = cut(&bytes[..], 2, |_, _| Err(full())).unwrap_err();
    assert!(matches!(failed, Error::Limit { .. }), "{failed}");
}

#[test]
fn a_chunk_that_is_another_is_not_written() {
    let bytes = blocks(1, 600);
    let (table, chunks) = cut_all(&bytes);
    let names: BTreeSet<_> = chunks.keys().collect();
    assert!(names.len() > 2);
    let wrong = chunk::seal(&blocks(2, 50)).unwrap();
    let mut out = Vec::new();
    let mut asked = 0;
    let answer = table.restore(
        |id| {
            asked += 1;
            Ok(if asked == 2 {
                wrong.clone()
            } else {
                chunks[&id].clone()
            })
        },
        &mut out,
    );
    assert!(matches!(answer, Err(Error::Damaged { .. })), "{answer:?}");
    let first = table.pieces()[0].blocks() as usize;
    assert!(out == bytes[..first * BLOCK]);
}
