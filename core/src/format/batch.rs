//! The batch header: 96 bytes that say whose the batch is, where it stands, and what follows.

use super::codec::{Get, Put, checksum};
use super::error::FormatError;
use super::record::RECORD_LEN_MIN;
use super::{BATCH_BODY_LEN_MAX, BATCH_HEADER_LEN};

/// What the body of a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BatchKind {
    /// Records in this format's own encoding.
    Records = 1,
    /// Bytes that only the embedding queue understands, for a number of offsets that it stated.
    Opaque = 2,
    /// A note of the log to itself, a [`Control`](super::Control). It has no records.
    Control = 3,
}

impl BatchKind {
    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Records),
            2 => Ok(Self::Opaque),
            3 => Ok(Self::Control),
            other => Err(FormatError::BadKind(other)),
        }
    }
}

/// The bits of [`BatchHeader::flags`].
pub mod flags {
    /// The last batch of its write group: zeros follow up to the segment's alignment.
    pub const LAST_IN_GROUP: u8 = 1;
    /// The log stamped the batch: the timestamp of every record is the base timestamp.
    pub const APPEND_TIME: u8 = 2;
    /// Every bit that this version defines. Any other one is an error.
    pub const ALL: u8 = LAST_IN_GROUP | APPEND_TIME;
}

/// [`BatchHeader::producer_id`] of a batch that no idempotent producer sent.
pub const NO_PRODUCER: u64 = u64::MAX;

/// [`BatchHeader::durable_lag`] when the durable offset is not known or too far behind.
pub const DURABLE_LAG_UNKNOWN: u32 = u32::MAX;

/// The header of a batch.
///
/// ```
/// use alluvium_core::format::{BATCH_HEADER_LEN, BatchHeader, BatchKind};
/// let header = BatchHeader {
///     identity: 0x1d,
///     partition: 7,
///     incarnation: 0,
///     generation: 1,
///     sequence: 0,
///     prev_header_crc: 0,
///     base_offset: 100,
///     record_count: 2,
///     body_len: 64,
///     body_crc: 0xfeed,
///     durable_lag: 3,
///     base_timestamp: 1_000,
///     max_timestamp_delta: 5,
///     leader_epoch: 0,
///     producer_id: 9,
///     producer_sequence: 0,
///     producer_epoch: 0,
///     kind: BatchKind::Opaque,
///     flags: 0,
/// };
/// let mut bytes = [0; BATCH_HEADER_LEN];
/// let crc = header.encode_into(&mut bytes);
/// assert_eq!(BatchHeader::decode(&bytes), Ok(header));
/// assert_eq!(BatchHeader::crc(&bytes), crc);
/// assert_eq!(header.end_offset(), Some(102));
/// assert_eq!(header.durable_offset(), Some(97));
/// assert_eq!(header.max_timestamp(), 1_005);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Identity of the segment use that the batch was written for.
    pub identity: u64,
    /// Partition of the batch.
    pub partition: u64,
    /// Incarnation of the partition.
    pub incarnation: u32,
    /// Generation of the partition's writer.
    pub generation: u32,
    /// Number of the batch within its segment, from 0.
    pub sequence: u32,
    /// Header checksum of the batch before, across segments; 0 for the first of a partition.
    pub prev_header_crc: u32,
    /// Offset of the first record. For a control batch, the offset that comes next.
    pub base_offset: u64,
    /// Number of records, which is the number of offsets that the batch takes.
    pub record_count: u32,
    /// Length of the body in bytes.
    pub body_len: u32,
    /// Checksum of the body.
    pub body_crc: u32,
    /// Base offset minus the durable offset known when the batch was placed, in offsets;
    /// [`DURABLE_LAG_UNKNOWN`] when unknown or larger than fits.
    pub durable_lag: u32,
    /// Timestamp of the first record, in milliseconds since 1970.
    pub base_timestamp: i64,
    /// Largest timestamp minus the base timestamp, in milliseconds.
    pub max_timestamp_delta: u32,
    /// Epoch (or term) of the leader that accepted the batch; 0 when the queue has none.
    pub leader_epoch: u32,
    /// Producer that sent the batch, or [`NO_PRODUCER`].
    pub producer_id: u64,
    /// Number that the producer gave the first record.
    pub producer_sequence: u32,
    /// Epoch of the producer.
    pub producer_epoch: u16,
    /// What the body is.
    pub kind: BatchKind,
    /// Bits of [`flags`].
    pub flags: u8,
}

impl BatchHeader {
    /// Writes the header into the first [`BATCH_HEADER_LEN`] bytes of `out` and returns its
    /// checksum, which the next batch carries as `prev_header_crc`.
    ///
    /// # Panics
    /// When `out` is shorter than the header.
    pub fn encode_into(&self, out: &mut [u8]) -> u32 {
        let out = &mut out[..BATCH_HEADER_LEN];
        Put::new(out)
            .bytes(MAGIC)
            .u64(self.identity)
            .u64(self.partition)
            .u32(self.incarnation)
            .u32(self.generation)
            .u32(self.sequence)
            .u32(self.prev_header_crc)
            .u64(self.base_offset)
            .u32(self.record_count)
            .u32(self.body_len)
            .u32(self.body_crc)
            .u32(self.durable_lag)
            .i64(self.base_timestamp)
            .u32(self.max_timestamp_delta)
            .u32(self.leader_epoch)
            .u64(self.producer_id)
            .u32(self.producer_sequence)
            .u16(self.producer_epoch)
            .u8(self.kind as u8)
            .u8(self.flags);
        let crc = checksum(&out[..HEADER_CRC_AT]);
        Put::new(&mut out[HEADER_CRC_AT..]).u32(crc);
        crc
    }

