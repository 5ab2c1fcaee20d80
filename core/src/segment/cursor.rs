//! Walking the batches of a segment through large aligned reads.

use std::io;

use bytes::Bytes;

use super::Segment;
use crate::error::{CorruptionKind, Error, Result};
use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, FormatError, SegmentHeader, StoredBatch, decode_batch, flags,
};
use crate::io::{BUFFER_ALIGNMENT, BufPool, IoFile};

/// Why a batch could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    Format(CorruptionKind),
}

impl From<FormatError> for ReadError {
    fn from(e: FormatError) -> Self {
        Self::Format(e.into())
    }
}

/// Reads batches of one segment; keeps the last chunk, so that walking forward reads each byte
/// once.
#[derive(Debug)]
pub(crate) struct Cursor<'a, F> {
    segment: &'a Segment<F>,
    pool: &'a BufPool,
    chunk_bytes: usize,
    chunk: Bytes,
    chunk_start: u64,
}

impl<'a, F: IoFile> Cursor<'a, F> {
    pub(crate) fn new(segment: &'a Segment<F>, pool: &'a BufPool, chunk_bytes: usize) -> Self {
        let chunk_bytes = chunk_bytes.max(1).next_multiple_of(BUFFER_ALIGNMENT);
        Self {
            segment,
            pool,
            chunk_bytes,
            chunk: Bytes::new(),
            chunk_start: 0,
        }
    }

    /// The batch at `position`, of this segment's identity, header and body verified.
    pub(crate) async fn batch_at(&mut self, position: u64) -> Result<StoredBatch, ReadError> {
        let mut need = BATCH_HEADER_LEN;
        loop {
            let at = self.ensure(position, need).await.map_err(ReadError::Io)?;
            match decode_batch(&self.chunk, at) {
                Ok(batch) => {
                    check_owner(&self.segment.header, batch.header())?;
                    self.check_padding(batch.header(), position).await?;
                    return Ok(batch);
                }
                Err(FormatError::Truncated { need: more, .. })
                    if more > need && self.may_hold(position, more) =>
                {
                    // The header is verified already: its length may be believed, once it is
                    // known to belong here.
                    let header = BatchHeader::decode(&self.chunk[at.min(self.chunk.len())..])?;
                    check_owner(&self.segment.header, &header)?;
                    need = more;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The header at `position` if it is whole and of this segment's identity. The body is not
    /// looked at.
    pub(crate) async fn header_at(&mut self, position: u64) -> io::Result<Option<BatchHeader>> {
        let at = self.ensure(position, BATCH_HEADER_LEN).await?;
        let Some(bytes) = self.chunk.get(at..) else {
            return Ok(None);
        };
        Ok(BatchHeader::decode(bytes)
            .ok()
            .filter(|h| h.identity == self.segment.header.identity))
    }

    /// Where the batch after one at `position` starts.
    pub(crate) fn position_after(&self, header: &BatchHeader, position: u64) -> u64 {
        position_after(&self.segment.header, header, position)
    }

    /// Finds the next batch of this segment after damage at `position`: its place and its base
    /// offset. When the header there is whole, the batch behind it in the group is tried first;
    /// otherwise, as groups start at aligned places, only those are looked at.
    pub(crate) async fn resynchronise(
        &mut self,
        position: u64,
        end: u64,
    ) -> Result<Option<(u64, u64)>> {
        let alignment = u64::from(self.segment.header.alignment);
        let io_error = |e| Error::io("read", &self.segment.path, e);
        if let Some(header) = self.header_at(position).await.map_err(io_error)? {
            let next = self.position_after(&header, position);
            if next < end
                && let Ok(batch) = self.batch_at(next).await
            {
                return Ok(Some((next, batch.base_offset())));
            }
        }
        let end = end.min(self.file_len().await.map_err(io_error)?);
        let mut at = (position + 1).next_multiple_of(alignment);
        while at < end {
            let header = self.header_at(at).await;
            match header.map_err(|e| Error::io("read", &self.segment.path, e))? {
                Some(header) if self.batch_at(at).await.is_ok() => {
                    return Ok(Some((at, header.base_offset)));
                }
                _ => at += alignment,
            }
        }
        Ok(None)
    }

    /// Length of the file: whoever looks for what may stand anywhere looks no further, whatever a
    /// header claims.
    pub(crate) async fn file_len(&self) -> io::Result<u64> {
        self.segment.file.len().await
    }

    async fn check_padding(&mut self, header: &BatchHeader, at: u64) -> Result<(), ReadError> {
        let end = at + header.total_len() as u64;
        let padding = usize::try_from(self.position_after(header, at) - end).unwrap_or(0);
        if padding == 0 {
            return Ok(());
        }
        let from = self.ensure(end, padding).await.map_err(ReadError::Io)?;
        match self.chunk.get(from..from + padding) {
            Some(bytes) if bytes.iter().all(|&b| b == 0) => Ok(()),
            Some(_) => Err(FormatError::NonZeroPadding.into()),
            None => {
                let have = self.chunk.len().saturating_sub(from);
                Err(FormatError::Truncated {
                    need: padding,
                    have,
                }
                .into())
            }
        }
    }

    fn may_hold(&self, position: u64, len: usize) -> bool {
        position.saturating_add(len as u64) <= self.segment.header.capacity_bytes
    }

    /// Makes `[position, position + len)` part of the chunk, as far as the file goes, and returns
    /// where it starts in the chunk.
    async fn ensure(&mut self, position: u64, len: usize) -> io::Result<usize> {
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        let end = position + len as u64;
        if position < self.chunk_start || end > chunk_end {
            let start = position - position % BUFFER_ALIGNMENT as u64;
            let capacity = self.segment.header.capacity_bytes;
            let needed = usize::try_from(end - start).unwrap_or(usize::MAX);
            let wanted = needed
                .max(self.chunk_bytes)
                .next_multiple_of(BUFFER_ALIGNMENT);
            let available = usize::try_from(capacity.saturating_sub(start)).unwrap_or(usize::MAX);
            let wanted = wanted.min(available.next_multiple_of(BUFFER_ALIGNMENT));
            self.chunk = Bytes::new();
            self.chunk_start = start;
            if wanted > 0 {
                let buf = self.pool.take(wanted);
                self.chunk = self
                    .segment
                    .file
                    .read_at(buf, start, wanted)
                    .await?
                    .freeze();
            }
        }
        Ok(usize::try_from(position - self.chunk_start).unwrap_or(usize::MAX))
    }
}

/// Where the batch after one at `position` of a segment starts.
pub(super) fn position_after(own: &SegmentHeader, header: &BatchHeader, position: u64) -> u64 {
    let end = position + header.total_len() as u64;
    if header.flags & flags::LAST_IN_GROUP == 0 {
        return end;
    }
    end.next_multiple_of(u64::from(own.alignment))
}

/// Checks that a batch was written for this use of a segment.
pub(super) fn check_owner(own: &SegmentHeader, header: &BatchHeader) -> Result<(), ReadError> {
    let why = if header.identity != own.identity {
        "its identity is of another use of a file"
    } else if header.partition != own.partition || header.incarnation != own.incarnation {
        "it belongs to another partition"
    } else if header.generation < own.generation {
        "its generation is older than the segment"
    } else {
        return Ok(());
    };
    Err(ReadError::Format(CorruptionKind::Misplaced(why)))
}
