//! The shard's main task: drain the mailbox, hand each request to its partition, once around.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::{Semaphore, oneshot};

use super::boot::{BootRequest, boot};
use super::catalog::adopted;
use super::command::{Booted, Command, Commands};
use crate::config::StoreConfig;
use crate::error::{Error, Result};
use crate::io::{BufPool, IoBackend};
use crate::metrics::ShardStats;
use crate::partition::{Asked, Change, Gone, Partition, Reply, Request, ShardContext, answer};

/// Requests that one turn takes from the mailbox before the event loop gets its share.
const TURN_REQUESTS: usize = 256;

/// Bytes of unused buffers that a shard keeps.
const IDLE_BUFFER_BYTES_MAX: usize = 16 << 20;

/// What a shard is started with; crosses to its thread.
#[derive(Debug)]
pub(crate) struct ShardSetup {
    pub(crate) path: PathBuf,
    pub(crate) config: StoreConfig,
    pub(crate) create: bool,
    pub(crate) read_only: bool,
    pub(crate) mailbox: Commands,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) bytes: Arc<Semaphore>,
    pub(crate) read_ahead: Arc<Semaphore>,
    /// Dropped when the shard has ended, whatever ended it.
    pub(crate) ended: oneshot::Sender<()>,
    /// The same for the shard that holds the store's lock.
    pub(crate) alive: Option<oneshot::Sender<CallsGoOn>>,
    /// Of the shard that holds the lock: the other ends of `alive`.
    pub(crate) others: Vec<oneshot::Receiver<CallsGoOn>>,
}

/// The last word of a shard that has ended before its calls on names have: nobody may open the
/// store as long as this process lives.
#[derive(Debug)]
pub(crate) struct CallsGoOn;

pub(super) struct Shard<B: IoBackend> {
    pub(super) shared: Rc<ShardContext<B>>,
    pub(super) path: PathBuf,
    pub(super) config: Rc<StoreConfig>,
    create: bool,
    pub(super) read_only: bool,
    pub(super) pool: BufPool,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    read_ahead: Arc<Semaphore>,
    /// Whether the main task has come to its end; else it is a panic or the backend that ends it.
    ended_in_order: Cell<bool>,
    /// Whether the store's lock must be held until the process ends.
    locked_for_good: Cell<bool>,
    /// See [`ShardSetup::others`]; those that have ended are taken out.
    others: RefCell<Vec<oneshot::Receiver<CallsGoOn>>>,
    pub(super) state: RefCell<ShardState<B>>,
}

pub(super) struct ShardState<B: IoBackend> {
    pub(super) partitions: BTreeMap<u64, Rc<Partition<B>>>,
    /// Ids that are being created or deleted.
    pub(super) busy: BTreeSet<u64>,
    pub(super) direct: bool,
    lock: Option<B::File>,
}

/// Serves the mailbox until the store is closed or its last handle is dropped.
pub(crate) async fn shard_main<B: IoBackend>(backend: Rc<B>, setup: ShardSetup) {
    let ShardSetup {
        path,
        config,
        create,
        read_only,
        mailbox,
        requests,
        bytes,
        read_ahead,
        ended,
        alive,
        others,
    } = setup;
    let shard = Rc::new(Shard {
        shared: Rc::new(ShardContext::new(
            Rc::clone(&backend),
            config.read_chunk_bytes,
        )),
        path,
        config: Rc::new(config),
        create,
        read_only,
        pool: BufPool::new(IDLE_BUFFER_BYTES_MAX).carve_from(backend.arena()),
        requests,
        bytes,
        read_ahead,
        ended_in_order: Cell::new(false),
        locked_for_good: Cell::new(false),
        others: RefCell::new(others),
        state: RefCell::new(ShardState {
            partitions: BTreeMap::new(),
            busy: BTreeSet::new(),
            direct: false,
            lock: None,
        }),
    });
    // Also when a panic ends the shard: partitions and what they share hold each other.
    let _end = End {
        shard: Rc::clone(&shard),
        alive,
        _ended: ended,
    };
    // Dropped before that: who waits for an answer hears at once.
    let mut mailbox = mailbox;
    shard.start_tickers();
    let mut turn = Vec::with_capacity(TURN_REQUESTS);
    let mut closing: Option<oneshot::Receiver<()>> = None;
    while closing.is_none() && mailbox.recv_many(&mut turn, TURN_REQUESTS).await > 0 {
        // Taken from the end: what stands behind a close stays.
        turn.reverse();
        while closing.is_none()
            && let Some(command) = turn.pop()
        {
            closing = shard.serve(command);
        }
        backend.yield_now().await;
    }
    if let Some(mut closed) = closing {
        // Who closes again waits with a deadline of its own; all else is answered by being dropped.
        for command in turn.drain(..) {
            shard.serve_closing(command);
        }
        loop {
            let next = std::pin::pin!(mailbox.recv());
            match select(&mut closed, next).await {
                Either::Right((Some(command), _)) => shard.serve_closing(command),
                // The sender is dropped when the closing task has finished: that is the signal.
                Either::Left(_) => break,
                Either::Right((None, _)) => {
                    closed.await.unwrap_or(());
                    break;
                }
            }
        }
    }
    drop(mailbox);
    // The tickers and the drivers go on until this function returns.
    shard.shared.end_name_work();
    // The lock stands for all shards: each may outlive the others by a handle to its partitions.
    poll_fn(|cx| shard.poll_others(cx)).await;
    shard.shared.name_work_done().await;
    shard.ended_in_order.set(true);
}

