//! Looking at a log as it lies on the disk: segments, batches and every damaged place, for tools.
//!
//! The walk reads and never repairs. It goes on behind damage wherever a batch of the same segment
//! can be found again, so that all that is left is shown.

use std::path::PathBuf;
use std::rc::Rc;

use super::Partition;
use super::fetch::{Gone, still_wanted};
use crate::error::{Corruption, CorruptionKind, Error, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, BatchKind, Control, FormatError, SEGMENT_HEADER_LEN,
    SegmentHeader, StoredBatch,
};
use crate::io::IoBackend;
use crate::segment::{Cursor, ReadError, Segment};

const CHUNK_BYTES: usize = 1 << 20;

/// How much an inspection looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum InspectDetail {
    /// The segments' headers and ends; no batch is read.
    Segments,
    /// Every batch is verified; counts and damage are told.
    #[default]
    Damage,
    /// Every batch is verified and listed.
    Batches,
}

/// Which segments to inspect, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InspectRequest {
    /// Start at the segment with this sequence, or the next one that there is.
    pub from_sequence: u64,
    /// At most so many segments; 0 counts as 1.
    pub segments_max: usize,
    /// How much to look at.
    pub detail: InspectDetail,
}

impl Default for InspectRequest {
    /// Everything, without a list of batches.
    fn default() -> Self {
        Self {
            from_sequence: 0,
            segments_max: usize::MAX,
            detail: InspectDetail::default(),
        }
    }
}

/// What an inspection found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Inspection {
    /// The segments of the log that were asked for, oldest first.
    pub segments: Vec<InspectedSegment>,
    /// Where to go on; `None` when the last segment was among them.
    pub next_sequence: Option<u64>,
    /// Damage that the opening noted in spite of which the partition was opened: unreadable segment
    /// headers, missing or shortened files, a damaged tail. The last one is also found by the
    /// walk through its segment.
    pub noted: Vec<Corruption>,
}

/// One segment of the log.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct InspectedSegment {
    /// Its file.
    pub path: PathBuf,
    /// Its header.
    pub header: SegmentHeader,
    /// End of the records that count.
    pub end_offset: u64,
    /// Byte position up to which the file counts.
    pub end_position: u64,
    /// Whole batches, control batches included.
    pub batch_count: u64,
    /// Records in them that count.
    pub record_count: u64,
    /// The batches, when they were asked for.
    pub batches: Vec<InspectedBatch>,
    /// Every damaged place, by position.
    pub damage: Vec<Corruption>,
}

/// One whole batch.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct InspectedBatch {
    /// Byte position in the file.
    pub position: u64,
    /// Bytes of header and body, without padding.
    pub size_bytes: usize,
    /// The header, as on the disk.
    pub header: BatchHeader,
    /// The message of a control batch.
    pub control: Option<Control>,
    /// The offset after the last record that counts: less than the header says where a truncation
    /// went through the batch.
    pub end_offset: u64,
}

impl<B: IoBackend> Partition<B> {
    /// Looks at the segments that `request` names, as long as somebody waits for it.
    pub(crate) async fn inspect(
        self: Rc<Self>,
        request: InspectRequest,
        gone: Gone<'_>,
    ) -> Result<Inspection> {
        let (wanted, next_sequence, in_flight, noted) = {
            let state = self.state.borrow();
            self.check_has_files(&state)?;
            let from = request.from_sequence;
            let mut rest = state.segments().filter(|s| s.header.sequence >= from);
            let wanted: Vec<_> = rest
                .by_ref()
                .take(request.segments_max.max(1))
                .cloned()
                .collect();
            let next_sequence = rest.next().map(|s| s.header.sequence);
            let active = state.active.as_ref().map(|a| Rc::clone(&a.segment));
            let durable = state.offsets.durable();
            (
                wanted,
                next_sequence,
                active.map(|a| (a, durable)),
                state.damage.clone(),
            )
        };
        let mut segments = Vec::with_capacity(wanted.len());
        for segment in wanted {
            still_wanted(gone).await?;
            // What is being written now cannot be read back yet.
            let trusted_end = match &in_flight {
                Some((active, durable)) if Rc::ptr_eq(active, &segment) => *durable,
                _ => u64::MAX,
            };
            segments.push(self.walk(&segment, request.detail, trusted_end).await?);
        }
        Ok(Inspection {
            segments,
            next_sequence,
            noted,
        })
    }

