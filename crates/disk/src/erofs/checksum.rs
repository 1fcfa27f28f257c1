//! CRC-32C as EROFS uses it.

/// The superblock's checksum: CRC-32C (Castagnoli) from all ones, not inverted at the end, as the
/// kernel's crc32c() computes it. One block an image is summed, so bit by bit will do.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            let carry = sum & 1 != 0;
            (sum >> 1) ^ if carry { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_standard_sum_without_the_last_inversion() {
        // The check value of CRC-32C (RFC 3720, B.4).
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