/// Ends the shard, whatever ends its main task, and says so last.
struct End<B: IoBackend> {
    shard: Rc<Shard<B>>,
    alive: Option<oneshot::Sender<CallsGoOn>>,
    _ended: oneshot::Sender<()>,
}

impl<B: IoBackend> Drop for End<B> {
    fn drop(&mut self) {
        let shard = &self.shard;
        // Nobody goes on waiting for room in the mailbox.
        shard.requests.close();
        shard.bytes.close();
        shard.shared.end_name_work();
        shard.let_partitions_go();
        // What cannot be waited for may meet the store at any time.
        if !shard.shared.backend.finish_calls() {
            shard.locked_for_good.set(true);
            if let Some(alive) = self.alive.take() {
                // The shard that holds the lock may have gone, and knows then that others live.
                alive.send(CallsGoOn).unwrap_or(());
            }
        }
        // Shards that go on must stay the only owners of the store.
        if !shard.ended_in_order.get()
            && let Ok(mut others) = shard.others.try_borrow_mut()
        {
            let has_gone = |other: &mut oneshot::Receiver<CallsGoOn>| {
                matches!(other.try_recv(), Err(oneshot::error::TryRecvError::Closed))
            };
            if !others.iter_mut().all(has_gone) {
                shard.locked_for_good.set(true);
            }
        }
        shard.let_lock_go();
    }
}

