//! Counters of a shard, and the sums that `Store::stats` reports.

use std::cell::Cell;

/// Counters of one shard since it started.
#[derive(Debug, Default)]
pub(crate) struct ShardCounters {
    records_acknowledged: Cell<u64>,
    groups_written: Cell<u64>,
    bytes_written: Cell<u64>,
    reads_from_disk: Cell<u64>,
    housekeeping_failures: Cell<u64>,
}

impl ShardCounters {
    pub(crate) fn acknowledged(&self, records: u32) {
        self.records_acknowledged
            .set(self.records_acknowledged.get() + u64::from(records));
    }

    pub(crate) fn group_placed(&self, bytes: usize) {
        self.groups_written.set(self.groups_written.get() + 1);
        self.bytes_written
            .set(self.bytes_written.get() + bytes as u64);
    }

    pub(crate) fn read_from_disk(&self) {
        self.reads_from_disk.set(self.reads_from_disk.get() + 1);
    }

    pub(crate) fn housekeeping_failed(&self) {
        self.housekeeping_failures
            .set(self.housekeeping_failures.get() + 1);
    }

    pub(crate) fn snapshot(&self) -> ShardStats {
        ShardStats {
            records_acknowledged: self.records_acknowledged.get(),
            groups_written: self.groups_written.get(),
            bytes_written: self.bytes_written.get(),
            reads_from_disk: self.reads_from_disk.get(),
            housekeeping_failures: self.housekeeping_failures.get(),
            ..ShardStats::default()
        }
    }
}

/// What a shard has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ShardStats {
    /// Partitions that the shard owns.
    pub partitions: usize,
    /// Records acknowledged at any level.
    pub records_acknowledged: u64,
    /// Group commits, each one write; control batches included.
    pub groups_written: u64,
    /// Bytes of those writes, padding included.
    pub bytes_written: u64,
    /// Reads that went to a segment file.
    pub reads_from_disk: u64,
    /// Removals of unused files that failed; the next opening tries again.
    pub housekeeping_failures: u64,
    /// Requests under way now.
    pub requests_under_way: usize,
    /// Bytes of batches under way now.
    pub bytes_under_way: usize,
    /// Bytes that are read ahead of readers, or have been and wait for them.
    pub read_ahead_bytes: usize,
    /// Bytes of memory that the tail cache holds.
    pub tail_cache_bytes: usize,
    /// Bytes of unused buffers that the shard keeps.
    pub idle_buffer_bytes: usize,
}
