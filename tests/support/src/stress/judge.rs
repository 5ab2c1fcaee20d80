//! What was promised, and whether it was kept.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium_core::{
    Appended, Error, Offsets, OpenStore, Partition, ReadLimits, Store, StoreConfig, TailCase,
    Visibility,
};
use rustix::fs::FlockOperation;

use super::{Event, SLOTS, SlotPlan, has_retention, partition_id};
use crate::promises::{Life, Survival, Violation, observe};

/// Batches after which a partition is deleted and begun anew.
const BATCHES_MAX: usize = 4000;
/// Lines of history that are kept.
const HISTORY_MAX: usize = 20_000;

#[derive(Debug)]
struct Slot {
    life: Life,
    number: u32,
    created: bool,
}

/// The model of one store through all its lives.
#[derive(Debug)]
pub struct Judge {
    dir: PathBuf,
    store_seed: u64,
    slots: Vec<Slot>,
    lives: u32,
    failures: Vec<String>,
    history: VecDeque<String>,
}

/// What a judgement came across.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judged {
    /// Recoveries judged.
    pub recoveries: u64,
    /// Batches acknowledged at any level.
    pub acknowledged: u64,
    /// Records read back.
    pub records: u64,
    /// Partitions whose tail had been cut short.
    pub torn: u64,
    /// Partitions whose log ended without a seal.
    pub unsealed: u64,
    /// Segment files that the kernel still held for a process that was gone.
    pub held: u64,
    /// Bytes that recoveries wrote again.
    pub rewritten_bytes: u64,
}

impl Judged {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.recoveries += other.recoveries;
        self.acknowledged += other.acknowledged;
        self.records += other.records;
        self.torn += other.torn;
        self.unsealed += other.unsealed;
        self.held += other.held;
        self.rewritten_bytes += other.rewritten_bytes;
    }
}

impl Judge {
    /// The judge of a store that does not exist yet.
    pub fn new(dir: &Path, store_seed: u64) -> Self {
        let mut judge = Self {
            dir: dir.to_path_buf(),
            store_seed,
            slots: Vec::new(),
            lives: 0,
            failures: Vec::new(),
            history: VecDeque::new(),
        };
        for _ in 0..SLOTS {
            let slot = judge.fresh();
            judge.slots.push(slot);
        }
        judge
    }

    fn fresh(&mut self) -> Slot {
        self.lives += 1;
        Slot {
            life: Life::new(self.lives, has_retention(self.store_seed)),
            number: self.lives,
            created: false,
        }
    }

    /// What the next writer has to know of the partitions.
    pub fn plan(&self) -> Vec<SlotPlan> {
        let plan = self.slots.iter().map(|slot| SlotPlan {
            life: slot.number,
            submitted: u32::try_from(slot.life.submitted()).unwrap_or(u32::MAX),
        });
        plan.collect()
    }

