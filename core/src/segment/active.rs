//! The write cursor of the active segment: it turns batches into an aligned group.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::Segment;
use super::index::newest_record;
use crate::format::{Batch, Placement};
use crate::io::{BufPool, IoFile};

/// A batch within a placed group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlacedBatch {
    pub(crate) base_offset: u64,
    pub(crate) end_offset: u64,
    /// Where it starts in the group's bytes.
    pub(crate) start: usize,
    /// Newest timestamp of its records, in milliseconds, as the index counts it.
    pub(crate) newest: i64,
}

/// Batches laid out for one aligned write.
#[derive(Debug, Clone)]
pub(crate) struct PlacedGroup {
    pub(crate) bytes: Bytes,
    pub(crate) position: u64,
    pub(crate) batches: Arc<[PlacedBatch]>,
    /// Bytes of memory that `bytes` keeps, which may be more than its length.
    pub(crate) held_bytes: usize,
}

/// What the partition adds to the batches of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupContext {
    pub(crate) next_offset: u64,
    pub(crate) durable_offset: u64,
    pub(crate) append_time_ms: i64,
    pub(crate) generation: u32,
}

/// The segment that appends go to, and where the next group goes.
#[derive(Debug)]
pub(crate) struct ActiveSegment<F> {
    pub(crate) segment: Rc<Segment<F>>,
    next_position: u64,
    next_sequence: u32,
    link: u32,
    /// Bytes from the start that have been written before, by an earlier use or with zeros.
    pub(crate) initialised_to: u64,
    /// Records end here; what follows is for control batches.
    data_end: u64,
}

impl<F: IoFile> ActiveSegment<F> {
    /// Continues `segment` at the given place of its chain.
    pub(crate) fn new(
        segment: Rc<Segment<F>>,
        next_position: u64,
        next_sequence: u32,
        link: u32,
        headroom_bytes: u64,
    ) -> Self {
        let alignment = u64::from(segment.header.alignment);
        let data_end = segment.header.capacity_bytes.saturating_sub(headroom_bytes);
        Self {
            initialised_to: segment.header.capacity_bytes,
            next_position: next_position.next_multiple_of(alignment),
            next_sequence,
            link,
            data_end,
            segment,
        }
    }

    /// Byte position of the next group.
    pub(crate) fn next_position(&self) -> u64 {
        self.next_position
    }

    /// The link that the next batch carries.
    pub(crate) fn link(&self) -> u32 {
        self.link
    }

    /// Bytes left for groups of records.
    pub(crate) fn data_room(&self) -> u64 {
        self.data_end.saturating_sub(self.next_position)
    }

    /// Whether a group of control batches of `len` bytes fits.
    pub(crate) fn has_control_room(&self, len: usize) -> bool {
        let capacity = self.segment.header.capacity_bytes;
        self.next_position + self.padded(len) as u64 <= capacity
    }

    /// `len` rounded up to the alignment of the segment.
    pub(crate) fn padded(&self, len: usize) -> usize {
        len.next_multiple_of(self.segment.header.alignment as usize)
    }

    /// Gives the batches their places, offsets and links, and lays them out as one write. Those that
    /// were copied for it stay in `batches`.
    ///
    /// The caller has made sure that they fit.
    pub(crate) fn place(
        &mut self,
        pool: &BufPool,
        batches: &mut Vec<Batch>,
        context: GroupContext,
    ) -> PlacedGroup {
        let group = self.lay_out(pool, batches, context);
        for batch in group.batches.iter() {
            let position = group.position + batch.start as u64;
            self.segment
                .with_index(|index| index.push(batch.base_offset, position, batch.newest));
        }
        self.segment.end_position.set(self.next_position);
        let end = group.batches.last().map(|batch| batch.end_offset);
        self.segment
            .end_offset
            .set(end.unwrap_or(context.next_offset));
        group
    }

    /// Lays out the seal that ends the file. It is not counted as a part of the segment: the header
    /// of the next one tells where this one ends, and may be durable while the seal is not.
    pub(crate) fn place_end(
        &mut self,
        pool: &BufPool,
        seal: Batch,
        context: GroupContext,
    ) -> PlacedGroup {
        self.lay_out(pool, &mut vec![seal], context)
    }

    fn lay_out(
        &mut self,
        pool: &BufPool,
        batches: &mut Vec<Batch>,
        context: GroupContext,
    ) -> PlacedGroup {
        let header = &self.segment.header;
        let alignment = header.alignment as usize;
        let position = self.next_position;
        let count = batches.len();
        let mut offset = context.next_offset;
        let mut start = 0;
        let placed = batches.iter_mut().enumerate().map(|(i, batch)| {
            self.link = batch.place(&Placement {
                identity: header.identity,
                partition: header.partition,
                incarnation: header.incarnation,
                generation: context.generation,
                sequence: self.next_sequence,
                prev_header_crc: self.link,
                base_offset: offset,
                durable_offset: context.durable_offset,
                append_time_ms: context.append_time_ms,
                last_in_group: i + 1 == count,
            });
            let base_offset = offset;
            offset += u64::from(batch.record_count());
            self.next_sequence = self.next_sequence.wrapping_add(1);
            let newest = batch.max_timestamp(context.append_time_ms);
            let placed = PlacedBatch {
                base_offset,
                end_offset: offset,
                start,
                newest: newest_record(batch.record_count(), newest),
            };
            start += batch.encoded_len();
            placed
        });
        let placed: Arc<[PlacedBatch]> = placed.collect();
        // A large batch alone in its group is written from where its caller encoded it.
        let alone = batches.pop_if(|batch| count == 1 && batch.is_aligned());
        let mut buf = if let Some(alone) = alone {
            alone.into_buf()
        } else {
            let mut buf = pool.take(start.next_multiple_of(alignment));
            for batch in batches.iter() {
                buf.extend_from_slice(batch.bytes());
            }
            buf
        };
        buf.pad_to(alignment);
        let held_bytes = buf.held_bytes();
        let bytes = buf.freeze();
        self.next_position = position + bytes.len() as u64;
        assert!(
            self.next_position <= header.capacity_bytes,
            "a group was placed beyond the end of its segment"
        );
        PlacedGroup {
            bytes,
            position,
            batches: placed,
            held_bytes,
        }
    }
}
