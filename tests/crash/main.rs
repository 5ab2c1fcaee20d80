//! Simulated crashes of the whole store, bridge included, on recycled segments.
//!
//! One *lineage* is one seed: a simulated disk and a chain of lives of a store on it. In each life
//! the store opens (recovers), everything it holds is read back and judged against a model that the
//! store does not know ([`model`]), and a random workload runs ([`workload`]) until the process is
//! killed or the power fails at a random disk operation: in the middle of the recovery, too. One
//! such crash and what is judged after it is a *case*.
//!
//! `CASES`, `SECONDS`, `FIRST` and `THREADS` say how much is run; `SEED` runs one lineage and prints
//! what happens (see `alluvium_testkit::simulation`). A lineage that fails is reduced, and its
//! smallest form is kept in `regressions.txt`. Every check names the promise that it judges (P1 to
//! P11 in the crate documentation).
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::pedantic,
    reason = "a test"
)]

mod appends;
mod case;
mod coverage;
mod damage;
mod machine;
mod model;
mod payload;
mod rng;
mod sweep;
mod workload;

use alluvium_testkit::simulation::{
    self, Coverage as _, Lineage, Settings, Summary, Tails, keep, regressions, setting,
};

use case::Options;
use coverage::Coverage;

/// How to run a lineage again.
const REPLAY: &str = "cargo test --features sim --test crash no_crash";

/// Lineages that once failed.
const REGRESSIONS: &str = include_str!("regressions.txt");

fn run_many(settings: Settings, options: Options) -> Summary<Coverage> {
    simulation::run(settings, |lineage, coverage| {
        case::run(lineage, options, coverage)
    })
}

/// Prints a run, and keeps and reports what failed.
fn report(summary: &Summary<Coverage>) {
    eprintln!("{}", summary.text());
    if let Some(failure) = &summary.failure {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crash/regressions.txt");
        panic!("{}\n{}", failure.report(REPLAY), keep(file, failure));
    }
}

/// What was found once is looked at first.
#[test]
fn cases_that_once_failed() {
    for lineage in regressions(REGRESSIONS) {
        let ran = case::run(&lineage, Options::default(), &mut Coverage::default());
        assert_eq!(ran.violation, None, "{lineage}");
    }
}

#[test]
fn no_crash_loses_alters_or_revives_a_record() {
    if let Some(lineage) = Lineage::from_environment() {
        let mut coverage = Coverage::default();
        let options = Options {
            verbose: true,
            ..Options::default()
        };
        let ran = case::run(&lineage, options, &mut coverage);
        eprintln!("{coverage:#?}");
        assert_eq!(ran.violation, None, "{lineage}");
        return;
    }
    let settings = Settings::from_environment(200_000);
    let summary = run_many(settings, Options::default());
    report(&summary);
    if summary.cases >= 200_000 {
        summary.coverage.assert_complete(10);
    }
}

/// Every case has a crash inside of the recovery, and up to three of them in a row.
#[test]
fn no_crash_of_recoveries_loses_alters_or_revives_a_record() {
    let settings = Settings {
        cases: setting("NESTED_CASES").unwrap_or(5_000),
        seconds: None,
        nested: true,
        ..Settings::from_environment(0)
    };
    let summary = run_many(settings, Options::default());
    report(&summary);
    let c = &summary.coverage.counts;
    assert!(c.crashes_in_recovery >= summary.cases);
    assert!(c.crashes_in_recovery_twice * 2 > summary.cases);
    assert!(c.crashes_in_recovery_thrice * 4 > summary.cases);
}

