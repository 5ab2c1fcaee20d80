//! One log: the segments, the queue of requests, group commit, reads, retention.
//!
//! A partition is driven by one task of its shard, the [driver](driver). Requests stand in one
//! queue and take effect in its order. Appends at the front become a group as soon as the window
//! has room; everything that changes the shape of the log (a roll, a truncation, a reopening)
//! waits until what is in flight has landed, and is carried out by the driver itself. So there is
//! exactly one writer of a partition's structure, and no lock.
//!
//! Reads do not stand in the queue. Those of recent records are answered on their caller's thread
//! from what the partition publishes of its [tail](tail); for others the shard [fetches](fetch)
//! bytes, and holds the segments they come from by reference count while it waits for the disk.

mod cache;
mod change;
mod driver;
mod fetch;
mod gate;
mod group;
mod housekeeping;
mod inspect;
mod notify;
mod read;
mod request;
mod roll;
mod tail;
#[cfg(all(test, alluvium_loom))]
#[path = "../../../tests/concurrency/tail.rs"]
mod tail_model;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

pub(crate) use change::create_partition;
pub(crate) use fetch::{Gone, Located, OnDisk, RawPiece, Reading, Wanted};
pub use inspect::{InspectDetail, InspectRequest, InspectedBatch, InspectedSegment, Inspection};
pub(crate) use notify::LocalNotify;
pub use read::{Fetched, ReadLimits, Visibility};
pub use request::{Ack, Appended};
pub(crate) use tail::{Tail, TailRead};

pub(crate) use request::{AppendRequest, Asked, Change, Permit, Replies, Reply, Request, Settled};

use cache::TailCache;
use gate::ReadGate;
use group::Forming;
use request::Waiter;

use crate::commit::{Mark, Pipeline};
use crate::error::{Corruption, Error, IoError, Result};
use crate::io::IoBackend;
use crate::offset::Offsets;
use crate::recovery::{PartitionReport, RecoveredLog, RecoveryContext};
use crate::segment::{ActiveSegment, Segment, SpareFile};

/// What the partitions of a shard share.
#[derive(Debug)]
pub(crate) struct ShardContext<B: IoBackend> {
    pub(crate) backend: Rc<B>,
    /// Partitions whose tail is not sealed; the shard's ticker seals those that went idle.
    pub(crate) unsealed: RefCell<Vec<Rc<Partition<B>>>>,
    pub(crate) tick: LocalNotify,
    /// See [`NameWork`].
    name_work: Rc<NameCount>,
    gate: ReadGate,
    /// See [`Forming`]; taken out while a group is formed.
    forming: RefCell<Forming>,
    /// Partitions on this shard: they share the budget of the tail cache.
    pub(crate) partitions: std::cell::Cell<usize>,
    /// Stretches that are being zeroed, see `Partition::initialise_ahead`.
    zeroing: std::cell::Cell<usize>,
    /// The same, to take memory from those that are at rest when the budget is shared by more.
    pub(crate) sharers: RefCell<Vec<Weak<Partition<B>>>>,
    pub(crate) stats: crate::metrics::ShardCounters,
}

impl<B: IoBackend> ShardContext<B> {
    /// The context of a shard whose reads come in units of `read_unit_bytes`.
    pub(crate) fn new(backend: Rc<B>, read_unit_bytes: usize) -> Self {
        let clock = Rc::clone(&backend);
        Self {
            backend,
            unsealed: RefCell::default(),
            tick: LocalNotify::default(),
            name_work: Rc::default(),
            gate: ReadGate::new(read_unit_bytes, move || clock.now()),
            forming: RefCell::default(),
            partitions: std::cell::Cell::new(0),
            zeroing: std::cell::Cell::new(0),
            sharers: RefCell::default(),
            stats: crate::metrics::ShardCounters::default(),
        }
    }

    /// Work on names that belong to no partition yet, or none any more.
    pub(crate) fn start_name_work(&self) -> Result<NameWork> {
        NameWork::start([Some(&self.name_work), None])
    }

    /// Lets no [`NameWork`] begin any more.
    pub(crate) fn end_name_work(&self) {
        self.name_work.ended.set(true);
    }

    /// Waits until no [`NameWork`] is under way on the shard.
    pub(crate) async fn name_work_done(&self) {
        self.name_work.none(self.backend.as_ref()).await;
    }
}

