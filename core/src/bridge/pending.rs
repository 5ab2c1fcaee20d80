//! Appends in two steps, and appends that do not wait.

use std::fmt;

use tokio::sync::oneshot;

use super::Mailbox;
use crate::error::{Error, Result};
use crate::format::Batch;
use crate::partition::{Ack, Appended, Settled};

/// How an append is done. An [`Ack`] alone converts into it.
///
/// ```
/// use alluvium_core::{Ack, AppendOptions};
/// let follower = AppendOptions::from(Ack::Written).expected_end(1_000);
/// assert_eq!(follower.ack, Ack::Written);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AppendOptions {
    /// How far the append must have come when it is acknowledged.
    pub ack: Ack,
    /// Append only if the log ends here: the check of a Raft log or of an in-sync follower.
    pub expected_end: Option<u64>,
}

impl AppendOptions {
    /// Append only if the log ends at `offset`; otherwise [`Error::WrongOffset`].
    #[must_use]
    pub fn expected_end(self, offset: u64) -> Self {
        Self {
            expected_end: Some(offset),
            ..self
        }
    }
}

impl From<Ack> for AppendOptions {
    fn from(ack: Ack) -> Self {
        Self {
            ack,
            expected_end: None,
        }
    }
}

/// An append whose offsets are assigned and whose acknowledgement is still to come.
///
/// The offsets are provisional: after a crash before [`acknowledged`](Self::acknowledged) the batch
/// may be gone and its offsets given to another, whatever the level. Those that were acknowledged
/// below `Durable` and lost are skipped. Dropping this does not cancel the append.
#[derive(Debug)]
#[must_use = "the batch is not acknowledged before `acknowledged` returns"]
pub struct PendingAppend {
    placed: Appended,
    done: oneshot::Receiver<Result<Settled>>,
    mailbox: Mailbox,
}

impl PendingAppend {
    pub(super) fn new(
        placed: Appended,
        done: oneshot::Receiver<Result<Settled>>,
        mailbox: Mailbox,
    ) -> Self {
        Self {
            placed,
            done,
            mailbox,
        }
    }

    /// Offset of the batch's first record, provisional.
    pub fn base_offset(&self) -> u64 {
        self.placed.base_offset
    }

    /// The offset after the batch, provisional.
    pub fn end_offset(&self) -> u64 {
        self.placed.end_offset()
    }

    /// Waits until the batch has reached the level that was asked for.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the write failed.
    pub async fn acknowledged(self) -> Result<Appended> {
        Ok(self.mailbox.answer(self.done).await?.appended)
    }
}

/// A [`try_append`](super::Partition::try_append) that was refused: the batch comes back.
#[derive(Debug)]
pub struct TryAppendError {
    /// Why; certainly not applied.
    pub error: Error,
    /// The batch, as it was.
    pub batch: Batch,
}

impl fmt::Display for TryAppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for TryAppendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
