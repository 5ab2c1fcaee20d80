//! Concurrent clients on a store that crashes: thousands of short lineages, each from one seed.
//!
//! Where `tests/crash` lets one client work in phases, here several append, read, subscribe, trim and
//! truncate at the same time, give up on futures, fill the disk, delete and create partitions. The
//! model (`alluvium_testkit::promises`) judges what every one of them sees while it runs, and the
//! whole store after every recovery.
//!
//! `CASES`, `SECONDS`, `FIRST` and `THREADS` say how much is run; `SEED` runs one lineage and prints
//! what happens (see `alluvium_testkit::simulation`). A lineage that fails is reduced, and its
//! smallest form is kept in `regressions.txt`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::pedantic,
    reason = "a panic is how a test reports a failure, a line is how it shows its progress"
)]

mod astray;
mod client;
mod coverage;
mod heal;
mod lineage;
mod machine;
mod rng;
mod world;

use alluvium_testkit::simulation::{self, Lineage, Settings, Summary, keep, regressions, setting};

use coverage::Coverage;
use lineage::Options;

/// Cases of one run.
const CASES: u64 = 200_000;

/// How to run a lineage again.
const REPLAY: &str = "cargo test --features sim --test promises hold";

/// Lineages that once failed.
const REGRESSIONS: &str = include_str!("regressions.txt");

fn run_many(settings: Settings, options: Options) -> Summary<Coverage> {
    simulation::run(settings, |lineage, coverage| {
        lineage::run(lineage, options, coverage)
    })
}

/// Prints a run, and keeps and reports what failed.
fn report(summary: &Summary<Coverage>) {
    eprintln!("{}", summary.text());
    if let Some(failure) = &summary.failure {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/promises/regressions.txt"
        );
        panic!("{}\n{}", failure.report(REPLAY), keep(file, failure));
    }
}

/// What was found once is looked at first.
#[test]
fn lineages_that_once_failed() {
    for lineage in regressions(REGRESSIONS) {
        let ran = lineage::run(&lineage, Options::default(), &mut Coverage::default());
        assert_eq!(ran.violation, None, "{lineage}");
    }
}

#[test]
fn promises_hold_whatever_crashes() {
    if let Some(lineage) = Lineage::from_environment() {
        let options = Options {
            verbose: true,
            ..Options::default()
        };
        let ran = lineage::run(&lineage, options, &mut Coverage::default());
        assert_eq!(ran.violation, None, "{lineage}");
        return;
    }
    let summary = run_many(Settings::from_environment(CASES), Options::default());
    report(&summary);
    if summary.cases >= CASES {
        summary.coverage.assert_full();
    }
}

/// Every case has a crash inside of the recovery, and up to three of them in a row.
#[test]
fn promises_hold_whatever_crashes_in_recoveries() {
    let settings = Settings {
        cases: setting("NESTED_CASES").unwrap_or(5_000),
        seconds: None,
        nested: true,
        ..Settings::from_environment(0)
    };
    let summary = run_many(settings, Options::default());
    report(&summary);
    let c = &summary.coverage;
    assert!(c.crashes_in_recovery >= summary.cases);
    assert!(c.crashes_in_recovery_twice * 2 > summary.cases);
    assert!(c.crashes_in_recovery_thrice * 4 > summary.cases);
}

/// The control: on a device that lies about flushes the test must find losses, or it finds nothing;
/// and what is left of the case must still show them.
#[test]
fn a_device_that_lies_is_found_out() {
    let options = Options {
        lying_flush: true,
        ..Options::default()
    };
    let summary = run_many(Settings::cases(2_000), options);
    let failure = summary.failure.expect("losses on a device that lies");
    let least = &failure.smallest;
    let again = lineage::run(&least.lineage, options, &mut Coverage::default());
    assert_eq!(again, least.ran, "{}", failure.report(REPLAY));
    assert!(again.violation.is_some());
    assert!(least.ran.steps.len() <= 6, "{}", failure.report(REPLAY));
    let honest = lineage::run(&least.lineage, Options::default(), &mut Coverage::default());
    assert_eq!(honest.violation, None, "{}", least.lineage);
}

/// The same seed gives the same operations, bytes and answers; another one does not.
#[test]
fn a_seed_fixes_every_operation_and_its_answer() {
    let options = Options {
        trace_bytes: true,
        ..Options::default()
    };
    let trace = |seed| {
        let lineage = Lineage {
            nested: seed % 2 == 0,
            ..Lineage::new(seed)
        };
        lineage::run(&lineage, options, &mut Coverage::default())
    };
    let mut traces = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let (once, twice) = (trace(seed), trace(seed));
        assert_eq!(once, twice, "seed {seed}");
        assert!(
            traces.insert(once.trace),
            "seed {seed} has no trace of its own"
        );
    }
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
