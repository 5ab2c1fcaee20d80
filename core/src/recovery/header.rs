//! The header of the segment that follows: after a roll, a truncation or a recovery.

use super::apply::RecoveryContext;
use crate::format::{SegmentHeader, SegmentKind};
use crate::io::{IoBackend, IoFile};
use crate::segment::Segment;

/// What decides the header of the segment that follows.
#[derive(Debug)]
pub(crate) struct NextHeader<'a, F> {
    /// Higher than that of every segment before it, cut ones included.
    pub(crate) sequence: u64,
    /// The last segment that counts; `None` for the first of a partition.
    pub(crate) previous: Option<&'a Segment<F>>,
    pub(crate) link: u32,
    pub(crate) base_offset: u64,
    pub(crate) prev_end_offset: u64,
    /// Byte position up to which the bytes of `previous` count.
    pub(crate) prev_end_position: u64,
    pub(crate) generation: u32,
    pub(crate) log_start: u64,
    pub(crate) reserved_end: u64,
    /// Newest time that the log gave, in milliseconds: the header's is no older.
    pub(crate) last_timestamp: i64,
}

impl<F: IoFile> NextHeader<'_, F> {
    pub(crate) fn build<B: IoBackend<File = F>>(
        &self,
        backend: &B,
        context: &RecoveryContext,
        file_alignment: u32,
    ) -> SegmentHeader {
        let config = &context.config;
        SegmentHeader {
            kind: SegmentKind::Log,
            identity: backend.random_u64().max(1),
            partition: context.partition,
            incarnation: context.incarnation,
            generation: self.generation,
            sequence: self.sequence,
            base_offset: self.base_offset,
            prev_identity: self.previous.map_or(0, |s| s.header.identity),
            prev_end_offset: self.prev_end_offset,
            prev_end_position: self.prev_end_position,
            prev_header_crc: self.link,
            log_start: self.log_start,
            reserved_end: self.reserved_end,
            capacity_bytes: config.segment_bytes,
            alignment: file_alignment.clamp(512, 4096),
            writes_in_flight_max: config.writes_in_flight_max,
            group_bytes_max: config.group_bytes_max,
            created_ms: backend.wall_clock_ms().max(self.last_timestamp),
        }
    }
}
