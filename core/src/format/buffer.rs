//! Where a batch lies while it is encoded: small ones on the heap, large ones aligned.
//!
//! A small batch shares its write with others, so it is copied once into the group's buffer, and an
//! aligned allocation of whole pages would cost more than the copy. A large batch is worth a write
//! of its own: it is encoded in aligned memory from the start and never copied again.

use crate::io::{AlignedBuf, BufPool};

/// From this many bytes on a batch is aligned.
const ALIGNED_BYTES_MIN: usize = 32 << 10;

/// Bytes of buffers of large batches that are kept for the next ones, per process. Such a buffer
/// is let go by a shard or a reader, and wanted by whichever thread encodes next.
const IDLE_BYTES_MAX: usize = 16 << 20;

/// A growing buffer.
#[derive(Debug)]
pub(super) enum BatchBuf {
    /// Memory of the allocator.
    Heap(Vec<u8>),
    /// Memory that direct I/O accepts.
    Aligned(AlignedBuf),
}

impl Default for BatchBuf {
    /// An empty buffer; nothing is allocated.
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl BatchBuf {
    /// An empty buffer with room for `capacity` bytes.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        if capacity < ALIGNED_BYTES_MIN {
            Self::Heap(Vec::with_capacity(capacity))
        } else {
            Self::Aligned(pool().take(capacity))
        }
    }

    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Aligned(buf) => buf,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Aligned(buf) => buf,
        }
    }

    /// Makes room for `additional` more bytes, at least doubling when it must grow.
    pub(super) fn reserve(&mut self, additional: usize) {
        let wanted = self.len().saturating_add(additional);
        match self {
            Self::Heap(bytes) if wanted < ALIGNED_BYTES_MIN => bytes.reserve(additional),
            Self::Heap(bytes) => {
                let mut buf = pool().take(wanted);
                buf.extend_from_slice(bytes);
                *self = Self::Aligned(buf);
            }
            Self::Aligned(buf) if additional > buf.remaining() => {
                let mut grown = pool().take(wanted.max(buf.capacity().saturating_mul(2)));
                grown.extend_from_slice(buf);
                *buf = grown;
            }
            Self::Aligned(_) => {}
        }
    }

    pub(super) fn extend_from_slice(&mut self, more: &[u8]) {
        self.reserve(more.len());
        match self {
            Self::Heap(bytes) => bytes.extend_from_slice(more),
            Self::Aligned(buf) => buf.extend_from_slice(more),
        }
    }

    pub(super) fn into_aligned(self) -> AlignedBuf {
        match self {
            Self::Heap(bytes) => {
                let mut buf = AlignedBuf::with_capacity(bytes.len());
                buf.extend_from_slice(&bytes);
                buf
            }
            Self::Aligned(buf) => buf,
        }
    }
}

fn pool() -> &'static BufPool {
    static POOL: std::sync::LazyLock<BufPool> =
        std::sync::LazyLock::new(|| BufPool::new(IDLE_BYTES_MAX));
    &POOL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_to_aligned_memory_when_it_grows_large_and_keeps_its_bytes() {
        let mut buf = BatchBuf::with_capacity(0);
        let mut expected = Vec::new();
        for n in 0..200_u8 {
            buf.extend_from_slice(&[n; 777]);
            expected.extend_from_slice(&[n; 777]);
            let large = expected.len() >= ALIGNED_BYTES_MIN;
            assert_eq!(matches!(buf, BatchBuf::Aligned(_)), large, "at {n}");
        }
        assert_eq!(buf.as_slice(), expected);
        assert_eq!(&buf.into_aligned()[..], expected);
    }

    #[test]
    fn a_small_one_is_copied_into_aligned_memory() {
        let mut buf = BatchBuf::with_capacity(3);
        buf.extend_from_slice(b"abc");
        assert!(matches!(buf, BatchBuf::Heap(_)));
        let aligned = buf.into_aligned();
        assert_eq!(&aligned[..], b"abc");
        assert_eq!(aligned.as_ptr() as usize % crate::io::BUFFER_ALIGNMENT, 0);
    }
}
