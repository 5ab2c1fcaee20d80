//! Damage to the STORE file and to segment headers.

use alluvium_core::format::{FormatError, SegmentHeader, StoreHeader};

use crate::inputs::segment_header;

#[test]
fn versions_and_algorithms_are_judged_before_the_checksum() {
    let mut block = segment_header().encode();
    block[8] = 2;
    assert_eq!(
        SegmentHeader::decode(&block),
        Err(FormatError::UnsupportedVersion { found: 2 })
    );
    block[8] = 1;
    block[10] = 9;
    assert_eq!(
        SegmentHeader::decode(&block),
        Err(FormatError::UnsupportedChecksum { found: 9 })
    );
    block[10] = 1;
    block[4095] = 1;
    assert_eq!(
        SegmentHeader::decode(&block),
        Err(FormatError::NonZeroPadding)
    );
    assert_eq!(
        SegmentHeader::decode(&block[..4095]),
        Err(FormatError::Truncated {
            need: 4096,
            have: 4095
        })
    );
    let mut store = StoreHeader {
        store_id: 1,
        created_ms: 2,
    }
    .encode();
    store[8] = 7;
    assert_eq!(
        StoreHeader::decode(&store),
        Err(FormatError::UnsupportedVersion { found: 7 })
    );
}

#[test]
fn every_flipped_bit_of_a_store_header_is_found() {
    let golden = StoreHeader {
        store_id: 1,
        created_ms: 2,
    }
    .encode();
    for bit in 0..golden.len() * 8 {
        let mut bytes = golden;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            StoreHeader::decode(&bytes).is_err(),
            "bit {bit} went unnoticed"
        );
    }
}
