//! The one place that turns integers into bytes and back: fixed-width little-endian fields,
//! varints and the checksum.

use super::error::{FormatError, RecordFault};

/// The checksum of this version: CRC-32 (IEEE 802.3, as in gzip), algorithm id 1.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Reads fixed-width fields one after the other.
#[derive(Debug)]
pub(crate) struct Get<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Get<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(field) = rest.first_chunk::<N>() else {
            return Err(FormatError::Truncated {
                need: self.at.saturating_add(N),
                have: self.bytes.len(),
            });
        };
        self.at += N;
        Ok(*field)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, FormatError> {
        self.array().map(i64::from_le_bytes)
    }
}

/// Writes fixed-width fields one after the other. The output is a fixed-size structure, so its
/// length is the caller's constant and never depends on data.
#[derive(Debug)]
pub(crate) struct Put<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    /// Bytes written so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn bytes(&mut self, field: &[u8]) -> &mut Self {
        let end = self.at + field.len();
        self.out[self.at..end].copy_from_slice(field);
        self.at = end;
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A varint: seven bits a byte, the lowest first, the top bit says that more follow.
    pub(crate) fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.u8(low_byte(value) | 0x80);
            value >>= 7;
        }
        self.u8(low_byte(value))
    }
}

/// Most bytes that a varint takes.
pub(crate) const VARINT_LEN_MAX: usize = 10;

/// Bytes that `value` takes as a varint.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = (u64::BITS - (value | 1).leading_zeros()) as usize;
    bits.div_ceil(7)
}

/// Reads a varint at `at` and moves `at` behind it. Only the shortest form is accepted, so that a
/// value has one encoding.
#[inline]
pub(crate) fn get_varint(bytes: &[u8], at: &mut usize) -> Result<u64, RecordFault> {
    match bytes.get(*at..) {
        Some([first, ..]) if *first < 0x80 => {
            *at += 1;
            Ok(u64::from(*first))
        }
        Some([first, second, ..]) if *second < 0x80 && *second != 0 => {
            *at += 2;
            Ok(u64::from(*first & 0x7f) | u64::from(*second) << 7)
        }
        _ => get_varint_slow(bytes, at),
    }
}

fn get_varint_slow(bytes: &[u8], at: &mut usize) -> Result<u64, RecordFault> {
    let mut value = 0_u64;
    for index in 0..VARINT_LEN_MAX {
        let byte = *bytes.get(*at + index).ok_or(RecordFault::Truncated)?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if index + 1 == VARINT_LEN_MAX && byte > 1 {
            return Err(RecordFault::Varint);
        }
        value |= bits << (7 * index);
        if byte < 0x80 {
            if byte == 0 && index > 0 {
                return Err(RecordFault::Varint);
            }
            *at += index + 1;
            return Ok(value);
        }
    }
    Err(RecordFault::Varint)
}

/// Maps signed to unsigned so that small magnitudes stay small: 0, -1, 1, -2 become 0, 1, 2, 3.
pub(crate) fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// The inverse of [`zigzag`].
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<8>();
    words.iter().all(|word| *word == [0; 8]) && tail.iter().all(|byte| *byte == 0)
}

const fn low_byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_in_their_shortest_form_only() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX - 1,
            u64::MAX,
        ] {
            let mut out = [0; VARINT_LEN_MAX];
            let mut put = Put::new(&mut out);
            let len = put.varint(value).position();
            assert_eq!(len, varint_len(value));
            let mut at = 0;
            assert_eq!(get_varint(&out[..len], &mut at), Ok(value));
            assert_eq!(at, len);
            assert_eq!(
                get_varint(&out[..len - 1], &mut 0),
                Err(RecordFault::Truncated)
            );
        }
        assert_eq!(get_varint(&[0x80, 0], &mut 0), Err(RecordFault::Varint));
        assert_eq!(get_varint(&[0xff; 11], &mut 0), Err(RecordFault::Varint));
        assert_eq!(
            get_varint(
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
                &mut 0
            ),
            Err(RecordFault::Varint)
        );
    }

    #[test]
    fn zigzag_is_a_bijection_at_the_edges() {
        for value in [0, -1, 1, -2, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!([0, -1, 1, -2].map(zigzag), [0, 1, 2, 3]);
    }
}
