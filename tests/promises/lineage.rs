//! One case: a store that lives through several crashes on one simulated machine.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use alluvium::backends::sim::{CrashKind, Sim, SimFactory, Stop};
use alluvium::format::{SegmentHeader, SegmentKind};
use alluvium::{Error, RecoveryReport, Shards, Store, StoreConfig, TailCase};
use alluvium_testkit::promises::{BatchShape, Survival, Violation};
use futures_util::future::{Either, join_all, select};

use crate::client::Client;
use crate::coverage::Coverage;
use crate::machine;
use crate::rng::Rng;
use crate::world::{Presence, Shared};

/// What a lineage is drawn from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Negative control: a device that lies about flushes.
    pub(crate) lying_flush: bool,
    pub(crate) trace: bool,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) coverage: Coverage,
}

/// Rounds of work and crash in one lineage.
const ROUNDS: u64 = 8;

/// The files of one lineage in so many are looked at.
const WATCHED: u64 = 8;

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// In the middle of the work or behind it, without a warning.
    Crash(CrashKind),
    Close,
    /// All handles are dropped.
    Drop,
}

/// Runs one lineage.
pub(crate) fn run(plan: Plan) -> Outcome {
    let mut rng = Rng::new(plan.seed);
    let sim = Sim::new(machine::machine(plan.seed, &mut rng, plan.lying_flush));
    sim.create_dir_all("/store")
        .expect("an empty disk has room");
    let config = machine::store(&mut rng);
    let retention = config.retention_bytes.is_some();
    let shared = Shared::new(sim, rng.range(1, 3), retention, plan.trace);
    shared.note(|| format!("{config:?}"));
    let watch = plan.seed.is_multiple_of(WATCHED);
    let mut lineage = Lineage {
        shared,
        rng,
        config,
        files: BTreeMap::new(),
        watch,
        recycled: false,
    };
    lineage.shared.count(|c| {
        c.cases += 1;
        c.cases_watched += u64::from(watch);
    });
    if let Err(violation) = lineage.rounds() {
        lineage.shared.check(Err(violation));
    }
    let (violation, coverage) = lineage.shared.with(|w| (w.violation.take(), w.coverage));
    Outcome {
        violation,
        coverage,
    }
}

/// A store and the machine it lives on.
pub(crate) struct Lineage {
    pub(crate) shared: Shared,
    pub(crate) rng: Rng,
    pub(crate) config: StoreConfig,
    /// Identity last seen in each file.
    pub(crate) files: BTreeMap<PathBuf, u64>,
    pub(crate) watch: bool,
    pub(crate) recycled: bool,
}

/// A store that is open, and the process that has it.
pub(crate) struct Opened {
    pub(crate) process: SimFactory,
    pub(crate) store: Store,
}

