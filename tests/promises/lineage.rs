//! One case: a store that lives through several crashes on one simulated machine.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use alluvium::backends::sim::{CrashKind, Sim, SimFactory, Stop};
use alluvium::format::{SegmentHeader, SegmentKind};
use alluvium::{Error, RecoveryReport, Shards, Store, StoreConfig, TailCase};
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::simulation::{Coverage as _, Lineage, Ran, Tails};
use futures_util::future::{Either, join_all, select};

use crate::client::Client;
use crate::coverage::Coverage;
use crate::heal::{appends_go_on, heal};
use crate::machine;
use crate::rng::Rng;
use crate::world::{Presence, Shared};

/// What a run does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Negative control: a device that lies about flushes.
    pub(crate) lying_flush: bool,
    /// The trace covers every byte.
    pub(crate) trace_bytes: bool,
    /// Tell what happens.
    pub(crate) verbose: bool,
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

/// Stands for what belongs to no round.
const ALL_ROUNDS: u64 = u64::MAX;

/// Steps of a round have numbers of their own below this.
const STEPS_MAX: u64 = 1_000;

/// Runs one lineage.
pub(crate) fn run(lineage: &Lineage, options: Options, coverage: &mut Coverage) -> Ran {
    let seed = lineage.seed;
    let mut rng = Rng::of(seed, ALL_ROUNDS);
    let mut machine = machine::machine(seed, &mut rng, lineage.sound);
    machine.lying_flush = options.lying_flush;
    machine.trace_bytes = options.trace_bytes;
    let sim = Sim::new(machine);
    sim.create_dir_all("/store")
        .expect("an empty disk has room");
    let config = machine::store(&mut rng);
    let (partitions, retention) = (rng.range(1, 3), machine::retains(&config));
    let verbose = options.verbose;
    let shared = Shared::new(sim, partitions, retention, lineage.clone(), verbose);
    shared.with(|w| w.by_age = config.retention_age.is_some());
    shared.note(|| format!("{config:?}"));
    let watch = seed.is_multiple_of(WATCHED);
    let mut chain = Chain {
        shared,
        lineage: lineage.clone(),
        round: 0,
        rng,
        config,
        files: BTreeMap::new(),
        watch,
        recycled: false,
    };
    chain.shared.count(|c| {
        c.lineages += 1;
        c.lineages_watched += u64::from(watch);
    });
    if let Err(violation) = chain.rounds() {
        chain.shared.check(Err(violation));
    }
    let trace = chain.shared.sim.trace_hash();
    chain.shared.with(|w| {
        coverage.add(&w.coverage);
        let mut ran = std::mem::take(&mut w.ran);
        ran.violation = w.violation.take().map(|violation| violation.to_string());
        ran.trace = trace;
        ran
    })
}