/// How much [`NameWork`] is under way.
#[derive(Debug, Default)]
pub(crate) struct NameCount {
    under_way: std::cell::Cell<usize>,
    ended: std::cell::Cell<bool>,
}

impl NameCount {
    async fn none<B: IoBackend>(&self, backend: &B) {
        while self.under_way.get() > 0 {
            backend.sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

/// Something that creates, renames or removes files, until it is dropped.
///
/// Such operations go by name, and a name may come to a new use; one that the system has begun is
/// not stopped by dropping its future. So nothing that ends or reopens a partition goes on while
/// one of its own is under way, and the store's lock is released only when none is, and none can
/// begin.
#[derive(Debug)]
pub(crate) struct NameWork([Option<Rc<NameCount>>; 2]);

impl NameWork {
    fn start(counts: [Option<&Rc<NameCount>>; 2]) -> Result<Self> {
        if counts.iter().flatten().any(|count| count.ended.get()) {
            return Err(Error::Closed);
        }
        for count in counts.iter().flatten() {
            count.under_way.set(count.under_way.get() + 1);
        }
        Ok(Self(counts.map(|count| count.map(Rc::clone))))
    }
}

impl Drop for NameWork {
    fn drop(&mut self) {
        for count in self.0.iter().flatten() {
            count.under_way.set(count.under_way.get().saturating_sub(1));
        }
    }
}

/// What a partition accepts.
#[derive(Debug, Clone)]
enum Mode {
    Open,
    /// Opened read only, or damaged.
    ReadOnly,
    /// The first failed write or sync; see the fail-stop rule in [`crate::io`].
    Failed(IoError),
    /// Closed or deleted; the driver has ended.
    Closed,
}

/// One log on its shard.
#[derive(Debug)]
pub(crate) struct Partition<B: IoBackend> {
    shard: Rc<ShardContext<B>>,
    context: RecoveryContext,
    state: RefCell<State<B::File>>,
    wake: LocalNotify,
    spare_ready: LocalNotify,
    name_work: Rc<NameCount>,
    /// Wakes those who wait for offsets; gone when the partition has ended, which wakes them too.
    published: RefCell<Option<watch::Sender<Offsets>>>,
    /// What readers on other threads see.
    tail: Arc<Tail>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not one state"
)]
#[derive(Debug)]
struct State<F> {
    mode: Mode,
    queue: VecDeque<Request>,
    queued_bytes: usize,
    sealed: Vec<Rc<Segment<F>>>,
    active: Option<ActiveSegment<F>>,
    spares: Vec<SpareFile<F>>,
    /// Segments that no longer count but may still be read by somebody.
    retired: Vec<Rc<Segment<F>>>,
    offsets: Offsets,
    /// Log start that was written last; ahead of `offsets` while that write is under way. What is
    /// written never goes back.
    log_start_placed: u64,
    /// Records below were in a segment that is in its next use: a trim under way has taken it, or
    /// one that failed.
    reused_below: u64,
    pipeline: Pipeline,
    placed: Mark,
    /// Count of batches that must become durable for somebody.
    durable_wanted: u64,
    waiting_written: VecDeque<Waiter>,
    waiting_durable: VecDeque<Waiter>,
    cache: TailCache,
    /// Whether the last batch placed is a seal (or there is none).
    tail_sealed: bool,
    /// Set by the ticker: nothing came since its last round.
    seal_wanted: bool,
    /// Counts groups, and what the ticker saw of them.
    activity: u64,
    activity_seen: u64,
    /// Whether the ticker watches the partition.
    watched: bool,
    /// For how many rounds of the ticker segments that are not needed have been held by readers.
    held_rounds: u32,
    /// Offsets below may have been shown, and that is on the disk.
    reserved_durable: u64,
    /// The same, including reservations in flight.
    reserved_placed: u64,
    generation: u32,
    next_number: u64,
    next_sequence: u64,
    last_timestamp: i64,
    /// Link for the next segment while there is no active one.
    link: u32,
    preparing: bool,
    /// A truncation to this offset whose outcome is not known: a failed partition may come back
    /// with it or without it.
    truncating: Option<u64>,
    /// Stretch of the active segment that zeros are being written to.
    zeroing: Option<(u64, u64)>,
    /// The last attempt to make a spare ahead of need failed; the roll tries again.
    spare_failed: bool,
    recovery: PartitionReport,
    /// All damage that the last recovery noted.
    damage: Vec<Corruption>,
}

impl<F: crate::io::IoFile> State<F> {
    fn from_log(log: RecoveredLog<F>, window: u16, cache: TailCache) -> Self {
        let end = log.offsets.log_end();
        Self {
            mode: if log.read_only {
                Mode::ReadOnly
            } else {
                Mode::Open
            },
            queue: VecDeque::new(),
            queued_bytes: 0,
            sealed: log.sealed,
            active: log.active,
            spares: log.spares,
            retired: Vec::new(),
            offsets: log.offsets,
            log_start_placed: log.offsets.log_start(),
            reused_below: log.offsets.log_start(),
            pipeline: Pipeline::new(
                window,
                Mark {
                    count: 0,
                    offset: end,
                },
            ),
            placed: Mark {
                count: 0,
                offset: end,
            },
            durable_wanted: 0,
            waiting_written: VecDeque::new(),
            waiting_durable: VecDeque::new(),
            cache,
            tail_sealed: true,
            seal_wanted: false,
            activity: 0,
            activity_seen: 0,
            watched: false,
            held_rounds: 0,
            reserved_durable: log.reserved_end,
            reserved_placed: log.reserved_end,
            generation: log.generation,
            next_number: log.next_number,
            next_sequence: log.next_sequence,
            last_timestamp: log.last_timestamp,
            link: log.link,
            preparing: false,
            truncating: None,
            zeroing: None,
            spare_failed: false,
            recovery: log.report,
            damage: log.damage,
        }
    }

    /// All segments that count, oldest first.
    fn segments(&self) -> impl DoubleEndedIterator<Item = &Rc<Segment<F>>> {
        self.sealed
            .iter()
            .chain(self.active.as_ref().map(|a| &a.segment))
    }
}

/// What `describe` tells about a partition.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// The partition's id.
    pub id: u64,
    /// Tells this partition from an earlier one of the same id.
    pub incarnation: u32,
    /// Where the log starts and ends.
    pub offsets: Offsets,
    /// Segments that hold the log, the active one included.
    pub segments: usize,
    /// Bytes of those segments that are in use.
    pub used_bytes: u64,
    /// Files ready for the next roll.
    pub spares: usize,
    /// The failure that ended the partition's write life, if one did.
    pub failure: Option<Error>,
    /// Whether it accepts reads only.
    pub read_only: bool,
    /// What the last recovery found.
    pub recovery: PartitionReport,
}

impl<B: IoBackend> Partition<B> {
    /// Puts a recovered log to work and starts its driver.
    pub(crate) fn start(
        shard: &Rc<ShardContext<B>>,
        context: RecoveryContext,
        log: RecoveredLog<B::File>,
    ) -> Rc<Self> {
        let (published, _) = watch::channel(log.offsets);
        let window = context.config.writes_in_flight_max;
        shard.partitions.set(shard.partitions.get() + 1);
        let tail = Arc::new(Tail::new(log.offsets));
        let budget = context.config.tail_cache_bytes_max / shard.partitions.get();
        let cache = TailCache::new(Arc::clone(&tail), budget);
        let this = Rc::new(Self {
            shard: Rc::clone(shard),
            context,
            state: RefCell::new(State::from_log(log, window, cache)),
            wake: LocalNotify::default(),
            spare_ready: LocalNotify::default(),
            name_work: Rc::default(),
            published: RefCell::new(Some(published)),
            tail,
        });
        let mut sharers = shard.sharers.borrow_mut();
        sharers.retain(|other| other.upgrade().is_some_and(|p| p.evict()));
        sharers.push(Rc::downgrade(&this));
        drop(sharers);
        shard
            .backend
            .spawn(Box::pin(driver::drive(Rc::clone(&this))));
        this
    }

