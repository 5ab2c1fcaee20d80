//! Every call of the seam fails once, in every way that it can.
//!
//! What can be tried again must not be seen: a short transfer, an interruption. Of everything else
//! the caller hears, and whatever it is, the promises hold in this life and in the next.

use std::collections::BTreeMap;
use std::rc::Rc;

use alluvium::backends::sim::{Sim, Stop};
use alluvium_testkit::simulation::Lineage;

use crate::case::{Options, world};
use crate::machine;
use crate::model::Loss;
use crate::workload::{self, Shared};

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    Errno(&'static str, i32),
    /// About half of what was asked for.
    Short,
}

const EINTR: Failure = Failure::Errno("EINTR", 4);
const EIO: Failure = Failure::Errno("EIO", 5);
const EAGAIN: Failure = Failure::Errno("EAGAIN", 11);
const ENOMEM: Failure = Failure::Errno("ENOMEM", 12);
const ENFILE: Failure = Failure::Errno("ENFILE", 23);
const EMFILE: Failure = Failure::Errno("EMFILE", 24);
const ENOSPC: Failure = Failure::Errno("ENOSPC", 28);
const ENOLCK: Failure = Failure::Errno("ENOLCK", 37);

/// What a call can answer, by the manual of the kernel.
fn failures_of(call: &str) -> &'static [Failure] {
    match call {
        "read_at" => &[EIO, EINTR, EAGAIN, ENOMEM, Failure::Short],
        "write_at" | "write_durable" => &[EIO, ENOSPC, EINTR, EAGAIN, ENOMEM, Failure::Short],
        "sync_data" => &[EIO, ENOSPC, EINTR, ENOMEM],
        "allocate" | "set_len" => &[EIO, ENOSPC, EINTR, ENOMEM],
        "create" => &[EIO, ENOSPC, EINTR, ENOMEM, EMFILE, ENFILE],
        "open" | "list" => &[EIO, EINTR, ENOMEM, EMFILE, ENFILE],
        "create_dir" | "rename" => &[EIO, ENOSPC, ENOMEM],
        "sync_dir" => &[EIO, ENOSPC, EINTR, ENOMEM, EMFILE, ENFILE],
        "remove_file" | "remove_dir" | "len" | "kind" | "space" => &[EIO, ENOMEM],
        "try_lock" => &[EINTR, ENOLCK],
        other => panic!("{other} is not known"),
    }
}

/// Whether nobody may hear of it.
fn is_hidden(call: &str, failure: Failure) -> bool {
    let transfers = ["read_at", "write_at", "write_durable"].contains(&call);
    transfers && [EINTR, EAGAIN, Failure::Short].contains(&failure)
}

/// How often each call failed in each way.
pub(crate) type Counts = BTreeMap<(&'static str, Failure), u64>;

/// Fails every `stride`-th call of the lives of so many seeds, the first of a kind in any case.
pub(crate) fn run(seeds: u64, stride: u64) -> Counts {
    let mut counts = Counts::new();
    for seed in 0..seeds {
        let calls = {
            let mut sweep = Sweep::new(seed);
            sweep.lives(None);
            sweep.sim.calls()
        };
        for (n, call) in (1..).zip(calls) {
            for failure in failures_of(call) {
                let count = counts.entry((call, *failure)).or_default();
                if *count > 0 && !(n + seed).is_multiple_of(stride) {
                    continue;
                }
                *count += 1;
                Sweep::new(seed).lives(Some((n, call, *failure)));
            }
        }
    }
    counts
}

struct Sweep {
    sim: Sim,
    world: Shared,
    seed: u64,
}

impl Sweep {
    fn new(seed: u64) -> Self {
        let lineage = Lineage {
            sound: true,
            ..Lineage::new(seed)
        };
        Self {
            sim: machine::simulation(&lineage, Options::default()),
            world: world(&lineage, false),
            seed,
        }
    }

    /// A life that creates the store, and one that finds it; then one that judges both and meets no
    /// failure any more.
    fn lives(&mut self, fails: Option<(u64, &'static str, Failure)>) {
        let sim = &self.sim;
        match fails {
            Some((n, _, Failure::Errno(_, errno))) => sim.fail_call(n, errno),
            Some((n, _, Failure::Short)) => sim.shorten_call(n),
            None => {}
        }
        let shows = fails.is_some_and(|(_, call, failure)| !is_hidden(call, failure));
        {
            let mut world = self.world.borrow_mut();
            world.faults = u64::from(shows);
            // Calls are counted here, not operations.
            world.last_fault_at = u64::MAX;
        }
        for (life, phases) in [(0, 5), (1, 3), (2, 1)] {
            if life == 2 {
                sim.cancel_failures();
                self.world.borrow_mut().faults = 0;
            }
            self.world.borrow_mut().life = life;
            let factory = sim.new_process();
            let process = factory.process();
            let world = Rc::clone(&self.world);
            let config = machine::config(self.seed);
            let work = workload::life(sim.clone(), factory, world, config, phases, false);
            let verdict = sim.try_block_on(work);
            let verdict = verdict.unwrap_or_else(|stop: Stop| Err(format!("P10 {stop:?}")));
            assert_eq!(
                verdict,
                Ok(()),
                "seed {}, life {life}, {fails:?}",
                self.seed
            );
            let loss = if (self.seed + life).is_multiple_of(2) {
                sim.kill(process);
                Loss::Kill
            } else {
                sim.power_loss();
                Loss::Power
            };
            let mut world = self.world.borrow_mut();
            world.loss = world.loss.max(loss);
        }
    }
}
