//! What stands in a partition's queue, and who waits for what.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::answer;
use crate::error::{Error, Result};
use crate::format::Batch;
use crate::recovery::PartitionReport;

/// How far an append must have come when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ack {
    /// Offsets are assigned. Survives nothing: a crash loses it.
    Accepted,
    /// The write has completed. Survives the death of the process, not a loss of power.
    Written,
    /// The batch and everything before it in the partition is on stable media.
    #[default]
    Durable,
}

/// The answer to an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the batch's first record.
    pub base_offset: u64,
    /// Number of records.
    pub count: u32,
    /// The level that was reached.
    pub level: Ack,
}

impl Appended {
    /// The offset after the batch.
    ///
    /// ```
    /// use alluvium_core::{Ack, Appended};
    /// let appended = Appended { base_offset: 7, count: 3, level: Ack::Durable };
    /// assert_eq!(appended.end_offset(), 10);
    /// ```
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }
}

/// The answer to an append, and memory that the shard needs no more: it goes back to the thread that
/// took it. Allocators keep what one thread allocates and another frees behind a lock, and whoever
/// holds that lock may lose its core; the shard must not wait for it.
///
/// It comes with the first answer, so that an append that nobody awaits to its end keeps nothing.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) appended: Appended,
    pub(super) _spent: Vec<u8>,
}

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// Room in the mailbox that a request holds until its memory is free again.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    /// Released by being dropped; nobody looks at them.
    pub(crate) _request: Option<OwnedSemaphorePermit>,
    pub(crate) _bytes: Option<OwnedSemaphorePermit>,
}

/// Where the answer to a request goes, and the room in the mailbox that it holds until then.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    pub(crate) reply: Reply<T>,
    permit: Permit,
}

impl<T> Asked<T> {
    /// For a request that holds this room, and where its answer comes.
    pub(crate) fn new(permit: Permit) -> (Self, oneshot::Receiver<Result<T>>) {
        let (reply, answer) = oneshot::channel();
        (Self { reply, permit }, answer)
    }

    pub(crate) fn answer(self, result: Result<T>) {
        // Who hears of it finds the room free.
        drop(self.permit);
        answer(self.reply, result);
    }
}

/// What the shard itself asks for takes no room.
impl<T> From<Reply<T>> for Asked<T> {
    fn from(reply: Reply<T>) -> Self {
        Self {
            reply,
            permit: Permit::default(),
        }
    }
}

/// Who is told what about an append.
#[derive(Debug)]
pub(crate) struct Replies {
    /// Told as soon as offsets are assigned, provisionally, whatever the level.
    pub(crate) placed: Option<Reply<Settled>>,
    /// Told when the level is reached.
    pub(crate) done: Reply<Settled>,
}

impl Replies {
    fn refuse(self, error: Error) {
        match self.placed {
            Some(placed) => answer(placed, Err(error)),
            None => answer(self.done, Err(error)),
        }
    }
}

/// An append in the queue.
#[derive(Debug)]
pub(crate) struct AppendRequest {
    pub(crate) batch: Batch,
    pub(crate) level: Ack,
    /// Where the caller expects the log to end.
    pub(crate) expected: Option<u64>,
    pub(crate) replies: Replies,
    pub(crate) permit: Permit,
}

/// A request that is not an append.
#[derive(Debug)]
pub(crate) enum Change {
    /// Everything before it in the queue becomes durable.
    Sync(Asked<u64>),
    /// Removes all records below the offset.
    Trim(u64, Asked<()>),
    /// Removes all records at and above the offset.
    Truncate(u64, Asked<()>),
    /// Applies retention.
    Retain,
    /// Recovers a failed partition.
    Reopen(Asked<PartitionReport>),
    /// Seals the log and ends the driver.
    Close(Asked<()>),
    /// Ends the driver without another write; the directory is about to go.
    Abandon(Asked<()>),
}

impl Change {
    /// Whether the request ends the partition; that works in any state.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Close(_) | Self::Abandon(_))
    }

    pub(super) fn works_on_failed(&self) -> bool {
        self.is_end() || matches!(self, Self::Reopen(_))
    }

    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Sync(asked) => asked.answer(Err(error)),
            Self::Trim(_, asked)
            | Self::Truncate(_, asked)
            | Self::Close(asked)
            | Self::Abandon(asked) => asked.answer(Err(error)),
            Self::Reopen(asked) => asked.answer(Err(error)),
            Self::Retain => {}
        }
    }
}

/// One entry of the queue.
#[derive(Debug)]
pub(crate) enum Request {
    Append(AppendRequest),
    Change(Change),
}

impl Request {
    /// Answers the request with an error that says it was not applied.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Append(append) => append.replies.refuse(error),
            Self::Change(change) => change.refuse(error),
        }
    }
}

/// Somebody who waits until the first `count` batches have come far enough.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) count: u64,
    pub(super) kind: WaiterKind,
    /// Held until the memory of the batch can be given up.
    pub(super) permit: Permit,
}

/// What the waiter is told.
#[derive(Debug)]
pub(super) enum WaiterKind {
    Append(Settled, Reply<Settled>),
    Sync(u64, Asked<u64>),
    /// A trim to this offset: it takes effect when its control batch is durable.
    Trim(u64, Option<Asked<()>>),
    /// Offsets below are reserved once the control batch is durable.
    Reserve(u64),
    /// Only the permit waits.
    Nobody,
}

impl WaiterKind {
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Append(_, reply) => answer(reply, Err(error)),
            Self::Sync(_, asked) => asked.answer(Err(error)),
            Self::Trim(_, Some(asked)) => asked.answer(Err(error)),
            Self::Trim(_, None) | Self::Reserve(_) | Self::Nobody => {}
        }
    }
}
