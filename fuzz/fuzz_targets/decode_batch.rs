//! Any bytes as a batch.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::decode_batch(data));
