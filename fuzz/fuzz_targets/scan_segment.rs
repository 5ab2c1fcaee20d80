//! One segment after a script, harmed, and what recovery makes of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::scan_segment(data));
