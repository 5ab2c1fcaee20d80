//! Opening what a crash left behind.

use std::time::Instant;

use super::{fill, fill_batches, forget_pages};
use crate::case::Case;
use crate::engine::{Engine, Level, Log, Payload, Setup};
use crate::error::Result;
use crate::measure::{Outcome, Run, histogram, record};

/// Openings of a run, at least and at most.
const OPENINGS_MIN: u64 = 3;
const OPENINGS_MAX: u64 = 50;
/// Appends under way when the log crashes.
const UNDER_WAY: usize = 64;

/// Fills a log, crashes it with appends under way, and opens it again, several times over.
pub(crate) async fn reopen<E: Engine>(engine: &E, case: Case, run: &Run) -> Result<Outcome> {
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: 1,
        cache_bytes: None,
        segment_bytes: None,
        retention_bytes: None,
    };
    let mut log = engine.open(&setup).await?;
    fill(&log, fill_batches(case.variant), run).await?;
    let deadline = run.deadline();
    let mut all: Option<Outcome> = None;
    for n in 0..OPENINGS_MAX {
        if n >= OPENINGS_MIN && deadline.is_over(Instant::now()) {
            break;
        }
        run.stop.check()?;
        crash(log).await?;
        // After a loss of power nothing is in memory.
        forget_pages(&run.dir)?;
        let mut latency = histogram();
        let meter = run.meter();
        let started = Instant::now();
        log = engine.open(&setup).await?;
        record(&mut latency, started);
        let outcome = meter.finish(latency, 1, 0);
        match &mut all {
            Some(all) => all.absorb(&outcome),
            None => all = Some(outcome),
        }
    }
    log.close().await?;
    all.ok_or(crate::error::Error::Stopped)
}

/// Ends the log in the middle of appends.
async fn crash<L: Log>(log: L) -> Result<()> {
    let mut tasks = Vec::new();
    for _ in 0..UNDER_WAY {
        let log = log.clone();
        tasks.push(tokio::spawn(async move {
            log.append(0, &Payload::new(1), Level::Durable).await
        }));
    }
    // The first of them is answered: the others are somewhere on their way.
    if let Some(first) = tasks.first_mut() {
        first.await??;
    }
    for task in tasks.iter().skip(1) {
        task.abort();
    }
    for task in tasks.into_iter().skip(1) {
        // Cancelled or answered, both will do: what matters is that its handle is gone.
        drop(task.await);
    }
    log.crash().await
}
