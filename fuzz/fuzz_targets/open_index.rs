//! Index files of any bytes beside sound segments.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::open_index(data));
