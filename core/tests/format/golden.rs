//! The golden files: committed bytes that every later version must still write and read.

use std::path::PathBuf;

use alluvium_core::format::{
    SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind, StoreHeader, decode_batch, walk_segment,
};

use crate::inputs::{BASE_OFFSET, CLOCK_MS, golden_segment, segment_header};

/// Compares with the committed file; `UPDATE_GOLDEN=1` rewrites it, which is a format change.
#[expect(
    clippy::disallowed_methods,
    reason = "a test reads its own golden files"
)]
fn compare_with_golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/format/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, bytes).expect("write the golden file");
    }
    let golden = std::fs::read(&path).expect("read the golden file");
    let differs = golden.iter().zip(bytes).position(|(old, new)| old != new);
    assert_eq!(
        (differs, golden.len()),
        (None, bytes.len()),
        "{name}: first difference, length"
    );
}

#[test]
fn encoders_still_write_the_golden_bytes() {
    compare_with_golden("segment.bin", &golden_segment());
    let spare = SegmentHeader {
        kind: SegmentKind::Spare,
        alignment: 4096,
        created_ms: -1,
        ..segment_header()
    };
    compare_with_golden("spare.bin", &spare.encode());
    assert_eq!(SegmentHeader::decode(&spare.encode()), Ok(spare));
    let store = StoreHeader {
        store_id: 0x1122_3344_5566_7788,
        created_ms: CLOCK_MS,
    };
    compare_with_golden("store.bin", &store.encode());
}

#[test]
fn the_golden_segment_reads_back() {
    let bytes = golden_segment();
    let summary = walk_segment(&bytes).expect("flawless");
    assert_eq!(summary.header, segment_header());
    assert_eq!(summary.end_offset, BASE_OFFSET + 15);
    assert_eq!(summary.batch_count, 7);
    assert_eq!(summary.end_position, bytes.len());
    assert_eq!(summary.seal.reserved_end, 2_000);

    let first = decode_batch(&bytes, SEGMENT_HEADER_LEN).expect("valid");
    assert_eq!(first.header().producer_id, 9);
    assert_eq!(first.header().producer_epoch, 2);
    assert_eq!(first.header().producer_sequence, 77);
    assert_eq!(first.header().leader_epoch, 5);
    assert_eq!(first.header().durable_offset(), Some(998));
    assert_eq!(first.header().max_timestamp(), CLOCK_MS + 90_000);
    let records: Vec<_> = first.records().collect::<Result<_, _>>().expect("valid");
    assert_eq!(records[0].key.as_deref(), Some(&b"sensor-7"[..]));
    assert_eq!(records[0].headers[0].name, "unit");
    assert_eq!(records[1].key.as_deref(), Some(&b""[..]));
    assert_eq!(records[1].timestamp, CLOCK_MS - 40);
    assert_eq!(records[2].offset, BASE_OFFSET + 2);
    assert_eq!(records[2].headers.len(), 2);
    assert!(records[2].key.is_none());
}

#[test]
fn every_flipped_bit_of_the_golden_segment_is_found() {
    let golden = golden_segment();
    for bit in 0..golden.len() * 8 {
        let mut bytes = golden.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            walk_segment(&bytes.into()).is_err(),
            "bit {bit} went unnoticed"
        );
    }
}

#[test]
fn every_truncation_of_the_golden_segment_is_found() {
    let golden = golden_segment();
    for len in 0..golden.len() {
        assert!(
            walk_segment(&golden.slice(..len)).is_err(),
            "length {len} went unnoticed"
        );
    }
}
