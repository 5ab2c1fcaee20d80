//! Settings of a store, with their units, defaults and limits.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::{BATCH_HEADER_LEN, Control, SEGMENT_HEADER_LEN};

/// How many shard threads a store runs, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Shards {
    /// One per two cores that the process may use, at least one; not pinned, so that the kernel
    /// can place them beside the embedding program's own threads.
    #[default]
    Auto,
    /// So many, not pinned.
    Count(usize),
    /// One per listed core, pinned to it.
    Cores(Vec<usize>),
}

/// What opening does when it finds acknowledged bytes damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnCorruption {
    /// Refuse to open, with an error that names the place. Nothing of that partition is changed;
    /// others may have been recovered before.
    #[default]
    Refuse,
    /// Open the damaged partitions read only; the rest opens as usual. Nothing can be read of a partition
    /// of which the disk does not give a header, or the newest segment: copy that file to a sound disk,
    /// with zeros for what is not given.
    Salvage,
    /// Dangerous, for repair tools only: **throws acknowledged records away**. Where the newest
    /// segment of this partition is damaged, the log is cut at the damage and opened for writing;
    /// the offsets from there on are given again. Older segments that are too short are let pass:
    /// truncate in front of what is missing. Damage of another kind, and that of other partitions,
    /// is treated as by [`Salvage`](Self::Salvage), and so is a store that is read only and a partition
    /// that is [reopened](crate::Partition::reopen). Copy the partition's files first. A sector behind the damage that
    /// cannot be read is an error: copy the file to a sound disk, with zeros there.
    CutTail {
        /// The only partition that may be cut.
        partition: u64,
    },
}

/// How sealed segments are read; the active one is always read as [`Direct`](Self::Direct) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SealedReads {
    /// Large reads into buffers of the store, past the page cache where the file system allows it.
    /// A reader that keeps a batch keeps a buffer of [`StoreConfig::read_chunk_bytes`].
    #[default]
    Direct,
    /// Through memory maps: what is read again and again comes from the page cache, and batches
    /// are slices of it. Each piece is fetched off the shard's thread and its checksums verified
    /// before it is handed out.
    ///
    /// What it costs: pages that the kernel has dropped are read again when a batch is looked at,
    /// on the thread that looks, and a disk that fails then kills the process (`SIGBUS`). The file
    /// of a segment is not reused while a reader holds a batch of it. Nobody else may shorten the
    /// files: there is no protection from that. Where a file cannot be mapped it is read as
    /// [`Direct`](Self::Direct) says.
    Mmap,
}

