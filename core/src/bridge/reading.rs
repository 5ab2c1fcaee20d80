//! Reads, on the caller's side: the tail from memory, the rest piece by piece from the disk.
//!
//! A read first looks at the [tail](crate::partition::Tail), which takes no request to the shard.
//! What lies further back the shard reads from the disk, and the caller's thread decodes it and
//! verifies every checksum, once for each batch that it returns.
//!
//! Where a read from the disk ends is noted. A read that takes up there is sequential, and from
//! then on its [`Place`] is kept, with the rest of the piece in memory and the plan of those that
//! follow, and pieces are read ahead, as many as the settings allow, while the caller is busy with
//! others. All memory that is kept between two reads has room in `read_ahead_bytes_max`, or is
//! not kept: readers at random places leave nothing behind. Places are kept by the handle (and its
//! clones), a few of them; a subscription has its own and reads ahead from the start. When the
//! holder is dropped, the read-ahead is: what has not begun is not done, what comes back is let go.
//!
//! A place belongs to an epoch of the log, as the tail does: after a truncation or recovery it is
//! forgotten. The shard judges whatever does not decode, by reading it once more itself: so damage
//! is reported in one way only, and a piece that was overtaken by events is never taken for damage.

use std::collections::VecDeque;
use std::sync::PoisonError;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Mailbox, Partition};
use crate::error::Result;
use crate::format::StoredBatch;
use crate::offset::Offsets;
use crate::partition::{
    Asked, Fetched, Located, OnDisk, RawPiece, ReadLimits, Reading, TailRead, Visibility, Wanted,
};
use crate::segment::{Extent, Piece};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Places that a handle keeps: for so many readers side by side.
const PLACES_MAX: usize = 4;

type Coming<T> = oneshot::Receiver<Result<T>>;

/// Where sequential readers stand.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Oldest first.
    kept: Mutex<Vec<Kept>>,
    /// How many: reads of the tail need no lock to see that there are none.
    count: AtomicUsize,
    /// Whether every reader here is sequential.
    sequential: bool,
}

/// What is kept of a reader between two reads.
#[derive(Debug)]
struct Kept {
    /// The offset that it reads next.
    next: u64,
    /// `None` for one who has read once, and for one for whom there is no room.
    place: Option<Box<Place>>,
}

impl Places {
    /// Places of a reader that is known to go on.
    pub(super) fn sequential() -> Self {
        Self {
            sequential: true,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Nothing that is guarded can panic half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of the reader who is at `from`.
    fn take(&self, from: u64) -> Option<Kept> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut kept = self.lock();
        let at = kept.iter().position(|kept| kept.next == from)?;
        let found = kept.remove(at);
        self.count.store(kept.len(), Ordering::Relaxed);
        Some(found)
    }

    /// Notes where a reader stands, and keeps what has room in the read-ahead.
    fn put(&self, place: Box<Place>) {
        let next = place.next;
        let has_room = place.piece.is_none() || place.room.is_some();
        let place = has_room.then_some(place);
        let mut kept = self.lock();
        let oldest = (kept.len() >= PLACES_MAX).then(|| kept.remove(0));
        kept.push(Kept { next, place });
        self.count.store(kept.len(), Ordering::Relaxed);
        drop(kept);
        drop(oldest);
    }

    /// Forgets all places: their memory goes, and what is on its way is not waited for.
    pub(super) fn clear(&self) {
        let kept = std::mem::take(&mut *self.lock());
        self.count.store(0, Ordering::Relaxed);
        drop(kept);
    }
}

/// Where a reader stands on the disk, and what is on its way to it.
#[derive(Debug)]
struct Place {
    /// The offset that it reads next.
    next: u64,
    epoch: u64,
    extent: Extent,
    /// Whether there are records behind the extent.
    more: bool,
    piece: Option<Piece>,
    /// Room of the read-ahead that the piece takes, if it does.
    room: Option<OwnedSemaphorePermit>,
    /// Pieces on their way, in order, with their bounds.
    ahead: VecDeque<(Wanted, Coming<Option<RawPiece>>)>,
    /// The first of the extent's cuts of which nothing has been asked yet.
    unasked: usize,
    /// The extent that follows.
    following: Option<Coming<Located>>,
}

/// How a read went.
enum Step {
    Found(Vec<StoredBatch>),
    /// The place is no longer part of the log, or was never.
    Stale,
    /// Something does not decode.
    Doubt,
}

/// What one read may return.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    from: u64,
    end: u64,
    limits: ReadLimits,
    sequential: bool,
}

