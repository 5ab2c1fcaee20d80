//! What the project has agreed on and a machine can check: file sizes, module docs, what the
//! engine may use, which way its folders depend on each other; and that what is said about the tests
//! is so.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

mod census;
mod errors;
mod mutants;
mod rules;
mod sleeps;

use std::fs;
use std::path::{Path, PathBuf};

/// Folders with Rust code of the project, from its root.
const FOLDERS: [&str; 8] = [
    "src", "core", "backends", "cli", "tests", "benches", "examples", "fuzz",
];

fn rust_files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut dirs: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap();
                let name = name.to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort_unstable();
    files
}

/// The text of a file of the project.
fn text_of(name: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).ok()
}

fn all_tests(files: &[(String, String)]) -> Vec<String> {
    let files = files.iter().map(|(path, text)| (&**path, &**text));
    let census = census::census(files);
    assert!(census.len() > 200, "{} tests were found", census.len());
    census
}

/// Runs one rule over all files, and names every place that breaks it.
fn all_files_keep(rule: fn(&str, &str) -> Vec<String>) {
    let files = rust_files();
    assert!(files.len() > 50, "{} files were found", files.len());
    let found: Vec<_> = files
        .iter()
        .flat_map(|(path, text)| rule(path, text))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn files_are_short() {
    all_files_keep(rules::short);
}

#[test]
fn every_file_says_what_it_is() {
    all_files_keep(rules::module_doc);
}

#[test]
fn nothing_is_unfinished_or_ignored() {
    all_files_keep(rules::finished);
}

#[test]
fn the_engine_reaches_the_world_through_its_seam_only() {
    all_files_keep(rules::engine_seam);
}

#[test]
fn folders_of_the_engine_depend_on_earlier_ones_only() {
    all_files_keep(rules::engine_imports);
}

#[test]
fn no_test_sleeps_to_be_right() {
    all_files_keep(sleeps::unreasoned);
}

#[test]
fn every_error_has_a_test_that_reaches_it() {
    let files = rust_files();
    let found = errors::unreached(&files, text_of, &all_tests(&files));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn deliberate_bugs_fit_the_code() {
    let mutants = mutants::read(&text_of("tests/mutants/list").unwrap());
    let found = mutants::flaws(&mutants, text_of, &all_tests(&rust_files()));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_document_promises_what_the_crate_does() {
    let of = |name| mutants::promises(&text_of(name).unwrap());
    let promises = of("core/src/lib.rs");
    assert_eq!(promises.len(), 11);
    assert_eq!(of("docs/RELIABILITY.md"), promises);
}

#[test]
fn every_promise_has_tests_that_were_seen_to_fail() {
    let mutants = mutants::read(&text_of("tests/mutants/list").unwrap());
    let document = text_of("docs/RELIABILITY.md").unwrap();
    let mut found = mutants::unnamed(&document, &all_tests(&rust_files()));
    found.extend(mutants::unrecorded(&mutants, &document));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}
