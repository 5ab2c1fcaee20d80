//! Single structures of the format.

use alluvium_core::format::{
    self, BATCH_HEADER_LEN, Batch, BatchHeader, Control, Placement, SEGMENT_HEADER_LEN,
    SegmentHeader, StoreHeader,
};
use bytes::Bytes;

/// Any bytes: a typed error, or a batch whose records decode or fail with a type.
pub fn decode_batch(data: &[u8]) {
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
}

fn check(bytes: &Bytes) {
    let Ok(batch) = format::decode_batch(bytes, 0) else {
        return;
    };
    let mut again = [0; BATCH_HEADER_LEN];
    batch.header().encode_into(&mut again);
    assert_eq!(
        again[..],
        bytes[..BATCH_HEADER_LEN],
        "a header that decodes encodes the same"
    );
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
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Segment, store and control headers from any bytes: a typed error, or the same bytes again.
pub fn headers(data: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(data) {
        // One of the two copies may be damaged.
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
    if let Ok(header) = StoreHeader::decode(data) {
        assert_eq!(header.encode()[..], data[..512]);
    }
    if let Ok(control) = Control::decode(data) {
        assert_eq!(control.encode()[..], *data);
    }
}

/// A whole segment from any bytes: a typed error with a position, or a summary.
pub fn walk_segment(data: &[u8]) {
    let walk = |bytes: Vec<u8>| {
        let len = bytes.len();
        if let Err(e) = format::walk_segment(&Bytes::from(bytes)) {
            assert!(e.position <= len);
        }
    };
    walk(data.to_vec());
    // Behind a sound header and a sound first batch, whatever the fuzzer finds.
    let golden = include_bytes!("../../../format/golden/segment.bin");
    let Ok(header) = SegmentHeader::decode(&golden[..SEGMENT_HEADER_LEN]) else {
        return;
    };
    let mut bytes = header.encode();
    if let Ok(mut batch) = Batch::opaque(data, 1, Some(0)) {
        batch.place(&Placement {
            identity: header.identity,
            partition: header.partition,
            incarnation: header.incarnation,
            generation: header.generation,
            prev_header_crc: header.prev_header_crc,
            base_offset: header.base_offset,
            ..Placement::default()
        });
        bytes.extend_from_slice(batch.bytes());
        bytes.extend_from_slice(data);
        walk(bytes);
    }
}