impl<B: IoBackend> Shard<B> {
    /// Serves one command; a close returns what resolves when it is done.
    fn serve(self: &Rc<Self>, command: Command) -> Option<oneshot::Receiver<()>> {
        match command {
            Command::Submit {
                id,
                incarnation,
                request,
            } => match self.find(id, incarnation) {
                Ok(partition) => partition.submit(request),
                Err(e) => request.refuse(e),
            },
            Command::Read {
                id,
                incarnation,
                reading,
                asked,
            } => match self.find(id, incarnation) {
                Ok(p) => self.spawn_read(asked, async move |_| {
                    p.read(reading.from, reading.limits, reading.visibility)
                        .await
                }),
                Err(e) => asked.answer(Err(e)),
            },
            Command::Locate {
                id,
                incarnation,
                reading,
                asked,
                ahead,
            } => match self.find(id, incarnation) {
                Ok(p) => self.spawn_read(asked, async move |gone| {
                    p.locate(reading, ahead, gone).await
                }),
                Err(e) => asked.answer(Err(e)),
            },
            Command::Piece {
                id,
                incarnation,
                wanted,
                asked,
                ahead,
            } => match self.find(id, incarnation) {
                Ok(p) => self.spawn_read(asked, async move |gone| {
                    p.read_piece(wanted, ahead, gone).await
                }),
                Err(e) => asked.answer(Err(e)),
            },
            Command::OffsetForTimestamp {
                id,
                incarnation,
                timestamp_ms,
                asked,
            } => match self.find(id, incarnation) {
                Ok(p) => self.spawn_read(asked, async move |gone| {
                    p.offset_for_timestamp(timestamp_ms, gone).await
                }),
                Err(e) => asked.answer(Err(e)),
            },
            Command::Inspect {
                id,
                incarnation,
                request,
                asked,
            } => match self.find(id, incarnation) {
                Ok(p) => self.spawn_read(asked, async move |gone| p.inspect(request, gone).await),
                Err(e) => asked.answer(Err(e)),
            },
            Command::Ping(reply) => answer(reply, ()),
            Command::Boot(reply) => {
                let this = Rc::clone(self);
                self.spawn(reply, async move { this.boot().await });
            }
            Command::Adopt {
                partitions,
                direct,
                reply,
            } => {
                self.state.borrow_mut().direct = direct;
                let this = Rc::clone(self);
                self.spawn(reply, async move { this.adopt(partitions).await });
            }
            Command::Create { id, asked } => {
                let this = Rc::clone(self);
                self.spawn(asked, async move { this.create(id).await });
            }
            Command::Find { id, reply } => {
                let found = self.state.borrow().partitions.get(&id).cloned();
                let found = found.ok_or(Error::PartitionNotFound { id });
                answer(reply, found.map(|p| adopted(&p)));
            }
            Command::Delete {
                id,
                incarnation,
                reply,
            } => {
                let this = Rc::clone(self);
                self.spawn(reply, async move { this.delete(id, incarnation).await });
            }
            Command::List(reply) => {
                let state = self.state.borrow();
                answer(
                    reply,
                    Ok(state.partitions.values().map(|p| p.describe()).collect()),
                );
            }
            Command::Describe {
                id,
                incarnation,
                reply,
            } => {
                answer(reply, self.find(id, incarnation).map(|p| p.describe()));
            }
            Command::Stats(reply) => answer(reply, Ok(self.stats())),
            Command::Close { deadline, reply } => return Some(self.close(deadline, reply)),
        }
        None
    }

    pub(super) fn find(&self, id: u64, incarnation: u32) -> Result<Rc<Partition<B>>> {
        match self.state.borrow().partitions.get(&id) {
            Some(p) if p.incarnation() == incarnation => Ok(Rc::clone(p)),
            _ => Err(Error::PartitionNotFound { id }),
        }
    }

    /// Spawns a read, which is told when its caller has gone.
    fn spawn_read<T: 'static>(
        &self,
        mut asked: Asked<T>,
        read: impl AsyncFnOnce(Gone<'_>) -> Result<T> + 'static,
    ) {
        // Who has gone needs no answer.
        if asked.reply.is_closed() {
            return;
        }
        self.shared.backend.spawn(Box::pin(async move {
            let result = read(&mut |cx| asked.reply.poll_closed(cx)).await;
            asked.answer(result);
        }));
    }

