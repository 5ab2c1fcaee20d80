//! Control batches: notes of the log to itself.

use super::codec::{Get, Put, is_zero};
use super::error::FormatError;

/// Why a control batch was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ControlReason {
    /// Everything before it is durable. Written when the partition goes idle, at the end of a
    /// segment and when the store closes.
    Seal = 1,
    /// Offsets below [`Control::reserved_end`] may have been shown to somebody and are never given
    /// to other data.
    Reserve = 2,
    /// The log start moved to [`Control::log_start`].
    Trim = 3,
}

/// The body of a control batch. Every one carries the whole state, so the last one tells it.
///
/// ```
/// use alluvium_core::format::{Control, ControlReason};
/// let seal = Control {
///     reason: ControlReason::Seal,
///     segment_end: true,
///     end_offset: 900,
///     log_start: 100,
///     reserved_end: 900,
/// };
/// assert_eq!(Control::decode(&seal.encode()), Ok(seal));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Why it was written.
    pub reason: ControlReason,
    /// No batch follows in this segment.
    pub segment_end: bool,
    /// The log end offset: the offset of the next record.
    pub end_offset: u64,
    /// The log start offset.
    pub log_start: u64,
    /// Offsets below this one may have been shown.
    pub reserved_end: u64,
}

impl Control {
    /// Length of the body in bytes.
    pub const LEN: usize = 32;

    /// The body to write.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut body = [0; Self::LEN];
        Put::new(&mut body)
            .u8(VERSION)
            .u8(self.reason as u8)
            .u8(u8::from(self.segment_end) * SEGMENT_END)
            .bytes(&[0; OFFSETS_AT - RESERVED_AT])
            .u64(self.end_offset)
            .u64(self.log_start)
            .u64(self.reserved_end);
        body
    }

    /// Reads the body of a control batch, whose checksum the caller has verified.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        if body.len() > Self::LEN {
            return Err(FormatError::LengthOutOfBounds {
                len: body.len(),
                max: Self::LEN,
            });
        }
        if body.len() < Self::LEN {
            return Err(FormatError::Truncated {
                need: Self::LEN,
                have: body.len(),
            });
        }
        let mut get = Get::new(body);
        let version = get.u8()?;
        if version != VERSION {
            return Err(FormatError::UnsupportedVersion {
                found: u16::from(version),
            });
        }
        let reason = match get.u8()? {
            1 => ControlReason::Seal,
            2 => ControlReason::Reserve,
            3 => ControlReason::Trim,
            other => return Err(FormatError::BadKind(other)),
        };
        let flags = get.u8()?;
        if flags & !SEGMENT_END != 0 {
            return Err(FormatError::BadFlags(flags));
        }
        if !is_zero(&get.array::<{ OFFSETS_AT - RESERVED_AT }>()?) {
            return Err(FormatError::NonZeroPadding);
        }
        Ok(Self {
            reason,
            segment_end: flags != 0,
            end_offset: get.u64()?,
            log_start: get.u64()?,
            reserved_end: get.u64()?,
        })
    }
}

const VERSION: u8 = 1;
const SEGMENT_END: u8 = 1;
const RESERVED_AT: usize = 3;
const OFFSETS_AT: usize = 8;
