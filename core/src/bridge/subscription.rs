//! A stream of a partition's durable records that is woken when there are more.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::watch;

use super::Partition;
use super::reading::Places;
use crate::error::{Error, Result};
use crate::offset::Offsets;
use crate::partition::{Fetched, ReadLimits, Visibility};

/// Items of [`Partition::subscribe`]: non-empty reads, each taking up where the last one ended.
///
/// After an error the stream goes on where it stood when it is polled again (an
/// [`Error::OutOfRange`] after a trim or truncation comes again until
/// [`seek`](Self::seek) moves it); it ends when the partition or store is closed, and behind the one
/// [`Error::ShardDead`] with which it tells of the death of its shard.
pub struct Subscription {
    partition: Partition,
    offsets: watch::Receiver<Offsets>,
    next: u64,
    limits: ReadLimits,
    /// Where it stands, with what is read ahead for it.
    places: Arc<Places>,
    fetching: Option<Fetching>,
    /// The death of the shard was told: there is nothing to wait for any more.
    dead: bool,
}

type Fetching = Pin<Box<dyn Future<Output = Result<Fetched>> + Send>>;

impl Subscription {
    pub(super) fn new(partition: Partition, next: u64, limits: ReadLimits) -> Self {
        let offsets = partition.watch();
        Self {
            partition,
            offsets,
            next,
            limits,
            places: Arc::new(Places::sequential()),
            fetching: None,
            dead: false,
        }
    }

    /// The offset that the next item starts at.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Moves the stream to another offset.
    pub fn seek(&mut self, offset: u64) {
        self.next = offset;
        self.fetching = None;
        self.places.clear();
    }

    fn fetch(&self) -> Fetching {
        let (partition, mut offsets) = (self.partition.clone(), self.offsets.clone());
        let (mut from, limits) = (self.next, self.limits);
        let places = Arc::clone(&self.places);
        Box::pin(async move {
            loop {
                // A log that was truncated below `from` is answered by the read, with its range.
                let moved = |o: &Offsets| o.durable() > from || o.log_end() < from;
                if offsets.wait_for(moved).await.is_err() {
                    return Err(partition.ended());
                }
                let fetched = partition
                    .read_at(&places, from, limits, Visibility::Durable)
                    .await?;
                if !fetched.is_empty() {
                    return Ok(fetched);
                }
                // Only skipped offsets so far.
                from = fetched.next_offset;
            }
        })
    }
}

impl Stream for Subscription {
    type Item = Result<Fetched>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.dead {
            return Poll::Ready(None);
        }
        let mut fetching = match self.fetching.take() {
            Some(fetching) => fetching,
            None => self.fetch(),
        };
        match fetching.as_mut().poll(cx) {
            Poll::Pending => {
                self.fetching = Some(fetching);
                Poll::Pending
            }
            Poll::Ready(Ok(fetched)) => {
                self.next = fetched.next_offset;
                Poll::Ready(Some(Ok(fetched)))
            }
            Poll::Ready(Err(
                Error::Closed | Error::ClosedInFlight | Error::PartitionNotFound { .. },
            )) => Poll::Ready(None),
            Poll::Ready(Err(e)) => {
                self.dead = matches!(e, Error::ShardDead { .. });
                Poll::Ready(Some(Err(e)))
            }
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("partition", &self.partition.id())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
