//! The STORE file: which store a directory is, and which format it has.

use super::codec::{Get, Put, is_zero};
use super::error::FormatError;
use super::segment::{PREAMBLE_LEN, SECTOR_CRC_AT, open_sector, put_sector_checksum};
use super::{CHECKSUM_CRC32, FORMAT_VERSION, STORE_HEADER_LEN};

/// The content of the STORE file: one sector, written once when a store is created.
///
/// ```
/// use alluvium_core::format::StoreHeader;
/// let header = StoreHeader { store_id: 42, created_ms: 1_700_000_000_000 };
/// assert_eq!(StoreHeader::decode(&header.encode()), Ok(header));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreHeader {
    /// Random number of the store.
    pub store_id: u64,
    /// Wall clock when the store was created, in milliseconds since 1970. For people only.
    pub created_ms: i64,
}

impl StoreHeader {
    /// The sector to write.
    pub fn encode(&self) -> [u8; STORE_HEADER_LEN] {
        let mut sector = [0; STORE_HEADER_LEN];
        Put::new(&mut sector)
            .bytes(&MAGIC)
            .u16(FORMAT_VERSION)
            .u8(CHECKSUM_CRC32)
            .bytes(&[0; FIELDS_AT - PREAMBLE_LEN])
            .u64(self.store_id)
            .i64(self.created_ms);
        put_sector_checksum(&mut sector);
        sector
    }

    /// Reads the sector, in the order magic, version, algorithm, checksum, fields; see
    /// [`SegmentHeader::decode`](super::SegmentHeader::decode) for the reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let sector = open_sector(bytes, STORE_HEADER_LEN, MAGIC)?;
        let mut get = Get::new(&sector[FIELDS_AT..]);
        let header = Self {
            store_id: get.u64()?,
            created_ms: get.i64()?,
        };
        if !is_zero(&sector[PREAMBLE_LEN..FIELDS_AT])
            || !is_zero(&sector[FIELDS_END..SECTOR_CRC_AT])
        {
            return Err(FormatError::NonZeroPadding);
        }
        Ok(header)
    }
}

const MAGIC: [u8; 8] = *b"ALLUVIUM";
const FIELDS_AT: usize = 16;
const FIELDS_END: usize = 32;
