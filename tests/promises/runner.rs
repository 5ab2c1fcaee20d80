//! Many lineages on all cores, until one fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alluvium_testkit::promises::Violation;

use crate::coverage::Coverage;
use crate::lineage::{self, Outcome, Plan};

/// How much to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) cases: u64,
    pub(crate) seconds: Option<u64>,
}

impl Limit {
    pub(crate) fn from_environment(cases: u64) -> Self {
        let seconds = setting("SECONDS");
        let cases = setting("CASES").unwrap_or(if seconds.is_some() { u64::MAX } else { cases });
        Self { cases, seconds }
    }
}

/// A number from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// What a run found.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) coverage: Coverage,
    pub(crate) elapsed: Duration,
    /// The lowest failing seed that was run.
    pub(crate) failure: Option<(u64, Violation)>,
}

impl Summary {
    pub(crate) fn print(&self) {
        let rate = u128::from(self.coverage.crashes) * 1000 / self.elapsed.as_millis().max(1);
        eprintln!("{:?}, {rate} crashes/s", self.elapsed);
        for (name, count) in self.coverage.all() {
            eprintln!("{count:>12} {name}");
        }
    }
}

/// Runs the lineages of seeds 0, 1, 2, ... on two threads.
pub(crate) fn run_many(limit: Limit, plan: impl Fn(u64) -> Plan + Sync) -> Summary {
    let begin = Instant::now();
    let first = setting("FIRST").unwrap_or(0);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let found = Mutex::new((Coverage::default(), None::<(u64, Violation)>));
    let work = || {
        let mut coverage = Coverage::default();
        let mut failure = None;
        while !stop.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let late = limit
                .seconds
                .is_some_and(|s| begin.elapsed() >= Duration::from_secs(s));
            if n >= limit.cases || late {
                break;
            }
            let seed = first.wrapping_add(n);
            let outcome = guarded(plan(seed));
            coverage.add(&outcome.coverage);
            if let Some(violation) = outcome.violation {
                failure = Some((seed, violation));
                stop.store(true, Ordering::Relaxed);
            }
        }
        let mut found = found.lock().unwrap();
        found.0.add(&coverage);
        let lowest = found.1.as_ref().map_or(u64::MAX, |f| f.0);
        if let Some(failure) = failure.filter(|f| f.0 < lowest) {
            found.1 = Some(failure);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let (coverage, failure) = found.into_inner().unwrap();
    Summary {
        coverage,
        elapsed: begin.elapsed(),
        failure,
    }
}

/// A panic of the engine is a violation too: an assertion that did not hold.
fn guarded(plan: Plan) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| lineage::run(plan))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default();
        let violation = Some(Violation::new("P10", format!("a panic: {text}")));
        Outcome {
            violation,
            coverage: Coverage::default(),
        }
    })
}
