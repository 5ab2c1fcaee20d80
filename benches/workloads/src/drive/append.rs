//! Closed loops: producers that wait for each answer, and callers of the bridge alone.

use std::time::Instant;

use super::{FILL_RECORDS, join};
use crate::case::{Case, Shape, Workload};
use crate::engine::{Engine, Level, Log, Payload, Setup};
use crate::error::{Error, Result};
use crate::measure::{Outcome, Run, histogram, record};

/// Segments of W3k: so many partitions cannot have the default's space each.
const MANY_PARTITIONS_SEGMENT_BYTES: u64 = 2 << 20;
/// Segments that retention keeps where files are recycled; one more is in use.
const SEGMENTS_KEPT: u64 = 3;
/// Who fills each partition before.
const WRITERS: u64 = 4;

pub(crate) async fn closed_loop<E: Engine>(engine: &E, case: Case, run: &Run) -> Result<Outcome> {
    let Some(shape) = case.shape() else {
        return Err(Error::Peer(format!("{case} is no closed loop")));
    };
    // A thousand partitions have too many files to write each several times.
    let many = case.workload == Workload::W3k;
    let recycled = (engine.recycles() && !many).then(|| {
        (run.sizes.recycled_bytes / (SEGMENTS_KEPT + 1) / shape.partitions as u64)
            .next_multiple_of(1 << 20)
    });
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: shape.partitions,
        cache_bytes: None,
        segment_bytes: recycled.or(many.then_some(MANY_PARTITIONS_SEGMENT_BYTES)),
        retention_bytes: recycled.map(|segment_bytes| SEGMENTS_KEPT * segment_bytes),
    };
    let log = engine.open(&setup).await?;
    warm_up(&log, shape.partitions).await?;
    if recycled.is_some() {
        write_all_files(&log, shape.partitions, run).await?;
    }
    let outcome = produce(&log, shape, run).await?;
    log.close().await?;
    run.stop.check()?;
    Ok(outcome)
}

/// Writes so much that every file has been written before when it is used again.
async fn write_all_files<L: Log>(log: &L, partitions: usize, run: &Run) -> Result<()> {
    let payload = Payload::new(FILL_RECORDS);
    let each = 2 * run.sizes.recycled_bytes / partitions as u64 / WRITERS;
    let appends = each / payload.len_bytes() as u64;
    let mut tasks = Vec::new();
    for partition in 0..partitions {
        for _ in 0..WRITERS {
            let (log, payload, stop) = (log.clone(), payload.clone(), run.stop.clone());
            tasks.push(tokio::spawn(async move {
                for _ in 0..appends {
                    stop.check()?;
                    log.append(partition, &payload, Level::Written).await?;
                }
                Ok::<_, Error>(())
            }));
        }
    }
    for task in tasks {
        task.await??;
    }
    log.sync().await
}

/// Files in place, first group written.
pub(super) async fn warm_up<L: Log>(log: &L, partitions: usize) -> Result<()> {
    let mut tasks = Vec::new();
    for partition in 0..partitions {
        let log = log.clone();
        tasks.push(tokio::spawn(async move {
            log.append(partition, &Payload::new(1), Level::Durable)
                .await
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn produce<L: Log>(log: &L, shape: Shape, run: &Run) -> Result<Outcome> {
    let payload = Payload::new(shape.records);
    let each_bytes = payload.len_bytes() as u64;
    let appends_max = (run.sizes.append_bytes_max / shape.producers as u64 / each_bytes).max(1);
    let deadline = run.deadline();
    let meter = run.meter();
    let mut tasks = Vec::new();
    for n in 0..shape.producers {
        let (log, payload, deadline) = (log.clone(), payload.clone(), deadline.clone());
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram();
            for _ in 0..appends_max {
                let started = Instant::now();
                if deadline.is_over(started) {
                    break;
                }
                log.append(n % shape.partitions, &payload, shape.level)
                    .await?;
                record(&mut latency, started);
            }
            Ok(latency)
        }));
    }
    let latency = join(tasks).await?;
    if shape.level != Level::Durable {
        log.sync().await?;
    }
    let operations = latency.len();
    Ok(meter.finish(latency, operations, operations * each_bytes))
}

pub(crate) async fn bridge<E: Engine>(engine: &E, case: Case, run: &Run) -> Result<Outcome> {
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: 1,
        cache_bytes: None,
        segment_bytes: None,
        retention_bytes: None,
    };
    let log = engine.open(&setup).await?;
    log.ping().await?;
    let deadline = run.deadline();
    let meter = run.meter();
    let mut tasks = Vec::new();
    for _ in 0..case.variant {
        let (log, deadline) = (log.clone(), deadline.clone());
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram();
            loop {
                let started = Instant::now();
                if deadline.is_over(started) {
                    return Ok(latency);
                }
                log.ping().await?;
                record(&mut latency, started);
            }
        }));
    }
    let latency = join(tasks).await?;
    let operations = latency.len();
    let outcome = meter.finish(latency, operations, 0);
    log.close().await?;
    run.stop.check()?;
    Ok(outcome)
}