    /// Reads the header at the start of `bytes`: magic, then checksum, then fields. Nothing is
    /// believed before its checksum matched, and the body is not looked at.
    ///
    /// Fields that contradict each other are an error even under a valid checksum: a length above
    /// the limit, offsets that overflow, more records than the body has room for.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some(bytes) = bytes.get(..BATCH_HEADER_LEN) else {
            return Err(FormatError::Truncated {
                need: BATCH_HEADER_LEN,
                have: bytes.len(),
            });
        };
        let mut get = Get::new(bytes);
        if get.array::<4>()? != *MAGIC {
            return Err(FormatError::BadMagic);
        }
        let stored = Self::crc(bytes);
        let computed = checksum(&bytes[..HEADER_CRC_AT]);
        if stored != computed {
            return Err(FormatError::HeaderChecksum { stored, computed });
        }
        let header = Self {
            identity: get.u64()?,
            partition: get.u64()?,
            incarnation: get.u32()?,
            generation: get.u32()?,
            sequence: get.u32()?,
            prev_header_crc: get.u32()?,
            base_offset: get.u64()?,
            record_count: get.u32()?,
            body_len: get.u32()?,
            body_crc: get.u32()?,
            durable_lag: get.u32()?,
            base_timestamp: get.i64()?,
            max_timestamp_delta: get.u32()?,
            leader_epoch: get.u32()?,
            producer_id: get.u64()?,
            producer_sequence: get.u32()?,
            producer_epoch: get.u16()?,
            kind: BatchKind::from_byte(get.u8()?)?,
            flags: get.u8()?,
        };
        header.check().map(|()| header)
    }

    /// The checksum stored in an encoded header; 0 when `bytes` is shorter than a header.
    pub fn crc(bytes: &[u8]) -> u32 {
        bytes
            .get(HEADER_CRC_AT..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |field| u32::from_le_bytes(*field))
    }

    /// Length of header and body in bytes, without padding.
    pub fn total_len(&self) -> usize {
        BATCH_HEADER_LEN + self.body_len as usize
    }

    /// The offset after the last record, or `None` when that leaves the range of offsets.
    pub fn end_offset(&self) -> Option<u64> {
        self.base_offset.checked_add(u64::from(self.record_count))
    }

    /// The durable offset that was known when the batch was placed: everything below it had been
    /// on stable media. `None` when the batch does not say.
    pub fn durable_offset(&self) -> Option<u64> {
        match self.durable_lag {
            DURABLE_LAG_UNKNOWN => None,
            lag => self.base_offset.checked_sub(u64::from(lag)),
        }
    }

    /// The largest timestamp of the batch, in milliseconds, saturating.
    pub fn max_timestamp(&self) -> i64 {
        self.base_timestamp
            .saturating_add(i64::from(self.max_timestamp_delta))
    }

    /// Whether zeros up to the segment's alignment follow.
    pub fn is_last_in_group(&self) -> bool {
        self.flags & flags::LAST_IN_GROUP != 0
    }

    /// Whether the log stamped the batch.
    pub fn is_append_time(&self) -> bool {
        self.flags & flags::APPEND_TIME != 0
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.flags & !flags::ALL != 0 {
            return Err(FormatError::BadFlags(self.flags));
        }
        let len = self.body_len as usize;
        if len > BATCH_BODY_LEN_MAX {
            return Err(FormatError::LengthOutOfBounds {
                len,
                max: BATCH_BODY_LEN_MAX,
            });
        }
        if self.end_offset().is_none() {
            return Err(FormatError::OffsetOverflow {
                base_offset: self.base_offset,
                record_count: self.record_count,
            });
        }
        let (least, most) = match self.kind {
            BatchKind::Records => (1, self.body_len / RECORD_LEN_MIN),
            BatchKind::Opaque => (1, u32::MAX),
            BatchKind::Control => (0, 0),
        };
        if self.record_count < least || self.record_count > most {
            return Err(FormatError::RecordCount {
                stored: self.record_count,
                found: most,
            });
        }
        Ok(())
    }
}

/// Checks a body against the length and checksum in its header.
///
/// ```
/// use alluvium_core::format::{Batch, BatchHeader, FormatError, Placement, verify_body};
/// let mut batch = Batch::opaque(b"payload", 1, Some(0))?;
/// batch.place(&Placement::default());
/// let header = BatchHeader::decode(batch.bytes())?;
/// assert_eq!(verify_body(&header, b"payload"), Ok(()));
/// assert!(matches!(verify_body(&header, b"Payload"), Err(FormatError::BodyChecksum { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify_body(header: &BatchHeader, body: &[u8]) -> Result<(), FormatError> {
    let need = header.body_len as usize;
    if body.len() < need {
        return Err(FormatError::Truncated {
            need,
            have: body.len(),
        });
    }
    if body.len() > need {
        return Err(FormatError::LengthOutOfBounds {
            len: body.len(),
            max: need,
        });
    }
    let computed = checksum(body);
    if computed != header.body_crc {
        return Err(FormatError::BodyChecksum {
            stored: header.body_crc,
            computed,
        });
    }
    Ok(())
}

/// The lag to store for a batch at `base_offset` when everything below `durable_offset` is
/// durable.
pub(super) fn durable_lag(base_offset: u64, durable_offset: u64) -> u32 {
    u32::try_from(base_offset.saturating_sub(durable_offset)).unwrap_or(DURABLE_LAG_UNKNOWN)
}

const MAGIC: &[u8; 4] = b"ALB1";
/// Position of the header's checksum, which covers everything before it.
const HEADER_CRC_AT: usize = BATCH_HEADER_LEN - 4;
