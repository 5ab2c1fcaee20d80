//! Checksums and fields by hand, independent of the library under test.
//!
//! A checksum stops nearly every mutation at the door. The targets put right ones behind what the
//! fuzzer has changed, so that it gets to what acts on the fields.

use alluvium_core::format::{BATCH_HEADER_LEN, SECTOR_LEN};

/// Where the batch header has its own checksum, and those fields that are mended.
pub(super) const BODY_LEN_AT: usize = 48;
const BODY_CRC_AT: usize = 52;
const HEADER_CRC_AT: usize = BATCH_HEADER_LEN - 4;
const SECTOR_CRC_AT: usize = SECTOR_LEN - 4;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256_usize {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// CRC-32 (IEEE).
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ TABLE[usize::from(low ^ byte)]
    })
}

/// The field at `at`; zero where there is none.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u32::from_le_bytes(*field))
}

/// The field at `at`; zero where there is none.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u64::from_le_bytes(*field))
}

/// Puts the checksum under a STORE or segment sector.
pub(super) fn mend_sector(sector: &mut [u8]) {
    if let Some(sector) = sector.get_mut(..SECTOR_LEN) {
        let crc = crc32(&sector[..SECTOR_CRC_AT]);
        sector[SECTOR_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Puts the checksum under a batch header.
pub(super) fn mend_header(batch: &mut [u8]) {
    if let Some(header) = batch.get_mut(..BATCH_HEADER_LEN) {
        let crc = crc32(&header[..HEADER_CRC_AT]);
        header[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Puts the checksums under a batch: its body, as far as it is there, and its header.
pub(super) fn mend_batch(batch: &mut [u8]) {
    if batch.len() < BATCH_HEADER_LEN {
        return;
    }
    let (header, body) = batch.split_at_mut(BATCH_HEADER_LEN);
    let len = usize::try_from(u32_at(header, BODY_LEN_AT)).unwrap_or(usize::MAX);
    let crc = crc32(&body[..len.min(body.len())]);
    header[BODY_CRC_AT..BODY_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    mend_header(header);
}

/// Turns bits of up to four bytes in a row over, at least one. Any checksum of 32 bits over them
/// notices that for certain, and a fuzzer that copies checksums out of comparisons cannot undo it.
pub(super) fn burst(bytes: &mut [u8], at: usize, pattern: u32) {
    let pattern = if pattern == 0 { 1 } else { pattern };
    let end = bytes.len();
    for (byte, flip) in bytes[at.min(end)..].iter_mut().zip(pattern.to_le_bytes()) {
        *byte ^= flip;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_gzip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
