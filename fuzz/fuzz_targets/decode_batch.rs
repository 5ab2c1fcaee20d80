//! Any bytes: a typed error, or a batch whose records decode or fail with a type.
#![no_main]

use alluvium_core::format::{BATCH_HEADER_LEN, BatchHeader, decode_batch};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(&Bytes::copy_from_slice(data));
    // The checksums would stop nearly every mutation: mend them.
    if data.len() >= BATCH_HEADER_LEN {
        let mut mended = data.to_vec();
        let (header, body) = mended.split_at_mut(BATCH_HEADER_LEN);
        header[..4].copy_from_slice(b"ALB1");
        let len = u32::from_le_bytes([header[48], header[49], header[50], header[51]]) as usize;
        let body = &body[..len.min(body.len())];
        let crc = crc32(body);
        header[52..56].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32(&header[..92]);
        header[92..96].copy_from_slice(&crc.to_le_bytes());
        check(&Bytes::from(mended));
    }
});

fn check(bytes: &Bytes) {
    let Ok(batch) = decode_batch(bytes, 0) else { return };
    let mut again = [0; BATCH_HEADER_LEN];
    batch.header().encode_into(&mut again);
    assert_eq!(again[..], bytes[..BATCH_HEADER_LEN], "a header that decodes encodes the same");
    assert_eq!(BatchHeader::decode(&again).as_ref(), Ok(batch.header()));
    let mut records = 0;
    for record in batch.records() {
        match record {
            Ok(record) => {
                assert!(record.offset >= batch.base_offset() && record.offset < batch.end_offset());
                records += 1;
            }
            Err(_) => return,
        }
    }
    assert_eq!(records, u64::from(batch.header().record_count));
}

/// CRC-32 (IEEE), bit by bit: independent of the library under test.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
