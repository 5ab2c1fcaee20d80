//! Any bytes as a segment.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::walk_segment(data));
