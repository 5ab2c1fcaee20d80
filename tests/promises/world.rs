//! What the clients of one lineage share: the machine, the model, the first violation.

use std::cell::RefCell;
use std::rc::Rc;

use alluvium::backends::sim::Sim;
use alluvium::{Ack, Appended, Error, Partition, ReadLimits, Visibility};
use alluvium_testkit::promises::{BatchId, Life, Survival, Violation, observe};
use alluvium_testkit::simulation::{Lineage, Ran};

use crate::coverage::Coverage;

/// Whether a partition is there, as far as its clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    Creating,
    Present,
    Deleting,
}

/// One partition id.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) presence: Presence,
    pub(crate) incarnation: Option<u32>,
    pub(crate) life: Life,
    pub(crate) handle: Option<Partition>,
    /// A client was told of a failed write or sync.
    pub(crate) failed: bool,
}

/// Everything of one lineage.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) slots: Vec<Slot>,
    pub(crate) lives: u32,
    pub(crate) retention: bool,
    /// Retention goes by the age of records, not by their bytes.
    pub(crate) by_age: bool,
    /// An error was injected into this round, or its disk was full for a time.
    pub(crate) faults: bool,
    pub(crate) violation: Option<Violation>,
    pub(crate) coverage: Coverage,
    pub(crate) lineage: Lineage,
    pub(crate) ran: Ran,
    pub(crate) verbose: bool,
}

/// The world, shared by the clients; never borrowed over an await.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) sim: Rc<Sim>,
    world: Rc<RefCell<World>>,
}

impl Shared {
    pub(crate) fn new(
        sim: Sim,
        partitions: u64,
        retention: bool,
        lineage: Lineage,
        verbose: bool,
    ) -> Self {
        let slot = |id| Slot {
            id,
            presence: Presence::Absent,
            incarnation: None,
            life: Life::new(0, retention),
            handle: None,
            failed: false,
        };
        let world = World {
            slots: (1..=partitions).map(slot).collect(),
            lives: 0,
            retention,
            by_age: false,
            faults: false,
            violation: None,
            coverage: Coverage::default(),
            lineage,
            ran: Ran::default(),
            verbose,
        };
        Self {
            sim: Rc::new(sim),
            world: Rc::new(RefCell::new(world)),
        }
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        f(&mut self.world.borrow_mut())
    }

    pub(crate) fn slot<T>(&self, n: usize, f: impl FnOnce(&mut Slot) -> T) -> T {
        f(&mut self.world.borrow_mut().slots[n])
    }

    pub(crate) fn count(&self, f: impl FnOnce(&mut Coverage)) {
        f(&mut self.world.borrow_mut().coverage);
    }

