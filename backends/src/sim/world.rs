//! The simulated machine: virtual time, events, processes, crashes. Everything here is `Send`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use alluvium_core::io::{ShardMain, ShardSpec};

use super::backend::SimBackend;
use super::config::{Latency, SimConfig};
use super::disk::Disk;
use super::executor::Ready;
use super::fault::{Counters, CrashKind, Faults};
use super::file::Tear;
use super::op::{Op, OpKind, Phase};
use super::rng::Rng;
use super::slab::{Key, Slab};

/// What the executor, the backends and the test share.
#[derive(Debug)]
pub(super) struct Shared {
    world: Mutex<World>,
    pub(super) ready: Arc<Ready>,
}

impl Shared {
    pub(super) fn new(config: SimConfig) -> Self {
        Self {
            world: Mutex::new(World::new(config)),
            ready: Arc::new(Ready::default()),
        }
    }

    /// One thread uses it; after a panic the state is still fit to be looked at.
    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard that a factory has asked for.
pub(super) struct NewShard {
    pub(super) process: u32,
    pub(super) spec: ShardSpec,
    pub(super) main: ShardMain<SimBackend>,
}

impl std::fmt::Debug for NewShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewShard")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    time: u64,
    seq: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Op(Key),
    Timer(Key),
}

/// A sleeper.
#[derive(Debug)]
pub(super) struct Timer {
    pub(super) waker: Option<Waker>,
    pub(super) fired: bool,
}

/// A scripted crash that has happened and that the executor has not cleaned up after yet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Crash {
    /// Of one process.
    Process(u32),
    /// Of the machine.
    Machine,
}

/// What there is to do for the executor.
#[derive(Debug)]
pub(super) enum Next {
    /// Wake it (or nobody) and go on.
    Wake(Option<Waker>),
    /// Start the waiting shards.
    Shards,
    /// Clean up.
    Crashed(Crash),
    /// Nothing is due.
    Idle,
}

/// The machine.
#[derive(Debug)]
pub(super) struct World {
    pub(super) config: SimConfig,
    pub(super) disk: Disk,
    pub(super) now: u64,
    seq: u64,
    events: BinaryHeap<Reverse<Event>>,
    pub(super) timers: Slab<Timer>,
    pub(super) ops: Slab<Op>,
    /// Operations that came due while the disk was stalled.
    pub(super) parked: Vec<Key>,
    /// Whether each process lives.
    pub(super) processes: Vec<bool>,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    /// Counted operations so far.
    pub(super) op_count: u64,
    /// Writes so far.
    pub(super) write_count: u64,
    /// Calls of every kind.
    pub(super) calls: Vec<&'static str>,
    /// Completed changes of the disk so far.
    pub(super) stamp: u64,
    pub(super) rng: Rng,
    /// Decides faults, so that adding one shifts nothing else.
    pub(super) fault_rng: Rng,
    /// For identities that the engine draws.
    pub(super) entropy: Rng,
    pub(super) wall_base_ms: i64,
    pub(super) shards: Vec<NewShard>,
    pub(super) crashed: Option<Crash>,
    /// A breach of the seam's contract.
    pub(super) violation: Option<String>,
    trace: u64,
}

impl World {
    pub(super) fn new(config: SimConfig) -> Self {
        let mut rng = Rng::new(config.seed ^ 0x5EED_D15C);
        Self {
            disk: Disk::new(config.capacity_bytes),
            config,
            now: 0,
            seq: 0,
            events: BinaryHeap::new(),
            timers: Slab::default(),
            ops: Slab::default(),
            parked: Vec::new(),
            processes: Vec::new(),
            faults: Faults::default(),
            counters: Counters::default(),
            op_count: 0,
            write_count: 0,
            calls: Vec::new(),
            stamp: 0,
            fault_rng: rng.fork(),
            entropy: rng.fork(),
            rng,
            wall_base_ms: 1_700_000_000_000,
            shards: Vec::new(),
            crashed: None,
            violation: None,
            trace: 0,
        }
    }