    async fn walk(
        &self,
        segment: &Segment<B::File>,
        detail: InspectDetail,
        trusted_end: u64,
    ) -> Result<InspectedSegment> {
        let mut out = InspectedSegment {
            path: segment.path.clone(),
            header: segment.header,
            end_offset: segment.end_offset.get(),
            end_position: segment.end_position.get(),
            batch_count: 0,
            record_count: 0,
            batches: Vec::new(),
            damage: Vec::new(),
        };
        if detail == InspectDetail::Segments {
            return Ok(out);
        }
        // One sound copy of the header is enough to read by, but not all that was written.
        let block = self.context.pool.take(SEGMENT_HEADER_LEN);
        let block = segment.file.read_at(block, 0, SEGMENT_HEADER_LEN).await;
        let block = block.map_err(|e| Error::io("read", &segment.path, e))?;
        if let Err(found) = SegmentHeader::check_block(&block) {
            let base = segment.base_offset();
            out.note(0, base, base, found.into());
        }
        let mut cursor = Cursor::new(segment, &self.context.pool, CHUNK_BYTES);
        let mut chain = Chain::start(&segment.header);
        let mut position = SEGMENT_HEADER_LEN as u64;
        while position < out.end_position {
            let batch = match cursor.batch_at(position).await {
                Ok(batch) => batch,
                Err(ReadError::Io(e)) => return Err(Error::io("read", &segment.path, e)),
                Err(ReadError::Format(_)) if chain.offset >= trusted_end => break,
                Err(ReadError::Format(found)) => {
                    let next = cursor.resynchronise(position, out.end_position).await?;
                    let end = next.map_or(out.end_offset, |(_, offset)| offset);
                    out.note(position, chain.offset, end, found);
                    let Some((behind, offset)) = next else { break };
                    position = behind;
                    chain.lose(offset);
                    continue;
                }
            };
            let header = batch.header();
            if let Some(why) = chain.check(header) {
                let found = CorruptionKind::Misplaced(why);
                out.note(position, chain.offset, header.base_offset, found);
            }
            match content(&batch) {
                Ok(control) => out.count(position, &batch, control, detail),
                Err(e) => out.note(position, batch.base_offset(), batch.end_offset(), e.into()),
            }
            chain.advance(&batch);
            position = cursor.position_after(header, position);
        }
        Ok(out)
    }
}

/// Decodes everything in the body: control messages are returned, records are only looked at.
fn content(batch: &StoredBatch) -> Result<Option<Control>, FormatError> {
    match batch.kind() {
        BatchKind::Control => batch.control().map(Some),
        BatchKind::Opaque => Ok(None),
        BatchKind::Records => {
            for view in batch.views() {
                view?;
            }
            Ok(None)
        }
    }
}

impl InspectedSegment {
    fn note(&mut self, position: u64, start: u64, end: u64, found: CorruptionKind) {
        self.damage.push(Corruption {
            path: self.path.clone(),
            partition: self.header.partition,
            position,
            offset_start: start,
            offset_end: Some(end.max(start)),
            found,
        });
    }

    fn count(
        &mut self,
        position: u64,
        batch: &StoredBatch,
        control: Option<Control>,
        detail: InspectDetail,
    ) {
        let end_offset = batch
            .end_offset()
            .min(self.end_offset)
            .max(batch.base_offset());
        self.batch_count += 1;
        let records = end_offset - batch.base_offset();
        self.record_count = self.record_count.saturating_add(records);
        if detail == InspectDetail::Batches {
            self.batches.push(InspectedBatch {
                position,
                size_bytes: batch.header().total_len(),
                header: *batch.header(),
                control,
                end_offset,
            });
        }
    }
}

/// What the next batch must continue.
struct Chain {
    /// `None` behind damage: only the offset is known there.
    links: Option<Links>,
    offset: u64,
    generation: u32,
}

struct Links {
    sequence: u32,
    link: u32,
}

impl Chain {
    fn start(header: &SegmentHeader) -> Self {
        Self {
            links: Some(Links {
                sequence: 0,
                link: header.prev_header_crc,
            }),
            offset: header.base_offset,
            generation: header.generation,
        }
    }

    fn check(&self, found: &BatchHeader) -> Option<&'static str> {
        if found.generation < self.generation {
            return Some("its generation is older than the batch before it");
        }
        let links = self.links.as_ref()?;
        if found.sequence != links.sequence {
            Some("its sequence number is not the next one")
        } else if found.prev_header_crc != links.link {
            Some("it does not link to the batch before it")
        } else if found.base_offset != self.offset {
            Some("its base offset is not the next one")
        } else {
            None
        }
    }

    fn advance(&mut self, batch: &StoredBatch) {
        let header = batch.header();
        self.links = Some(Links {
            sequence: header.sequence.wrapping_add(1),
            link: header.encode_into(&mut [0; BATCH_HEADER_LEN]),
        });
        self.offset = batch.end_offset();
        self.generation = header.generation;
    }

    fn lose(&mut self, offset: u64) {
        self.links = None;
        self.offset = offset;
    }
}