/// Settings of a store. [`StoreConfig::default`] suits a broker on a server with an SSD.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreConfig {
    /// Shard threads.
    pub shards: Shards,
    /// Requests that may be under way per shard (queued or executing) before callers wait: appends, reads of
    /// files, syncs, changes, lookups, inspections and creations of all its partitions. One whose caller has gone
    /// counts until it is done. Finding, describing and deleting partitions take no room. Room is given in
    /// the order in which it was asked for: a future that waits for it must be polled or dropped, or it
    /// holds up those behind it.
    pub mailbox_requests_max: usize,
    /// Bytes of batches that may be under way per shard before callers wait. At least one batch
    /// of the largest size must fit.
    pub mailbox_bytes_max: usize,
    /// Bytes of memory per shard for recent batches, which readers at the tail get without a
    /// request to the shard. Its partitions have equal parts. What is counted is the memory that
    /// is held (whole buffers and a page more for their alignment, some kilobytes per partition
    /// beside them). Batches that are not written yet are kept in any case; they are bounded by
    /// `mailbox_bytes_max`.
    pub tail_cache_bytes_max: usize,
    /// Size of a segment file in bytes, a multiple of 4096.
    pub segment_bytes: u64,
    /// Group commits that may be in flight per partition.
    pub writes_in_flight_max: u16,
    /// Largest group commit in bytes, padding included.
    pub group_bytes_max: u32,
    /// With a write in flight, the next group waits until it has this many bytes or the write is
    /// done.
    pub group_bytes_min: u32,
    /// Write zeros ahead of the appends into a file that is new, so that an append changes no
    /// metadata of the file system: its durable write is about twice as fast. Costs twice the
    /// writes for files that are never recycled.
    pub preinitialise: bool,
    /// How far ahead of the appends the zeros are kept, in bytes.
    pub initialise_ahead_bytes: u32,
    /// Use O_DIRECT where the file system has it.
    pub direct_io: bool,
    /// Unused segment files kept per partition for the next roll.
    pub spare_segments_max: usize,
    /// A partition without a new batch for this long gets a seal: one small durable write that
    /// lets recovery tell damage of the last batches from a torn tail.
    pub seal_after: Duration,
    /// Keep at most this many bytes of sealed segment files per partition. `None` keeps all.
    pub retention_bytes: Option<u64>,
    /// Remove sealed segments whose newest record is older than this. `None` keeps all.
    pub retention_age: Option<Duration>,
    /// How often retention is applied.
    pub retention_interval: Duration,
    /// How long recovery waits for writes of a dead process to land, per file.
    pub fence_timeout: Duration,
    /// What to do about damage.
    pub on_corruption: OnCorruption,
    /// Distance between entries of the sparse offset index, in bytes of log.
    pub index_interval_bytes: u32,
    /// Unit of reads from a segment, in bytes. A reader gets slices of such a unit: as long as it
    /// keeps one batch, it keeps the memory of the whole.
    pub read_chunk_bytes: usize,
    /// How sealed segments are read.
    pub sealed_reads: SealedReads,
    /// How many units a sequential reader has read ahead of it; 0 for none. Readers are sequential
    /// that subscribe, or that take up where their last read from the disk ended.
    pub read_ahead_chunks: usize,
    /// Bytes that may be read ahead per shard, over all readers. A reader that finds no room reads
    /// without. Beyond this, reads from the disk are bounded by `mailbox_requests_max`, which they
    /// share with appends while they wait for the disk: it should be well above the number of
    /// readers of old records.
    pub read_ahead_bytes_max: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            shards: Shards::Auto,
            mailbox_requests_max: 16_384,
            mailbox_bytes_max: 64 << 20,
            tail_cache_bytes_max: 32 << 20,
            segment_bytes: 64 << 20,
            writes_in_flight_max: 4,
            group_bytes_max: 1 << 20,
            group_bytes_min: 8 << 10,
            preinitialise: true,
            initialise_ahead_bytes: 4 << 20,
            direct_io: true,
            spare_segments_max: 1,
            seal_after: Duration::from_millis(20),
            retention_bytes: None,
            retention_age: None,
            retention_interval: Duration::from_secs(10),
            fence_timeout: Duration::from_secs(30),
            on_corruption: OnCorruption::Refuse,
            index_interval_bytes: 32 << 10,
            read_chunk_bytes: 1 << 20,
            sealed_reads: SealedReads::Direct,
            read_ahead_chunks: 8,
            read_ahead_bytes_max: 16 << 20,
        }
    }
}

/// Smallest segment: header block, room for one group, headroom for control batches.
const SEGMENT_BYTES_MIN: u64 = 16 << 10;
/// Largest segment; positions stay far from overflow and recovery of one tail stays short.
const SEGMENT_BYTES_MAX: u64 = 4 << 30;

impl StoreConfig {
    /// Checks every limit and every relation between settings.
    pub fn validate(&self) -> Result<()> {
        fn range<T: PartialOrd + std::fmt::Display>(
            setting: &'static str,
            value: &T,
            min: &T,
            max: &T,
        ) -> Result<()> {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(invalid(setting, value, format!("{min} to {max}")))
        }
        match &self.shards {
            Shards::Auto => {}
            Shards::Count(n) => range("shards", n, &1, &1024)?,
            Shards::Cores(cores) => {
                range("shards (number of cores)", &cores.len(), &1, &1024)?;
                let mut sorted = cores.clone();
                sorted.sort_unstable();
                sorted.dedup();
                if sorted.len() != cores.len() {
                    let value = format!("{cores:?}");
                    return Err(invalid("shards", &value, "each core at most once".into()));
                }
            }
        }
        let sizes = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
        if !sizes.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(4096) {
            return Err(invalid(
                "segment_bytes",
                &self.segment_bytes,
                format!("a multiple of 4096 from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}"),
            ));
        }
        range(
            "mailbox_requests_max",
            &self.mailbox_requests_max,
            &1,
            &(1 << 24),
        )?;
        range("writes_in_flight_max", &self.writes_in_flight_max, &1, &64)?;
        range(
            "group_bytes_max",
            &self.group_bytes_max,
            &4096,
            &(256 << 20),
        )?;
        range(
            "group_bytes_min",
            &self.group_bytes_min,
            &0,
            &self.group_bytes_max,
        )?;
        range(
            "initialise_ahead_bytes",
            &self.initialise_ahead_bytes,
            &4096,
            &(1 << 30),
        )?;
        let batch_bytes_max = self.batch_bytes_max(512);
        range(
            "mailbox_bytes_max",
            &self.mailbox_bytes_max,
            &batch_bytes_max,
            &(1 << 31),
        )?;
        range(
            "tail_cache_bytes_max",
            &self.tail_cache_bytes_max,
            &0,
            &(1 << 40),
        )?;
        range("spare_segments_max", &self.spare_segments_max, &0, &64)?;
        range(
            "index_interval_bytes",
            &self.index_interval_bytes,
            &512,
            &(1 << 30),
        )?;
        range(
            "read_chunk_bytes",
            &self.read_chunk_bytes,
            &4096,
            &(64 << 20),
        )?;
        range("read_ahead_chunks", &self.read_ahead_chunks, &0, &1024)?;
        range(
            "read_ahead_bytes_max",
            &self.read_ahead_bytes_max,
            &0,
            &(1 << 31),
        )?;
        let millisecond = Duration::from_millis(1);
        let year = Duration::from_secs(366 * 86_400);
        let durations = [
            ("seal_after", self.seal_after, millisecond),
            ("retention_interval", self.retention_interval, millisecond),
            ("fence_timeout", self.fence_timeout, millisecond),
        ];
        for (setting, value, min) in durations {
            if value < min || value > year {
                return Err(invalid(
                    setting,
                    &format!("{value:?}"),
                    format!("{min:?} to {year:?}"),
                ));
            }
        }
        Ok(())
    }

