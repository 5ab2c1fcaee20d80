//! A lineage: one disk, several lives.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use alluvium::StoreConfig;
use alluvium::backends::sim::{CrashKind, Sim, Stop};
use alluvium_testkit::simulation::{Coverage as _, Lineage, Ran};

use crate::coverage::Coverage;
use crate::machine;
use crate::model::Loss;
use crate::rng::Rng;
use crate::workload::{self, Shared, World};

/// What a run does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) lying_flush: bool,
    /// The trace covers every byte.
    pub(crate) trace_bytes: bool,
    /// Tell what happens.
    pub(crate) verbose: bool,
}

/// A world that nothing has happened to.
pub(crate) fn world(lineage: &Lineage, verbose: bool) -> Shared {
    Rc::new(RefCell::new(World {
        logs: BTreeMap::new(),
        unsure: BTreeSet::new(),
        next_batch: 0,
        next_producer: 0,
        loss: Loss::Nothing,
        rng: Rng::of(lineage.seed, 0, 0),
        coverage: Coverage::default(),
        lineage: lineage.clone(),
        life: 0,
        ran: Ran::default(),
        faults: 0,
        last_fault_at: 0,
        recovered: false,
        verbose,
    }))
}

/// Runs one lineage.
pub(crate) fn run(lineage: &Lineage, options: Options, coverage: &mut Coverage) -> Ran {
    let sim = machine::simulation(lineage, options);
    let mut chain = Chain {
        world: world(lineage, options.verbose),
        config: machine::config(lineage.seed),
        sim,
        depth: 0,
    };
    let lives = machine::lives(lineage.seed);
    let violation = (0..lives)
        .filter(|life| lineage.lives(*life))
        .find_map(|life| chain.life(life).err());
    if violation.is_some() && options.verbose {
        describe(&chain.sim);
    }
    let mut world = chain.world.borrow_mut();
    coverage.add(&world.coverage);
    let mut ran = std::mem::take(&mut world.ran);
    ran.violation = violation;
    ran.trace = chain.sim.trace_hash();
    ran
}

/// The lives of a lineage so far.
struct Chain {
    sim: Sim,
    world: Shared,
    config: StoreConfig,
    /// Crashes in a row that struck a recovery.
    depth: u64,
}

/// How a process ends.
#[derive(Debug, Clone, Copy)]
struct Death {
    kind: CrashKind,
    /// Counted operations from its beginning.
    at: u64,
}

impl Chain {
    fn life(&mut self, life: u64) -> Result<(), String> {
        let (lineage, mut rng) = {
            let mut world = self.world.borrow_mut();
            world.life = life;
            world.ran.lives = life + 1;
            (world.lineage.clone(), Rng::of(world.lineage.seed, life, 0))
        };
        let changed =
            machine::change_between_lives(&self.sim, lineage.seed, life, &mut self.config);
        self.world.borrow_mut().coverage.counts.other_surroundings += u64::from(changed);
        let kind = kind(&mut rng);
        // Early crashes strike the recovery.
        let range = rng.pick(&[12, 60, 150]);
        let drawn = 1 + rng.below(range);
        let at = lineage.crashes.get(&life).copied().unwrap_or(drawn);
        let phases = 2 + rng.below(8);
        let struck = self.process(Death { kind, at }, phases)?;
        let mut world = self.world.borrow_mut();
        world.ran.cases += 1;
        if let Some(at) = struck {
            world.ran.crashes.insert(life, at);
        }
        drop(world);
        if lineage.nested {
            self.strike_recoveries(&mut rng)?;
        }
        Ok(())
    }

    /// One to three recoveries in a row that come to nothing.
    fn strike_recoveries(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.depth = 0;
        let wanted = 1 + rng.below(3);
        let mut reach = 16;
        while self.depth < wanted {
            let (kind, at) = (kind(rng), 1 + rng.below(reach));
            self.process(Death { kind, at }, 0)?;
            if self.world.borrow().recovered {
                // It was through before: strike earlier. A recovery has at least one operation.
                assert!(reach > 1, "a recovery that changes nothing");
                reach = (reach / 2).max(1);
            }
        }
        Ok(())
    }

    /// A process opens the store, judges it, works and dies. Returns the operation that it died at,
    /// unless it came to its end before.
    fn process(&mut self, death: Death, phases: u64) -> Result<Option<u64>, String> {
        let sim = &self.sim;
        let factory = sim.new_process();
        let process = factory.process();
        self.world.borrow_mut().recovered = false;
        let begin = sim.op_count();
        sim.crash_at_op(begin + death.at, death.kind);
        let life = workload::life(
            sim.clone(),
            factory,
            Rc::clone(&self.world),
            self.config.clone(),
            phases,
            false,
        );
        let end = sim.try_block_on(life);
        sim.cancel_crash();
        let struck = match end {
            Ok(verdict) => {
                verdict?;
                // It ended before the crash struck: let one strike now.
                match death.kind {
                    CrashKind::Kill => sim.kill(process),
                    CrashKind::PowerLoss => sim.power_loss(),
                }
                None
            }
            Err(Stop::Crashed) => Some(death.at),
            Err(stop) => return Err(format!("P10 nobody may hang: {stop:?}")),
        };
        self.crashed(death.kind);
        Ok(struck)
    }

    fn crashed(&mut self, kind: CrashKind) {
        let mut world = self.world.borrow_mut();
        let zombies = self.sim.in_flight() > 0;
        let in_recovery = !world.recovered;
        self.depth = if in_recovery { self.depth + 1 } else { 0 };
        let coverage = &mut world.coverage.counts;
        coverage.crashes_in_recovery += u64::from(in_recovery);
        coverage.crashes_in_recovery_twice += u64::from(self.depth == 2);
        coverage.crashes_in_recovery_thrice += u64::from(self.depth == 3);
        coverage.take_depth(self.sim.counters().in_flight_at_crash);
        let loss = match kind {
            CrashKind::Kill => {
                coverage.kills += 1;
                coverage.zombies += u64::from(zombies);
                Loss::Kill
            }
            CrashKind::PowerLoss => {
                coverage.power_losses += 1;
                Loss::Power
            }
        };
        world.loss = world.loss.max(loss);
        if world.verbose {
            eprintln!("crash: {kind:?}, in recovery {in_recovery}, zombies {zombies}");
            for path in self.sim.list_files() {
                eprintln!("  {}", path.display());
            }
        }
    }
}

fn kind(rng: &mut Rng) -> CrashKind {
    if rng.chance(40) {
        CrashKind::Kill
    } else {
        CrashKind::PowerLoss
    }
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