    /// Tells what happens, when one seed is looked at.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.with(|w| w.verbose) {
            eprintln!(
                "{:>12?} op {:>4}  {}",
                self.sim.now(),
                self.sim.op_count(),
                text()
            );
        }
    }

    /// Begins a step of a client. `false`: it is left out.
    pub(crate) fn begins(&self, step: u64) -> bool {
        self.with(|w| {
            let takes = w.lineage.takes(step);
            if takes {
                w.ran.steps.push(step);
            }
            takes
        })
    }

    /// Keeps the first violation.
    pub(crate) fn check(&self, result: Result<(), Violation>) {
        if let Err(violation) = result {
            self.note(|| format!("VIOLATION {violation}"));
            self.with(|w| w.violation.get_or_insert(violation).promise);
        }
    }

    pub(crate) fn violate(&self, promise: &'static str, detail: String) {
        self.check(Err(Violation::new(promise, detail)));
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.with(|w| w.violation.is_some())
    }

    /// A handle to partition `n`, when there is one that works.
    pub(crate) fn handle(&self, n: usize) -> Option<Partition> {
        self.slot(n, |s| {
            let usable = s.presence == Presence::Present && !s.failed;
            s.handle.clone().filter(|_| usable)
        })
    }

    /// The life of partition `n`, if it is still the one that `incarnation` belongs to.
    pub(crate) fn life<T>(
        &self,
        n: usize,
        handle: &Partition,
        f: impl FnOnce(&mut Life) -> T,
    ) -> Option<T> {
        self.slot(n, |s| {
            (s.incarnation == Some(handle.incarnation())).then(|| f(&mut s.life))
        })
    }

    /// Notes the answer to an append.
    pub(crate) fn answered(
        &self,
        n: usize,
        handle: &Partition,
        id: BatchId,
        asked: Ack,
        result: Result<Appended, Error>,
    ) {
        self.note(|| format!("partition {} {id}: {result:?}", handle.id()));
        match result {
            Ok(appended) => {
                let offsets = handle.offsets();
                let acknowledged = |l: &mut Life| l.acknowledged(id, asked, appended, offsets);
                let checked = self.life(n, handle, acknowledged);
                self.check(checked.unwrap_or(Ok(())));
                self.count(|c| match appended.level {
                    Ack::Accepted => c.acks_accepted += 1,
                    Ack::Written => c.acks_written += 1,
                    Ack::Durable => c.acks_durable += 1,
                });
            }
            Err(e) => {
                if e.is_not_applied() {
                    self.life(n, handle, |l| l.refused(id));
                    self.count(|c| c.refused += 1);
                } else {
                    self.count(|c| c.outcome_unknown += 1);
                }
                self.failed(n, handle, &e);
            }
        }
    }

    /// Looks at an error that a running store gave.
    pub(crate) fn failed(&self, n: usize, handle: &Partition, error: &Error) {
        let of_a_fault = matches!(
            error,
            Error::PartitionFailed { .. }
                | Error::OutcomeUnknown { .. }
                | Error::NoSpace { .. }
                | Error::Io { .. }
        );
        if of_a_fault && !self.with(|w| w.faults) {
            self.violate("P8", format!("without any fault: {error}"));
        }
        match error {
            Error::PartitionFailed { .. } | Error::OutcomeUnknown { .. } => {
                let mine = Some(handle.incarnation());
                self.slot(n, |s| s.failed |= s.incarnation == mine);
            }
            Error::NoSpace { .. } => self.count(|c| c.no_space_answers += 1),
            Error::Corrupt(_) => self.violate("P1", format!("of sound bytes: {error}")),
            Error::ShardDead { .. } => self.violate("P10", error.to_string()),
            _ => {}
        }
    }

    /// Reads all of partition `n` and compares it with the model; nothing else may run.
    pub(crate) async fn verify(&self, n: usize, handle: &Partition, survival: Survival) {
        let mut seen = Vec::new();
        let mut offsets = handle.offsets();
        let mut at = offsets.log_start();
        while at < offsets.durable() {
            let limits = if at.is_multiple_of(2) {
                ReadLimits::default()
            } else {
                ReadLimits {
                    bytes_max: 700,
                    records_max: 5,
                }
            };
            match handle.read(at, limits, Visibility::Durable).await {
                Ok(fetched) => {
                    let found = self.slot(n, |s| observe(&s.life, &fetched));
                    match found {
                        Ok(found) => seen.extend(found),
                        Err(violation) => return self.check(Err(violation)),
                    }
                    if fetched.next_offset <= at {
                        let text = format!("a read at {at} of {offsets:?} makes no progress");
                        return self.violate("P10", text);
                    }
                    at = fetched.next_offset;
                }
                // Retention has moved the start meanwhile.
                Err(Error::OutOfRange { start, .. }) if start > at => {
                    seen.clear();
                    offsets = handle.offsets();
                    at = offsets.log_start();
                }
                Err(e) => return self.violate("P1", format!("read at {at} of {offsets:?}: {e}")),
            }
        }
        if offsets.durable() != offsets.log_end() {
            return self.violate("P2", format!("recovered, but not durable: {offsets:?}"));
        }
        self.count(|c| c.records_read += seen.len() as u64);
        let result = self.slot(n, |s| {
            let (before, doubt) = (s.life.weak_lost, s.life.is_cutting());
            let retained = offsets.log_start() > s.life.trims_reach();
            let result = s.life.recovered(survival, offsets, &seen);
            (result, s.life.weak_lost - before, doubt, retained)
        });
        let by_age = self.with(|w| w.by_age);
        self.count(|c| {
            c.retained_by_age += u64::from(result.3 && by_age);
            c.retained_by_bytes += u64::from(result.3 && !by_age);
            c.weak_batches_lost += result.1;
            c.truncations_in_doubt += u64::from(result.2);
        });
        self.check(result.0);
    }
}
