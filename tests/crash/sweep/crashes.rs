//! A crash at every write, sync and change of names of a workload, and again at every one of the
//! recovery that follows.

use std::rc::Rc;

use alluvium::backends::sim::{CrashKind, Moment, Sim, Stop};
use alluvium_testkit::simulation::Lineage;

use crate::case::{Options, world};
use crate::machine;
use crate::model::Loss;
use crate::workload::{self, Shared};

/// What was swept.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Operations of the workloads at which it crashed.
    pub(crate) first: u64,
    /// Operations of recoveries at which it crashed again.
    pub(crate) second: u64,
}

/// Phases of the workload.
const PHASES: u64 = 6;

/// Every crash of the workloads of so many seeds.
pub(crate) fn run(seeds: u64) -> Counts {
    let mut counts = Counts::default();
    for seed in 0..seeds {
        for kind in [CrashKind::Kill, CrashKind::PowerLoss] {
            for moment in [Moment::Begin, Moment::End] {
                sweep(seed, kind, moment, &mut counts);
            }
        }
    }
    counts
}

fn sweep(seed: u64, kind: CrashKind, moment: Moment, counts: &mut Counts) {
    for first in 1.. {
        let mut sweep = Sweep::new(seed, kind, moment);
        if !sweep.process(Some(first), PHASES) {
            return;
        }
        counts.first += 1;
        for second in 1.. {
            let mut sweep = Sweep::new(seed, kind, moment);
            let struck = sweep.process(Some(first), PHASES);
            assert!(struck, "the same run: {}", sweep.place(first, second));
            let again = sweep.process(Some(second), 0);
            sweep.process(None, 1);
            if !again {
                break;
            }
            counts.second += 1;
        }
    }
}

struct Sweep {
    sim: Sim,
    world: Shared,
    seed: u64,
    kind: CrashKind,
    moment: Moment,
    life: u64,
}

impl Sweep {
    fn new(seed: u64, kind: CrashKind, moment: Moment) -> Self {
        let lineage = Lineage {
            sound: true,
            ..Lineage::new(seed)
        };
        Self {
            sim: machine::simulation(&lineage, Options::default()),
            world: world(&lineage, false),
            seed,
            kind,
            moment,
            life: 0,
        }
    }

    fn place(&self, at: u64, life: u64) -> String {
        let (seed, kind, moment) = (self.seed, self.kind, self.moment);
        format!("seed {seed}, {kind:?} at the {moment:?} of operation {at} of life {life}")
    }

    /// One life; whether it crashed at its operation `at`. Otherwise the power fails at its end.
    fn process(&mut self, at: Option<u64>, phases: u64) -> bool {
        let sim = &self.sim;
        let factory = sim.new_process();
        if let Some(at) = at {
            sim.crash_at(sim.op_count() + at, self.kind, self.moment);
        }
        self.world.borrow_mut().life = self.life;
        let world = Rc::clone(&self.world);
        let config = machine::config(self.seed);
        let life = workload::life(sim.clone(), factory, world, config, phases, false);
        let end = sim.try_block_on(life);
        sim.cancel_crash();
        let crashed = matches!(end, Err(Stop::Crashed));
        if !crashed {
            let place = self.place(at.unwrap_or(0), self.life);
            let verdict = end.unwrap_or_else(|stop| Err(format!("P10 {stop:?}")));
            assert_eq!(verdict, Ok(()), "{place}");
            sim.power_loss();
        }
        let loss = if crashed && self.kind == CrashKind::Kill {
            Loss::Kill
        } else {
            Loss::Power
        };
        let mut world = self.world.borrow_mut();
        world.loss = world.loss.max(loss);
        self.life += 1;
        crashed
    }
}
