//! The workloads on Alluvium.

use std::time::{Duration, Instant};

use alluvium::format::Batch;
use alluvium::{Ack, BackendKind, OpenStore, Partition, ReadLimits, Shards, Store, Visibility};
use hdrhistogram::Histogram;

use crate::AnyError;
use crate::measure::{Meter, Outcome, Run, histogram};

const RECORD: usize = 1024;

/// Producers, partitions, records per batch, level.
struct Shape {
    producers: usize,
    partitions: u64,
    records: usize,
    ack: Ack,
}

pub(crate) async fn run(
    backend: &str,
    workload: &str,
    run: &Run,
) -> Result<Option<Outcome>, AnyError> {
    let kind: BackendKind = backend.parse()?;
    run_on(kind, workload, run).await
}

/// The same on a backend that was made by hand.
pub(crate) async fn run_on(
    backend: impl OpenStore,
    workload: &str,
    run: &Run,
) -> Result<Option<Outcome>, AnyError> {
    let (store, _) = Store::builder(run.dir.join("store"))
        .configure(|c| c.shards = Shards::Count(1))
        .backend(backend)
        .open()
        .await?;
    let shape = |producers, partitions, records, ack| Shape {
        producers,
        partitions,
        records,
        ack,
    };
    let outcome = match workload {
        "W1" => append(&store, run, shape(1, 1, 1, Ack::Durable)).await?,
        "W2" => append(&store, run, shape(64, 1, 1, Ack::Durable)).await?,
        "W3" => append(&store, run, shape(256, 16, 1, Ack::Durable)).await?,
        "W4" => append(&store, run, shape(8, 1, 64, Ack::Durable)).await?,
        "W5" => append(&store, run, shape(8, 1, 64, Ack::Written)).await?,
        "W6" => read(&store, run).await?,
        "WB" => bridge(&store, run, 64).await?,
        "WB1" => bridge(&store, run, 1).await?,
        _ => return Err(format!("unknown workload {workload}").into()),
    };
    if std::env::var_os("COMPARE_STATS").is_some() {
        println!("{workload} {:?}", store.stats().await?);
    }
    store.close(Duration::from_secs(30)).await?;
    Ok(Some(outcome))
}

async fn append(store: &Store, run: &Run, shape: Shape) -> Result<Outcome, AnyError> {
    let mut partitions = Vec::new();
    for id in 0..shape.partitions {
        partitions.push(store.create_partition(id).await?);
    }
    // Warm: files in place, first group written.
    for partition in &partitions {
        partition.append(Batch::from_values([b"warm"])?).await?;
    }
    let value = vec![0x5A_u8; RECORD];
    let until = run.until();
    let meter = Meter::start();
    let mut tasks = Vec::new();
    for n in 0..shape.producers {
        let partition = partitions[n % partitions.len()].clone();
        let (value, records, ack) = (value.clone(), shape.records, shape.ack);
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram();
            while Instant::now() < until {
                let started = Instant::now();
                let batch = Batch::from_values(std::iter::repeat_n(&value, records))?;
                partition.append_with(batch, ack).await?;
                record(&mut latency, started);
            }
            Ok::<_, AnyError>(latency)
        }));
    }
    let latency = join(tasks).await?;
    if shape.ack < Ack::Durable {
        store.sync_many(&partitions).await?;
    }
    let operations = latency.len();
    let bytes = operations * (shape.records * RECORD) as u64;
    Ok(meter.finish(latency, operations, bytes))
}

async fn read(store: &Store, run: &Run) -> Result<Outcome, AnyError> {
    let partition = store.create_partition(0).await?;
    let value = vec![0x5A_u8; RECORD];
    let total = 256_u64 << 10;
    let mut pending = std::collections::VecDeque::new();
    for _ in 0..total / 256 {
        let batch = Batch::from_values(std::iter::repeat_n(&value, 256))?;
        pending.push_back(partition.begin_append(batch, Ack::Written).await?);
        if pending.len() > 16
            && let Some(first) = pending.pop_front()
        {
            first.acknowledged().await?;
        }
    }
    partition.sync().await?;
    let until = run.until();
    let limits = ReadLimits {
        bytes_max: 4 << 20,
        ..ReadLimits::default()
    };
    let mut latency = histogram();
    let (mut records, mut at) = (0_u64, 0);
    let meter = Meter::start();
    while Instant::now() < until {
        let started = Instant::now();
        let fetched = partition.read(at, limits, Visibility::Durable).await?;
        for batch in &fetched.batches {
            for view in batch.views() {
                std::hint::black_box(view?);
                records += 1;
            }
        }
        record(&mut latency, started);
        at = if fetched.next_offset >= total {
            0
        } else {
            fetched.next_offset
        };
    }
    Ok(meter.finish(latency, records, records * RECORD as u64))
}

async fn bridge(store: &Store, run: &Run, callers: usize) -> Result<Outcome, AnyError> {
    let partition: Partition = store.create_partition(0).await?;
    let until = run.until();
    let meter = Meter::start();
    let mut tasks = Vec::new();
    for _ in 0..callers {
        let partition = partition.clone();
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram();
            while Instant::now() < until {
                let started = Instant::now();
                partition.ping().await?;
                record(&mut latency, started);
            }
            Ok::<_, AnyError>(latency)
        }));
    }
    let latency = join(tasks).await?;
    let operations = latency.len();
    Ok(meter.finish(latency, operations, 0))
}

pub(crate) fn record(latency: &mut Histogram<u64>, started: Instant) {
    latency.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

pub(crate) async fn join(
    tasks: Vec<tokio::task::JoinHandle<Result<Histogram<u64>, AnyError>>>,
) -> Result<Histogram<u64>, AnyError> {
    let mut all = histogram();
    for task in tasks {
        all.add(task.await??)?;
    }
    Ok(all)
}
