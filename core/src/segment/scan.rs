//! Scanning a segment: how far its chain of batches goes, and what lies behind the end.
//!
//! A scan only reads. It answers with facts; what they mean is decided by `recovery::plan`.

use super::index::newest_record;
use super::{Cursor, ReadError, Segment, SparseIndex};
use crate::error::{CorruptionKind, Error, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, BatchKind, Control, ControlReason, SEGMENT_HEADER_LEN,
};
use crate::io::{BufPool, IoFile};

/// What was found at the place where the next batch would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No room for another batch.
    Full,
    /// Nothing that belongs to this use of the file.
    Nothing(CorruptionKind),
    /// A batch of this use of the file whose body is damaged or not all there.
    TornBatch(CorruptionKind),
    /// A whole batch of this use of the file that does not continue the chain.
    BrokenChain(&'static str),
}

/// A batch of this use of the file found behind the end of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Survivor {
    /// Byte position of the (first proving) batch.
    pub(crate) position: u64,
    /// Its base offset.
    pub(crate) offset: u64,
    /// Whether it proves that what is missing before it had been acknowledged.
    pub(crate) proves_loss: bool,
}

/// The facts of a segment.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Byte position where the chain ends.
    pub(crate) end_position: u64,
    /// End offset of the records in the chain.
    pub(crate) end_offset: u64,
    /// Sequence that the next batch would have.
    pub(crate) next_sequence: u32,
    /// Checksum of the last batch header: the link that the next batch would carry.
    pub(crate) link: u32,
    /// Whether the chain is empty or ends with a seal.
    pub(crate) sealed: bool,
    /// Newest log start offset that a control batch names, or the segment header's.
    pub(crate) log_start: u64,
    /// Newest reservation: offsets below may have been shown.
    pub(crate) reserved_end: u64,
    /// Position of the first group that the chain does not prove to be durable.
    pub(crate) rewrite_from: u64,
    /// Generation of the last batch, or of the segment.
    pub(crate) generation: u32,
    /// Newest time that the log gave, in milliseconds.
    pub(crate) append_time_ms: i64,
    /// Why the chain ends.
    pub(crate) stop: Stop,
    /// What lies behind the end.
    pub(crate) survivor: Option<Survivor>,
    /// Index of the chain.
    pub(crate) index: SparseIndex,
}

