//! Pure parts: encoding and decoding batches, and the checksum alone.
#![allow(missing_docs, reason = "criterion's macros make functions without")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::hint::black_box;

use alluvium::format::{Batch, Placement, decode_batch};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Records per batch, and bytes of each value.
const SHAPES: [(usize, usize); 4] = [(1, 128), (1, 1024), (64, 1024), (256, 1024)];

fn values(records: usize, len: usize) -> Vec<Vec<u8>> {
    let value: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
    vec![value; records]
}

fn placed(records: usize, len: usize, base_offset: u64) -> Batch {
    let mut batch = Batch::from_values(values(records, len)).unwrap();
    batch.place(&Placement {
        base_offset,
        ..Placement::default()
    });
    batch
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for (records, len) in SHAPES {
        let shape = format!("{records}x{len}");
        group.throughput(Throughput::Bytes((records * len) as u64));
        let values = values(records, len);
        group.bench_with_input(BenchmarkId::new("encode", &shape), &values, |b, values| {
            b.iter(|| Batch::from_values(black_box(values)).unwrap());
        });
        let mut batch = Batch::from_values(&values).unwrap();
        group.bench_function(BenchmarkId::new("place", &shape), |b| {
            b.iter(|| batch.place(black_box(&Placement::default())));
        });
        let bytes = Bytes::copy_from_slice(placed(records, len, 0).bytes());
        group.bench_with_input(BenchmarkId::new("decode", &shape), &bytes, |b, bytes| {
            b.iter(|| {
                let batch = decode_batch(black_box(bytes), 0).unwrap();
                for view in batch.views() {
                    black_box(view.unwrap());
                }
            });
        });
    }
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32");
    for len in [128, 1 << 10, 64 << 10, 1 << 20] {
        let bytes = vec![0x5A_u8; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes, |b, bytes| {
            b.iter(|| crc32fast::hash(black_box(bytes)));
        });
    }
    group.finish();
}

criterion_group!(benches, batches, checksums);
criterion_main!(benches);
