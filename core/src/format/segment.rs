//! The header block of a segment file.

use super::codec::{Get, Put, checksum, is_zero};
use super::error::FormatError;
use super::{CHECKSUM_CRC32, FORMAT_VERSION, SECTOR_LEN, SEGMENT_HEADER_LEN};

/// What a segment file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// Part of a partition's log.
    Log = 1,
    /// Prepared space that belongs to no partition yet.
    Spare = 2,
}

impl SegmentKind {
    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Log),
            2 => Ok(Self::Spare),
            other => Err(FormatError::BadKind(other)),
        }
    }
}

/// The header block of a segment: what the file is, where it stands in its partition, and what
/// was known when it was begun.
///
/// It is durable before the first batch of the segment is written, and never rewritten.
///
/// ```
/// use alluvium_core::format::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
/// let header = SegmentHeader {
///     kind: SegmentKind::Log,
///     identity: 0x1d,
///     partition: 7,
///     incarnation: 1,
///     generation: 1,
///     sequence: 0,
///     base_offset: 0,
///     prev_identity: 0,
///     prev_end_offset: 0,
///     prev_end_position: 0,
///     prev_header_crc: 0,
///     log_start: 0,
///     reserved_end: 0,
///     capacity_bytes: 64 << 20,
///     alignment: 512,
///     writes_in_flight_max: 4,
///     group_bytes_max: 1 << 20,
///     created_ms: 1_700_000_000_000,
/// };
/// let block = header.encode();
/// assert_eq!(block.len(), SEGMENT_HEADER_LEN);
/// assert_eq!(SegmentHeader::decode(&block), Ok(header));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What the file is for.
    pub kind: SegmentKind,
    /// Random number of this use of the file, repeated in every batch of it. Never 0, which
    /// means "none" in [`prev_identity`](Self::prev_identity).
    pub identity: u64,
    /// Partition that the segment belongs to.
    pub partition: u64,
    /// How many times the partition id had been created before and removed, so that data of
    /// an earlier partition of the same id is not taken for this one's.
    pub incarnation: u32,
    /// Grows with each recovery of the partition. Of two segments that claim the same offsets the
    /// one of the higher generation is right.
    pub generation: u32,
    /// Number of the segment in its partition, from 0, without gaps.
    pub sequence: u64,
    /// Offset of the first record of the segment.
    pub base_offset: u64,
    /// Identity of the segment before; 0 when there is none.
    pub prev_identity: u64,
    /// Offset at which the segment before ends. What it holds beyond is cut off.
    pub prev_end_offset: u64,
    /// Byte position in its file at which the segment before ends.
    pub prev_end_position: u64,
    /// Header checksum of the last valid batch of the segment before (0 when there is none). The
    /// first batch here carries the same value, so the chain runs across segments.
    pub prev_header_crc: u32,
    /// Log start offset when the segment was begun.
    pub log_start: u64,
    /// Offsets below this one may have been shown to somebody when the segment was begun.
    pub reserved_end: u64,
    /// Size of the file in bytes, this block included.
    pub capacity_bytes: u64,
    /// Alignment of write groups in bytes: a power of two from 512 to 4096.
    pub alignment: u32,
    /// Most writes that may be under way at a time: how many groups a crash may leave torn.
    pub writes_in_flight_max: u16,
    /// Most bytes that one write group may have.
    pub group_bytes_max: u32,
    /// Wall clock when the segment was begun, in milliseconds since 1970. For people only.
    pub created_ms: i64,
}

