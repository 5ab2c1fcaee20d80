//! Replays the committed inputs of the fuzz targets: seeds, and whatever once broke something.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use alluvium_testkit::fuzz::TARGETS;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Runs every file of `fuzz/seeds/TARGET` through the target.
fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let dir = fuzz_dir().join("seeds").join(name);
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
fn batches_decoded() {
    replay("decode_batch");
}

#[test]
fn batches_encoded() {
    replay("encode_batch");
}

#[test]
fn headers() {
    replay("headers");
}

#[test]
fn segments_walked_strictly() {
    replay("walk_segment");
}

#[test]
fn segments_scanned_by_recovery() {
    replay("scan_segment");
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

#[test]
fn no_target_is_forgotten() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).into()).collect();
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz_dir().join(dir)).unwrap();
        let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        entries.map(|entry| name(entry.unwrap().path())).collect()
    };
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("seeds"), targets);
    let run = fs::read_to_string(fuzz_dir().join("run")).unwrap();
    let this = include_str!("main.rs");
    for target in &targets {
        let named = format!("\"{target}\"");
        assert!(run.contains(&named), "fuzz/run does not know {target}");
        assert!(this.contains(&named), "nothing replays {target}");
    }
}
