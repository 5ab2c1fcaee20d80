//! The handle of a partition: what an embedding queue calls.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::pending::{AppendOptions, PendingAppend, TryAppendError};
use super::reading::{self, Places};
use super::{Mailbox, Subscription};
use crate::error::{Error, Result};
use crate::format::{Batch, BatchKind};
use crate::offset::Offsets;
use crate::partition::{
    Ack, AppendRequest, Appended, Asked, Change, Fetched, InspectRequest, Inspection, Located,
    PartitionInfo, Permit, RawPiece, ReadLimits, Reading, Replies, Request, Tail, Visibility,
    Wanted,
};
use crate::recovery::PartitionReport;
use crate::shard::{Adopted, Command};

/// A partition of an open store. Cheap to clone, usable from any thread.
///
/// # Cancellation
/// Every future here may be dropped at any point. Before the request has room in the mailbox
/// nothing has happened; after that it takes effect, and only the answer is lost. Reads, lookups and
/// inspections, which have no effect, end early then.
#[derive(Debug, Clone)]
pub struct Partition {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: u64,
    incarnation: u32,
    mailbox: Mailbox,
    /// To wait for offsets; they are read from the tail.
    offsets: watch::Receiver<Offsets>,
    tail: Arc<Tail>,
    /// Where readers through this handle and its clones stand.
    places: Places,
    batch_bytes_max: usize,
}

impl Partition {
    pub(crate) fn new(mailbox: Mailbox, adopted: &Adopted) -> Self {
        Self {
            inner: Arc::new(Inner {
                id: adopted.id,
                incarnation: adopted.incarnation,
                mailbox,
                offsets: adopted.offsets.clone(),
                tail: Arc::clone(&adopted.tail),
                places: Places::default(),
                batch_bytes_max: adopted.batch_bytes_max,
            }),
        }
    }

    /// The partition's id.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Tells this partition from one of the same id that was deleted.
    pub fn incarnation(&self) -> u32 {
        self.inner.incarnation
    }

    /// Largest encoded batch that is accepted, in bytes.
    pub fn batch_bytes_max(&self) -> usize {
        self.inner.batch_bytes_max
    }

    /// Appends a batch, atomically, and returns once it is on stable media.
    ///
    /// # Errors
    /// * certainly not applied: [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Closed`],
    ///   [`Error::ReadOnly`], [`Error::PartitionFailed`], [`Error::PartitionNotFound`],
    ///   [`Error::ControlBatch`];
    /// * [`Error::OutcomeUnknown`]: the write failed; after [`reopen`](Self::reopen) the batch is
    ///   there as a whole or not at all.
    pub async fn append(&self, batch: Batch) -> Result<Appended> {
        self.append_with(batch, Ack::Durable).await
    }