impl SegmentHeader {
    /// The header block, [`SEGMENT_HEADER_LEN`] bytes: two copies of one sector, zeros between.
    ///
    /// # Panics
    /// When the alignment is not a power of two from 512 to 4096: a header with it could never
    /// be read again.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SEGMENT_HEADER_LEN];
        Put::new(&mut block)
            .bytes(&MAGIC)
            .u16(FORMAT_VERSION)
            .u8(CHECKSUM_CRC32)
            .u8(self.kind as u8)
            .u8(alignment_log2(self.alignment))
            .u8(0)
            .u16(self.writes_in_flight_max)
            .u32(self.group_bytes_max)
            .u32(self.incarnation)
            .u32(self.generation)
            .u32(self.prev_header_crc)
            .u64(self.identity)
            .u64(self.partition)
            .u64(self.sequence)
            .u64(self.base_offset)
            .u64(self.prev_identity)
            .u64(self.prev_end_offset)
            .u64(self.prev_end_position)
            .u64(self.log_start)
            .u64(self.reserved_end)
            .u64(self.capacity_bytes)
            .i64(self.created_ms);
        put_sector_checksum(&mut block);
        block.copy_within(..SECTOR_LEN, SECOND_COPY_AT);
        block
    }

    /// Reads the header block at the start of a file. What follows the block is not looked at.
    ///
    /// Magic, then version, then algorithm, then checksum: a later version may compute or place
    /// its checksum in another way, and "written by a newer release" must not be reported as
    /// damage. A version field that was hit by damage reads as unsupported, which is refused too.
    ///
    /// One sound copy is enough. When both are sound and differ, a write of the block was cut
    /// short by a crash: the one with the higher sequence is the newer, and either would do, for
    /// nothing relied on that write yet.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let [first, second] = copies(block)?.map(Self::decode_sector);
        match (first, second) {
            (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok(second),
            (Err(e), Err(_)) => Err(e),
            (Ok(sound), _) | (Err(_), Ok(sound)) => Ok(sound),
        }
    }

    /// Checks that the block is as [`encode`](Self::encode) makes it: both copies sound and the
    /// same, everything else zero. [`decode`](Self::decode) asks for less.
    pub fn check_block(block: &[u8]) -> Result<Self, FormatError> {
        let [first, second] = copies(block)?;
        let header = Self::decode_sector(first)?;
        if Self::decode_sector(second)? != header {
            return Err(FormatError::HeaderCopies);
        }
        let between = &block[SECTOR_LEN..SECOND_COPY_AT];
        let after = &block[SECOND_COPY_AT + SECTOR_LEN..SEGMENT_HEADER_LEN];
        if is_zero(between) && is_zero(after) {
            Ok(header)
        } else {
            Err(FormatError::NonZeroPadding)
        }
    }

    fn decode_sector(sector: &[u8]) -> Result<Self, FormatError> {
        let sector = open_sector(sector, SECTOR_LEN, MAGIC)?;
        let mut get = Get::new(&sector[PREAMBLE_LEN..]);
        let kind = SegmentKind::from_byte(get.u8()?)?;
        let log2 = get.u8()?;
        let zero = get.u8()?;
        let header = Self {
            kind,
            writes_in_flight_max: get.u16()?,
            group_bytes_max: get.u32()?,
            incarnation: get.u32()?,
            generation: get.u32()?,
            prev_header_crc: get.u32()?,
            identity: get.u64()?,
            partition: get.u64()?,
            sequence: get.u64()?,
            base_offset: get.u64()?,
            prev_identity: get.u64()?,
            prev_end_offset: get.u64()?,
            prev_end_position: get.u64()?,
            log_start: get.u64()?,
            reserved_end: get.u64()?,
            capacity_bytes: get.u64()?,
            created_ms: get.i64()?,
            alignment: match log2 {
                9..=12 => 1 << log2,
                _ => return Err(FormatError::BadAlignment { log2 }),
            },
        };
        if zero != 0 || !is_zero(&sector[FIELDS_END..SECTOR_CRC_AT]) {
            return Err(FormatError::NonZeroPadding);
        }
        Ok(header)
    }
}

/// The two sectors of a header block that hold the header.
fn copies(block: &[u8]) -> Result<[&[u8]; 2], FormatError> {
    let Some(block) = block.get(..SEGMENT_HEADER_LEN) else {
        return Err(FormatError::Truncated {
            need: SEGMENT_HEADER_LEN,
            have: block.len(),
        });
    };
    Ok([
        &block[..SECTOR_LEN],
        &block[SECOND_COPY_AT..SECOND_COPY_AT + SECTOR_LEN],
    ])
}

/// Checks everything that the STORE file and segment headers have in common, and returns exactly
/// `len` bytes.
pub(super) fn open_sector(bytes: &[u8], len: usize, magic: [u8; 8]) -> Result<&[u8], FormatError> {
    // Magic before length: a short file of somebody else is not a damaged one of ours.
    if bytes.get(..8).is_some_and(|start| start != magic) {
        return Err(FormatError::BadMagic);
    }
    let Some(block) = bytes.get(..len) else {
        return Err(FormatError::Truncated {
            need: len,
            have: bytes.len(),
        });
    };
    let mut get = Get::new(block);
    if get.array()? != magic {
        return Err(FormatError::BadMagic);
    }
    let found = get.u16()?;
    if found != FORMAT_VERSION {
        return Err(FormatError::UnsupportedVersion { found });
    }
    let found = get.u8()?;
    if found != CHECKSUM_CRC32 {
        return Err(FormatError::UnsupportedChecksum { found });
    }
    let stored = Get::new(&block[SECTOR_CRC_AT..]).u32()?;
    let computed = checksum(&block[..SECTOR_CRC_AT]);
    if stored != computed {
        return Err(FormatError::HeaderChecksum { stored, computed });
    }
    Ok(block)
}

/// Writes the checksum of the first sector into its last four bytes.
pub(super) fn put_sector_checksum(block: &mut [u8]) {
    let crc = checksum(&block[..SECTOR_CRC_AT]);
    Put::new(&mut block[SECTOR_CRC_AT..]).u32(crc);
}

fn alignment_log2(alignment: u32) -> u8 {
    match alignment {
        512 => 9,
        1024 => 10,
        2048 => 11,
        4096 => 12,
        other => panic!("segment alignment {other} is not a power of two from 512 to 4096"),
    }
}

const MAGIC: [u8; 8] = *b"ALLUVSEG";
/// Where the second copy of the header's sector lies.
const SECOND_COPY_AT: usize = SEGMENT_HEADER_LEN / 2;
/// Magic, version and checksum algorithm: the part that no version will ever move.
pub(super) const PREAMBLE_LEN: usize = 11;
/// Position of the sector's checksum, which covers everything before it.
pub(super) const SECTOR_CRC_AT: usize = SECTOR_LEN - 4;
/// Where the fields end; zeros fill the sector up to its checksum.
const FIELDS_END: usize = 120;

const _: () = assert!(FIELDS_END <= SECTOR_CRC_AT && SECTOR_LEN <= SEGMENT_HEADER_LEN);
