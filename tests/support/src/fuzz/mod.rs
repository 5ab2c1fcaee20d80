//! What must hold for any bytes: the bodies of the fuzz targets.
//!
//! They stand here so that the fuzzer (`fuzz/`) and a plain `cargo test`, which replays the
//! committed corpora (`tests/fuzz_corpus`), run the same code. Each panics when something does not
//! hold.

mod batch;
mod headers;
mod image;
mod input;
mod machine;
mod mend;
mod ops;
mod reference;
mod scan;
mod script;
mod walk;

pub use batch::{decode_batch, encode_batch};
pub use headers::headers;
pub use image::{open_image, open_index};
pub use mend::crc32;
pub use ops::ops_vs_model;
pub use scan::scan_segment;
pub use walk::walk_segment;

/// A target: takes the bytes, panics when something does not hold.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 8] = [
    ("decode_batch", decode_batch),
    ("encode_batch", encode_batch),
    ("headers", headers),
    ("walk_segment", walk_segment),
    ("scan_segment", scan_segment),
    ("open_image", open_image),
    ("open_index", open_index),
    ("ops_vs_model", ops_vs_model),
];