impl Place {
    fn new(located: OnDisk) -> Self {
        Self {
            next: located.start,
            epoch: located.epoch,
            extent: located.extent,
            more: located.more,
            piece: Some(located.first),
            room: located.ahead,
            ahead: VecDeque::new(),
            // The first piece lies between the first two cuts.
            unasked: 1,
            following: None,
        }
    }

    /// Whether everything of the extent has been read.
    fn is_over(&self) -> bool {
        self.next >= self.extent.end_offset
    }

    /// Verified batches from `from` on, as many as the bounds allow.
    async fn read(&mut self, partition: &Partition, bounds: Bounds) -> Result<Step> {
        let Bounds {
            from,
            end,
            limits,
            sequential,
        } = bounds;
        let end = end.min(self.extent.end_offset);
        let mut records_left = limits.records_max.max(1);
        let (mut batches, mut bytes) = (Vec::new(), 0_usize);
        self.next = from;
        while self.next < end && records_left > 0 {
            self.ask_ahead(
                partition,
                limits.bytes_max.saturating_sub(bytes),
                sequential,
            )?;
            let Some(piece) = &mut self.piece else {
                match self.next_piece(partition).await? {
                    Some(piece) => self.piece = Some(piece),
                    // No piece is left, and yet there should be an offset.
                    None if self.unasked + 1 >= self.extent.cuts.len() => return doubt(batches),
                    None => return stale(batches),
                }
                continue;
            };
            let Ok(header) = piece.peek() else {
                return doubt(batches);
            };
            let Some(header) = header else {
                (self.piece, self.room) = (None, None);
                continue;
            };
            let (base, batch_end) = (header.base_offset, header.end_offset().unwrap_or(0));
            if header.record_count == 0 || batch_end <= self.next {
                piece.advance(&header);
                continue;
            }
            if base > self.next && base > self.extent.header.base_offset {
                return doubt(batches);
            }
            if !batches.is_empty() && bytes.saturating_add(header.total_len()) > limits.bytes_max {
                break;
            }
            let Ok(batch) = piece.batch(&header) else {
                return doubt(batches);
            };
            bytes = bytes.saturating_add(header.total_len());
            let mut batch = batch.clip(self.next, end);
            let count = batch.end_offset() - batch.first_offset();
            if count > records_left && !batch.is_opaque() {
                let first = batch.first_offset();
                batch = batch.clip(first, first + records_left);
            }
            self.next = batch.end_offset();
            records_left = records_left.saturating_sub(count);
            batches.push(batch);
            // A batch of which a part is still to be read is looked at again.
            if self.next == batch_end {
                piece.advance(&header);
            }
        }
        Ok(Step::Found(batches))
    }

    /// The next piece of the extent: from what was read ahead, or read now. `None` when it is not
    /// to be had.
    async fn next_piece(&mut self, partition: &Partition) -> Result<Option<Piece>> {
        let mailbox = partition.mailbox();
        let (wanted, coming) = if let Some(ahead) = self.ahead.pop_front() {
            ahead
        } else {
            let Some(wanted) = self.wanted() else {
                return Ok(None);
            };
            let permit = mailbox.reserve(0).await?;
            let (asked, coming) = Asked::new(permit);
            mailbox.send(partition.piece(wanted, asked, None))?;
            self.unasked += 1;
            (wanted, coming)
        };
        let raw = mailbox.answer(coming).await?;
        let raw = raw.filter(|raw| raw.epoch == self.epoch);
        Ok(raw.map(|raw| {
            self.room = raw.ahead;
            let bytes = (raw.start, raw.bytes);
            Piece::new(self.extent.header, bytes, wanted.start, wanted.end)
        }))
    }

    /// The first piece of the extent that nobody has asked for.
    fn wanted(&self) -> Option<Wanted> {
        let cuts = self.extent.cuts.get(self.unasked..)?;
        match *cuts {
            [start, end, ..] => Some(Wanted {
                identity: self.extent.header.identity,
                start,
                end,
            }),
            _ => None,
        }
    }

