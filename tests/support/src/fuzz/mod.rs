//! What must hold for any bytes: the bodies of the fuzz targets.
//!
//! They stand here so that the fuzzer (`fuzz/`) and a plain `cargo test`, which replays the
//! committed corpora (`tests/fuzz_corpus`), run the same code. Each panics when something does not
//! hold.

mod batch;
mod image;
mod input;
mod ops;

pub use batch::{crc32, decode_batch, headers, walk_segment};
pub use image::{open_image, open_index};
pub use ops::ops_vs_model;

/// A target: takes the bytes, panics when something does not hold.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("decode_batch", decode_batch),
    ("walk_segment", walk_segment),
    ("headers", headers),
    ("open_image", open_image),
    ("open_index", open_index),
    ("ops_vs_model", ops_vs_model),
];