/// A store and the machine it lives on.
pub(crate) struct Chain {
    pub(crate) shared: Shared,
    pub(crate) lineage: Lineage,
    pub(crate) round: u64,
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

impl Chain {
    fn rounds(&mut self) -> Result<(), Violation> {
        let mut survival = Survival::Written;
        for round in (0..ROUNDS)
            .filter(|round| self.lineage.lives(*round))
            .collect::<Vec<_>>()
        {
            self.round = round;
            self.rng = Rng::of(self.lineage.seed, round);
            self.shared.with(|w| w.ran.lives = round + 1);
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
        let struck = if self.lineage.nested {
            self.rng.range(1, 3)
        } else {
            0
        };
        let mut reach = 14;
        loop {
            let sim = self.shared.sim.clone();
            let kind = self.rng.pick(&[CrashKind::Kill, CrashKind::PowerLoss]);
            let strikes = crashes < 3 && self.rng.percent(30);
            if crashes < struck || strikes && !self.lineage.nested {
                sim.crash_at_op(sim.op_count() + self.rng.range(1, reach), kind);
            }
            sim.cancel_failures();
            let injected = crashes < 3 && self.rng.percent(3) && struck == 0 && !self.lineage.sound;
            if injected {
                self.inject_failure(14);
            }
            if self.rng.percent(25) {
                self.config.shards = Shards::Count(self.rng.pick(&[1, 2]));
                self.shared.count(|c| c.shard_changes += 1);
            }
            if self.rng.percent(6) {
                let alignment = self.rng.pick(&[512, 4096]);
                sim.configure(|machine| machine.alignment = alignment);
                self.shared.count(|c| c.alignment_changes += 1);
            }
            let process = sim.new_process();
            match self.open(&process)? {
                None => {
                    crashes += 1;
                    self.crashed(kind, crashes);
                    self.shared.count(|c| c.crashes_in_recovery += 1);
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
                Some(Ok(_)) if crashes < struck => {
                    // It was through before: strike earlier. A recovery has operations.
                    assert!(reach > 1, "a recovery that changes nothing");
                    reach = (reach / 2).max(1);
                    sim.cancel_crash();
                    sim.kill(process.process());
                }
                Some(Ok((store, report))) => {
                    sim.cancel_crash();
                    sim.cancel_failures();
                    self.shared.with(|w| w.faults = injected);
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
        let noted = report
            .partitions
            .iter()
            .try_for_each(|p| Tails::default().note(p));
        if let Err(e) = noted {
            self.shared.violate("P7", e);
        }
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
        let mut strikes_at = None;
        if let End::Crash(kind) = end {
            let begin = sim.op_count();
            match self.rng.range(0, 9) {
                0..=6 => {
                    let drawn = self.rng.range(1, 45);
                    let at = self.lineage.crashes.get(&self.round).copied();
                    let at = at.unwrap_or(drawn);
                    sim.crash_at_op(begin + at, kind);
                    strikes_at = Some(at);
                }
                7 | 8 => time_limit = Duration::from_micros(self.rng.range(1, 6000)),
                _ => {}
            }
        }
        if self.rng.percent(12) && !self.lineage.sound {
            self.inject_failure(30);
        }
        let full_disk = self.rng.percent(8) && !self.lineage.sound;
        let finished = self.work(&opened, time_limit, full_disk)?;
        // A fault that did not come up must not come up anywhere else.
        sim.set_capacity(1 << 30);
        sim.cancel_failures();
        if finished.is_none() {
            let End::Crash(kind) = end else {
                return Err(Violation::new("P10", "a crash that nobody asked for"));
            };
            self.crashed(kind, 0);
            let round = self.round;
            self.shared
                .with(|w| w.ran.crashes.extend(strikes_at.map(|at| (round, at))));
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
        self.shared.with(|w| w.faults = true);
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
            let first = join_all(self.clients(opened, &mut rng, clients, 0));
            if full_disk {
                let spell = async {
                    shared.sim.sleep(full_at).await;
                    shared.note(|| "the disk is full".to_owned());
                    shared.with(|w| w.faults = true);
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
            join_all(self.clients(opened, &mut rng, clients, STEPS_MAX / 2)).await;
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
        first: u64,
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
                    first_step: self.round * STEPS_MAX + first + u64::from(number) * 100,
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
                if let Some(Err(e)) = &closed
                    && !shared.with(|w| w.faults)
                {
                    shared.violate("P10", format!("closing without any fault: {e}"));
                }
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

    fn crashed(&self, kind: CrashKind, nested: u64) {
        let zombies = self.shared.sim.in_flight();
        self.shared
            .note(|| format!("{kind:?}, {zombies} operations in flight"));
        self.forget_handles();
        let depth = self.shared.sim.counters().in_flight_at_crash;
        // Those of recoveries belong to the case that they interrupt.
        let case = u64::from(nested == 0 || !self.lineage.nested);
        self.shared.with(|w| w.ran.cases += case);
        self.shared.count(|c| {
            c.crashes += 1;
            c.take_depth(depth);
            match kind {
                CrashKind::Kill => {
                    c.kills += 1;
                    c.kills_with_zombies += u64::from(zombies > 0);
                }
                CrashKind::PowerLoss => c.power_losses += 1,
            }
            c.crashes_in_recovery_twice += u64::from(nested == 2);
            c.crashes_in_recovery_thrice += u64::from(nested == 3);
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
            self.shared.count(|c| c.lineages_with_recycling += 1);
        }
    }
}

pub(crate) fn survival_of(kind: CrashKind) -> Survival {
    match kind {
        CrashKind::Kill => Survival::Written,
        CrashKind::PowerLoss => Survival::Durable,
    }
}

const EIO: i32 = 5;