    /// Asks for pieces ahead of the reader, as far as there is room: all that may be under way
    /// for one who reads on, for others only what `bytes` of this read take.
    fn ask_ahead(&mut self, partition: &Partition, bytes: usize, sequential: bool) -> Result<()> {
        let mailbox = partition.mailbox();
        let mut asked_bytes: u64 = self.ahead.iter().map(|(w, _)| w.end - w.start).sum();
        while self.ahead.len() < mailbox.read_ahead_chunks() {
            if !sequential && asked_bytes >= bytes as u64 {
                return Ok(());
            }
            let Some(wanted) = self.wanted() else {
                return self.ask_following(partition, sequential);
            };
            let Some((permit, ahead)) = mailbox.try_ahead(wanted.end - wanted.start) else {
                return Ok(());
            };
            let (asked, coming) = Asked::new(permit);
            mailbox.send(partition.piece(wanted, asked, Some(ahead)))?;
            asked_bytes += wanted.end - wanted.start;
            self.ahead.push_back((wanted, coming));
            self.unasked += 1;
        }
        Ok(())
    }

    /// Asks for what follows the extent, when all of the extent is on its way.
    fn ask_following(&mut self, partition: &Partition, sequential: bool) -> Result<()> {
        if !sequential || !self.more || self.following.is_some() {
            return Ok(());
        }
        let mailbox = partition.mailbox();
        let Some((permit, ahead)) = mailbox.try_ahead(mailbox.read_chunk_bytes()) else {
            return Ok(());
        };
        let reading = Reading {
            from: self.extent.end_offset,
            limits: ReadLimits::default(),
            visibility: Visibility::Durable,
            sequential,
        };
        let (asked, coming) = Asked::new(permit);
        mailbox.send(partition.locate(reading, asked, Some(ahead)))?;
        self.following = Some(coming);
        Ok(())
    }

    /// The place at the beginning of the extent that follows, if it was asked for and is of use.
    async fn follow(self: Box<Self>, mailbox: &Mailbox) -> Option<Box<Self>> {
        match mailbox.answer(self.following?).await {
            Ok(Located::Disk(located)) if located.epoch == self.epoch => {
                Some(Box::new(Self::new(*located)))
            }
            // From memory meanwhile, or an error that is looked for again by the read itself.
            _ => None,
        }
    }
}

/// What was sound is returned; the next read meets the rest.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the way out of a function that fails"
)]
fn doubt(batches: Vec<StoredBatch>) -> Result<Step> {
    Ok(if batches.is_empty() {
        Step::Doubt
    } else {
        Step::Found(batches)
    })
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the way out of a function that fails"
)]
fn stale(batches: Vec<StoredBatch>) -> Result<Step> {
    Ok(if batches.is_empty() {
        Step::Stale
    } else {
        Step::Found(batches)
    })
}

/// Reads with the places of the one who reads. See [`Partition::read`].
pub(super) async fn read(
    partition: &Partition,
    places: &Places,
    from: u64,
    limits: ReadLimits,
    visibility: Visibility,
) -> Result<Fetched> {
    loop {
        partition.mailbox().pass().await?;
        let (epoch, offsets) = match partition.tail().read(from, limits, visibility)? {
            TailRead::Found(fetched) => {
                // The reader has come to the tail: nothing is to be read ahead any more.
                drop(places.take(from));
                return Ok(fetched);
            }
            TailRead::Older(epoch, offsets) => (epoch, offsets),
            TailRead::Unknown => {
                places.clear();
                return partition.read_on_shard(from, limits, visibility).await;
            }
        };
        let kept = places.take(from);
        let sequential = places.sequential || kept.is_some();
        let kept = kept.and_then(|kept| kept.place);
        let kept = match kept.filter(|place| place.epoch == epoch) {
            Some(place) if place.is_over() => place.follow(partition.mailbox()).await,
            kept => kept,
        };
        let reading = Reading {
            from,
            limits,
            visibility,
            sequential,
        };
        // The offsets that the answer is told with are those that bound it.
        let (mut place, offsets): (Box<Place>, Offsets) = match kept {
            Some(place) => (place, offsets),
            None => match partition.locate_now(reading).await? {
                Located::Here(fetched) => return Ok(fetched),
                Located::Disk(located) => {
                    let offsets = located.offsets;
                    (Box::new(Place::new(*located)), offsets)
                }
            },
        };
        let bounds = Bounds {
            // Above `from` where offsets were skipped.
            from: from.max(place.next),
            end: visibility.end(offsets),
            limits,
            sequential,
        };
        match place.read(partition, bounds).await? {
            Step::Found(batches) if !batches.is_empty() => {
                let next = place.next;
                places.put(place);
                return Ok(Fetched::new(batches, next, offsets));
            }
            Step::Found(_) | Step::Doubt => {
                return partition.read_on_shard(from, limits, visibility).await;
            }
            Step::Stale => {}
        }
    }
}
