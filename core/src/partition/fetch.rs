//! The shard's part of reads from the disk: it finds the segment and reads bytes; decoding and
//! verifying them is the caller's, so that readers who catch up cost the shard, and with it the
//! appends, next to nothing.
//!
//! A caller first [locates](Partition::locate) an offset and gets the first piece of the log there
//! together with a plan of the pieces that follow; then it may ask for any of those by position.
//! Between the two nothing is kept for it here: a piece is named by the identity of its segment,
//! and is gone when that segment is. While a piece is being read, the segment is held by reference
//! count, so its file is not put to another use; while it waits for its [turn](super::gate), it is
//! not held, and a read whose caller has gone ends there.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::gate::Turn;
use super::{Fetched, Mode, Partition, ReadLimits, Visibility};
use crate::config::SealedReads;
use crate::error::{Error, Result};
use crate::io::IoBackend;
use crate::offset::Offsets;
use crate::segment::{Extent, Piece, PieceSizes, Segment};

/// A read of one partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) from: u64,
    pub(crate) limits: ReadLimits,
    pub(crate) visibility: Visibility,
    /// Whether the reader is going to read on.
    pub(crate) sequential: bool,
}

/// Where an offset lies.
#[derive(Debug)]
pub(crate) enum Located {
    /// No disk was needed, or the shard did it all.
    Here(Fetched),
    Disk(Box<OnDisk>),
}

/// A stretch of a segment, with its first piece.
#[derive(Debug)]
pub(crate) struct OnDisk {
    /// First offset to be read; above the one asked for where offsets were skipped.
    pub(crate) start: u64,
    pub(crate) offsets: Offsets,
    /// Epoch of the log that the offsets and the bytes belong to.
    pub(crate) epoch: u64,
    pub(crate) extent: Extent,
    /// Whether there were records behind the extent.
    pub(crate) more: bool,
    pub(crate) first: Piece,
    /// Room of the read-ahead for the first piece, if the reader goes on.
    pub(crate) ahead: Option<OwnedSemaphorePermit>,
}

/// A piece to be read: `[start, end)` of the file of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) identity: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Bytes of a segment's file, as the disk gave them.
#[derive(Debug)]
pub(crate) struct RawPiece {
    pub(crate) epoch: u64,
    /// Where the bytes start in the file.
    pub(crate) start: u64,
    pub(crate) bytes: Bytes,
    /// Room of the read-ahead, held as long as the piece is.
    pub(crate) ahead: Option<OwnedSemaphorePermit>,
}

