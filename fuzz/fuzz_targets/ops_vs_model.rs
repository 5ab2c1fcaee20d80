//! Operations, crashes and faults as the bytes say, against the model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alluvium_testkit::fuzz::ops_vs_model(data));