/// Walks the chain of `segment` from its first batch and looks behind its end.
pub(crate) async fn scan_segment<F: IoFile>(
    segment: &Segment<F>,
    pool: &BufPool,
    chunk_bytes: usize,
    index_interval_bytes: u32,
) -> Result<Scan> {
    let io_error = |e| Error::io("read", &segment.path, e);
    let header = &segment.header;
    let capacity = header.capacity_bytes;
    let mut cursor = Cursor::new(segment, pool, chunk_bytes);
    let mut scan = Scan {
        end_position: SEGMENT_HEADER_LEN as u64,
        end_offset: header.base_offset,
        next_sequence: 0,
        link: header.prev_header_crc,
        sealed: true,
        log_start: header.log_start,
        reserved_end: header.reserved_end,
        rewrite_from: SEGMENT_HEADER_LEN as u64,
        generation: header.generation,
        append_time_ms: header.created_ms,
        stop: Stop::Full,
        survivor: None,
        index: SparseIndex::new(index_interval_bytes),
    };
    let mut durable = header.base_offset;
    // Whether the group of the last batch goes on behind it.
    let mut in_group = false;
    // Position and base offset of each group.
    let mut groups: Vec<(u64, u64)> = Vec::new();
    while scan.end_position + BATCH_HEADER_LEN as u64 <= capacity {
        let position = scan.end_position;
        let batch = match cursor.batch_at(position).await {
            Ok(batch) => batch,
            Err(ReadError::Io(e)) => return Err(io_error(e)),
            Err(ReadError::Format(kind)) => {
                let own = cursor.header_at(position).await.map_err(io_error)?;
                scan.stop = if own.is_some() {
                    Stop::TornBatch(kind)
                } else {
                    Stop::Nothing(kind)
                };
                break;
            }
        };
        let found = batch.header();
        if let Some(why) = breaks_chain(found, &scan) {
            // Inside of a group it says only that one write is not all there: a part of it may show
            // what an earlier one, which came to nothing, has left at the same place.
            scan.stop = if in_group {
                Stop::TornBatch(CorruptionKind::Misplaced(why))
            } else {
                Stop::BrokenChain(why)
            };
            break;
        }
        let mut sealed = false;
        if found.kind == BatchKind::Control {
            match Control::decode(batch.body()) {
                Ok(control) => {
                    scan.log_start = scan.log_start.max(control.log_start);
                    scan.reserved_end = control.reserved_end;
                    sealed = control.reason == ControlReason::Seal;
                    if sealed {
                        durable = durable.max(found.base_offset);
                    }
                }
                Err(e) => {
                    scan.stop = Stop::TornBatch(e.into());
                    break;
                }
            }
        }
        if position.is_multiple_of(u64::from(header.alignment)) {
            groups.push((position, found.base_offset));
        }
        durable = durable.max(found.durable_offset().unwrap_or(0));
        scan.generation = found.generation;
        in_group = !found.is_last_in_group();
        // What goes on in place starts a group: inside of one, nothing would be looked for there.
        scan.sealed = sealed && !in_group;
        let newest = newest_record(found.record_count, found.max_timestamp());
        scan.index.push(found.base_offset, position, newest);
        // The log's own time only: a producer's wrong clock must not become the log's.
        if found.is_append_time() {
            scan.append_time_ms = scan.append_time_ms.max(found.max_timestamp());
        }
        scan.end_offset = batch.end_offset();
        scan.next_sequence = found.sequence.wrapping_add(1);
        scan.link = found.encode_into(&mut [0; BATCH_HEADER_LEN]);
        scan.end_position = cursor.position_after(found, position);
    }
    // The last group that starts below the durable offset may reach beyond it.
    let first = groups
        .partition_point(|(_, base)| *base < durable)
        .saturating_sub(1);
    scan.rewrite_from = groups
        .get(first)
        .map_or(scan.rewrite_from, |(position, _)| *position);
    scan.survivor = look_behind(&mut cursor, &scan, capacity, u64::from(header.alignment))
        .await
        .map_err(io_error)?;
    Ok(scan)
}

fn breaks_chain(found: &BatchHeader, scan: &Scan) -> Option<&'static str> {
    if found.sequence != scan.next_sequence {
        Some("its sequence number is not the next one")
    } else if found.prev_header_crc != scan.link {
        Some("it does not link to the batch before it")
    } else if found.base_offset != scan.end_offset {
        Some("its base offset is not the next one")
    } else if found.generation < scan.generation {
        Some("its generation is older than the batch before it")
    } else {
        None
    }
}

/// Looks for batches of this use of the file at and behind the end of the chain, at every place
/// where a group may start; stops at the first that proves a loss.
async fn look_behind<F: IoFile>(
    cursor: &mut Cursor<'_, F>,
    scan: &Scan,
    capacity: u64,
    alignment: u64,
) -> std::io::Result<Option<Survivor>> {
    let mut survivor = None;
    let mut position = scan.end_position;
    if let Stop::BrokenChain(_) = scan.stop {
        return Ok(Some(Survivor {
            position,
            offset: scan.end_offset,
            proves_loss: true,
        }));
    }
    let capacity = capacity.min(cursor.file_len().await?);
    while position + BATCH_HEADER_LEN as u64 <= capacity {
        if let Some(header) = cursor.header_at(position).await? {
            let claims = header
                .durable_offset()
                .is_some_and(|durable| durable > scan.end_offset);
            let is_seal = header.kind == BatchKind::Control && is_seal(cursor, position).await;
            let proves_loss = claims || (is_seal && position > scan.end_position);
            if proves_loss || survivor.is_none() {
                survivor = Some(Survivor {
                    position,
                    offset: header.base_offset,
                    proves_loss,
                });
            }
            if proves_loss {
                break;
            }
        }
        position = (position + 1).next_multiple_of(alignment);
    }
    Ok(survivor)
}

async fn is_seal<F: IoFile>(cursor: &mut Cursor<'_, F>, position: u64) -> bool {
    match cursor.batch_at(position).await {
        Ok(batch) => Control::decode(batch.body()).is_ok_and(|c| c.reason == ControlReason::Seal),
        Err(_) => false,
    }
}
