//! A strict walk over a whole segment: every rule of the format, checked in one straight pass.
//!
//! Recovery judges torn tails and holes; this does not. It accepts a sealed segment without a
//! flaw and names the first flaw of any other, which makes it the reference for `verify` and for
//! tests.

use bytes::Bytes;
use thiserror::Error;

use super::batch::{BatchHeader, BatchKind};
use super::codec::is_zero;
use super::control::{Control, ControlReason};
use super::decode::{StoredBatch, decode_batch};
use super::error::FormatError;
use super::segment::SegmentHeader;
use super::{SECTOR_LEN, SEGMENT_HEADER_LEN};

/// The first flaw of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("at byte {position}: {fault}")]
pub struct WalkError {
    /// Byte position in the segment of the structure that is wrong.
    pub position: usize,
    /// What is wrong with it.
    #[source]
    pub fault: WalkFault,
}

/// What a strict walk can find.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WalkFault {
    /// The bytes are no valid structure.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The batch was written for another segment, partition or incarnation.
    #[error("the batch belongs to another segment or partition")]
    Foreign,
    /// The generation is older than the one before it.
    #[error("generation {found} after {before}")]
    Generation {
        /// Generation of the batch or segment header before.
        before: u32,
        /// Generation found.
        found: u32,
    },
    /// A batch is missing, repeated or out of order.
    #[error("batch number {found} where {expected} belongs")]
    Sequence {
        /// The number that belongs here.
        expected: u32,
        /// The number found.
        found: u32,
    },
    /// The batch does not follow the one before it.
    #[error("chain broken: {found:#010x} where {expected:#010x} belongs")]
    Chain {
        /// Header checksum of the batch before.
        expected: u32,
        /// What the batch says that it was.
        found: u32,
    },
    /// Offsets have a gap or overlap.
    #[error("offset {found} where {expected} belongs")]
    Offset {
        /// The offset that belongs here.
        expected: u64,
        /// The offset found.
        found: u64,
    },
    /// A control batch moves the log start or the reserved offsets back, or the log start beyond
    /// the log end.
    #[error("a control batch contradicts what was known before")]
    Control,
    /// The batch reaches beyond the segment's capacity, or its write group is larger than allowed.
    #[error("beyond the capacity of the segment or of a write group")]
    Capacity,
    /// The segment does not end with a seal.
    #[error("the segment does not end with a seal")]
    NotSealed,
}

/// What a flawless segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkSummary {
    /// The segment's header.
    pub header: SegmentHeader,
    /// Number of batches, control batches included.
    pub batch_count: u32,
    /// The offset after the last record.
    pub end_offset: u64,
    /// Byte position after the last write group, padding included.
    pub end_position: usize,
    /// Header checksum of the last batch, for the next segment to carry.
    pub last_header_crc: u32,
    /// The seal at the end.
    pub seal: Control,
}

/// Walks a sealed segment from its header block to its seal.
///
/// `bytes` is the segment up to the end of its last write group, or longer if the seal marks the
/// segment's end; what follows such a seal is not looked at. Each batch is verified, and the
/// records of each are decoded.
///
/// ```
/// use alluvium_core::format::{FormatError, WalkFault, walk_segment};
/// let flaw = walk_segment(&vec![0; 4096].into()).unwrap_err();
/// assert_eq!((flaw.position, flaw.fault), (0, WalkFault::Format(FormatError::BadMagic)));
/// ```
pub fn walk_segment(bytes: &Bytes) -> Result<WalkSummary, WalkError> {
    let header = SegmentHeader::check_block(bytes).map_err(|error| WalkError {
        position: 0,
        fault: error.into(),
    })?;
    let mut walk = Walk {
        header,
        position: SEGMENT_HEADER_LEN,
        group_start: SEGMENT_HEADER_LEN,
        sequence: 0,
        generation: header.generation,
        offset: header.base_offset,
        chain: header.prev_header_crc,
        log_start: header.log_start,
        reserved_end: header.reserved_end,
        seal: None,
    };
    loop {
        let position = walk.position;
        if let (Some(seal), true) = (walk.seal, walk.at_end(bytes)) {
            return Ok(walk.summary(seal));
        }
        let fault = match walk.step(bytes) {
            Ok(()) => continue,
            Err(fault) => fault,
        };
        return Err(WalkError { position, fault });
    }
}

