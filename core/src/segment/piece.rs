//! Pieces of a segment: stretches of whole batches that are read by the shard and decoded by the
//! thread that asked for them.
//!
//! The sparse index tells where batches start, so a segment is cut into pieces there: each is one
//! large aligned read, no batch crosses from one into the next, and any number of them can be on
//! their way at once. What a caller gets are slices of the buffer that the disk wrote into.

use std::io;

use bytes::Bytes;

use super::cursor::{ReadError, check_owner, position_after};
use super::{Segment, SparseIndex};
use crate::error::CorruptionKind;
use crate::format::{BATCH_HEADER_LEN, BatchHeader, FormatError, SegmentHeader, StoredBatch};
use crate::io::{BUFFER_ALIGNMENT, BufPool, IoBackend, IoFile};

/// Where a segment is cut, from the piece that holds a certain offset on.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    pub(crate) header: SegmentHeader,
    /// Start of each piece in the file, and the end of the last.
    pub(crate) cuts: Vec<u64>,
    /// End of the records that lie in the pieces and may be read.
    pub(crate) end_offset: u64,
}

/// How large pieces are made, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PieceSizes {
    pub(crate) first: usize,
    pub(crate) others: usize,
}

/// Most pieces of an extent: bounds the work of one request to the shard.
const PIECES_MAX: usize = 64;

const ALIGNMENT: u64 = BUFFER_ALIGNMENT as u64;

/// The bytes that a read of `[start, end)` covers, widened to what direct I/O wants.
fn covered(start: u64, end: u64) -> u64 {
    let end = end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
    end.saturating_sub(start - start % ALIGNMENT)
}

impl SparseIndex {
    /// Cuts the log from the indexed batch at or below `from` to `end_position` into pieces, as
    /// far as batches start below `end_offset`. Also returns the offset at which they end. A piece
    /// is larger than asked for only when the index knows no batch in between.
    fn cut(
        &self,
        from: u64,
        (end_offset, end_position): (u64, u64),
        sizes: PieceSizes,
    ) -> (Vec<u64>, u64) {
        let stop = self.count_below(end_offset);
        let end = self
            .position(stop)
            .unwrap_or(end_position)
            .min(end_position);
        let mut cuts = vec![self.floor(from)];
        let mut next = self.count_below(from.saturating_add(1)).min(stop);
        let mut size = sizes.first as u64;
        while let Some(&start) = cuts.last() {
            if cuts.len() > PIECES_MAX {
                return (cuts, self.base_offset(next - 1).unwrap_or(end_offset));
            }
            let fitting = self.count_in(next..stop, |at| covered(start, at) <= size);
            if next == stop || (next + fitting == stop && covered(start, end) <= size) {
                break;
            }
            next += fitting.max(1);
            match self.position(next - 1) {
                Some(at) if at > start && at < end => cuts.push(at),
                _ => break,
            }
            size = sizes.others as u64;
        }
        cuts.push(end);
        (cuts, end_offset)
    }
}

impl<F: IoFile> Segment<F> {
    /// The pieces from the one that holds `from` up to `end_offset`; `None` when the index is not
    /// in memory, or so sparse that a piece would be larger than `piece_bytes_max`.
    pub(crate) fn extent(
        &self,
        from: u64,
        end_offset: u64,
        sizes: PieceSizes,
        piece_bytes_max: usize,
    ) -> Option<Extent> {
        let end = (
            end_offset.min(self.end_offset.get()),
            self.end_position.get(),
        );
        let (cuts, end_offset) = self.with_index(|index| index.cut(from, end, sizes))?;
        let mut pieces = cuts.windows(2);
        let sound = pieces.all(|w| w[0] < w[1] && covered(w[0], w[1]) <= piece_bytes_max as u64);
        (sound && end_offset > from).then_some(Extent {
            header: self.header,
            cuts,
            end_offset,
        })
    }

    /// The bytes of the file that cover `[start, end)`, and where they start. Of its mapping if
    /// `mapped`, which only a sealed segment may be.
    pub(crate) async fn read_raw<B: IoBackend<File = F>>(
        &self,
        backend: &B,
        pool: &BufPool,
        (start, end): (u64, u64),
        mapped: bool,
    ) -> io::Result<(u64, Bytes)> {
        let from = start - start % ALIGNMENT;
        let len = usize::try_from(covered(start, end)).unwrap_or(usize::MAX);
        if mapped && let Some(bytes) = self.read_mapped(backend, from, len).await {
            return Ok((from, bytes));
        }
        let buf = self.file.read_at(pool.take(len), from, len).await?;
        Ok((from, buf.freeze()))
    }

    /// Bytes of the mapping, in memory; `None` when it does not work, for whatever reason: reading
    /// the file tells it better.
    async fn read_mapped<B: IoBackend<File = F>>(
        &self,
        backend: &B,
        from: u64,
        len: usize,
    ) -> Option<Bytes> {
        let whole = usize::try_from(self.header.capacity_bytes).ok()?;
        let map = self.map.get_or_init(|| backend.map(&self.path, whole).ok());
        let map = map.as_ref()?;
        let start = usize::try_from(from).ok()?;
        let range = start..start.checked_add(len)?;
        let bytes = map.bytes(range.clone())?;
        backend.populate(map, range).await.ok()?;
        Some(bytes)
    }
}