    /// Appends a batch only if the log ends at `expected_end`; returns once it is durable.
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`Error::WrongOffset`] (not applied).
    pub async fn append_at(&self, expected_end: u64, batch: Batch) -> Result<Appended> {
        let options = AppendOptions::from(Ack::Durable).expected_end(expected_end);
        self.append_with(batch, options).await
    }

    /// Appends a batch and returns once it has come as far as asked.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_with(
        &self,
        batch: Batch,
        options: impl Into<AppendOptions>,
    ) -> Result<Appended> {
        let permit = self.reserve(&batch).await?;
        let (done, answer) = oneshot::channel();
        self.submit(
            batch,
            options.into(),
            Replies { placed: None, done },
            permit,
        )?;
        Ok(self.inner.mailbox.answer(answer).await?.appended)
    }

    /// The first of two steps: returns as soon as offsets are assigned. The batch can be read with
    /// [`Visibility::Visible`] from then on; await [`PendingAppend::acknowledged`] for the level.
    ///
    /// # Errors
    /// As [`append`](Self::append), without `OutcomeUnknown`.
    pub async fn begin_append(
        &self,
        batch: Batch,
        options: impl Into<AppendOptions>,
    ) -> Result<PendingAppend> {
        let permit = self.reserve(&batch).await?;
        let (placed, placed_answer) = oneshot::channel();
        let (done, done_answer) = oneshot::channel();
        let replies = Replies {
            placed: Some(placed),
            done,
        };
        self.submit(batch, options.into(), replies, permit)?;
        let mailbox = self.inner.mailbox.clone();
        let placed = mailbox.answer(placed_answer).await?.appended;
        Ok(PendingAppend::new(placed, done_answer, mailbox))
    }

    /// Hands the batch over if the mailbox has room now; the returned future is the
    /// acknowledgement.
    ///
    /// # Errors
    /// [`Error::Full`] (or one of `append`'s immediate errors) together with the batch.
    #[expect(clippy::result_large_err, reason = "the batch comes back by value")]
    pub fn try_append(
        &self,
        batch: Batch,
        options: AppendOptions,
    ) -> Result<impl Future<Output = Result<Appended>> + Send + use<>, TryAppendError> {
        let size = batch.encoded_len();
        let permit = match self
            .check(&batch)
            .and_then(|()| self.inner.mailbox.try_reserve(size))
        {
            Ok(permit) => permit,
            Err(error) => return Err(TryAppendError { error, batch }),
        };
        let (done, answer) = oneshot::channel();
        let sent = self.submit(batch, options, Replies { placed: None, done }, permit);
        let mailbox = self.inner.mailbox.clone();
        Ok(async move {
            sent?;
            Ok(mailbox.answer(answer).await?.appended)
        })
    }

    async fn reserve(&self, batch: &Batch) -> Result<Permit> {
        self.check(batch)?;
        self.inner.mailbox.reserve(batch.encoded_len()).await
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        if batch.kind() == BatchKind::Control {
            return Err(Error::ControlBatch);
        }
        let (size_bytes, limit_bytes) = (batch.encoded_len(), self.inner.batch_bytes_max);
        if size_bytes <= limit_bytes {
            return Ok(());
        }
        Err(Error::TooLarge {
            size_bytes,
            limit_bytes,
        })
    }

    fn submit(
        &self,
        batch: Batch,
        options: AppendOptions,
        replies: Replies,
        permit: Permit,
    ) -> Result<()> {
        let request = Request::Append(AppendRequest {
            batch,
            level: options.ack,
            expected: options.expected_end,
            replies,
            permit,
        });
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        self.inner.mailbox.send(Command::Submit {
            id,
            incarnation,
            request,
        })
    }

    async fn change<T>(&self, change: impl FnOnce(Asked<T>) -> Change) -> Result<T> {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        let ask = |asked| Command::Submit {
            id,
            incarnation,
            request: Request::Change(change(asked)),
        };
        self.inner.mailbox.ask_with_room(ask).await
    }

    /// Reads verified batches from the one that holds `from`.
    ///
    /// Returns at least one record when there is one, and nothing (not an error) at the end of what
    /// may be seen. Offsets that were skipped after a crash are passed over.
    ///
    /// Recent records come from memory: without a request to the shard and without waiting.
    /// Older ones come from the disk, in units of `read_chunk_bytes`; a read that takes up where
    /// an earlier one through this handle or a clone of it ended finds what was read ahead. Every
    /// checksum is verified on the thread that polls this future, which for a large
    /// [`bytes_max`](ReadLimits::bytes_max) takes its time. Batches are slices of the buffers that
    /// were written or read: keeping one keeps its buffer.
    ///
    /// # Cancellation
    /// Dropping the future loses nothing but what was read ahead.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the range that can be read; [`Error::Corrupt`] with the place of
    /// the damage and the offset behind it.
    pub async fn read(
        &self,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<Fetched> {
        self.read_at(&self.inner.places, from, limits, visibility)
            .await
    }

    /// A read by one who keeps places of its own.
    pub(super) async fn read_at(
        &self,
        places: &Places,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<Fetched> {
        reading::read(self, places, from, limits, visibility).await
    }

    /// A read of which the shard does every step.
    pub(super) async fn read_on_shard(
        &self,
        from: u64,
        limits: ReadLimits,
        visibility: Visibility,
    ) -> Result<Fetched> {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        let reading = Reading {
            from,
            limits,
            visibility,
            sequential: false,
        };
        let ask = |asked| Command::Read {
            id,
            incarnation,
            reading,
            asked,
        };
        self.inner.mailbox.ask_with_room(ask).await
    }

    /// Asks the shard where an offset lies, and waits for the answer.
    pub(super) async fn locate_now(&self, reading: Reading) -> Result<Located> {
        let mut reading = reading;
        let mailbox = &self.inner.mailbox;
        let room = reading
            .sequential
            .then(|| mailbox.try_ahead(mailbox.read_chunk_bytes()))
            .flatten();
        // Without room for what is read beyond this read, nothing is.
        reading.sequential = room.is_some();
        let (permit, ahead) = match room {
            Some((permit, ahead)) => (permit, Some(ahead)),
            None => (mailbox.reserve(0).await?, None),
        };
        let (asked, answer) = Asked::new(permit);
        mailbox.send(self.locate(reading, asked, ahead))?;
        mailbox.answer(answer).await
    }

    pub(super) fn locate(
        &self,
        reading: Reading,
        asked: Asked<Located>,
        ahead: Option<OwnedSemaphorePermit>,
    ) -> Command {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        Command::Locate {
            id,
            incarnation,
            reading,
            asked,
            ahead,
        }
    }

    pub(super) fn piece(
        &self,
        wanted: Wanted,
        asked: Asked<Option<RawPiece>>,
        ahead: Option<OwnedSemaphorePermit>,
    ) -> Command {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        Command::Piece {
            id,
            incarnation,
            wanted,
            asked,
            ahead,
        }
    }

    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.inner.mailbox
    }

    pub(super) fn tail(&self) -> &Tail {
        &self.inner.tail
    }

    /// The durable records from `from` on, as a stream that waits at the end for more. It reads
    /// ahead as long as it has not come to the records that are in memory.
    pub fn subscribe(&self, from: u64) -> Subscription {
        Subscription::new(self.clone(), from, ReadLimits::default())
    }

    /// As [`subscribe`](Self::subscribe), with limits for each item.
    pub fn subscribe_with(&self, from: u64, limits: ReadLimits) -> Subscription {
        Subscription::new(self.clone(), from, limits)
    }

    /// Waits until every record below `offset` is durable; returns the offsets of that moment.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::PartitionNotFound`] or [`Error::ShardDead`] when store,
    /// partition or shard end before that.
    pub async fn wait_for(&self, offset: u64) -> Result<Offsets> {
        let mut offsets = self.inner.offsets.clone();
        match offsets.wait_for(|o| o.durable() >= offset).await {
            Ok(offsets) => Ok(*offsets),
            Err(_) => Err(self.ended()),
        }
    }

    /// Why offsets are published no more.
    pub(super) fn ended(&self) -> Error {
        self.inner.mailbox.ended(self.inner.id)
    }

    /// Where the log starts, is durable, is written and ends. Does not cross threads.
    ///
    /// They never lag behind an acknowledgement of any level: after an append with
    /// [`Ack::Accepted`] the log end is beyond it.
    pub fn offsets(&self) -> Offsets {
        let shared = self.inner.tail.offsets();
        shared.unwrap_or_else(|| *self.inner.offsets.borrow())
    }

    /// Makes everything appended before it durable; returns the offset below which that holds.
    pub async fn sync(&self) -> Result<u64> {
        self.change(Change::Sync).await
    }

    /// Removes all records below `offset`, exactly and durably. Space comes back segment by
    /// segment, when no reader needs it any more.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] beyond the log end. Below the log start it is done already.
    pub async fn trim_before(&self, offset: u64) -> Result<()> {
        self.change(|asked| Change::Trim(offset, asked)).await
    }

    /// Removes all records at and above `offset`; durable when it returns. The next append gets
    /// `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::InsideOpaqueBatch`]; [`Error::NoSpace`] when no segment can
    /// be had (nothing was changed).
    pub async fn truncate_to(&self, offset: u64) -> Result<()> {
        self.change(|asked| Change::Truncate(offset, asked)).await
    }

    /// Recovers the partition after [`Error::PartitionFailed`]; other partitions are not touched.
    /// On a healthy partition it only returns the last report.
    ///
    /// A log that lacks what this process has acknowledged is refused with [`Error::Corrupt`] under
    /// every policy, and nothing is changed; [`OnCorruption::CutTail`](crate::OnCorruption::CutTail)
    /// counts as [`Salvage`](crate::OnCorruption::Salvage) here. From the first attempt on, records
    /// are read from memory at most until one succeeds. Opening the store again knows only what is on
    /// the disk, and may take a lost end for one that was never written: copy the partition's files
    /// before.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Fenced`], [`Error::Io`]: as for opening a store. The partition stays
    /// failed, and the call may be repeated.
    pub async fn reopen(&self) -> Result<PartitionReport> {
        self.change(Change::Reopen).await
    }

    /// Offset of the first durable record whose timestamp (milliseconds since the Unix epoch) is
    /// at or after the given one; `None` when all are older.
    ///
    /// # Cancellation
    /// When the future is dropped, the search ends with what is under way: a read, or making the index of
    /// one segment whose index file is of no use.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub async fn offset_for_timestamp(&self, timestamp_ms: i64) -> Result<Option<u64>> {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        let ask = |asked| Command::OffsetForTimestamp {
            id,
            incarnation,
            timestamp_ms,
            asked,
        };
        self.inner.mailbox.ask_with_room(ask).await
    }

    /// A description for operators.
    pub async fn describe(&self) -> Result<PartitionInfo> {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        self.inner
            .mailbox
            .ask(|reply| Command::Describe {
                id,
                incarnation,
                reply,
            })
            .await
    }

    /// Walks segments as they are on the disk, verifies every checksum in them, and goes on behind
    /// damage. Only reads. For tools: it takes its time on the partition's shard.
    ///
    /// # Cancellation
    /// When the future is dropped, the walk ends with the segment that is under way.
    ///
    /// # Errors
    /// Those of reading files; damage is part of the answer.
    pub async fn inspect(&self, request: InspectRequest) -> Result<Inspection> {
        let (id, incarnation) = (self.inner.id, self.inner.incarnation);
        let ask = |asked| Command::Inspect {
            id,
            incarnation,
            request,
            asked,
        };
        self.inner.mailbox.ask_with_room(ask).await
    }

    /// A round trip to the partition's shard and back without any work: what the bridge costs.
    pub async fn ping(&self) -> Result<()> {
        self.inner.mailbox.ping().await
    }

    pub(super) fn watch(&self) -> watch::Receiver<Offsets> {
        self.inner.offsets.clone()
    }
}

/// Makes several partitions durable at once; the first error is returned after all were tried.
pub(crate) async fn sync_all(partitions: &[Partition]) -> Result<()> {
    let results = futures_util::future::join_all(partitions.iter().map(Partition::sync)).await;
    results
        .into_iter()
        .find_map(Result::err)
        .map_or(Ok::<(), Error>(()), Err)
}
