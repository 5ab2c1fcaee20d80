//! Damage to the STORE file and to segment headers.

use alluvium_core::format::{FormatError, SegmentHeader, StoreHeader};

use crate::inputs::segment_header;

#[test]
fn versions_and_algorithms_are_judged_before_the_checksum() {
    let block = segment_header().encode();
    // Damage in both copies; in one alone it is passed over, but for a version that is too new.
    let damaged = |at: usize, byte: u8, copies: &[usize]| {
        let mut block = block.clone();
        for copy in copies {
            block[copy * 2048 + at] = byte;
        }
        (
            SegmentHeader::decode(&block),
            SegmentHeader::check_block(&block),
        )
    };
    let too_new = Err(FormatError::UnsupportedVersion { found: 2 });
    assert_eq!(damaged(8, 2, &[0, 1]).0, too_new);
    assert_eq!(
        damaged(8, 2, &[0]).0,
        Ok(segment_header()),
        "one flipped bit is damage"
    );
    let unknown = Err(FormatError::UnsupportedChecksum { found: 9 });
    assert_eq!(damaged(10, 9, &[0, 1]).0, unknown);
    for copy in [0, 1] {
        let (found, strict) = damaged(100, 0xFF, &[copy]);
        assert_eq!(found, Ok(segment_header()), "one sound copy is enough");
        assert!(strict.is_err(), "but the block is not as it was written");
    }
    assert!(damaged(100, 0xFF, &[0, 1]).0.is_err());
    assert_eq!(damaged(600, 1, &[0]).1, Err(FormatError::NonZeroPadding));
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
