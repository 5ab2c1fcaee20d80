//! The sparse index of a segment: base offset and newest timestamp at every so many bytes.
//!
//! Derived data, never evidence: it only says where to start walking. Its file carries the identity
//! and the end position of the segment it describes and a checksum; at any doubt it is rebuilt.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use super::{Segment, index_path};
use crate::format::SegmentHeader;
use crate::io::{AlignedBuf, IoBackend, IoFile, OpenOptions};

const MAGIC: [u8; 8] = *b"ALLUVIDX";
const VERSION: u32 = 1;
const HEAD_LEN: usize = 8 + 4 + 4 + 8 + 8 + 8 + 8;
const ENTRY_LEN: usize = 24;

/// One entry: the batch at `position` starts at `base_offset`; no record before the *next* entry
/// is newer than `max_timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    base_offset: u64,
    position: u64,
    max_timestamp: i64,
}

/// Offsets and timestamps to byte positions, every `interval_bytes` of log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    interval_bytes: u32,
    entries: Vec<Entry>,
    max_timestamp: i64,
}

/// The timestamp of a batch that the index counts: control batches carry the log's time, and no
/// record.
pub(super) fn newest_record(record_count: u32, max_timestamp: i64) -> i64 {
    if record_count == 0 {
        i64::MIN
    } else {
        max_timestamp
    }
}

impl SparseIndex {
    pub(crate) fn new(interval_bytes: u32) -> Self {
        Self {
            interval_bytes,
            entries: Vec::new(),
            max_timestamp: i64::MIN,
        }
    }

    /// Notes a batch; batches come in order of position.
    pub(crate) fn push(&mut self, base_offset: u64, position: u64, max_timestamp: i64) {
        self.max_timestamp = self.max_timestamp.max(max_timestamp);
        let due = self
            .entries
            .last()
            .is_none_or(|last| position - last.position >= u64::from(self.interval_bytes));
        if due {
            self.entries.push(Entry {
                base_offset,
                position,
                max_timestamp,
            });
        } else if let Some(last) = self.entries.last_mut() {
            last.max_timestamp = last.max_timestamp.max(max_timestamp);
        }
    }

    /// Position of the last indexed batch at or below `offset`.
    pub(crate) fn floor(&self, offset: u64) -> u64 {
        let n = self.entries.partition_point(|e| e.base_offset <= offset);
        match n.checked_sub(1).and_then(|i| self.entries.get(i)) {
            Some(entry) => entry.position,
            None => crate::format::SEGMENT_HEADER_LEN as u64,
        }
    }

    /// How many indexed batches start below `offset`.
    pub(super) fn count_below(&self, offset: u64) -> usize {
        self.entries.partition_point(|e| e.base_offset < offset)
    }

    /// How many of a range of indexed batches, from its first on, have a place that is `fit`.
    pub(super) fn count_in(&self, range: Range<usize>, fit: impl Fn(u64) -> bool) -> usize {
        let entries = self.entries.get(range).unwrap_or_default();
        entries.partition_point(|e| fit(e.position))
    }

    /// Position of the n-th indexed batch.
    pub(super) fn position(&self, n: usize) -> Option<u64> {
        self.entries.get(n).map(|e| e.position)
    }

    /// Base offset of the n-th indexed batch.
    pub(super) fn base_offset(&self, n: usize) -> Option<u64> {
        self.entries.get(n).map(|e| e.base_offset)
    }

    /// Base offset of the first indexed batch whose stretch may hold a record at or after
    /// `timestamp`; `None` when every record is older.
    pub(crate) fn first_not_before(&self, timestamp: i64) -> Option<u64> {
        let entry = self.entries.iter().find(|e| e.max_timestamp >= timestamp)?;
        Some(entry.base_offset)
    }