/// Ready when nobody waits for the answer any more.
pub(crate) type Gone<'a> = &'a mut dyn FnMut(&mut Context<'_>) -> Poll<()>;

/// Looks whether somebody waits for the answer; [`Error::Closed`], which nobody hears, if not. To be
/// asked between two reads: one that is under way keeps its buffer, and so the room that it has.
pub(super) async fn still_wanted(gone: Gone<'_>) -> Result<()> {
    let has_gone = poll_fn(|cx| Poll::Ready(gone(cx).is_ready())).await;
    if has_gone { Err(Error::Closed) } else { Ok(()) }
}

/// What a read found before it came to the disk.
pub(super) enum Found<F> {
    Here(Fetched),
    Segment {
        segment: Rc<Segment<F>>,
        start: u64,
        offsets: Offsets,
        epoch: u64,
    },
}

/// Smallest first read, in bytes, of a reader who may not read on.
const FIRST_BYTES_MIN: usize = 16 << 10;

impl<B: IoBackend> Partition<B> {
    /// Finds the segment that holds `from`, or answers without one.
    pub(super) async fn find(
        &self,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<Found<B::File>> {
        if let Some(fetched) = self.read_cached(from, limits, visibility)? {
            return Ok(Found::Here(fetched));
        }
        let (offsets, reused_below, epoch, failure, candidates) = {
            let state = self.state.borrow();
            let segments: Vec<_> = state.segments().cloned().collect();
            // The last segment that starts at or below `from`; its successors if it ends below.
            let first = segments
                .partition_point(|s| s.base_offset() <= from)
                .saturating_sub(1);
            let failure = match &state.mode {
                Mode::Failed(cause) if segments.is_empty() => Some(self.failed(cause)),
                _ => None,
            };
            let candidates = segments.into_iter().skip(first);
            let epoch = self.tail.epoch();
            (
                state.offsets,
                state.reused_below,
                epoch,
                failure,
                candidates,
            )
        };
        let end = visibility.end(offsets);
        if from < reused_below {
            return Err(Error::OutOfRange {
                requested: from,
                start: reused_below,
                end,
            });
        }
        let context = &self.context;
        let (pool, interval) = (&context.pool, context.config.index_interval_bytes);
        for segment in candidates {
            // Offsets that were skipped lie between segments.
            let start = from.max(segment.base_offset());
            if segment.end_offset.get() <= start {
                continue;
            }
            if start >= end {
                break;
            }
            segment
                .load_index(self.shard.backend.as_ref(), pool, interval)
                .await?;
            // What follows skipped offsets may be only in the cache yet.
            if from < start
                && let Some(fetched) = self.read_cached(start, limits, visibility)?
            {
                return Ok(Found::Here(fetched));
            }
            return Ok(Found::Segment {
                segment,
                start,
                offsets,
                epoch,
            });
        }
        // A failed partition whose reopening failed too has let go of its segments; otherwise
        // there are only skipped offsets from here to the end.
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Found::Here(Fetched::new(Vec::new(), end, offsets))),
        }
    }

    /// Finds an offset and reads the first piece there.
    pub(crate) async fn locate(
        self: Rc<Self>,
        reading: Reading,
        ahead: Option<OwnedSemaphorePermit>,
        gone: Gone<'_>,
    ) -> Result<Located> {
        let Reading {
            from,
            limits,
            visibility,
            sequential,
        } = reading;
        let found = self.find(from, limits, visibility).await?;
        let (segment, start, offsets, epoch) = match found {
            Found::Here(fetched) => return Ok(Located::Here(fetched)),
            Found::Segment {
                segment,
                start,
                offsets,
                epoch,
            } => (segment, start, offsets, epoch),
        };
        let config = &self.context.config;
        let others = config.read_chunk_bytes;
        let wanted = limits.bytes_max.max(FIRST_BYTES_MIN);
        let first = if sequential {
            others
        } else {
            others.min(wanted)
        };
        let sizes = PieceSizes { first, others };
        let piece_bytes_max = others
            .max(config.group_bytes_max as usize)
            .saturating_mul(4);
        // What is still being written is not on the disk, whatever the offsets say.
        let end = visibility.end(offsets).min(offsets.written());
        let extent = segment.extent(start, end, sizes, piece_bytes_max);
        let (Some(extent), true) = (extent, self.tail.epoch() == epoch) else {
            // A truncation came in between, or the index is of no use: step by step, then.
            let read = self.read(from, limits, visibility).await;
            return read.map(Located::Here);
        };
        let (position, piece_end) = match extent.cuts[..] {
            [position, end, ..] => (position, end),
            _ => (0, 0),
        };
        let header = segment.header;
        // Who waits for the disk must not keep the file from its next use.
        drop(segment);
        let place = (position, piece_end);
        let Some(raw) = self.read_raw(header.identity, place, gone).await? else {
            let read = self.read(from, limits, visibility).await;
            return read.map(Located::Here);
        };
        let first = Piece::new(header, raw, position, piece_end);
        // The room was asked for before the size was known. Without it, nothing is kept.
        let paid = ahead.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let ahead = ahead.filter(|_| piece_end - position <= paid as u64);
        Ok(Located::Disk(Box::new(OnDisk {
            start,
            offsets,
            epoch,
            more: extent.end_offset < end,
            extent,
            first,
            ahead,
        })))
    }

    /// Reads a piece; `None` when its segment is no longer part of the log.
    pub(crate) async fn read_piece(
        self: Rc<Self>,
        wanted: Wanted,
        ahead: Option<OwnedSemaphorePermit>,
        gone: Gone<'_>,
    ) -> Result<Option<RawPiece>> {
        let place = (wanted.start, wanted.end);
        let read = self.read_raw(wanted.identity, place, gone).await?;
        Ok(read.map(|(start, bytes)| RawPiece {
            // That of the end: what was cut away while the disk was read must not be believed.
            epoch: self.tail.epoch(),
            start,
            bytes,
            ahead,
        }))
    }

    /// Waits for the turn of a read; [`Error::Closed`], which nobody hears, when its caller has gone.
    async fn turn(&self, len: usize, gone: Gone<'_>) -> Result<Turn<'_>> {
        let mut turn = pin!(self.shard.gate.turn(len));
        poll_fn(|cx| match gone(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::Closed)),
            Poll::Pending => turn.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// The bytes that cover `[start, end)` of the segment with this identity, and where they start;
    /// `None` when it is no longer part of the log.
    async fn read_raw(
        &self,
        identity: u64,
        (start, end): (u64, u64),
        gone: Gone<'_>,
    ) -> Result<Option<(u64, Bytes)>> {
        let (backend, context) = (self.shard.backend.as_ref(), &self.context);
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let turn = self.turn(len, gone).await?;
        let found = {
            let state = self.state.borrow();
            if let Mode::Closed = state.mode {
                return Err(Error::Closed);
            }
            let mut newest_first = state.segments().rev();
            let found = newest_first.position(|s| s.header.identity == identity);
            found.and_then(|n| Some((n == 0, Rc::clone(state.segments().rev().nth(n)?))))
        };
        let Some((is_newest, segment)) = found else {
            return Ok(None);
        };
        // The newest is appended to, and written to by recoveries.
        let mapped = context.config.sealed_reads == SealedReads::Mmap && !is_newest;
        let read = segment.read_raw(backend, &context.pool, (start, end), mapped);
        let read = read.await;
        drop(turn);
        self.shard.stats.read_from_disk();
        let read = read.map_err(|e| Error::io("read", &segment.path, e))?;
        Ok(Some(read))
    }
}
