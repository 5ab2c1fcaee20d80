//! A segment after a script, or any bytes, walked strictly.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::walk_segment(data));