    /// The partition's id.
    pub(crate) fn id(&self) -> u64 {
        self.context.partition
    }

    /// Tells this partition from an earlier one of the same id.
    pub(crate) fn incarnation(&self) -> u32 {
        self.context.incarnation
    }

    /// Where offsets are published.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Offsets> {
        let published = self.published.borrow();
        published.as_ref().map_or_else(
            // Who comes too late hears of the end at once.
            || watch::channel(self.state.borrow().offsets).1,
            watch::Sender::subscribe,
        )
    }

    /// Largest encoded batch that is accepted, in bytes.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        let state = self.state.borrow();
        let alignment = state
            .segments()
            .next_back()
            .map_or(4096, |s| s.header.alignment);
        self.context.config.batch_bytes_max(alignment)
    }

    /// Puts a request at the end of the queue, or answers it right away when it cannot be served.
    pub(crate) fn submit(&self, request: Request) {
        let limit_bytes = self.batch_bytes_max();
        let mut state = self.state.borrow_mut();
        let refusal = match (&state.mode, &request) {
            (Mode::Closed, _) => Some(Error::Closed),
            (Mode::ReadOnly, Request::Append(_)) => Some(Error::ReadOnly { id: self.id() }),
            (Mode::ReadOnly, Request::Change(c)) if !c.is_end() => {
                Some(Error::ReadOnly { id: self.id() })
            }
            (Mode::Failed(cause), Request::Append(_)) => Some(self.failed(cause)),
            (Mode::Failed(cause), Request::Change(c)) if !c.works_on_failed() => {
                Some(self.failed(cause))
            }
            (_, Request::Append(a)) if a.batch.encoded_len() > limit_bytes => {
                Some(Error::TooLarge {
                    size_bytes: a.batch.encoded_len(),
                    limit_bytes,
                })
            }
            _ => None,
        };
        if let Some(error) = refusal {
            drop(state);
            return request.refuse(error);
        }
        if let Request::Append(append) = &request {
            state.queued_bytes += append.batch.encoded_len();
        }
        state.queue.push_back(request);
        drop(state);
        self.wake.notify();
    }

    fn failed(&self, cause: &IoError) -> Error {
        Error::PartitionFailed {
            id: self.id(),
            cause: cause.clone(),
        }
    }

    /// A description for operators.
    pub(crate) fn describe(&self) -> PartitionInfo {
        let state = self.state.borrow();
        PartitionInfo {
            id: self.id(),
            incarnation: self.incarnation(),
            offsets: state.offsets,
            segments: state.segments().count(),
            // A forged header may claim any end of the segment before it.
            used_bytes: state
                .segments()
                .map(|s| s.end_position.get())
                .fold(0, u64::saturating_add),
            spares: state.spares.len(),
            failure: match &state.mode {
                Mode::Failed(cause) => Some(self.failed(cause)),
                _ => None,
            },
            read_only: matches!(state.mode, Mode::ReadOnly),
            recovery: state.recovery.clone(),
        }
    }

    /// What readers on other threads see.
    pub(crate) fn tail(&self) -> Arc<Tail> {
        Arc::clone(&self.tail)
    }

    /// Work on the names in the partition's directory.
    fn start_name_work(&self) -> Result<NameWork> {
        NameWork::start([Some(&self.shard.name_work), Some(&self.name_work)])
    }

    /// Keeps to the partition's part of the tail cache; whether the partition still lives.
    fn evict(&self) -> bool {
        let budget = self.context.config.tail_cache_bytes_max / self.shard.partitions.get().max(1);
        let mut state = self.state.borrow_mut();
        let written = state.offsets.written();
        state.cache.evict(budget, written);
        !matches!(state.mode, Mode::Closed)
    }

    /// Bytes of memory that the tail cache holds.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.state.borrow().cache.bytes()
    }

    /// Shows a log end that has grown, which nobody waits for.
    fn publish_quietly(&self, offsets: Offsets) {
        self.send_if(offsets, |_| false);
        // Last: who has an offset from here and waits for it must find it there.
        self.tail.publish(offsets);
    }

    /// Shows offsets to readers, and wakes those who wait for them.
    fn publish(&self, offsets: Offsets) {
        self.tail.publish(offsets);
        self.send_if(offsets, |published| *published != offsets);
    }

    fn send_if(&self, offsets: Offsets, wakes: impl FnOnce(&Offsets) -> bool) {
        if let Some(published) = &*self.published.borrow() {
            published.send_if_modified(|published| {
                let wakes = wakes(published);
                *published = offsets;
                wakes
            });
        }
    }

    /// Offsets are published no more: the partition has ended, and its shard may go on.
    fn publish_the_end(&self) {
        // Dropped without a borrow: it wakes.
        let published = self.published.try_borrow_mut().map(|mut p| p.take());
        drop(published);
    }
}

impl<B: IoBackend> Drop for Partition<B> {
    fn drop(&mut self) {
        // Whatever ended the partition, readers hear of it and its memory goes.
        self.tail.close();
    }
}

/// Answers a oneshot; the caller may have gone, which is no concern of the log.
pub(crate) fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        // The caller dropped its future; the effect of the request stands.
    }
}