    /// Newest timestamp of the segment, in milliseconds; `i64::MIN` when it holds no batch.
    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// The bytes of the index file.
    pub(crate) fn encode(&self, header: &SegmentHeader, end_position: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_LEN + self.entries.len() * ENTRY_LEN + 4);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.interval_bytes.to_le_bytes());
        out.extend_from_slice(&header.identity.to_le_bytes());
        out.extend_from_slice(&end_position.to_le_bytes());
        out.extend_from_slice(&self.max_timestamp.to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for e in &self.entries {
            out.extend_from_slice(&e.base_offset.to_le_bytes());
            out.extend_from_slice(&e.position.to_le_bytes());
            out.extend_from_slice(&e.max_timestamp.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads an index file back; `None` at any doubt.
    pub(crate) fn decode(bytes: &[u8], header: &SegmentHeader, end_position: u64) -> Option<Self> {
        let mut input = Input(bytes);
        let sound = input.take::<8>()? == MAGIC && input.u32()? == VERSION;
        let interval_bytes = input.u32()?;
        let fits = input.u64()? == header.identity && input.u64()? == end_position;
        let max_timestamp = input.i64()?;
        let count = usize::try_from(input.u64()?).ok()?;
        let body_len = count.checked_mul(ENTRY_LEN)?;
        if !sound || !fits || input.0.len() != body_len.checked_add(4)? {
            return None;
        }
        let (covered, _) = bytes.split_at(HEAD_LEN + body_len);
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = Entry {
                base_offset: input.u64()?,
                position: input.u64()?,
                max_timestamp: input.i64()?,
            };
            let in_order = entries.last().is_none_or(|last: &Entry| {
                last.base_offset <= entry.base_offset && last.position < entry.position
            });
            if !in_order || entry.position >= end_position {
                return None;
            }
            entries.push(entry);
        }
        (input.u32()? == crc32fast::hash(covered)).then_some(Self {
            interval_bytes,
            entries,
            max_timestamp,
        })
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }
}

/// Reads the index file of a segment; `None` when it is missing, stale or damaged.
pub(super) async fn read_file<B: IoBackend>(
    backend: &B,
    segment: &Segment<B::File>,
) -> Option<SparseIndex> {
    let file = backend
        .open(&index_path(&segment.path), OpenOptions::READ)
        .await
        .ok()?;
    let len = usize::try_from(file.len().await.ok()?).ok()?;
    // Entries are at least 512 bytes of log apart: a longer file is not ours.
    let bound = usize::try_from(segment.header.capacity_bytes / 512).ok()? * ENTRY_LEN + 4096;
    if len > bound {
        return None;
    }
    let buf = AlignedBuf::try_with_capacity(len)?;
    let (result, buf) = file.read_at(buf, 0, len).await;
    (result.ok()? == len).then_some(())?;
    SparseIndex::decode(&buf, &segment.header, segment.end_position.get())
}

/// Writes the index file beside the segment at `path`, best effort.
pub(super) async fn write_file<B: IoBackend>(backend: &B, path: &Path, bytes: &[u8]) {
    let path = index_path(path);
    let file = match backend.open(&path, OpenOptions::CREATE_NEW).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            match backend.open(&path, OpenOptions::READ_WRITE).await {
                Ok(file) => file,
                Err(_) => return,
            }
        }
        Err(_) => return,
    };
    let len = bytes.len() as u64;
    let (mut rest, mut at) = (Bytes::copy_from_slice(bytes), 0);
    while !rest.is_empty() {
        match file.write_at(rest.clone(), at).await {
            (Ok(n), _) if n > 0 => {
                at += n as u64;
                rest = rest.slice(n..);
            }
            _ => return,
        }
    }
    if file.set_len(len).await.is_err() {
        // A file with a tail of an older index does not decode; it is rebuilt.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SegmentKind;

    fn header() -> SegmentHeader {
        SegmentHeader {
            kind: SegmentKind::Log,
            identity: 77,
            partition: 1,
            incarnation: 1,
            generation: 1,
            sequence: 1,
            base_offset: 0,
            prev_identity: 0,
            prev_end_offset: 0,
            prev_end_position: 0,
            prev_header_crc: 0,
            log_start: 0,
            reserved_end: 0,
            capacity_bytes: 1 << 20,
            alignment: 512,
            writes_in_flight_max: 4,
            group_bytes_max: 1 << 20,
            created_ms: 0,
        }
    }

    fn sample() -> SparseIndex {
        let mut index = SparseIndex::new(1024);
        for i in 0..50 {
            index.push(i * 3, 4096 + i * 512, 1000 + i64::try_from(i).unwrap());
        }
        index
    }

    #[test]
    fn floor_finds_the_last_entry_at_or_below() {
        let index = sample();
        assert_eq!(index.entries.len(), 25);
        assert_eq!(index.floor(0), 4096);
        assert_eq!(index.floor(6), 4096 + 1024);
        assert_eq!(index.floor(5), 4096);
        assert_eq!(index.floor(u64::MAX), 4096 + 24 * 1024);
        assert_eq!(index.first_not_before(1003), Some(6));
        assert_eq!(index.first_not_before(1050), None);
    }

    #[test]
    fn the_file_round_trips_and_any_damage_is_doubt() {
        let index = sample();
        let bytes = index.encode(&header(), 1 << 19);
        assert_eq!(SparseIndex::decode(&bytes, &header(), 1 << 19), Some(index));
        assert_eq!(
            SparseIndex::decode(&bytes, &header(), 1 << 18),
            None,
            "stale"
        );
        let other = SegmentHeader {
            identity: 78,
            ..header()
        };
        assert_eq!(
            SparseIndex::decode(&bytes, &other, 1 << 19),
            None,
            "another use of the file"
        );
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                SparseIndex::decode(&damaged, &header(), 1 << 19),
                None,
                "bit {bit}"
            );
        }
        for len in 0..bytes.len() {
            assert_eq!(SparseIndex::decode(&bytes[..len], &header(), 1 << 19), None);
        }
    }
}
