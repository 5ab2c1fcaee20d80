//! A whole segment from any bytes: a typed error with a position, or a summary.
#![no_main]

use alluvium_core::format::{Batch, Placement, SEGMENT_HEADER_LEN, SegmentHeader, walk_segment};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let walk = |bytes: Vec<u8>| {
        let len = bytes.len();
        if let Err(e) = walk_segment(&Bytes::from(bytes)) {
            assert!(usize::try_from(e.position).is_ok_and(|at| at <= len));
        }
    };
    walk(data.to_vec());
    // Behind a sound header and a sound first batch, whatever the fuzzer finds.
    let Ok(header) = SegmentHeader::decode(&golden()[..SEGMENT_HEADER_LEN]) else { return };
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
});

fn golden() -> &'static [u8] {
    include_bytes!("../../tests/format/golden/segment.bin")
}
