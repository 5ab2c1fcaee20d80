//! The bytes on disk: pure encoding and decoding, without files, clocks or tasks.
//!
//! What follows is the specification of the format.
#![doc = include_str!("FORMAT.md")]

mod batch;
mod buffer;
mod codec;
mod control;
mod decode;
mod encode;
mod error;
mod record;
mod segment;
mod store;
mod walk;

pub use batch::{BatchHeader, BatchKind, DURABLE_LAG_UNKNOWN, NO_PRODUCER, flags, verify_body};
pub use control::{Control, ControlReason};
pub use decode::{Records, StoredBatch, Views, decode_batch};
pub use encode::{Batch, BatchBuilder, Placement};
pub use error::{EncodeError, FormatError, RecordFault};
pub use record::{Header, Record, RecordView, StoredRecord};
pub use segment::{SegmentHeader, SegmentKind};
pub use store::StoreHeader;
pub use walk::{WalkError, WalkFault, WalkSummary, walk_segment};

/// Version of the format that this code writes, and the only one that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Id of the checksum algorithm CRC-32 (IEEE).
pub const CHECKSUM_CRC32: u8 = 1;

/// Smallest unit that a device is assumed to write whole or not at all, in bytes.
pub const SECTOR_LEN: usize = 512;

/// Length of a segment's header block in bytes: two copies of one sector, the rest zero.
pub const SEGMENT_HEADER_LEN: usize = 4096;

/// Length of the STORE file in bytes.
pub const STORE_HEADER_LEN: usize = 512;

/// Length of a batch header in bytes.
pub const BATCH_HEADER_LEN: usize = 96;

/// Largest batch body in bytes: with its header it makes 64 MiB.
pub const BATCH_BODY_LEN_MAX: usize = (64 << 20) - BATCH_HEADER_LEN;

/// Largest encoded record in bytes, without its length prefix; a batch can hold one of them.
pub const RECORD_LEN_MAX: usize = BATCH_BODY_LEN_MAX - 5;

/// Most headers that a record may have.
pub const RECORD_HEADERS_MAX: usize = 65_535;