    /// Failures that the writers have met since this was last asked.
    pub fn failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.failures)
    }

    /// Adds a line to the history.
    pub fn note(&mut self, line: String) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(line);
    }

    /// What was said and done last, oldest first: for the one who looks into a violation.
    pub fn history(&self) -> String {
        let mut text = String::new();
        for line in &self.history {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Takes in what the writer said.
    ///
    /// # Errors
    /// A promise that was broken before the crash.
    pub fn hear(&mut self, event: Event, judged: &mut Judged) -> Result<(), Violation> {
        self.note(event.to_string());
        match event {
            Event::Opened => {}
            Event::Created { slot } => self.slots[slot].created = true,
            Event::Submit {
                slot,
                client,
                count,
                record_bytes,
                opaque,
            } => {
                let shape = crate::promises::BatchShape {
                    count,
                    record_bytes,
                    opaque,
                };
                self.slots[slot].life.submit(client, shape);
            }
            Event::Acknowledged {
                slot,
                id,
                level,
                base,
                count,
            } => {
                judged.acknowledged += 1;
                let appended = Appended {
                    base_offset: base,
                    count,
                    level,
                };
                // The writer has compared the published offsets itself.
                let offsets = Offsets::new(0, appended.end_offset());
                let id = crate::promises::BatchId(id);
                let life = &mut self.slots[slot].life;
                return life.acknowledged(id, level, appended, offsets);
            }
            Event::Refused { slot, id } => {
                self.slots[slot].life.refused(crate::promises::BatchId(id));
            }
            Event::TrimAsked { slot, to } => self.slots[slot].life.trim_asked(to),
            Event::Trimmed { slot, to } => self.slots[slot].life.trimmed(to),
            Event::CutAsked { slot, to } => self.slots[slot].life.cut_asked(to),
            Event::Cut { slot } => self.slots[slot].life.cut_done(),
            Event::CutRefused { slot } => self.slots[slot].life.cut_refused(),
            Event::Durable { slot, end } => {
                let life = &mut self.slots[slot].life;
                let start = life.read_start(0);
                life.synced(start, end);
            }
            Event::Failed { text } => self.failures.push(text),
            Event::Violation { text } => return Err(Violation::new("said", text)),
            Event::Closed => {
                for slot in &mut self.slots {
                    slot.life.closed();
                }
            }
        }
        Ok(())
    }

    /// How many segment files the kernel still holds once the process itself has let go of the
    /// store: operations of the dead are in flight on them.
    pub fn held(&self) -> u64 {
        let lock = self.dir.join("LOCK");
        while File::open(&lock).is_ok_and(|file| is_locked(&file)) {
            std::thread::yield_now();
        }
        let mut held = 0;
        let partitions = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for partition in partitions {
            let files = fs::read_dir(partition.path()).into_iter().flatten();
            let opened = files.flatten().filter_map(|f| File::open(f.path()).ok());
            held += opened.map(|file| u64::from(is_locked(&file))).sum::<u64>();
        }
        held
    }

    /// Opens what is left of the store.
    ///
    /// # Errors
    /// A store that cannot be opened breaks P1.
    pub async fn open<O: OpenStore + Clone>(
        &self,
        backend: O,
        judged: &mut Judged,
    ) -> Result<Store, Violation> {
        // Nothing may go while it is read.
        let keep = |config: &mut StoreConfig| config.retention_bytes = None;
        let opened = super::open(&self.dir, self.store_seed, backend, keep).await;
        let (store, report) =
            opened.map_err(|e| Violation::new("P1", format!("the store does not open: {e}")))?;
        judged.recoveries += 1;
        for partition in &report.partitions {
            judged.torn += u64::from(partition.case == TailCase::Torn);
            judged.unsealed += u64::from(partition.case == TailCase::Unsealed);
            judged.rewritten_bytes += partition.rewritten_bytes;
        }
        Ok(store)
    }

    /// Reads everything back, compares, and closes.
    ///
    /// # Errors
    /// The promise that was broken.
    pub async fn judge(
        &mut self,
        store: Store,
        survival: Survival,
        judged: &mut Judged,
    ) -> Result<(), Violation> {
        for n in 0..self.slots.len() {
            self.judge_slot(n, &store, survival, judged).await?;
        }
        let closed = store.close(Duration::from_secs(60)).await;
        closed.map_err(|e| Violation::new("P10", format!("close: {e}")))
    }

    async fn judge_slot(
        &mut self,
        n: usize,
        store: &Store,
        survival: Survival,
        judged: &mut Judged,
    ) -> Result<(), Violation> {
        let slot = &mut self.slots[n];
        let partition = match store.partition(partition_id(n)).await {
            Ok(partition) => partition,
            // Nothing was promised of a partition whose creation has not returned.
            Err(Error::PartitionNotFound { .. }) if !slot.created => return Ok(()),
            Err(e) => return Err(Violation::new("P1", format!("partition of slot {n}: {e}"))),
        };
        slot.created = true;
        let offsets = partition.offsets();
        let seen = read_all(&slot.life, &partition, offsets).await?;
        judged.records += seen.len() as u64;
        let life = slot.life.recovered(survival, offsets, &seen);
        self.note(format!("recovered slot {n}: {offsets:?}, {life:?}"));
        life?;
        let slot = &mut self.slots[n];
        if slot.life.submitted() > BATCHES_MAX {
            let deleted = store.delete_partition(&partition).await;
            deleted.map_err(|e| Violation::new("P10", format!("delete: {e}")))?;
            self.slots[n] = self.fresh();
        }
        Ok(())
    }
}

async fn read_all(
    life: &Life,
    partition: &Partition,
    offsets: Offsets,
) -> Result<Vec<crate::promises::Seen>, Violation> {
    let mut seen = Vec::new();
    let mut at = offsets.log_start();
    while at < offsets.durable() {
        let limits = ReadLimits::default();
        let fetched = partition.read(at, limits, Visibility::Durable).await;
        let fetched = fetched.map_err(|e| Violation::new("P1", format!("read at {at}: {e}")))?;
        seen.extend(observe(life, &fetched)?);
        if fetched.next_offset <= at {
            let text = format!("a read at {at} of {offsets:?} stands still");
            return Err(Violation::new("P10", text));
        }
        at = fetched.next_offset;
    }
    Ok(seen)
}

fn is_locked(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_err()
}