    pub(super) fn note(&mut self, word: u64) {
        let mixed = (self.trace ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.trace = mixed ^ (mixed >> 29);
    }

    /// The bytes themselves, when the trace is to have them.
    pub(super) fn note_bytes(&mut self, bytes: &[u8]) {
        if self.config.trace_bytes {
            self.note(bytes.len() as u64);
            for chunk in bytes.chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                self.note(u64::from_le_bytes(word));
            }
        }
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.trace
    }

    pub(super) fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub(super) fn alive(&self, process: u32) -> bool {
        self.processes
            .get(process as usize)
            .copied()
            .unwrap_or(false)
    }

    pub(super) fn wall_clock_ms(&self) -> i64 {
        let passed = i64::try_from(self.now / 1_000_000).unwrap_or(i64::MAX);
        self.wall_base_ms.saturating_add(passed)
    }

    pub(super) fn latency(&mut self, latency: Latency) -> u64 {
        let drawn = self.rng.between(nanos(latency.min), nanos(latency.max));
        if self.rng.chance(1, 32) {
            drawn * 10
        } else {
            drawn
        }
    }

    fn push(&mut self, time: u64, what: What) -> u64 {
        self.seq += 1;
        self.events.push(Reverse(Event {
            time,
            seq: self.seq,
            what,
        }));
        self.seq
    }

    pub(super) fn add_timer(&mut self, duration: Duration) -> Key {
        self.counters.sleeps += 1;
        let key = self.timers.insert(Timer {
            waker: None,
            fired: false,
        });
        self.push(self.now.saturating_add(nanos(duration)), What::Timer(key));
        key
    }

    /// Lets the operation come due after `delay`, whatever was planned for it before.
    pub(super) fn plan(&mut self, key: Key, delay: u64) {
        let seq = self.push(self.now.saturating_add(delay), What::Op(key));
        if let Some(op) = self.ops.get_mut(key) {
            op.event = seq;
        }
    }

    /// A step of a task has been taken; what is due at once?
    pub(super) fn after_step(&mut self) -> Next {
        self.now += nanos(self.config.step);
        self.due()
    }

    /// What is due now, without moving time.
    pub(super) fn due(&mut self) -> Next {
        if let Some(crash) = self.crashed.take() {
            return Next::Crashed(crash);
        }
        if !self.shards.is_empty() {
            return Next::Shards;
        }
        self.fire(self.now)
    }

    /// Moves time to the next event and lets it happen. `Idle` when there is none.
    pub(super) fn advance(&mut self) -> Next {
        match self.due() {
            Next::Idle => self.fire(u64::MAX),
            next => next,
        }
    }

    /// Lets the next event happen that is due by `limit`.
    fn fire(&mut self, limit: u64) -> Next {
        while self
            .events
            .peek()
            .is_some_and(|Reverse(event)| event.time <= limit)
        {
            let Some(Reverse(event)) = self.events.pop() else {
                break;
            };
            match event.what {
                What::Timer(key) => {
                    let Some(timer) = self.timers.get_mut(key) else {
                        continue;
                    };
                    timer.fired = true;
                    let waker = timer.waker.take();
                    self.now = self.now.max(event.time);
                    return Next::Wake(waker);
                }
                What::Op(key) => {
                    let Some(op) = self.ops.get(key) else {
                        continue;
                    };
                    if op.event != event.seq {
                        continue;
                    }
                    self.now = self.now.max(event.time);
                    if self.faults.stalled && op.kind.is_data() {
                        self.parked.push(key);
                        continue;
                    }
                    let waker = self.complete(key);
                    return match self.crashed.take() {
                        Some(crash) => Next::Crashed(crash),
                        None => Next::Wake(waker),
                    };
                }
            }
        }
        Next::Idle
    }

    pub(super) fn set_stalled(&mut self, stalled: bool) {
        self.faults.stalled = stalled;
        if !stalled {
            for key in std::mem::take(&mut self.parked) {
                let delay = self.latency(self.config.write);
                self.plan(key, delay);
            }
        }
    }

    pub(super) fn new_process(&mut self) -> u32 {
        self.processes.push(true);
        u32::try_from(self.processes.len() - 1).expect("fewer than 2^32 processes")
    }

