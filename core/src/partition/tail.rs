//! The tail of a log as readers on any thread see it: offsets, and the bytes of recent groups.
//!
//! A read that the tail can answer runs on its caller's thread from the first to the last step:
//! it takes the offsets, finds the groups, checks their checksums and cuts the result out of the
//! buffers that were written, without a copy and without a request to the shard.
//!
//! # What is shared
//!
//! Two things, and for neither does the shard ever wait for a reader:
//!
//! * the offsets, behind a sequence lock of plain atomics ([`SharedOffsets`]);
//! * a [`Snapshot`]: a list of chunks, replaced as a whole when a chunk comes or goes. A chunk has
//!   room for some dozens of groups, and each place is set once. So a new group costs the shard
//!   one store into a free place, and a new list only once per chunk. The shard drops what it
//!   evicts; the memory goes when the last reader that is just looking at it has finished.
//!
//! # Why a reader never sees what it must not see
//!
//! Offsets and snapshot are published separately, so every snapshot belongs to an *epoch* of the
//! log, and so do the offsets. A truncation or a recovery, and nothing else, takes records away or
//! gives their offsets to others, and each begins an epoch. A reader takes the offsets first, then
//! the snapshot, and uses them together only when their epochs are the same. Then:
//!
//! 1. *Nothing is missing.* A group is put in its place before the log end is published that
//!    covers it. Who sees the log end sees the group, unless it has been evicted; and as only the
//!    oldest chunks are evicted, everything from the first group of the snapshot on is there.
//! 2. *Nothing is too new.* The snapshot may hold groups that came after the offsets; they lie at
//!    or above the end that the offsets set, and are cut away. Within an epoch the durable offset
//!    and the log end only grow, so a record below them is what it was when they were published.
//! 3. *Nothing is too old.* A truncation publishes the snapshot of the new epoch, then the offsets
//!    of the new epoch, and then it is answered. Who starts a read after the answer sees those
//!    offsets (or later ones), and so no snapshot of an earlier epoch. New groups never go into a
//!    chunk that an earlier epoch has seen: a reader that still looks at that epoch finds in it
//!    what it held when the truncation came, and nothing that was written since.
//! 4. *A trim* moves the published log start before it is answered, and every read begins there.
//! 5. *The end of the partition* is a flag that is set before the end is answered. With the flag
//!    set, or with epochs that do not match (a change is just being published), the reader asks the
//!    shard, which decides.
//!
//! A read is thus a look at the log at the moment its offsets were published, as it is when the
//! shard answers.
//!
//! # What is verified
//!
//! The bytes in memory are those that were written: the caller's thread has computed the body's
//! checksum when it encoded the batch, the shard that of the header when it gave the batch its
//! place. Every read checks both again, on the thread of the reader, once for each batch that it
//! returns. That finds bytes that changed in memory since; it says nothing about the disk. What
//! does not pass is left to the shard, which reads the disk.

use std::sync::Arc;

use super::read::{Fetched, ReadLimits, Visibility, limit_records};
use crate::error::{Error, Result};
use crate::format::{BatchKind, FormatError, StoredBatch, decode_batch};
use crate::offset::{Offsets, SharedOffsets};
use crate::segment::PlacedGroup;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{ArcSwap, OnceLock};

/// Places of a chunk; few for loom, which follows each.
const PLACES: usize = if cfg!(alluvium_loom) { 2 } else { 64 };

/// A stretch of consecutive groups. Places are set in order, each once.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Base offset of the first group.
    base_offset: u64,
    places: Box<[OnceLock<PlacedGroup>]>,
}

impl Chunk {
    /// Bytes of memory that a chunk takes beside its groups.
    pub(super) const BYTES: usize = PLACES * size_of::<OnceLock<PlacedGroup>>();

