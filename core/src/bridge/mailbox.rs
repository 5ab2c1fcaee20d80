//! The one queue between threads: many callers in, one shard out, bounded in requests and bytes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};

use crate::config::StoreConfig;
use crate::error::{Error, Result};
use crate::partition::{Asked, Permit, Reply};
use crate::shard::{Command, Commands};
use crate::sync::atomic::{AtomicBool, Ordering};

/// The sending side of a shard's mailbox. Clones share the bounds.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    shard: usize,
    sender: mpsc::UnboundedSender<Command>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// In bytes.
    read_ahead: Arc<Semaphore>,
    /// How many pieces a sequential reader may have ahead of it.
    read_ahead_chunks: usize,
    read_chunk_bytes: usize,
    /// Set by `close`: tells an orderly end from the death of the shard.
    closing: Arc<AtomicBool>,
}

/// The shard's side.
#[derive(Debug)]
pub(crate) struct MailboxReceiver {
    pub(crate) receiver: Commands,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) bytes: Arc<Semaphore>,
    pub(crate) read_ahead: Arc<Semaphore>,
}

impl Mailbox {
    /// A mailbox for the shard of the given index, with the bounds of `config`.
    pub(crate) fn new(shard: usize, config: &StoreConfig) -> (Self, MailboxReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let requests = Arc::new(Semaphore::new(config.mailbox_requests_max));
        let bytes = Arc::new(Semaphore::new(config.mailbox_bytes_max));
        let read_ahead = Arc::new(Semaphore::new(config.read_ahead_bytes_max));
        let mailbox = Self {
            shard,
            sender,
            requests: Arc::clone(&requests),
            bytes: Arc::clone(&bytes),
            read_ahead: Arc::clone(&read_ahead),
            read_ahead_chunks: config.read_ahead_chunks,
            read_chunk_bytes: config.read_chunk_bytes,
            closing: Arc::default(),
        };
        (
            mailbox,
            MailboxReceiver {
                receiver: Commands::new(receiver),
                requests,
                bytes,
                read_ahead,
            },
        )
    }

    /// Waits for room for a request that carries `bytes` bytes. Fair: first come, first served.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Permit> {
        let gone = |_| self.gone();
        let request = Arc::clone(&self.requests)
            .acquire_owned()
            .await
            .map_err(gone)?;
        let n = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes)
            .acquire_many_owned(n)
            .await
            .map_err(gone)?;
        Ok(Permit {
            _request: Some(request),
            _bytes: Some(bytes),
        })
    }

    /// For those who need no room: hears that the store is closed or the shard gone, and lets the
    /// caller's other tasks have their turn where the runtime counts steps. Never waits for room.
    pub(crate) async fn pass(&self) -> Result<()> {
        match self.requests.acquire_many(0).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    /// Room for a request, now or not at all.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<Permit> {
        let refused = |what| {
            move |e: TryAcquireError| match e {
                TryAcquireError::NoPermits => Error::Full { what },
                TryAcquireError::Closed => self.gone(),
            }
        };
        let request = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(refused("requests"))?;
        let n = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes)
            .try_acquire_many_owned(n)
            .map_err(refused("bytes"))?;
        Ok(Permit {
            _request: Some(request),
            _bytes: Some(bytes),
        })
    }

    /// Room for a request that reads `bytes` ahead, now or not at all; the second permit is for
    /// the memory.
    pub(crate) fn try_ahead(&self, bytes: u64) -> Option<(Permit, OwnedSemaphorePermit)> {
        if self.read_ahead_chunks == 0 {
            return None;
        }
        let bytes = u32::try_from(bytes).ok()?;
        let memory = Arc::clone(&self.read_ahead).try_acquire_many_owned(bytes);
        Some((self.try_reserve(0).ok()?, memory.ok()?))
    }

    /// How many pieces a sequential reader may have ahead of it.
    pub(crate) fn read_ahead_chunks(&self) -> usize {
        self.read_ahead_chunks
    }

    /// Unit of reads from a segment.
    pub(crate) fn read_chunk_bytes(&self) -> u64 {
        self.read_chunk_bytes as u64
    }

    /// Puts a command into the mailbox; never waits. A store that is closing takes none.
    pub(crate) fn send(&self, command: Command) -> Result<()> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.sender.send(command).map_err(|_| self.gone())
    }

    /// Asks the shard to close, once more if need be.
    pub(crate) fn send_close(&self, deadline: Duration, reply: Reply<()>) -> Result<()> {
        let command = Command::Close { deadline, reply };
        self.sender.send(command).map_err(|_| self.gone())
    }

    /// Sends a command that carries a reply, and waits for the answer.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        self.answer(answer).await
    }

    /// As [`ask`](Self::ask), for what takes room until it is answered: waits for room first.
    pub(crate) async fn ask_with_room<T>(
        &self,
        command: impl FnOnce(Asked<T>) -> Command,
    ) -> Result<T> {
        let (asked, answer) = Asked::new(self.reserve(0).await?);
        self.send(command(asked))?;
        self.answer(answer).await
    }

    /// Waits for the answer to a command that was sent.
    pub(crate) async fn answer<T>(&self, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(self.dropped()),
        }
    }

    /// A round trip to the shard and back, for measurements.
    pub(crate) async fn ping(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ping(reply))?;
        answer.await.map_err(|_| self.dropped())
    }

    /// Lets nobody in any more; those who wait for room hear that the store is closed.
    pub(crate) fn close_bounds(&self) {
        self.closing.store(true, Ordering::Release);
        self.requests.close();
        self.bytes.close();
    }

    /// Why nothing can be sent.
    fn gone(&self) -> Error {
        if self.closing.load(Ordering::Acquire) {
            Error::Closed
        } else {
            Error::ShardDead { shard: self.shard }
        }
    }

    /// Why a partition publishes no more offsets.
    pub(crate) fn ended(&self, id: u64) -> Error {
        if self.closing.load(Ordering::Acquire) {
            Error::Closed
        } else if self.sender.is_closed() {
            Error::ShardDead { shard: self.shard }
        } else {
            Error::PartitionNotFound { id }
        }
    }

    /// Why a request that was sent is not answered.
    pub(crate) fn dropped(&self) -> Error {
        if self.closing.load(Ordering::Acquire) {
            Error::ClosedInFlight
        } else {
            Error::ShardDead { shard: self.shard }
        }
    }
}

#[cfg(test)]
#[cfg(not(any(alluvium_loom, alluvium_shuttle)))]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    /// A command that is being sent while the shard lets go of its mailbox must not stay there: the reply
    /// goes with it, however long the sender lives.
    #[test]
    fn what_is_sent_while_the_shard_ends_is_answered() {
        const SENDERS: usize = 3;
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..3_000 {
            let (mailbox, shard) = Mailbox::new(0, &StoreConfig::default());
            let start = Barrier::new(SENDERS + 1);
            let answers = thread::scope(|scope| {
                let send = || {
                    let (reply, answer) = oneshot::channel();
                    start.wait();
                    mailbox.send(Command::Ping(reply)).map(|()| answer)
                };
                let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
                start.wait();
                drop(shard);
                senders
                    .into_iter()
                    .map(|sender| sender.join().expect("it sends"))
                    .collect::<Vec<_>>()
            });
            for answer in answers {
                match answer.map(|mut answer| answer.try_recv()) {
                    Err(_) => refused += 1,
                    Ok(Err(TryRecvError::Closed)) => taken += 1,
                    Ok(other) => panic!("it waits for ever: {other:?}"),
                }
            }
        }
        assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    }
}
