//! Whole store directories, altered as the bytes say.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::open_image(data));
