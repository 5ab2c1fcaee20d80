//! Parts of an open store: the hop over the mailbox, finding an offset and reading one record, the
//! scan of a segment, and opening.
//!
//! Files are in `target`, which should be on a real disk.
#![allow(missing_docs, reason = "criterion's macros make functions without")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use alluvium::format::{Batch, walk_segment};
use alluvium::{Ack, BackendKind, Partition, ReadLimits, Shards, Store, Visibility};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Records of 1 KiB that the partition holds, in batches of 16.
const RECORDS: u64 = 8 << 10;
const BATCH_RECORDS: u64 = 16;
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);

fn backends() -> impl Iterator<Item = BackendKind> {
    let works = |kind: &BackendKind| kind.resolve().is_ok();
    BackendKind::CONCRETE.into_iter().filter(works)
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

async fn open(dir: &Path, backend: BackendKind) -> (Store, Partition) {
    let builder = Store::builder(dir).configure(|c| c.shards = Shards::Count(1));
    let (store, _) = builder.backend(backend).open().await.unwrap();
    let partition = store.partition_or_create(0).await.unwrap();
    (store, partition)
}

async fn fill(partition: &Partition) {
    let value = vec![0x5A_u8; 1024];
    for _ in 0..RECORDS / BATCH_RECORDS {
        let batch = Batch::from_values((0..BATCH_RECORDS).map(|_| &value)).unwrap();
        partition.append_with(batch, Ack::Written).await.unwrap();
    }
    partition.sync().await.unwrap();
}

/// A round trip to the shard and back, by one caller: the callers' workload is WB of `compare`.
fn hops(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("mailbox_hop");
    for backend in backends() {
        let dir = directory();
        let (store, partition) = runtime.block_on(open(dir.path(), backend));
        group.bench_function(BenchmarkId::from_parameter(backend), |b| {
            b.iter(|| runtime.block_on(partition.ping()).unwrap());
        });
        runtime.block_on(store.close(CLOSE_PATIENCE)).unwrap();
    }
    group.finish();
}

/// One record somewhere in the log: from the tail cache, and through the index from the disk.
fn lookups(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("lookup");
    let limits = ReadLimits {
        records_max: 1,
        ..ReadLimits::default()
    };
    for backend in backends() {
        let dir = directory();
        let (store, partition) = runtime.block_on(open(dir.path(), backend));
        runtime.block_on(fill(&partition));
        for place in ["cached", "disk"] {
            let (store, partition) = if place == "disk" {
                runtime.block_on(store.close(CLOSE_PATIENCE)).unwrap();
                runtime.block_on(open(dir.path(), backend))
            } else {
                (store.clone(), partition.clone())
            };
            let mut offset = 1;
            group.bench_function(BenchmarkId::new(place, backend), |b| {
                b.iter(|| {
                    // A step that visits every offset, in no order that a cache could guess.
                    offset = (offset + 4_099) % RECORDS;
                    let read = partition.read(offset, limits, Visibility::Durable);
                    let fetched = runtime.block_on(read).unwrap();
                    assert_eq!(fetched.next_offset, offset + 1);
                });
            });
            if place == "disk" {
                runtime.block_on(store.close(CLOSE_PATIENCE)).unwrap();
            }
        }
    }
    group.finish();
}

/// The segments of a closed store, in memory.
fn sealed_segments(dir: &Path) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let bytes = Bytes::from(fs::read(path).unwrap());
            if walk_segment(&bytes).is_ok_and(|summary| summary.end_offset > 0) {
                found.push(bytes);
            }
        }
    }
    found
}

/// Verifying a segment in memory, and opening the store that it belongs to.
fn recoveries(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("recovery");
    for backend in backends() {
        let dir = directory();
        let (store, partition) = runtime.block_on(open(dir.path(), backend));
        runtime.block_on(fill(&partition));
        drop(partition);
        runtime.block_on(store.close(CLOSE_PATIENCE)).unwrap();
        if backend == BackendKind::Tokio {
            // The bytes are the same on every backend.
            let segments = sealed_segments(dir.path());
            let segment = segments.first().expect("the store was sealed");
            let end = walk_segment(segment).unwrap().end_position;
            group.throughput(Throughput::Bytes(end as u64));
            group.bench_function("scan", |b| {
                b.iter(|| walk_segment(black_box(segment)).unwrap());
            });
        }
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("open", backend), |b| {
            b.iter_custom(|times| {
                let mut taken = Duration::ZERO;
                for _ in 0..times {
                    let started = Instant::now();
                    let (store, partition) = runtime.block_on(open(dir.path(), backend));
                    taken += started.elapsed();
                    drop(partition);
                    runtime.block_on(store.close(CLOSE_PATIENCE)).unwrap();
                }
                taken
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hops, lookups, recoveries);
criterion_main!(benches);
