//! WT: arrivals that do not wait for answers, beside a reader that catches up on cold data.
//!
//! Appends are due at a fixed rate, in bursts of one tick, as an embedding program's network hands
//! them over. A thread of its own starts those that are due; how late it is counts as latency.

use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::append::warm_up;
use super::{FILL_RECORDS, fill, fill_batches, forget_pages};
use crate::engine::{Engine, Level, Log, LogReader, Payload, RECORD_LEN, Setup};
use crate::error::{Error, Result};
use crate::measure::{Deadline, Outcome, Run, histogram};

/// Time between bursts of arrivals.
const TICK: Duration = Duration::from_micros(250);
/// Small enough that segments roll within a second.
const SEGMENT_BYTES: u64 = 16 << 20;

pub(crate) async fn open_loop<E: Engine>(engine: &E, run: &Run) -> Result<Outcome> {
    let Some(rate) = run.rate else {
        return Err(Error::Peer("no rate is known for WT".to_owned()));
    };
    let setup = Setup {
        dir: run.dir.clone(),
        partitions: 1,
        cache_bytes: None,
        segment_bytes: Some(SEGMENT_BYTES),
        retention_bytes: None,
    };
    let log = engine.open(&setup).await?;
    let batches = fill_batches(run.sizes.read_bytes);
    fill(&log, batches, run).await?;
    warm_up(&log, 1).await?;
    let deadline = run.deadline();
    let meter = run.meter();
    let cold_records = batches * FILL_RECORDS as u64;
    let reader = tokio::spawn(catch_up(
        log.clone(),
        cold_records,
        run.dir.clone(),
        deadline.clone(),
    ));
    let (answered, mut answers) = mpsc::unbounded_channel();
    let arrivals = {
        let (log, handle) = (log.clone(), Handle::current());
        let appends_max = run.sizes.append_bytes_max / RECORD_LEN as u64;
        thread::Builder::new()
            .name("arrivals".to_owned())
            .spawn(move || arrive(&log, &handle, rate, appends_max, &deadline, &answered))
            .map_err(Error::io("start a thread for", &run.dir))?
    };
    let mut latency = histogram();
    while let Some(answer) = answers.recv().await {
        latency.saturating_record(answer?);
    }
    let operations = latency.len();
    let mut outcome = meter.finish(latency, operations, operations * RECORD_LEN as u64);
    outcome.offered_per_s = Some(rate);
    drop(arrivals.join());
    reader.await??;
    log.close().await?;
    run.stop.check()?;
    Ok(outcome)
}

/// Starts every append when it is due. Each answer is its latency in nanoseconds.
fn arrive<L: Log>(
    log: &L,
    runtime: &Handle,
    rate: f64,
    appends_max: u64,
    deadline: &Deadline,
    answered: &mpsc::UnboundedSender<Result<u64>>,
) {
    let payload = Payload::new(1);
    let per_tick = rate * TICK.as_secs_f64();
    let started = Instant::now();
    let (mut due, mut begun) = (0.0_f64, 0_u64);
    let mut tick_at = started;
    while tick_at < deadline.at() && begun < appends_max {
        let now = Instant::now();
        if deadline.is_over(now) {
            return;
        }
        if let Some(early) = tick_at.checked_duration_since(now) {
            thread::sleep(early);
        }
        due += per_tick;
        while due >= 1.0 {
            due -= 1.0;
            begun += 1;
            let (log, payload, answered) = (log.clone(), payload.clone(), answered.clone());
            let intended = tick_at;
            runtime.spawn(async move {
                let result = log.append(0, &payload, Level::Durable).await;
                let nanos = u64::try_from(intended.elapsed().as_nanos()).unwrap_or(u64::MAX);
                // Nobody listens any more when the run has failed already.
                answered.send(result.map(|()| nanos)).ok();
            });
        }
        tick_at += TICK;
    }
}

/// Reads the cold records from the beginning, again and again.
async fn catch_up<L: Log>(
    log: L,
    cold_records: u64,
    dir: std::path::PathBuf,
    deadline: Deadline,
) -> Result<()> {
    while !deadline.is_over(Instant::now()) {
        let path = dir.clone();
        tokio::task::spawn_blocking(move || forget_pages(&path)).await??;
        let mut reader = log.reader(0).await?;
        let mut records = 0;
        while records < cold_records && !deadline.is_over(Instant::now()) {
            let more = reader.next().await?;
            if more == 0 {
                return Err(Error::Peer(format!(
                    "the log ended after {records} records"
                )));
            }
            records += more;
        }
    }
    Ok(())
}
