//! Records that say which batch they belong to, with bytes that can be made again from that.

use std::fmt;

use alluvium_core::format::Batch;

/// Names a batch: the life it was submitted to and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}.{}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// What a batch is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Offsets that it takes.
    pub count: u32,
    /// Bytes of each record, at least 16; of the whole body when it is opaque.
    pub record_bytes: usize,
    /// One unit that only the queue understands.
    pub opaque: bool,
}

/// Bytes that every record starts with: batch, index in it, number of records.
const HEAD_LEN: usize = 16;

impl BatchShape {
    /// Encodes the batch `id` of this shape.
    ///
    /// # Panics
    /// When the batch cannot be encoded: the shape is absurd.
    pub fn encode(&self, id: BatchId) -> Batch {
        if self.opaque {
            return Batch::opaque(&payload(id, 0, self), self.count, None)
                .expect("the shape can be encoded");
        }
        Batch::from_values((0..self.count).map(|i| payload(id, i, self)))
            .expect("the shape can be encoded")
    }
}

/// The bytes of record `index` of batch `id`.
pub fn payload(id: BatchId, index: u32, shape: &BatchShape) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(shape.record_bytes.max(HEAD_LEN));
    bytes.extend_from_slice(&id.0.to_le_bytes());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(&shape.count.to_le_bytes());
    let mut word = id.0 ^ (u64::from(index) << 40) ^ 0x9E37_79B9_7F4A_7C15;
    while bytes.len() < shape.record_bytes {
        word = word
            .wrapping_mul(0xD134_2543_DE82_EF95)
            .wrapping_add(0x2545_F491_4F6C_DD1D);
        let left = shape.record_bytes - bytes.len();
        bytes.extend_from_slice(&word.to_be_bytes()[..left.min(8)]);
    }
    bytes
}

/// Which batch and index the bytes claim to be.
pub(super) fn claim(bytes: &[u8]) -> Option<(BatchId, u32)> {
    let id = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let index = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    Some((BatchId(id), index))
}
