//! Segment, store and control headers from any bytes.
#![no_main]

use alluvium_core::format::{Control, SegmentHeader, StoreHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = SegmentHeader::decode(data) {
        assert_eq!(header.encode()[..], data[..4096]);
    }
    if let Ok(header) = StoreHeader::decode(data) {
        assert_eq!(header.encode()[..], data[..512]);
    }
    if let Ok(control) = Control::decode(data) {
        assert_eq!(control.encode()[..], *data);
    }
});
