//! Reading a log from its beginning, from memory and from the disk.

use std::time::Instant;

use super::{FILL_RECORDS, fill, fill_batches, forget_pages};
use crate::engine::{Engine, Log, LogReader, RECORD_LEN, Setup};
use crate::error::{Error, Result};
use crate::measure::{Outcome, Run, histogram, record};

/// What a log needs to keep beside the values, generously, relative to them.
const OVERHEAD: u64 = 4;

/// Reads data that was just appended, with room for all of it in the log's own cache.
pub(crate) async fn read_warm<E: Engine>(engine: &E, run: &Run) -> Result<Outcome> {
    let bytes = run.sizes.read_bytes + run.sizes.read_bytes / OVERHEAD;
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: 1,
        cache_bytes: Some(usize::try_from(bytes).unwrap_or(usize::MAX)),
        segment_bytes: None,
        retention_bytes: None,
    };
    let log = engine.open(&setup).await?;
    let batches = fill_batches(run.sizes.read_bytes);
    fill(&log, batches, run).await?;
    // Once, not measured: what there is of a cache is filled.
    pass(&log, batches, run).await?;
    let outcome = passes(&log, batches, run).await?;
    log.close().await?;
    Ok(outcome)
}

/// Reads data of a closed and reopened log that is in no cache.
pub(crate) async fn read_cold<E: Engine>(engine: &E, run: &Run) -> Result<Outcome> {
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: 1,
        cache_bytes: None,
        segment_bytes: None,
        retention_bytes: None,
    };
    let log = engine.open(&setup).await?;
    let batches = fill_batches(run.sizes.read_bytes);
    fill(&log, batches, run).await?;
    log.close().await?;
    let deadline = run.deadline();
    let mut all: Option<Outcome> = None;
    loop {
        // Pages that somebody has mapped stay: each pass has a log of its own.
        forget_pages(&run.dir)?;
        let log = engine.open(&setup).await?;
        let outcome = pass(&log, batches, run).await?;
        log.close().await?;
        let sum = match all.take() {
            Some(mut sum) => {
                sum.absorb(&outcome);
                sum
            }
            None => outcome,
        };
        if deadline.is_over(Instant::now()) {
            return Ok(sum);
        }
        all = Some(sum);
    }
}

/// Whole passes until the time is over, at least one.
async fn passes<L: Log>(log: &L, batches: u64, run: &Run) -> Result<Outcome> {
    let deadline = run.deadline();
    let mut all = pass(log, batches, run).await?;
    while !deadline.is_over(Instant::now()) {
        all.absorb(&pass(log, batches, run).await?);
    }
    Ok(all)
}

/// Reads everything once. The latencies are those of single reads.
async fn pass<L: Log>(log: &L, batches: u64, run: &Run) -> Result<Outcome> {
    let expected = batches * FILL_RECORDS as u64;
    let mut latency = histogram();
    let mut records = 0;
    let meter = run.meter();
    let mut reader = log.reader(0).await?;
    while records < expected {
        run.stop.check()?;
        let started = Instant::now();
        let more = reader.next().await?;
        if more == 0 {
            return Err(Error::Peer(format!(
                "the log ended after {records} of {expected} records"
            )));
        }
        record(&mut latency, started);
        records += more;
    }
    Ok(meter.finish(latency, records, records * RECORD_LEN as u64))
}