    /// The scripted crash, raised by the operation that it was waiting for.
    pub(super) fn crash(&mut self, kind: CrashKind, process: u32) {
        match kind {
            CrashKind::Kill => {
                self.kill(process);
                self.crashed = Some(Crash::Process(process));
            }
            CrashKind::PowerLoss => {
                self.power_loss();
                self.crashed = Some(Crash::Machine);
            }
        }
    }

    /// `kill -9`: what the kernel has taken goes on without the process, or not.
    pub(super) fn kill(&mut self, process: u32) {
        if !self.alive(process) {
            return;
        }
        self.note(0x4B11 ^ u64::from(process));
        self.count_in_flight();
        self.processes[process as usize] = false;
        self.shards.retain(|shard| shard.process != process);
        let delay_max = nanos(self.config.zombie_delay_max);
        for key in self.ops.keys(|op| op.process == process) {
            let Some(op) = self.ops.get_mut(key) else {
                continue;
            };
            op.waker = None;
            op.abandoned = true;
            if !matches!(op.phase, Phase::InFlight) {
                self.ops.remove(key);
            } else if op.fd == Key::NONE {
                // System calls on names end with the process: done, or never begun.
                if self.rng.coin() {
                    self.complete(key);
                }
                self.ops.remove(key);
            } else {
                let tear = Tear::random(&mut self.rng);
                if let Some(op) = self.ops.get_mut(key) {
                    op.zombie = Some(tear);
                }
                let delay = self.rng.between(0, delay_max);
                self.plan(key, delay);
            }
        }
        for key in self.disk.fds.keys(|fd| fd.process == process) {
            self.disk.close(key);
        }
    }

    /// The machine stops; the disk keeps what the fault model says.
    pub(super) fn power_loss(&mut self) {
        self.note(0x0FF);
        self.count_in_flight();
        self.processes.iter_mut().for_each(|alive| *alive = false);
        self.shards.clear();
        self.parked.clear();
        let mut writes = Vec::new();
        for key in self.ops.keys(|op| matches!(op.phase, Phase::InFlight)) {
            let Some(op) = self.ops.get(key) else {
                continue;
            };
            let inode = self.disk.fds.get(op.fd).map(|fd| fd.inode);
            match (&op.kind, inode) {
                (OpKind::Write { buf, offset, .. }, Some(inode)) => {
                    writes.push((inode, *offset, buf.clone()));
                }
                _ if self.rng.coin() => {
                    self.complete(key);
                }
                _ => {}
            }
        }
        self.ops.clear();
        self.disk.lose_power(&mut self.rng);
        // In any order; it matters where a dead process and its successor wrote the same place.
        while !writes.is_empty() {
            let (inode, offset, buf) = writes.swap_remove(self.rng.index(writes.len()));
            self.land_at_power_loss(inode, offset, &buf);
        }
        self.disk.settle();
        self.crashed = None;
    }

    fn land_at_power_loss(&mut self, inode: Key, offset: u64, bytes: &[u8]) {
        let tear = Tear::random(&mut self.rng);
        let grows = self.rng.coin();
        let room = self.disk.free_blocks();
        self.disk.change(inode, |image| {
            if image.blocks_for_write(offset, bytes.len()) > room {
                return;
            }
            let limit = if grows { u64::MAX } else { image.len() };
            tear.runs(offset, bytes.len(), &mut self.rng, |start, end| {
                let end = end.min(super::file::to_usize(
                    limit.saturating_sub(offset).min(end as u64),
                ));
                if start < end {
                    image.write_durable(offset + start as u64, &bytes[start..end]);
                }
            });
        });
    }

    fn count_in_flight(&mut self) {
        let writes = self.ops.iter().filter(|(_, op)| {
            matches!(op.phase, Phase::InFlight)
                && op.zombie.is_none()
                && matches!(op.kind, OpKind::Write { .. })
        });
        self.counters.in_flight_at_crash = writes.count() as u64;
    }

    /// Stops the test, because the engine broke the contract of the seam.
    pub(super) fn violated(&mut self, message: &str) -> ! {
        self.violation = Some(message.to_owned());
        panic!("the contract of the storage seam is broken: {message}");
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ops
            .iter()
            .filter(|(_, op)| matches!(op.phase, Phase::InFlight))
            .count()
    }
}

/// A duration in nanoseconds of virtual time.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