struct Walk {
    header: SegmentHeader,
    position: usize,
    group_start: usize,
    sequence: u32,
    generation: u32,
    offset: u64,
    chain: u32,
    log_start: u64,
    reserved_end: u64,
    /// The last batch, if it is a seal that ends its group.
    seal: Option<Control>,
}

impl Walk {
    fn at_end(&self, bytes: &Bytes) -> bool {
        self.position == bytes.len() || self.seal.is_some_and(|seal| seal.segment_end)
    }

    fn summary(&self, seal: Control) -> WalkSummary {
        WalkSummary {
            header: self.header,
            batch_count: self.sequence,
            end_offset: self.offset,
            end_position: self.position,
            last_header_crc: self.chain,
            seal,
        }
    }

    fn step(&mut self, bytes: &Bytes) -> Result<(), WalkFault> {
        if self.position == bytes.len() {
            return Err(WalkFault::NotSealed);
        }
        let batch = decode_batch(bytes, self.position)?;
        let header = batch.header();
        self.check_place(header)?;
        self.seal = self.check_content(&batch)?;

        let mut end = self.position + header.total_len();
        if header.is_last_in_group() {
            let padded = end.next_multiple_of((self.header.alignment as usize).max(SECTOR_LEN));
            let Some(padding) = bytes.get(end..padded) else {
                return Err(FormatError::Truncated {
                    need: padded,
                    have: bytes.len(),
                }
                .into());
            };
            if !is_zero(padding) {
                return Err(FormatError::NonZeroPadding.into());
            }
            end = padded;
        } else {
            self.seal = None;
        }
        if end as u64 > self.header.capacity_bytes
            || end - self.group_start > self.header.group_bytes_max as usize
        {
            return Err(WalkFault::Capacity);
        }
        if header.is_last_in_group() {
            self.group_start = end;
        }
        self.chain = BatchHeader::crc(&bytes[self.position..]);
        self.position = end;
        self.offset = batch.end_offset();
        self.generation = header.generation;
        self.sequence = self.sequence.saturating_add(1);
        Ok(())
    }

    fn check_place(&self, header: &BatchHeader) -> Result<(), WalkFault> {
        let segment = &self.header;
        if header.identity != segment.identity
            || header.partition != segment.partition
            || header.incarnation != segment.incarnation
        {
            return Err(WalkFault::Foreign);
        }
        if header.sequence != self.sequence {
            return Err(WalkFault::Sequence {
                expected: self.sequence,
                found: header.sequence,
            });
        }
        if header.prev_header_crc != self.chain {
            return Err(WalkFault::Chain {
                expected: self.chain,
                found: header.prev_header_crc,
            });
        }
        if header.base_offset != self.offset {
            return Err(WalkFault::Offset {
                expected: self.offset,
                found: header.base_offset,
            });
        }
        if header.generation < self.generation {
            return Err(WalkFault::Generation {
                before: self.generation,
                found: header.generation,
            });
        }
        Ok(())
    }

    /// Decodes everything in the batch; returns the message if it is a seal.
    fn check_content(&mut self, batch: &StoredBatch) -> Result<Option<Control>, WalkFault> {
        match batch.kind() {
            BatchKind::Opaque => Ok(None),
            BatchKind::Records => {
                for record in batch.views() {
                    record?;
                }
                Ok(None)
            }
            BatchKind::Control => {
                let control = batch.control()?;
                if control.end_offset != self.offset {
                    return Err(WalkFault::Offset {
                        expected: self.offset,
                        found: control.end_offset,
                    });
                }
                if control.log_start < self.log_start
                    || control.log_start > control.end_offset
                    || (control.reserved_end < self.reserved_end
                        && control.reason != ControlReason::Seal)
                {
                    return Err(WalkFault::Control);
                }
                self.log_start = control.log_start;
                self.reserved_end = control.reserved_end;
                Ok((control.reason == ControlReason::Seal).then_some(control))
            }
        }
    }
}
