//! Runs a model under loom: every interleaving, and every value that the memory order allows a
//! load to see, up to a number of preemptions.
//!
//! `LOOM_MAX_PREEMPTIONS=N` moves the bound, `LOOM_LOG=trace` with `LOOM_CHECKPOINT_FILE` shows the
//! execution that failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `model` until everything within `preemptions` has been seen.
pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(preemptions);
    }
    let bound = builder.preemption_bound;
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    eprintln!("{executions} executions, at most {bound:?} preemptions in each");
    assert!(executions > 3, "the threads of a model meet");
}
