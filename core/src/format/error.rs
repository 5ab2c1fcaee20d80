//! What can be wrong with bytes that claim to be ours.
//!
//! Bytes from a disk are validated, never asserted: every check of the decoders ends in one of
//! these values. They say what was expected and what was found; where in which file that was is
//! added by the caller, who alone knows it.

use thiserror::Error;

use super::batch::BatchKind;

/// Why bytes are not a valid header, batch or record of this format.
///
/// ```
/// use alluvium_core::format::{BatchHeader, FormatError};
/// assert_eq!(BatchHeader::decode(&[0; 96]), Err(FormatError::BadMagic));
/// assert_eq!(BatchHeader::decode(b"ALB1"), Err(FormatError::Truncated { need: 96, have: 4 }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The input ends before the structure does.
    #[error("truncated: {need} bytes needed, {have} there")]
    Truncated {
        /// Bytes that the structure takes.
        need: usize,
        /// Bytes that the input has.
        have: usize,
    },
    /// The first bytes are not the magic of the structure.
    #[error("not ours: the magic does not match")]
    BadMagic,
    /// The format version is one that this code does not read.
    #[error("unsupported format version {found}")]
    UnsupportedVersion {
        /// The version on disk.
        found: u16,
    },
    /// The checksum algorithm is one that this code does not know.
    #[error("unsupported checksum algorithm {found}")]
    UnsupportedChecksum {
        /// The algorithm id on disk.
        found: u8,
    },
    /// The checksum of a header does not match its bytes.
    #[error("header checksum: stored {stored:#010x}, computed {computed:#010x}")]
    HeaderChecksum {
        /// Checksum on disk.
        stored: u32,
        /// Checksum of the bytes read.
        computed: u32,
    },
    /// The checksum of a batch body does not match its bytes.
    #[error("body checksum: stored {stored:#010x}, computed {computed:#010x}")]
    BodyChecksum {
        /// Checksum in the batch header.
        stored: u32,
        /// Checksum of the body read.
        computed: u32,
    },
    /// The two copies of a segment's header differ.
    #[error("the two copies of the segment header differ")]
    HeaderCopies,
    /// Bytes that must be zero are not.
    #[error("padding is not zero")]
    NonZeroPadding,
    /// The kind of a segment, batch or control batch is unknown.
    #[error("unknown kind {0}")]
    BadKind(u8),
    /// Flag bits that this version does not define are set.
    #[error("unknown flags {0:#04x}")]
    BadFlags(u8),
    /// The segment's alignment is not a power of two from 512 to 4096.
    #[error("alignment of 2^{log2} bytes is not supported")]
    BadAlignment {
        /// The stored binary logarithm.
        log2: u8,
    },
    /// A length is larger than the format or the structure around it allows, or not the one
    /// that the structure has.
    #[error("length {len} is out of bounds (at most {max})")]
    LengthOutOfBounds {
        /// The length found, in bytes.
        len: usize,
        /// The largest length allowed here, in bytes.
        max: usize,
    },
    /// Base offset plus record count leaves the range of offsets.
    #[error("{record_count} records from offset {base_offset} leave the range of offsets")]
    OffsetOverflow {
        /// Offset of the first record.
        base_offset: u64,
        /// Number of records.
        record_count: u32,
    },
    /// The number of records is impossible for the batch, or not the number that the body has.
    #[error("record count {stored}, but the body allows {found}")]
    RecordCount {
        /// The count in the batch header.
        stored: u32,
        /// The count that the body has, or the most that it could have.
        found: u32,
    },
    /// Bytes are left in the body after the last record.
    #[error("{count} bytes after the last record")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A record is malformed.
    #[error("record {index} of the batch: {fault}")]
    BadRecord {
        /// Index of the record in its batch, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// Records, or a control message, were asked of a batch of another kind.
    #[error("a batch of kind {kind:?} does not hold what was asked for")]
    WrongKind {
        /// What the batch is.
        kind: BatchKind,
    },
}

/// What is wrong with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordFault {
    /// A field reaches beyond the record, or the record beyond the body.
    #[error("ends too early")]
    Truncated,
    /// A varint is too long, or not the shortest form of its value.
    #[error("malformed varint")]
    Varint,
    /// Unknown flag bits.
    #[error("unknown record flags {0:#04x}")]
    Flags(u8),
    /// A header count of zero (then the flag must be absent) or beyond what fits.
    #[error("impossible number of headers")]
    HeaderCount,
    /// The timestamp is outside of the range that the batch header declares.
    #[error("timestamp outside of the batch's range")]
    Timestamp,
}

/// Why records cannot be made into a batch. Nothing was added; the builder is as it was.
///
/// ```
/// use alluvium_core::format::{BatchBuilder, EncodeError};
/// assert_eq!(BatchBuilder::new().finish().err(), Some(EncodeError::Empty));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A batch without records.
    #[error("a batch needs at least one record")]
    Empty,
    /// One record is larger than [`RECORD_LEN_MAX`](super::RECORD_LEN_MAX).
    #[error("a record of {len} bytes is larger than {max}")]
    RecordTooLarge {
        /// Encoded length of the record in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The body would be larger than [`BATCH_BODY_LEN_MAX`](super::BATCH_BODY_LEN_MAX).
    #[error("a batch body of {len} bytes is larger than {max}")]
    BatchTooLarge {
        /// Length of the body in bytes, had the record been added.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A record has more than [`RECORD_HEADERS_MAX`](super::RECORD_HEADERS_MAX) headers.
    #[error("{count} headers on a record are more than {max}")]
    TooManyHeaders {
        /// Headers of the record.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Some records of the batch carry a timestamp and others do not.
    #[error("either every record of a batch carries a timestamp or none does")]
    MixedTimestamps,
    /// A timestamp is more than `u32::MAX` milliseconds away from the first record's.
    #[error("timestamp {timestamp} is too far from the first record's {base}")]
    TimestampSpan {
        /// Timestamp of the first record, in milliseconds.
        base: i64,
        /// The timestamp that does not fit, in milliseconds.
        timestamp: i64,
    },
}
