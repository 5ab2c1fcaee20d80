//! Logs with known content: the record at an offset has a value that the offset decides.

use std::time::Duration;

use alluvium_core::format::{Batch, BatchBuilder, Record};
use alluvium_core::{Partition, ReadLimits, Shards, Store, StoreConfig, Visibility};

/// Small segments, so that a check crosses many of them.
pub fn small(config: &mut StoreConfig) {
    config.shards = Shards::Count(1);
    config.segment_bytes = SEGMENT_BYTES;
    config.group_bytes_max = 16 << 10;
    config.group_bytes_min = 4 << 10;
    config.mailbox_bytes_max = 1 << 20;
    config.tail_cache_bytes_max = 64 << 10;
    config.index_interval_bytes = 4 << 10;
    config.read_chunk_bytes = 16 << 10;
}

/// Segments of [`small`] stores, in bytes.
pub const SEGMENT_BYTES: u64 = 64 << 10;

/// Closes in time.
pub async fn close(store: &Store) {
    store.close(Duration::from_secs(30)).await.unwrap();
}

/// The value that every check writes at this offset.
pub fn value(offset: u64) -> Vec<u8> {
    let mut value = format!("value {offset} ").into_bytes();
    let padding = usize::try_from(offset.wrapping_mul(37) % 1500).unwrap();
    value.resize(value.len() + padding, b'.');
    value
}

/// A batch of the values of `[from, from + count)`.
pub fn batch(from: u64, count: u64) -> Batch {
    Batch::from_values((from..from + count).map(value)).unwrap()
}

/// A batch of one record with this timestamp.
pub fn stamped(timestamp: i64) -> Batch {
    let mut builder = BatchBuilder::new();
    let record = Record::new(timestamp.to_string()).timestamp(timestamp);
    builder.push(&record).unwrap();
    builder.finish().unwrap()
}

/// Appends the values of `[log end, log end + count)` in batches of `per_batch`.
pub async fn fill(partition: &Partition, count: u64, per_batch: u64) {
    let start = partition.offsets().log_end();
    let mut at = start;
    while at < start + count {
        let n = per_batch.min(start + count - at);
        let appended = partition.append(batch(at, n)).await.unwrap();
        assert_eq!(
            (appended.base_offset, u64::from(appended.count)),
            (at, n),
            "offsets follow each other"
        );
        at += n;
    }
}

/// Reads `[from, to)` and compares every value; nothing may follow.
pub async fn verify(partition: &Partition, from: u64, to: u64) {
    verify_seen(partition, from, to, Visibility::Durable).await;
}

/// As [`verify`], up to what may be seen.
pub async fn verify_seen(partition: &Partition, from: u64, to: u64, visibility: Visibility) {
    let mut at = from;
    loop {
        let fetched = partition
            .read(at, ReadLimits::default(), visibility)
            .await
            .unwrap();
        for record in fetched.records() {
            let record = record.unwrap();
            assert_eq!(record.offset, at);
            assert_eq!(record.value[..], value(at)[..], "value at {at}");
            at += 1;
        }
        assert_eq!(fetched.next_offset, at);
        if fetched.is_empty() {
            break;
        }
    }
    assert_eq!(at, to, "the log ends where it should");
}
