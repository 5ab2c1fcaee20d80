//! A case: one disk, several lives.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use alluvium::backends::sim::{CrashKind, Sim, SimConfig, Stop};

use crate::model::Loss;
use crate::rng::Rng;
use crate::workload::{self, Shared, World};

/// What a run does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) lying_flush: bool,
    pub(crate) trace: bool,
}

/// What a run came across; a run that misses one of these proves less than it says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage {
    pub(crate) kills: u64,
    pub(crate) power_losses: u64,
    /// Crashes before the recovery of that life had ended.
    pub(crate) in_recovery: u64,
    /// Kills with operations still in flight.
    pub(crate) zombies: u64,
    pub(crate) clean: u64,
    pub(crate) unsealed: u64,
    pub(crate) torn: u64,
    pub(crate) skipped: u64,
    pub(crate) reopened: u64,
    pub(crate) closed: u64,
    pub(crate) spares: u64,
    pub(crate) trimmed: u64,
    pub(crate) truncated: u64,
    pub(crate) deleted: u64,
    pub(crate) dropped: u64,
}

impl Coverage {
    fn counts(&self) -> [(&'static str, u64); 15] {
        [
            ("kills", self.kills),
            ("power losses", self.power_losses),
            ("crashes in recovery", self.in_recovery),
            ("zombies", self.zombies),
            ("clean", self.clean),
            ("unsealed", self.unsealed),
            ("torn", self.torn),
            ("skipped offsets", self.skipped),
            ("reopened", self.reopened),
            ("closed", self.closed),
            ("spares", self.spares),
            ("trimmed", self.trimmed),
            ("truncated", self.truncated),
            ("deleted", self.deleted),
            ("dropped", self.dropped),
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.in_recovery += other.in_recovery;
        self.zombies += other.zombies;
        self.clean += other.clean;
        self.unsealed += other.unsealed;
        self.torn += other.torn;
        self.skipped += other.skipped;
        self.reopened += other.reopened;
        self.closed += other.closed;
        self.spares += other.spares;
        self.trimmed += other.trimmed;
        self.truncated += other.truncated;
        self.deleted += other.deleted;
        self.dropped += other.dropped;
    }

    pub(crate) fn assert_complete(&self) {
        for (what, count) in self.counts() {
            assert!(count >= 100, "the run hardly met: {what} ({count})");
        }
    }
}

fn simulation(seed: u64, options: Options) -> Sim {
    let mut rng = Rng(seed ^ 0xD15C);
    let mut config = SimConfig::new(seed);
    config.lying_flush = options.lying_flush;
    config.run_time_max = Duration::from_secs(120);
    if rng.chance(20) {
        config.short_per_mille = 20;
        config.interrupted_per_mille = 10;
    }
    let sim = Sim::new(config);
    sim.create_dir_all("/").unwrap();
    sim
}

/// A world without injected errors.
pub(crate) fn fresh_world(seed: u64) -> Shared {
    let world = world(seed, false);
    world.borrow_mut().faults = false;
    world
}

fn world(seed: u64, trace: bool) -> Shared {
    Rc::new(RefCell::new(World {
        logs: BTreeMap::new(),
        unsure: BTreeSet::new(),
        next_batch: 0,
        next_producer: 0,
        loss: Loss::Nothing,
        rng: Rng(seed),
        coverage: Coverage::default(),
        faults: true,
        faulty: false,
        opened: false,
        trace,
    }))
}

/// Runs one case; returns how many crashes it had, or the violation.
pub(crate) fn run_case(seed: u64, options: Options, total: &mut Coverage) -> Result<u64, String> {
    let sim = simulation(seed, options);
    let world = world(seed, options.trace);
    let config = workload::config(seed);
    let lives = 6 + world.borrow_mut().rng.below(10);
    let mut crashes = 0;
    for _ in 0..lives {
        let factory = sim.new_process();
        let process = factory.process();
        let (kind, at, phases) = {
            let mut world = world.borrow_mut();
            let kind = if world.rng.chance(40) {
                CrashKind::Kill
            } else {
                CrashKind::PowerLoss
            };
            // Early crashes strike the recovery.
            let range = [12, 60, 150][usize::try_from(world.rng.below(3)).unwrap()];
            (
                kind,
                sim.op_count() + 1 + world.rng.below(range),
                2 + world.rng.below(8),
            )
        };
        world.borrow_mut().opened = false;
        sim.crash_at_op(at, kind);
        let life = workload::life(
            sim.clone(),
            factory,
            Rc::clone(&world),
            config.clone(),
            phases,
            false,
        );
        let end = sim.try_block_on(life);
        sim.cancel_crash();
        let kind = match end {
            Ok(verdict) => {
                if verdict.is_err() && options.trace {
                    describe(&sim);
                }
                verdict?;
                // It ended before the crash struck: let one strike now.
                match kind {
                    CrashKind::Kill => sim.kill(process),
                    CrashKind::PowerLoss => sim.power_loss(),
                }
                kind
            }
            Err(Stop::Crashed) => kind,
            Err(stop) => return Err(format!("P10 nobody may hang: {stop:?}")),
        };
        crashes += 1;
        let mut world = world.borrow_mut();
        let zombies = sim.in_flight() > 0;
        let in_recovery = !world.opened;
        let loss = match kind {
            CrashKind::Kill => Loss::Kill,
            CrashKind::PowerLoss => Loss::Power,
        };
        world.loss = world.loss.max(loss);
        world.coverage.in_recovery += u64::from(in_recovery);
        match kind {
            CrashKind::Kill => {
                world.coverage.kills += 1;
                world.coverage.zombies += u64::from(zombies);
            }
            CrashKind::PowerLoss => world.coverage.power_losses += 1,
        }
        if options.trace {
            eprintln!("crash: {kind:?}, in recovery {in_recovery}, zombies {zombies}");
            for path in sim.list_files() {
                eprintln!("  {}", path.display());
            }
        }
    }
    total.add(&world.borrow().coverage);
    Ok(crashes)
}

/// A crash at every operation of a workload, and again at every operation of the recovery.
pub(crate) fn sweep(seeds: u64) -> u64 {
    let mut crashes = 0;
    for seed in 0..seeds {
        for kind in [CrashKind::Kill, CrashKind::PowerLoss] {
            for first in 1.. {
                let mut second = 1;
                loop {
                    let (crashed, ended) = two_crashes(seed, kind, first, second);
                    crashes += crashed;
                    if crashed == 0 {
                        break;
                    }
                    if ended {
                        break;
                    }
                    second += 1;
                }
                if second == 1 && two_crashes(seed, kind, first, u64::MAX).0 == 0 {
                    break;
                }
            }
        }
    }
    crashes
}

/// The crashes that struck, and whether the recovery ended before its own.
fn two_crashes(seed: u64, kind: CrashKind, first: u64, second: u64) -> (u64, bool) {
    let sim = simulation(seed, Options::default());
    let world = world(seed + 77, false);
    let config = workload::config(seed);
    let run = |at: Option<u64>, phases| {
        let factory = sim.new_process();
        if let Some(at) = at {
            sim.crash_at_op(sim.op_count().saturating_add(at), kind);
        }
        let life = workload::life(
            sim.clone(),
            factory,
            Rc::clone(&world),
            config.clone(),
            phases,
            false,
        );
        let end = sim.try_block_on(life);
        sim.cancel_crash();
        let crashed = matches!(end, Err(Stop::Crashed));
        if !crashed {
            let place = format!("seed {seed}, {kind:?} at {first}, then at {second}");
            end.unwrap_or_else(|stop| Err(format!("P10 {stop:?}")))
                .expect(&place);
            sim.power_loss();
        }
        let loss = if kind == CrashKind::Kill && crashed {
            Loss::Kill
        } else {
            Loss::Power
        };
        let worst = world.borrow().loss.max(loss);
        world.borrow_mut().loss = worst;
        crashed
    };
    if !run(Some(first), 6) {
        return (0, true);
    }
    let again = run(Some(second), 0);
    run(None, 1);
    (1 + u64::from(again), !again)
}

/// Prints the headers on the disk, for a replay.
fn describe(sim: &Sim) {
    for path in sim.list_files() {
        eprintln!("{}", path.display());
        if path.extension().is_some_and(|e| e == "seg") {
            let bytes = sim.read_file(&path).unwrap();
            let header = alluvium::format::SegmentHeader::decode(&bytes[..4096]);
            eprintln!("{} {header:?}", path.display());
        }
    }
}
