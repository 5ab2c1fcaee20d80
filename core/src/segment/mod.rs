//! One segment file: naming, the sparse index, walking and scanning batches, the write cursor of
//! the active segment, and the preparation of spare files.
//!
//! A segment file has a fixed length. Its first 4096 bytes are the header block; groups of batches
//! follow, each group starting at a multiple of the segment's alignment. The bytes after the last
//! group are whatever the file held in an earlier use: only the identity in the header and in each
//! batch tells them apart. A file is put to a new use by one write of its header block, without any
//! directory operation, which is why a roll works on a full disk.

mod active;
mod cursor;
mod index;
mod name;
mod piece;
mod scan;
mod spare;

use std::cell::{Cell, OnceCell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub(crate) use active::{ActiveSegment, GroupContext, PlacedBatch, PlacedGroup};
pub(crate) use cursor::{Cursor, ReadError};
pub(crate) use index::SparseIndex;
use index::newest_record;
pub(crate) use name::{FileName, INDEX_SUFFIX, SEGMENT_SUFFIX};
pub(crate) use piece::{Extent, Piece, PieceSizes};
pub(crate) use scan::{Scan, Stop, scan_segment};
pub(crate) use spare::{SpareFile, SpareRequest, ZERO_CHUNK_BYTES, prepare_spare, zero};

use crate::error::{Corruption, CorruptionKind, Error, Result};
use crate::format::{SEGMENT_HEADER_LEN, SegmentHeader, StoredBatch};
use crate::io::{BufPool, FailStop, FileMap, IoBackend, IoFile};

/// A segment that belongs to the log: its file, header, and how far it counts.
///
/// Readers hold it by `Rc`; the file is put to another use only when the last of them lets go.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) file: FailStop<F>,
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// End of the records that count: the end of what was appended, or less after a truncation.
    pub(crate) end_offset: Cell<u64>,
    /// Byte position after the last group.
    pub(crate) end_position: Cell<u64>,
    /// `None` until it is loaded or rebuilt.
    index: RefCell<Option<SparseIndex>>,
    /// Empty until the first try; `None` when the file cannot be mapped.
    map: OnceCell<Option<FileMap>>,
}

impl<F: IoFile> Segment<F> {
    pub(crate) fn new(
        file: FailStop<F>,
        path: PathBuf,
        header: SegmentHeader,
        end_offset: u64,
        end_position: u64,
        index: Option<SparseIndex>,
    ) -> Self {
        Self {
            file,
            path,
            header,
            end_offset: Cell::new(end_offset),
            end_position: Cell::new(end_position),
            index: RefCell::new(index),
            map: OnceCell::new(),
        }
    }

    /// First offset of the segment.
    pub(crate) fn base_offset(&self) -> u64 {
        self.header.base_offset
    }

    /// Runs `f` on the index if it is in memory.
    pub(crate) fn with_index<T>(&self, f: impl FnOnce(&mut SparseIndex) -> T) -> Option<T> {
        self.index.borrow_mut().as_mut().map(f)
    }

    /// Puts an index in place that was built elsewhere.
    pub(crate) fn set_index(&self, index: SparseIndex) {
        *self.index.borrow_mut() = Some(index);
    }

    /// Makes sure that the index is in memory: takes it from its file, or walks the segment.
    pub(crate) async fn load_index<B: IoBackend<File = F>>(
        &self,
        backend: &B,
        pool: &BufPool,
        interval_bytes: u32,
    ) -> Result<()> {
        if self.index.borrow().is_some() {
            return Ok(());
        }
        let index = match index::read_file(backend, self).await {
            Some(index) => index,
            None => self.rebuild_index(pool, interval_bytes).await?,
        };
        *self.index.borrow_mut() = Some(index);
        Ok(())
    }

    async fn rebuild_index(&self, pool: &BufPool, interval_bytes: u32) -> Result<SparseIndex> {
        let mut index = SparseIndex::new(interval_bytes);
        let mut cursor = Cursor::new(self, pool, 1 << 20);
        let mut position = SEGMENT_HEADER_LEN as u64;
        let end = self.end_position.get();
        while position < end {
            match cursor.batch_at(position).await {
                Ok(batch) => {
                    let header = batch.header();
                    let newest = newest_record(header.record_count, header.max_timestamp());
                    index.push(header.base_offset, position, newest);
                    position = cursor.position_after(header, position);
                }
                // Damage is the reader's to report; the index goes on behind it.
                Err(ReadError::Format(_)) => match cursor.resynchronise(position, end).await? {
                    Some((next, _)) => position = next,
                    None => break,
                },
                Err(ReadError::Io(e)) => return Err(Error::io("read", &self.path, e)),
            }
        }
        Ok(index)
    }