impl Lineage {
    fn rounds(&mut self) -> Result<(), Violation> {
        let mut survival = Survival::Written;
        for round in 0..ROUNDS {
            let opened = self.recover(survival)?;
            if round + 1 == ROUNDS || self.is_broken() {
                break;
            }
            survival = self.round(opened)?;
            self.watch_files();
            if self.is_broken() {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.shared.is_broken()
    }

    /// Runs a future on the machine. `None`: a scripted crash came.
    pub(crate) fn drive<T>(&self, future: impl Future<Output = T>) -> Result<Option<T>, Violation> {
        match self.shared.sim.try_block_on(future) {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Crashed) => Ok(None),
            Err(stop) => Err(Violation::new("P10", stop.to_string())),
        }
    }

    /// Opens the store until that succeeds, with crashes in between, and checks what it holds.
    fn recover(&mut self, mut survival: Survival) -> Result<Opened, Violation> {
        let mut crashes = 0;
        loop {
            let sim = self.shared.sim.clone();
            let kind = self.rng.pick(&[CrashKind::Kill, CrashKind::PowerLoss]);
            if crashes < 3 && self.rng.percent(30) {
                sim.crash_at_op(sim.op_count() + self.rng.range(1, 14), kind);
            }
            sim.cancel_failures();
            let injected = crashes < 3 && self.rng.percent(3);
            if injected {
                self.inject_failure(14);
            }
            if self.rng.percent(25) {
                self.config.shards = Shards::Count(self.rng.pick(&[1, 2]));
                self.shared.count(|c| c.shard_changes += 1);
            }
            let process = sim.new_process();
            match self.open(&process)? {
                None => {
                    self.crashed(kind, crashes);
                    self.shared.count(|c| c.crashes_in_recovery += 1);
                    crashes += 1;
                    if kind == CrashKind::PowerLoss {
                        survival = Survival::Durable;
                    }
                }
                Some(Err(e)) if injected && matches!(e, Error::Io { .. }) => {
                    sim.cancel_crash();
                    sim.kill(process.process());
                    crashes += 1;
                }
                Some(Err(e)) => {
                    return Err(Violation::new("P1", format!("opening was refused: {e}")));
                }
                Some(Ok((store, report))) => {
                    sim.cancel_crash();
                    sim.cancel_failures();
                    self.count_report(&report);
                    let opened = Opened { process, store };
                    self.check_all(&opened, survival)?;
                    return Ok(opened);
                }
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "what open returns, or a crash")]
    pub(crate) fn open(
        &self,
        process: &SimFactory,
    ) -> Result<Option<Result<(Store, RecoveryReport), Error>>, Violation> {
        let builder = Store::builder("/store").config(self.config.clone());
        self.shared.note(|| "open".to_owned());
        let opened = self.drive(builder.backend(process.clone()).open())?;
        self.shared.note(|| match &opened {
            None => "crashed while opening".to_owned(),
            Some(Ok((_, report))) => report.to_string(),
            Some(Err(e)) => e.to_string(),
        });
        Ok(opened)
    }

    fn count_report(&self, report: &RecoveryReport) {
        self.shared.count(|c| {
            for partition in &report.partitions {
                match partition.case {
                    TailCase::Clean => c.tail_clean += 1,
                    TailCase::Unsealed => c.tail_unsealed += 1,
                    TailCase::Torn => c.tail_torn += 1,
                    TailCase::Corrupt => {}
                }
                c.skipped_offsets += u64::from(partition.skipped_offsets > 0);
            }
        });
    }

    /// Compares the partitions that are there, and what they hold, with the model.
    pub(crate) fn check_all(&self, opened: &Opened, survival: Survival) -> Result<(), Violation> {
        let shared = &self.shared;
        let check = async {
            let slots = shared.with(|w| w.slots.len());
            for n in 0..slots {
                let id = shared.slot(n, |s| s.id);
                let found = opened.store.partition(id).await.ok();
                let incarnation = found.as_ref().map(alluvium::Partition::incarnation);
                let (presence, known) = shared.slot(n, |s| (s.presence, s.incarnation));
                let right = match (presence, incarnation) {
                    (Presence::Absent, found) => found.is_none(),
                    (Presence::Present, found) => found.is_some() && found == known,
                    (Presence::Creating, _) | (Presence::Deleting, None) => true,
                    (Presence::Deleting, found) => found == known,
                };
                if !right {
                    let promise = if presence == Presence::Absent {
                        "P6"
                    } else {
                        "P1"
                    };
                    let text = format!(
                        "partition {id} was {presence:?} ({known:x?}), found is {incarnation:x?}"
                    );
                    return shared.violate(promise, text);
                }
                shared.slot(n, |s| {
                    s.presence = if found.is_some() {
                        Presence::Present
                    } else {
                        Presence::Absent
                    };
                    s.incarnation = incarnation;
                    s.failed = false;
                    s.handle.clone_from(&found);
                });
                if let Some(handle) = found {
                    shared.verify(n, &handle, survival).await;
                }
            }
        };
        match self.drive(check)? {
            Some(()) => Ok(()),
            None => Err(Violation::new("P10", "a crash that nobody asked for")),
        }
    }

    /// Work, then a crash or a close. Returns what has to survive.
    fn round(&mut self, opened: Opened) -> Result<Survival, Violation> {
        let sim = self.shared.sim.clone();
        let end = match self.rng.range(0, 99) {
            0..=39 => End::Crash(CrashKind::Kill),
            40..=84 => End::Crash(CrashKind::PowerLoss),
            85..=94 => End::Close,
            _ => End::Drop,
        };
        let mut time_limit = Duration::from_secs(60);
        if let End::Crash(kind) = end {
            match self.rng.range(0, 9) {
                0..=6 => sim.crash_at_op(sim.op_count() + self.rng.range(1, 45), kind),
                7 | 8 => time_limit = Duration::from_micros(self.rng.range(1, 6000)),
                _ => {}
            }
        }
        if self.rng.percent(12) {
            self.inject_failure(30);
        }
        let full_disk = self.rng.percent(8);
        let finished = self.work(&opened, time_limit, full_disk)?;
        // A fault that did not come up must not come up anywhere else.
        sim.set_capacity(1 << 30);
        sim.cancel_failures();
        if finished.is_none() {
            let End::Crash(kind) = end else {
                return Err(Violation::new("P10", "a crash that nobody asked for"));
            };
            self.crashed(kind, 0);
            return Ok(survival_of(kind));
        }
        sim.cancel_crash();
        self.end(opened, end)
    }

    fn inject_failure(&mut self, within: u64) {
        let sim = &self.shared.sim;
        let n = sim.op_count() + self.rng.range(1, within);
        self.shared.note(|| format!("operation {n} will fail"));
        sim.fail_op(n, EIO);
        self.shared.count(|c| c.faults_injected += 1);
    }

    /// Clients work; failed partitions are reopened; clients work on.
    fn work(
        &mut self,
        opened: &Opened,
        time_limit: Duration,
        full_disk: bool,
    ) -> Result<Option<()>, Violation> {
        let shared = self.shared.clone();
        let mut rng = self.rng.fork();
        let clients = u32::try_from(rng.range(1, 4)).unwrap_or(1);
        let full_at = Duration::from_micros(rng.range(0, 4000));
        let work = async {
            let first = join_all(self.clients(opened, &mut rng, clients));
            if full_disk {
                let spell = async {
                    shared.sim.sleep(full_at).await;
                    shared.note(|| "the disk is full".to_owned());
                    shared.sim.set_capacity(0);
                    shared.count(|c| c.disk_full_spells += 1);
                    std::future::pending::<()>().await;
                };
                match select(pin!(first), pin!(spell)).await {
                    Either::Left(_) | Either::Right(_) => {}
                }
                shared.note(|| "the disk has room".to_owned());
                shared.sim.set_capacity(1 << 30);
            } else {
                first.await;
            }
            heal(&shared).await;
            if full_disk {
                appends_go_on(&shared).await;
            }
            join_all(self.clients(opened, &mut rng, clients)).await;
        };
        let limited = async {
            select(pin!(work), pin!(shared.sim.sleep(time_limit))).await;
        };
        self.drive(limited)
    }

    fn clients(
        &self,
        opened: &Opened,
        rng: &mut Rng,
        clients: u32,
    ) -> Vec<impl Future<Output = ()> + use<>> {
        let ops = rng.range(2, 10);
        (0..clients)
            .map(|number| {
                let (shared, store) = (self.shared.clone(), opened.store.clone());
                Client {
                    number,
                    shared,
                    store,
                    rng: rng.fork(),
                }
                .run(ops)
            })
            .collect()
    }

    /// Ends a round whose work is done or was cut off by time.
    fn end(&mut self, opened: Opened, end: End) -> Result<Survival, Violation> {
        let shared = self.shared.clone();
        let Opened { process, store } = opened;
        match end {
            End::Crash(CrashKind::Kill) => {
                shared.sim.kill(process.process());
                self.crashed(CrashKind::Kill, 0);
                Ok(Survival::Written)
            }
            End::Crash(CrashKind::PowerLoss) => {
                shared.sim.power_loss();
                self.crashed(CrashKind::PowerLoss, 0);
                Ok(Survival::Durable)
            }
            End::Close => {
                let closed = self.drive(store.close(Duration::from_secs(30)))?;
                shared.note(|| format!("closed: {closed:?}"));
                if let Some(Ok(())) = closed {
                    shared.count(|c| c.clean_closes += 1);
                    shared.with(|w| {
                        for slot in w.slots.iter_mut().filter(|s| !s.failed) {
                            slot.life.closed();
                        }
                    });
                }
                self.forget_handles();
                if self.rng.percent(50) {
                    shared.sim.power_loss();
                    return Ok(Survival::Durable);
                }
                shared.sim.kill(process.process());
                Ok(Survival::Written)
            }
            End::Drop => {
                shared.count(|c| c.drops_without_close += 1);
                self.forget_handles();
                drop(store);
                let pause = Duration::from_micros(self.rng.range(1, 3000));
                self.drive(shared.sim.sleep(pause))?;
                Ok(Survival::Written)
            }
        }
    }

    fn forget_handles(&self) {
        self.shared
            .with(|w| w.slots.iter_mut().for_each(|s| s.handle = None));
    }

    fn crashed(&self, kind: CrashKind, nested: u32) {
        let zombies = self.shared.sim.in_flight();
        self.shared
            .note(|| format!("{kind:?}, {zombies} operations in flight"));
        self.forget_handles();
        self.shared.count(|c| {
            c.crashes += 1;
            match kind {
                CrashKind::Kill => {
                    c.kills += 1;
                    c.kills_with_zombies += u64::from(zombies > 0);
                }
                CrashKind::PowerLoss => c.power_losses += 1,
            }
            c.crashes_nested_deep += u64::from(nested > 0);
        });
    }

    /// Notes which files have been put to another use.
    fn watch_files(&mut self) {
        if !self.watch {
            return;
        }
        let mut recycled = false;
        for path in self.shared.sim.list_files() {
            let Ok(bytes) = self.shared.sim.read_file(&path) else {
                continue;
            };
            let Ok(header) = SegmentHeader::decode(&bytes) else {
                continue;
            };
            if header.kind != SegmentKind::Log {
                continue;
            }
            let before = self.files.insert(path, header.identity);
            self.shared.count(|c| {
                c.files_watched += u64::from(before.is_none());
                c.files_recycled += u64::from(before.is_some_and(|b| b != header.identity));
            });
            recycled |= before.is_some_and(|b| b != header.identity);
        }
        if recycled && !std::mem::replace(&mut self.recycled, true) {
            self.shared.count(|c| c.cases_with_recycling += 1);
        }
    }
}

pub(crate) fn survival_of(kind: CrashKind) -> Survival {
    match kind {
        CrashKind::Kill => Survival::Written,
        CrashKind::PowerLoss => Survival::Durable,
    }
}

/// Reopens partitions that have failed and checks what they hold.
async fn heal(shared: &Shared) {
    let slots = shared.with(|w| w.slots.len());
    for n in 0..slots {
        let handle = shared.slot(n, |s| {
            s.handle.clone().filter(|_| s.presence == Presence::Present)
        });
        let Some(handle) = handle else { continue };
        let Ok(info) = handle.describe().await else {
            continue;
        };
        if info.failure.is_none() {
            if shared.slot(n, |s| s.failed) {
                shared.violate(
                    "P8",
                    "a failure was answered, but the partition is well".into(),
                );
            }
            continue;
        }
        let mut reopened = handle.reopen().await;
        shared.note(|| format!("reopen {}: {reopened:?}", handle.id()));
        for _ in 0..3 {
            if reopened.is_ok() {
                break;
            }
            // Another failure may have been waiting for the recovery.
            reopened = handle.reopen().await;
        }
        if let Err(e) = reopened {
            return shared.violate("P8", format!("reopen: {e}"));
        }
        shared.count(|c| c.reopened_after_failure += 1);
        shared.slot(n, |s| s.failed = false);
        shared.verify(n, &handle, Survival::Durable).await;
    }
}

/// There is room again: every partition that has not failed takes appends.
async fn appends_go_on(shared: &Shared) {
    let slots = shared.with(|w| w.slots.len());
    for n in 0..slots {
        let Some(handle) = shared.handle(n) else {
            continue;
        };
        let shape = BatchShape {
            count: 1,
            record_bytes: 16,
            opaque: false,
        };
        let Some(id) = shared.life(n, &handle, |l| l.submit(HEALER, shape)) else {
            continue;
        };
        let result = handle.append(shape.encode(id)).await;
        if let Err(e @ Error::NoSpace { .. }) = &result {
            shared.violate("P9", format!("there is room again: {e}"));
        }
        shared.answered(n, &handle, id, result);
    }
}

/// The client that looks whether appends go on.
const HEALER: u32 = u32::MAX;

const EIO: i32 = 5;