    fn spawn<T: 'static>(
        &self,
        asked: impl Into<Asked<T>>,
        task: impl Future<Output = Result<T>> + 'static,
    ) {
        let asked = asked.into();
        self.shared
            .backend
            .spawn(Box::pin(async move { asked.answer(task.await) }));
    }

    async fn boot(&self) -> Result<Booted> {
        let _by_name = self.shared.start_name_work()?;
        let request = BootRequest {
            path: self.path.clone(),
            create: self.create,
            read_only: self.read_only,
            direct_wanted: self.config.direct_io,
        };
        let store = boot(self.shared.backend.as_ref(), &request).await?;
        self.state.borrow_mut().lock = Some(store.lock);
        Ok(store.booted)
    }

    fn stats(&self) -> ShardStats {
        let config = &self.config;
        let mut stats = self.shared.stats.snapshot();
        stats.partitions = self.state.borrow().partitions.len();
        stats.requests_under_way = config
            .mailbox_requests_max
            .saturating_sub(self.requests.available_permits());
        stats.bytes_under_way = config
            .mailbox_bytes_max
            .saturating_sub(self.bytes.available_permits());
        stats.read_ahead_bytes = config
            .read_ahead_bytes_max
            .saturating_sub(self.read_ahead.available_permits());
        let cached = |p: &Rc<Partition<B>>| p.cached_bytes();
        stats.tail_cache_bytes = self.state.borrow().partitions.values().map(cached).sum();
        stats.idle_buffer_bytes = self.pool.idle_bytes();
        stats
    }

    /// Seals and closes all partitions; `reply` hears of it, at the latest after `deadline`.
    fn close(self: &Rc<Self>, deadline: Duration, reply: Reply<()>) -> oneshot::Receiver<()> {
        let (finished, end) = oneshot::channel();
        let all: Vec<_> = self.state.borrow().partitions.values().cloned().collect();
        let mut waiting = Vec::with_capacity(all.len());
        for partition in all {
            let (reply, done) = oneshot::channel();
            partition.submit(Request::Change(Change::Close(reply.into())));
            waiting.push(done);
        }
        let shared = Rc::clone(&self.shared);
        let mut closing = Box::pin(async move {
            let mut result = Ok(());
            for done in waiting {
                match done.await {
                    Ok(Err(e)) if result.is_ok() && e != Error::Closed => result = Err(e),
                    _ => {}
                }
            }
            // What the shard waits for before it ends counts against the deadline too.
            shared.end_name_work();
            shared.name_work_done().await;
            result
        });
        let backend = Rc::clone(&self.shared.backend);
        self.shared.backend.spawn(Box::pin(async move {
            let _finished = finished;
            match select(&mut closing, backend.sleep(deadline)).await {
                Either::Left((result, _)) => answer(reply, result),
                Either::Right(((), _)) => {
                    let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                    answer(reply, Err(Error::CloseTimeout { waited_ms }));
                    if closing.await.is_err() {
                        // Nobody listens any more; recovery will find what there is.
                    }
                }
            }
        }));
        end
    }

    /// Serves a command that came behind a close.
    fn serve_closing(&self, command: Command) {
        let Command::Close { deadline, reply } = command else {
            return;
        };
        let backend = Rc::clone(&self.shared.backend);
        self.shared.backend.spawn(Box::pin(async move {
            // Dropped when the shard has ended, which is the answer then.
            backend.sleep(deadline).await;
            let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            answer(reply, Err(Error::CloseTimeout { waited_ms }));
        }));
    }

    /// Waits for the other shards to end.
    fn poll_others(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut others = self.others.borrow_mut();
        while let Some(other) = others.last_mut() {
            // Most end by dropping it.
            if let Ok(CallsGoOn) = ready!(Pin::new(other).poll(cx)) {
                self.locked_for_good.set(true);
            }
            others.pop();
        }
        Poll::Ready(())
    }

    fn let_partitions_go(&self) {
        // A panic may unwind through a borrow.
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.partitions.clear();
        }
        if let Ok(mut unsealed) = self.shared.unsealed.try_borrow_mut() {
            unsealed.clear();
        }
    }

    /// Lets go of the store's lock, if this shard has it and may.
    fn let_lock_go(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            let lock = state.lock.take();
            if self.locked_for_good.get() {
                std::mem::forget(lock);
            }
        }
    }

    fn start_tickers(self: &Rc<Self>) {
        let backend = &self.shared.backend;
        let (shared, seal_after) = (Rc::clone(&self.shared), self.config.seal_after);
        backend.spawn(Box::pin(async move {
            loop {
                while shared.unsealed.borrow().is_empty() {
                    shared.tick.notified().await;
                }
                shared.backend.sleep(seal_after).await;
                let watched = std::mem::take(&mut *shared.unsealed.borrow_mut());
                let still: Vec<_> = watched.into_iter().filter(Partition::tick).collect();
                shared.unsealed.borrow_mut().extend(still);
            }
        }));
        if self.config.retention_age.is_none() && self.config.retention_bytes.is_none() {
            return;
        }
        let (weak, interval) = (Rc::downgrade(self), self.config.retention_interval);
        let sleeper = Rc::clone(backend);
        backend.spawn(Box::pin(async move {
            loop {
                sleeper.sleep(interval).await;
                let Some(shard) = weak.upgrade() else { return };
                let all: Vec<_> = shard.state.borrow().partitions.values().cloned().collect();
                for partition in all {
                    partition.consider_retention().await;
                }
            }
        }));
    }
}