    /// Writes the index beside the segment. Derived data: a failure is of no consequence.
    pub(crate) async fn save_index<B: IoBackend<File = F>>(&self, backend: &B) {
        let encoded = self.with_index(|index| index.encode(&self.header, self.end_position.get()));
        if let Some(bytes) = encoded {
            index::write_file(backend, &self.path, &bytes).await;
        }
    }

    /// Reads verified batches from the one that holds `from`, up to `end_offset`.
    ///
    /// Stops once `bytes_max` is reached; returns at least one batch when there is one.
    pub(crate) async fn read(
        &self,
        pool: &BufPool,
        from: u64,
        end_offset: u64,
        bytes_max: usize,
        chunk_bytes: usize,
    ) -> Result<Vec<StoredBatch>> {
        let end_offset = end_offset.min(self.end_offset.get());
        let end_position = self.end_position.get();
        let mut position = self
            .with_index(|index| index.floor(from))
            .unwrap_or(SEGMENT_HEADER_LEN as u64);
        let mut cursor = Cursor::new(self, pool, chunk_bytes.min(bytes_max.max(16 << 10)));
        let mut expected = from;
        let mut batches = Vec::new();
        let mut bytes = 0_usize;
        while position < end_position && expected < end_offset {
            let batch = match cursor.batch_at(position).await {
                Ok(batch) => batch,
                Err(ReadError::Io(e)) => return Err(Error::io("read", &self.path, e)),
                Err(ReadError::Format(found)) => {
                    let next = cursor.resynchronise(position, end_position).await?;
                    // Damage before the wanted offset does not concern this reader.
                    if let Some((next_position, next_offset)) = next
                        && next_offset <= from
                    {
                        position = next_position;
                        continue;
                    }
                    if !batches.is_empty() {
                        break;
                    }
                    return Err(self.corruption(
                        position,
                        expected,
                        next.map(|(_, offset)| offset)
                            .or(Some(self.end_offset.get())),
                        found,
                    ));
                }
            };
            let header = batch.header();
            let (base, next_position) =
                (header.base_offset, cursor.position_after(header, position));
            let end = batch.end_offset();
            if end <= from || header.record_count == 0 {
                position = next_position;
                continue;
            }
            if base > expected && base > self.base_offset() {
                let found = CorruptionKind::Misplaced("offsets are missing before it");
                return Err(self.corruption(position, expected, Some(base), found));
            }
            let size = header.total_len();
            if !batches.is_empty() && bytes.saturating_add(size) > bytes_max {
                break;
            }
            bytes = bytes.saturating_add(size);
            expected = end;
            batches.push(batch.clip(from, end_offset));
            position = next_position;
        }
        Ok(batches)
    }

    /// Byte position after the last batch that holds an offset below `end`. Damage that hides such
    /// offsets counts as part of them.
    pub(crate) async fn cut_position(&self, pool: &BufPool, end: u64) -> Result<u64> {
        let end_position = self.end_position.get();
        let floor = self.with_index(|index| index.floor(end.saturating_sub(1)));
        let mut position = floor.unwrap_or(SEGMENT_HEADER_LEN as u64);
        let mut cursor = Cursor::new(self, pool, 256 << 10);
        let mut reached = None;
        while position < end_position && reached < Some(end) {
            position = match cursor.batch_at(position).await {
                Ok(batch) if batch.base_offset() >= end => break,
                Ok(batch) => {
                    reached = Some(batch.end_offset());
                    cursor.position_after(batch.header(), position)
                }
                Err(ReadError::Io(e)) => return Err(Error::io("read", &self.path, e)),
                Err(ReadError::Format(_)) => {
                    match cursor.resynchronise(position, end_position).await? {
                        Some((next, _)) => next,
                        None => end_position,
                    }
                }
            };
        }
        Ok(position)
    }

    pub(crate) fn corruption(
        &self,
        position: u64,
        offset_start: u64,
        offset_end: Option<u64>,
        found: CorruptionKind,
    ) -> Error {
        Error::corrupt(Corruption {
            path: self.path.clone(),
            partition: self.header.partition,
            position,
            offset_start,
            offset_end,
            found,
        })
    }

    /// Takes the segment apart when nobody else reads it, and nobody holds bytes of its file.
    pub(crate) fn try_into_file<B: IoBackend<File = F>>(
        this: Rc<Self>,
        backend: &B,
    ) -> Result<(FailStop<F>, PathBuf), Rc<Self>> {
        let mut segment = Rc::try_unwrap(this)?;
        drop(segment.map.take());
        if backend.is_mapped(&segment.path) {
            return Err(Rc::new(segment));
        }
        Ok((segment.file, segment.path))
    }
}

/// Path of the index file that belongs to the segment file at `path`.
fn index_path(path: &Path) -> PathBuf {
    path.with_extension(INDEX_SUFFIX)
}
