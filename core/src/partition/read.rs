//! Reads: from the tail cache where it reaches, from the segments otherwise.

use std::rc::Rc;

use super::fetch::{Found, Gone, still_wanted};
use super::{Mode, Partition, State, TailRead};
use crate::error::{CorruptionKind, Error, Result};
use crate::format::{FormatError, StoredBatch, StoredRecord};
use crate::io::IoBackend;
use crate::offset::Offsets;

/// How far a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Up to the durable offset: what is seen here is never taken back by a crash.
    #[default]
    Durable,
    /// Up to the log end: also records that a crash may still take away. For Raft logs, which
    /// read entries before they are durable.
    Visible,
}

impl Visibility {
    /// The offset up to which records may be seen.
    pub(crate) fn end(self, offsets: Offsets) -> u64 {
        match self {
            Self::Durable => offsets.durable(),
            Self::Visible => offsets.log_end(),
        }
    }
}

/// How much one read may return. At least one record is returned when there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Encoded bytes of batches.
    pub bytes_max: usize,
    /// Number of records. An opaque batch is never split.
    pub records_max: u64,
}

impl Default for ReadLimits {
    /// 1 MiB, any number of records.
    fn default() -> Self {
        Self {
            bytes_max: 1 << 20,
            records_max: u64::MAX,
        }
    }
}

/// What a read found: verified batches in offset order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The batches, clipped to the range that was asked for.
    pub batches: Vec<StoredBatch>,
    /// Where to read on.
    pub next_offset: u64,
    /// Log start offset when the read began.
    pub log_start: u64,
    /// Durable offset when the read began.
    pub durable: u64,
    /// Log end offset when the read began.
    pub log_end: u64,
}

impl Fetched {
    /// What was found with these offsets in force.
    pub(crate) fn new(batches: Vec<StoredBatch>, next_offset: u64, offsets: Offsets) -> Self {
        Self {
            batches,
            next_offset,
            log_start: offsets.log_start(),
            durable: offsets.durable(),
            log_end: offsets.log_end(),
        }
    }

    /// All records of the batches, in order. An opaque batch yields one error.
    pub fn records(&self) -> impl Iterator<Item = Result<StoredRecord, FormatError>> + '_ {
        self.batches.iter().flat_map(StoredBatch::records)
    }

    /// Whether there was nothing to read yet.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

impl<B: IoBackend> Partition<B> {
    /// A read that needs no disk: from the tail cache, or of nothing. `None` when it needs one.
    pub(crate) fn read_cached(
        &self,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<Option<Fetched>> {
        if let Mode::Closed = self.state.borrow().mode {
            return Err(Error::Closed);
        }
        Ok(match self.tail.read(from, limits, visibility)? {
            TailRead::Found(fetched) => Some(fetched),
            TailRead::Older(..) | TailRead::Unknown => None,
        })
    }

    /// A read of which the shard does every step, batch by batch. It is the judge of damage: a
    /// caller who cannot decode what it was given asks for this.
    pub(crate) async fn read(
        self: Rc<Self>,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<Fetched> {
        let (segment, start, offsets, epoch) = match self.find(from, limits, visibility).await? {
            Found::Here(fetched) => return Ok(fetched),
            Found::Segment {
                segment,
                start,
                offsets,
                epoch,
            } => (segment, start, offsets, epoch),
        };
        let end = visibility.end(offsets);
        let chunk = self.context.config.read_chunk_bytes;
        let read = segment
            .read(&self.context.pool, start, end, limits.bytes_max, chunk)
            .await;
        if self.tail.epoch() != epoch {
            // A truncation came in between: what was looked at is not the log any more.
            return Box::pin(self.read(from, limits, visibility)).await;
        }
        let batches = read?;
        if batches.is_empty() {
            let now = self.state.borrow().offsets;
            let cut = segment.end_offset.get() <= start;
            if now.log_start() > from || cut {
                // Trimmed or truncated meanwhile.
                return Err(Error::OutOfRange {
                    requested: from,
                    start: now.log_start(),
                    end: if cut { now.durable() } else { end },
                });
            }
            let found = CorruptionKind::Misplaced("no batch holds the offset");
            return Err(segment.corruption(0, start, Some(end), found));
        }
        self.shard.stats.read_from_disk();
        let (batches, next) = limit_records(batches, limits.records_max);
        Ok(Fetched::new(batches, next.unwrap_or(end), offsets))
    }

    /// Checks that the partition has not let go of its files: without them it looks as if it were
    /// empty.
    pub(super) fn check_has_files(&self, state: &State<B::File>) -> Result<()> {
        match &state.mode {
            Mode::Closed => Err(Error::Closed),
            Mode::Failed(cause) if state.segments().next().is_none() => Err(self.failed(cause)),
            _ => Ok(()),
        }
    }

    /// Offset of the first durable record whose timestamp is at or after `timestamp_ms`; `None`
    /// when every record is older. Looks as long as somebody waits for it.
    pub(crate) async fn offset_for_timestamp(
        self: Rc<Self>,
        timestamp_ms: i64,
        gone: Gone<'_>,
    ) -> Result<Option<u64>> {
        let (segments, offsets) = {
            let state = self.state.borrow();
            self.check_has_files(&state)?;
            (state.segments().cloned().collect::<Vec<_>>(), state.offsets)
        };
        let interval = self.context.config.index_interval_bytes;
        for segment in segments {
            still_wanted(gone).await?;
            segment
                .load_index(self.shard.backend.as_ref(), &self.context.pool, interval)
                .await?;
            let start = segment
                .with_index(|index| index.first_not_before(timestamp_ms))
                .flatten();
            let Some(start) = start else { continue };
            let mut at = start.max(offsets.log_start());
            let end = offsets.durable().min(segment.end_offset.get());
            while at < end {
                still_wanted(gone).await?;
                let limits = ReadLimits::default();
                let this = Rc::clone(&self);
                let fetched = this.read(at, limits, Visibility::Durable).await?;
                if fetched.is_empty() {
                    break;
                }
                for batch in &fetched.batches {
                    if let Some(found) = first_not_before(batch, timestamp_ms) {
                        return Ok(Some(found));
                    }
                }
                at = fetched.next_offset;
            }
        }
        Ok(None)
    }
}

fn first_not_before(batch: &StoredBatch, timestamp_ms: i64) -> Option<u64> {
    if batch.header().max_timestamp() < timestamp_ms {
        return None;
    }
    if batch.is_opaque() {
        return Some(batch.first_offset());
    }
    for record in batch.records() {
        match record {
            Ok(record) if record.timestamp >= timestamp_ms => return Some(record.offset),
            Ok(_) => {}
            // Whole by its checksum, yet not decodable: its writer encoded it wrongly.
            Err(_) => return Some(batch.first_offset()),
        }
    }
    None
}

/// Clips the batches to `records_max` records, and says where they end.
pub(super) fn limit_records(
    batches: Vec<StoredBatch>,
    records_max: u64,
) -> (Vec<StoredBatch>, Option<u64>) {
    let mut left = records_max.max(1);
    let mut kept = Vec::with_capacity(batches.len());
    for batch in batches {
        if left == 0 {
            break;
        }
        let count = batch.end_offset() - batch.first_offset();
        let batch = if count > left && !batch.is_opaque() {
            let (first, end) = (batch.first_offset(), batch.first_offset() + left);
            batch.clip(first, end)
        } else {
            batch
        };
        left = left.saturating_sub(batch.end_offset() - batch.first_offset());
        kept.push(batch);
    }
    let next = kept.last().map(StoredBatch::end_offset);
    (kept, next)
}
