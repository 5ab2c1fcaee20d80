//! Closed loops: producers that wait for each answer, and callers of the bridge alone.

use std::time::Instant;

use super::join;
use crate::case::{Case, Shape, Workload};
use crate::engine::{Engine, Level, Log, Payload, Setup};
use crate::error::{Error, Result};
use crate::measure::{Outcome, Run, histogram, record};

/// Segments of W3k: so many partitions cannot have the default's space each.
const MANY_PARTITIONS_SEGMENT_BYTES: u64 = 2 << 20;

pub(crate) async fn closed_loop<E: Engine>(engine: &E, case: Case, run: &Run) -> Result<Outcome> {
    let Some(shape) = case.shape() else {
        return Err(Error::Peer(format!("{case} is no closed loop")));
    };
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: shape.partitions,
        cache_bytes: None,
        segment_bytes: (case.workload == Workload::W3k).then_some(MANY_PARTITIONS_SEGMENT_BYTES),
    };
    let log = engine.open(&setup).await?;
    warm_up(&log, shape.partitions).await?;
    let outcome = produce(&log, shape, run).await?;
    log.close().await?;
    run.stop.check()?;
    Ok(outcome)
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