    /// Bytes at the end of each segment that only control batches may use, so that seals and trims
    /// never need another segment on a full disk.
    pub(crate) fn control_headroom_bytes(&self, alignment: u32) -> u64 {
        let wanted = (self.segment_bytes / 16).clamp(8 * u64::from(alignment), 64 << 10);
        // The smallest segments hold records at every alignment, too.
        wanted.min(self.segment_bytes / 4)
    }

    /// Bytes of a segment that batches of records may use at the given alignment.
    pub(crate) fn segment_data_bytes(&self, alignment: u32) -> u64 {
        self.segment_bytes
            .saturating_sub(SEGMENT_HEADER_LEN as u64)
            .saturating_sub(self.control_headroom_bytes(alignment))
    }

    /// How many bytes of a new file are zeroed before it is used.
    pub(crate) fn initialise_first_bytes(&self) -> u64 {
        if !self.preinitialise {
            return 0;
        }
        u64::from(self.initialise_ahead_bytes)
            .next_multiple_of(4096)
            .min(self.segment_bytes)
    }

    /// Largest encoded batch (header included) that is accepted at the given alignment, in bytes.
    /// A group that carries a reservation has one control batch in front of it.
    pub(crate) fn batch_bytes_max(&self, alignment: u32) -> usize {
        let group = u64::from(self.group_bytes_max).min(self.segment_data_bytes(alignment));
        let group = group - group % u64::from(alignment);
        let control = (BATCH_HEADER_LEN + Control::LEN) as u64;
        usize::try_from(group.saturating_sub(control)).unwrap_or(usize::MAX)
    }
}

fn invalid(setting: &'static str, value: &dyn std::fmt::Display, allowed: String) -> Error {
    Error::InvalidConfig {
        setting,
        value: value.to_string(),
        allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_segment_takes_a_batch_at_every_alignment() {
        let mut config = StoreConfig {
            segment_bytes: SEGMENT_BYTES_MIN,
            group_bytes_max: 4096,
            group_bytes_min: 4096,
            ..StoreConfig::default()
        };
        for segment_bytes in [SEGMENT_BYTES_MIN, 2 * SEGMENT_BYTES_MIN, 64 << 20] {
            config.segment_bytes = segment_bytes;
            for alignment in [512, 1024, 2048, 4096] {
                let limit = config.batch_bytes_max(alignment);
                assert!(limit > 3 << 10, "{limit} at {alignment} of {segment_bytes}");
            }
        }
    }

    #[test]
    fn the_default_is_valid_and_absurd_values_are_named() {
        assert_eq!(StoreConfig::default().validate(), Ok(()));
        let absurd: [fn(&mut StoreConfig); 8] = [
            |c| c.segment_bytes = 0,
            |c| c.segment_bytes = u64::MAX,
            |c| c.segment_bytes = (64 << 20) + 1,
            |c| c.shards = Shards::Count(0),
            |c| c.shards = Shards::Cores(vec![1, 1]),
            |c| c.mailbox_bytes_max = 1,
            |c| c.writes_in_flight_max = 0,
            |c| c.fence_timeout = Duration::MAX,
        ];
        for change in absurd {
            let mut config = StoreConfig::default();
            change(&mut config);
            assert!(
                matches!(config.validate(), Err(Error::InvalidConfig { .. })),
                "{config:?}"
            );
        }
    }
}