    /// An empty chunk for groups from `base_offset` on.
    pub(super) fn new(base_offset: u64) -> Self {
        Self {
            base_offset,
            places: (0..PLACES).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(super) fn base_offset(&self) -> u64 {
        self.base_offset
    }

    /// Puts a group into the place `at`; gives it back when there is no such place, or it is taken.
    pub(super) fn set(&self, at: usize, group: PlacedGroup) -> Result<(), PlacedGroup> {
        match self.places.get(at) {
            Some(place) => place.set(group),
            None => Err(group),
        }
    }

    /// The groups that are there now, oldest first.
    pub(super) fn groups(&self) -> impl Iterator<Item = &PlacedGroup> {
        self.places.iter().map_while(OnceLock::get)
    }

    /// Place of the last group that starts at or below `offset`.
    fn floor(&self, offset: u64) -> usize {
        let starts_below = |place: &OnceLock<PlacedGroup>| {
            let first = place.get().and_then(|g| g.batches.first());
            first.is_some_and(|b| b.base_offset <= offset)
        };
        self.places.partition_point(starts_below).saturating_sub(1)
    }
}

/// The chunks of one moment, oldest first.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) epoch: u64,
    pub(super) chunks: Vec<Arc<Chunk>>,
}

impl Snapshot {
    /// Batches from the one that holds `from` up to `end`; `None` when the snapshot does not reach
    /// back so far. At least one batch is returned, whatever its size.
    pub(super) fn read(
        &self,
        from: u64,
        end: u64,
        bytes_max: usize,
    ) -> Option<Result<Vec<StoredBatch>, FormatError>> {
        let at = self.chunks.partition_point(|c| c.base_offset <= from);
        let chunks = self.chunks.get(at.checked_sub(1)?..).unwrap_or_default();
        let skipped = chunks.first().map_or(0, |c| c.floor(from));
        let groups = chunks.iter().flat_map(|c| c.groups()).skip(skipped);
        let mut found = Vec::new();
        let mut bytes = 0;
        for group in groups {
            for placed in group.batches.iter() {
                // A batch that a truncation has cut through ends where it was cut; one without
                // records is a note of the log to itself.
                if placed.end_offset <= from || placed.end_offset == placed.base_offset {
                    continue;
                }
                if placed.base_offset >= end {
                    return Some(Ok(found));
                }
                let batch = match decode_batch(&group.bytes, placed.start) {
                    Ok(batch) => batch,
                    Err(e) => return Some(Err(e)),
                };
                bytes += batch.header().total_len();
                if !found.is_empty() && bytes > bytes_max {
                    return Some(Ok(found));
                }
                debug_assert_ne!(batch.kind(), BatchKind::Control);
                found.push(batch.clip(from, end.min(placed.end_offset)));
            }
        }
        Some(Ok(found))
    }
}

/// What the tail knows about a read.
#[derive(Debug)]
pub(crate) enum TailRead {
    Found(Fetched),
    /// The offset is older than what is in memory. Epoch and offsets are of one moment.
    Older(u64, Offsets),
    /// A change is just being published, or the partition has ended: the shard knows.
    Unknown,
}

/// Offsets and recent groups of one partition, for readers on any thread. One thread writes.
#[derive(Debug)]
pub(crate) struct Tail {
    /// Epoch that the next publication carries; only the writer looks at it.
    epoch: AtomicU64,
    offsets: SharedOffsets,
    snapshot: ArcSwap<Snapshot>,
    closed: AtomicBool,
}

impl Tail {
    /// The tail of a log that has just been recovered.
    pub(super) fn new(offsets: Offsets) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            offsets: SharedOffsets::new(0, offsets),
            snapshot: ArcSwap::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Shows the offsets to readers. Everything below the log end stands in the snapshot already.
    pub(super) fn publish(&self, offsets: Offsets) {
        self.offsets.store(self.epoch(), offsets);
    }

    /// Epoch of what the writer holds now.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Shows these chunks to readers.
    pub(super) fn show(&self, chunks: Vec<Arc<Chunk>>) {
        let epoch = self.epoch();
        self.snapshot.store(Arc::new(Snapshot { epoch, chunks }));
    }

    /// Begins an epoch with these chunks. No new group may go into one of them that was shown
    /// before. Readers ask the shard until offsets are published.
    pub(super) fn begin_epoch(&self, chunks: Vec<Arc<Chunk>>) {
        self.epoch.store(self.epoch() + 1, Ordering::Relaxed);
        self.show(chunks);
    }

    /// From now on readers ask the shard, or whoever answers in its place.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.snapshot.store(Arc::default());
    }

    /// What readers see now.
    #[cfg(test)]
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The offsets as last published; `None` when they change too quickly to be read.
    pub(crate) fn offsets(&self) -> Option<Offsets> {
        self.offsets.load().map(|(_, offsets)| offsets)
    }

    /// A read that needs neither disk nor shard, or what it needs.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the range that can be read.
    pub(crate) fn read(
        &self,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<TailRead> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(TailRead::Unknown);
        }
        // In this order: see the module's documentation.
        let Some((epoch, offsets)) = self.offsets.load() else {
            return Ok(TailRead::Unknown);
        };
        let end = visibility.end(offsets);
        let start = offsets.log_start();
        if from < start || from > end {
            return Err(Error::OutOfRange {
                requested: from,
                start,
                end,
            });
        }
        if from == end {
            return Ok(TailRead::Found(Fetched::new(Vec::new(), from, offsets)));
        }
        let snapshot = self.snapshot.load();
        if snapshot.epoch != epoch {
            return Ok(TailRead::Unknown);
        }
        // What memory does not hold whole any more the disk may still have; it is judged there.
        let Some(Ok(batches)) = snapshot.read(from, end, limits.bytes_max) else {
            return Ok(TailRead::Older(epoch, offsets));
        };
        let (batches, next) = limit_records(batches, limits.records_max);
        let next = next.unwrap_or(end);
        Ok(TailRead::Found(Fetched::new(batches, next, offsets)))
    }
}
