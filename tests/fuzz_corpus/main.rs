//! Replays the committed inputs of the fuzz targets: seeds, and whatever once broke something.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

use std::fs;
use std::path::Path;

use alluvium_testkit::fuzz::TARGETS;

/// Runs every file of `fuzz/seeds/TARGET` through the target.
fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::read(&path).unwrap();
        let run = std::panic::catch_unwind(|| target(&data));
        assert!(run.is_ok(), "{} breaks {name}", path.display());
        inputs += 1;
    }
    assert!(inputs > 0, "{} has no input", dir.display());
}

#[test]
fn batches() {
    replay("decode_batch");
}

#[test]
fn segments() {
    replay("walk_segment");
}

#[test]
fn headers() {
    replay("headers");
}

#[test]
fn images() {
    replay("open_image");
}

#[test]
fn indexes() {
    replay("open_index");
}

#[test]
fn operations() {
    replay("ops_vs_model");
}
