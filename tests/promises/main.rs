//! Concurrent clients on a store that crashes: thousands of short lineages, each from one seed.
//!
//! Where `tests/crash` lets one client work in phases, here several append, read, subscribe, trim and
//! truncate at the same time, give up on futures, fill the disk, delete and create partitions. The
//! model (`alluvium_testkit::promises`) judges what every one of them sees while it runs, and the
//! whole store after every recovery.
//!
//! Environment: `CASES` lineages (default in [`CASES`]), or `SECONDS` of them; `SEED` runs one seed
//! and tells what happens.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::pedantic,
    reason = "a panic is how a test reports a failure, a line is how it shows its progress"
)]

mod astray;
mod client;
mod coverage;
mod lineage;
mod machine;
mod rng;
mod runner;
mod world;

use lineage::Plan;
use runner::{Limit, run_many, setting};

/// Lineages of one run.
const CASES: u64 = 30_000;

#[test]
fn promises_hold_whatever_crashes() {
    if let Some(seed) = setting("SEED") {
        let outcome = lineage::run(Plan {
            seed,
            lying_flush: false,
            trace: true,
        });
        assert_eq!(outcome.violation, None);
        return;
    }
    let limit = Limit::from_environment(CASES);
    let result = run_many(limit, |seed| Plan {
        seed,
        lying_flush: false,
        trace: false,
    });
    result.print();
    if let Some((seed, violation)) = &result.failure {
        panic!("{violation}\nreplay with SEED={seed}");
    }
    if limit.cases >= CASES && limit.seconds.is_none() {
        result.coverage.assert_complete();
    }
}

/// The control: on a device that lies about flushes the test must find losses, or it finds nothing.
#[test]
fn a_device_that_lies_is_found_out() {
    let limit = Limit {
        cases: 200,
        seconds: None,
    };
    let result = run_many(limit, |seed| Plan {
        seed,
        lying_flush: true,
        trace: false,
    });
    assert!(
        result.failure.is_some(),
        "no violation in {} lineages",
        limit.cases
    );
}

/// P7: a write that the device acknowledged and lost, or did elsewhere, is reported or harmless.
#[test]
fn writes_that_go_astray_are_reported() {
    let (mut refused, mut read) = (0, 0);
    let cases = setting("ASTRAY_CASES").unwrap_or(3_000);
    for seed in 0..cases {
        match astray::run(seed).unwrap_or_else(|e| panic!("{e}\nseed {seed}")) {
            astray::Found::Harmless => {}
            astray::Found::Refused => refused += 1,
            astray::Found::ByRead => read += 1,
        }
    }
    eprintln!("{refused} refused, {read} named by reads, of {cases}");
    assert!(
        (refused + read) * 2 > cases && refused * 20 > cases,
        "{refused} refused, {read} named, of {cases}"
    );
}