/// A piece in memory, and how far it has been decoded. Nothing of it is verified yet.
#[derive(Debug)]
pub(crate) struct Piece {
    header: SegmentHeader,
    bytes: Bytes,
    /// Where the bytes start in the file.
    start: u64,
    position: u64,
    end: u64,
}

impl Piece {
    /// The piece `[position, end)` of the segment with this header, in bytes that start at `start`.
    pub(crate) fn new(
        header: SegmentHeader,
        (start, bytes): (u64, Bytes),
        position: u64,
        end: u64,
    ) -> Self {
        Self {
            header,
            bytes,
            start,
            position,
            end,
        }
    }

    /// The header of the next batch, verified and of this segment; `None` at the end of the piece.
    pub(crate) fn peek(&self) -> Result<Option<BatchHeader>, ReadError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let header = BatchHeader::decode(self.rest())?;
        check_owner(&self.header, &header)?;
        Ok(Some(header))
    }

    /// The batch with this header, which [`peek`](Self::peek) has just returned: its body and the
    /// padding behind it are verified here.
    pub(crate) fn batch(&self, header: &BatchHeader) -> Result<StoredBatch, ReadError> {
        let (have, need) = (self.rest().len(), header.total_len());
        let at = self.at();
        if need > have {
            return Err(FormatError::Truncated { need, have }.into());
        }
        let body = self.bytes.slice(at + BATCH_HEADER_LEN..at + need);
        let batch = StoredBatch::new(*header, body)?;
        let next = position_after(&self.header, header, self.position);
        let padding = usize::try_from(next - self.position).unwrap_or(usize::MAX);
        match self.rest().get(need..padding) {
            Some(zeros) if zeros.iter().all(|&b| b == 0) => Ok(batch),
            Some(_) => Err(FormatError::NonZeroPadding.into()),
            None => Err(FormatError::Truncated {
                need: padding,
                have,
            }
            .into()),
        }
    }

    /// Goes on behind the batch with this header.
    pub(crate) fn advance(&mut self, header: &BatchHeader) {
        self.position = position_after(&self.header, header, self.position);
    }

    fn at(&self) -> usize {
        usize::try_from(self.position - self.start).unwrap_or(usize::MAX)
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at()..).unwrap_or_default()
    }
}

impl From<CorruptionKind> for ReadError {
    fn from(found: CorruptionKind) -> Self {
        Self::Format(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of 1000 bytes with one record each, every `interval` bytes of them indexed.
    fn index(interval: u32, batches: u64) -> SparseIndex {
        let mut index = SparseIndex::new(interval);
        for n in 0..batches {
            index.push(n, 4096 + n * 1000, 0);
        }
        index
    }

    fn cuts(
        index: &SparseIndex,
        from: u64,
        end: u64,
        first: usize,
        others: usize,
    ) -> (Vec<u64>, u64) {
        index.cut(from, (end, 4096 + 500_000), PieceSizes { first, others })
    }

    #[test]
    fn pieces_follow_each_other_start_with_a_batch_and_keep_to_their_size() {
        let index = index(4000, 500);
        for from in [0, 1, 3, 4, 5, 250, 499] {
            for (first, others) in [
                (8 << 10, 64 << 10),
                (64 << 10, 16 << 10),
                (1 << 20, 1 << 20),
            ] {
                let (cuts, end) = cuts(&index, from, 500, first, others);
                assert_eq!((cuts[0], end), (4096 + from / 4 * 4000, 500));
                assert_eq!(*cuts.last().unwrap(), 4096 + 500_000);
                for (n, piece) in cuts.windows(2).enumerate() {
                    assert!(piece[0] < piece[1]);
                    assert_eq!((piece[0] - 4096) % 4000, 0);
                    let size = if n == 0 { first } else { others } as u64;
                    assert!(covered(piece[0], piece[1]) <= size, "{from} {piece:?}");
                    let last = n + 2 == cuts.len();
                    assert!(last || covered(piece[0], piece[1] + 8192) > size, "full");
                }
            }
        }
    }

    #[test]
    fn a_sparse_index_makes_large_pieces_and_many_pieces_make_several_extents() {
        let (cuts, end) = cuts(&index(100_000, 500), 120, 500, 4096, 4096);
        assert_eq!(cuts, [104_096, 204_096, 304_096, 404_096, 504_096]);
        assert_eq!(end, 500);
        let index = index(512, 500);
        let (mut from, mut extents) = (0, 0);
        while from < 500 {
            let (cuts, end) = super::tests::cuts(&index, from, 500, 4096, 4096);
            assert_eq!(cuts[0], 4096 + from * 1000);
            assert!(cuts.len() <= PIECES_MAX + 1 && end > from);
            assert!(cuts.windows(2).all(|w| w[0] < w[1]));
            assert_eq!(*cuts.last().unwrap(), 4096 + end * 1000);
            (from, extents) = (end, extents + 1);
        }
        assert!(extents > 1);
    }

    #[test]
    fn pieces_end_where_the_readable_records_end() {
        let index = index(4000, 500);
        let (cuts, end) = cuts(&index, 0, 10, 1 << 20, 1 << 20);
        assert_eq!((cuts, end), (vec![4096, 4096 + 12_000], 10));
    }
}