/// The harness can fail: a disk that lies about its flush must be caught, and what is left of the
/// case must still show it.
#[test]
fn a_lying_flush_is_caught_and_reduced() {
    let options = Options {
        lying_flush: true,
        ..Options::default()
    };
    let summary = run_many(Settings::cases(20_000), options);
    let failure = summary.failure.expect("losses on a device that lies");
    let violation = &failure.violation;
    assert!(
        violation.starts_with("P1") || violation.contains("refused"),
        "{violation}"
    );
    let least = &failure.smallest;
    let again = case::run(&least.lineage, options, &mut Coverage::default());
    assert_eq!(again, least.ran, "{}", failure.report(REPLAY));
    assert!(again.violation.is_some());
    // Something is written and lost: two lives, and two steps at least to come to it.
    let lives = (0..100).filter(|life| least.lineage.lives(*life)).count();
    assert!(lives <= 3, "{}", failure.report(REPLAY));
    assert!(least.ran.steps.len() <= 4, "{}", failure.report(REPLAY));
    let honest = case::run(&least.lineage, Options::default(), &mut Coverage::default());
    assert_eq!(honest.violation, None, "{}", least.lineage);
}

/// The same seed gives the same operations, bytes and answers; another one does not.
#[test]
fn a_seed_fixes_every_operation_and_its_answer() {
    let options = Options {
        trace_bytes: true,
        ..Options::default()
    };
    let trace = |seed, nested| {
        let lineage = Lineage {
            nested,
            ..Lineage::new(seed)
        };
        case::run(&lineage, options, &mut Coverage::default())
    };
    let mut traces = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let (once, twice) = (trace(seed, seed % 2 == 0), trace(seed, seed % 2 == 0));
        assert_eq!(once, twice, "seed {seed}");
        assert!(
            traces.insert(once.trace),
            "seed {seed} has no trace of its own"
        );
    }
}

#[test]
fn a_crash_at_every_operation_of_a_workload_and_of_the_recovery_after_it() {
    let counts = sweep::crashes::run(setting("SWEEP_SEEDS").unwrap_or(2));
    eprintln!("{counts:?}");
    assert!(counts.first > 200 && counts.second > 1_000, "{counts:?}");
}

/// Every call of the seam, with every error that it can return.
#[test]
fn every_call_fails_once_in_every_way() {
    let seeds = setting("SWEEP_SEEDS").unwrap_or(4);
    let counts = sweep::failures::run(seeds, sweep::stride(5));
    for ((call, failure), count) in &counts {
        eprintln!("{count:>8} {call} {failure:?}");
    }
    let total: u64 = counts.values().sum();
    eprintln!("{total:>8} failures");
    assert!(total > 500, "{total}");
    let calls: std::collections::BTreeSet<_> = counts.keys().map(|(call, _)| *call).collect();
    for call in [
        "allocate",
        "create",
        "create_dir",
        "kind",
        "len",
        "list",
        "open",
        "read_at",
        "remove_file",
        "rename",
        "set_len",
        "sync_data",
        "sync_dir",
        "try_lock",
        "write_at",
        "write_durable",
    ] {
        assert!(calls.contains(call), "{call} was never called: {calls:?}");
    }
}

/// P7: damage of what was acknowledged is reported or harmless, never hidden. Crashes and damage
/// together have recovery meet every row of its table.
#[test]
fn damage_at_rest_is_never_hidden() {
    let cases = setting("DAMAGE_CASES").unwrap_or(4_000);
    let mut tails = damage::run(cases);
    let summary = run_many(Settings::cases(20_000), Options::default());
    report(&summary);
    tails.add(&summary.coverage.tails);
    for (facts, case, count) in Tails::all(&tails) {
        eprintln!("{count:>12} {case}: {facts}");
        assert!(count > 0 || cases < 4_000, "recovery never met {facts}");
    }
}

/// P7, every bit of a store.
#[test]
fn every_bit_is_turned_over_once() {
    let counts = sweep::damage::bits(sweep::stride(29));
    eprintln!("{counts:?}");
    assert!(counts.in_records > 500, "{counts:?}");
}

/// P7, every sector of a store.
#[test]
fn every_sector_is_damaged_once() {
    let counts = sweep::damage::sectors(sweep::stride(1));
    eprintln!("{counts:?}");
    assert!(counts.in_records > 50 && counts.refused > 10, "{counts:?}");
}
