//! The queueing discipline `tbf` (tc-tbf(8)) as a message: plain computation.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};

/// By this handle ours are known, of all queueing disciplines.
pub(crate) const HANDLE: u32 = 0x7075_0000;

/// Its name.
const KIND: &str = "tbf";

/// linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RTAB: u16 = 2;

/// The kernel counts time in so many nanoseconds (`PSCHED_SHIFT`, since 2.6.31).
const TICK_NS: u128 = 64;

/// Cells of the table of times are 256 bytes, so it reaches to the longest packet (GSO) in 256 of them.
const CELL_LOG: u8 = 8;
const CELLS: u64 = 256;

/// linux/pkt_sched.h, `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;

/// How much may go at once: never less than the longest packet.
const BURST_BYTES_MIN: u64 = 64 << 10;
/// Or else what comes in so many parts of a second.
const BURST_PARTS: u64 = 100;
/// What waits longer than such a part is dropped.
const WAIT_PARTS: u64 = 10;

/// Names the discipline at the root of a link.
pub(crate) fn at_root(index: u32) -> TcMessage {
    let header = TcHeader {
        index: index.cast_signed(),
        parent: TcHandle::ROOT,
        handle: TcHandle::from(HANDLE),
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, vec![TcAttribute::Kind(KIND.to_owned())])
}

/// That discipline with this rate.
pub(crate) fn message(index: u32, bytes_s: u32) -> TcMessage {
    let mut message = at_root(index);
    let options = [
        (TCA_TBF_PARMS, parameters(bytes_s)),
        (TCA_TBF_RTAB, times(bytes_s)),
    ];
    let options = options.map(|(kind, bytes)| TcOption::Other(DefaultNla::new(kind, bytes)));
    message
        .attributes
        .push(TcAttribute::Options(options.to_vec()));
    message
}

/// `struct tc_tbf_qopt`.
fn parameters(bytes_s: u32) -> Vec<u8> {
    let rate = u64::from(bytes_s);
    let burst = BURST_BYTES_MIN.max(rate / BURST_PARTS);
    let limit = burst + rate / WAIT_PARTS;
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let mut bytes = specification(bytes_s).to_vec();
    // No peak rate.
    bytes.extend([0; 12]);
    for word in [limit, ticks(burst, bytes_s), 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// `struct tc_ratespec`.
fn specification(bytes_s: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = CELL_LOG;
    bytes[1] = ETHERNET;
    bytes[4..6].copy_from_slice(&(-1_i16).to_ne_bytes());
    bytes[8..].copy_from_slice(&bytes_s.to_ne_bytes());
    bytes
}

/// How long packets of each length take: what kernels before 3.8 reckon with, and all want to have.
fn times(bytes_s: u32) -> Vec<u8> {
    let cells = (1..=CELLS).map(|cell| ticks(cell << CELL_LOG, bytes_s));
    cells.flat_map(u32::to_ne_bytes).collect()
}

/// How long so many bytes take.
fn ticks(bytes: u64, bytes_s: u32) -> u32 {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_s.max(1));
    u32::try_from(ns / TICK_NS).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn a_rate_is_told_as_tc_tells_it() {
        for (bytes_s, limit, buffer) in [
            // 1 kB/s: a burst of 64 KiB takes 65.5 s.
            (1_000, 65_536 + 100, 1_024_000_000),
            // 1 MB/s.
            (1_000_000, 65_536 + 100_000, 1_024_000),
            // 1 GB/s: a burst of 10 ms.
            (1_000_000_000, 110_000_000, 156_250),
        ] {
            let bytes = parameters(bytes_s);
            assert_eq!(bytes.len(), 36, "struct tc_tbf_qopt");
            let told = [8, 24, 28, 32].map(|at| word(&bytes, at));
            assert_eq!(told, [bytes_s, limit, buffer, 0], "{bytes_s}");
            assert_eq!(bytes[..2], [8, 1]);
            assert_eq!(bytes[12..24], [0; 12], "no peak rate");
        }
    }

    #[test]
    fn the_table_of_times_reaches_to_the_longest_packet() {
        let table = times(1_000_000);
        assert_eq!(table.len(), 1024, "TC_RTAB_SIZE");
        // 256 bytes in 256 us, 64 KiB in 65.5 ms, in ticks of 64 ns.
        assert_eq!((word(&table, 0), word(&table, 1020)), (4_000, 1_024_000));
        assert_eq!(word(&times(1), 1020), u32::MAX);
    }
}
