//! The clients: what an embedding queue does to a store, drawn by chance.

use std::pin::pin;
use std::time::Duration;

use alluvium::{Ack, AppendOptions, Error, Partition, ReadLimits, Store, Visibility};
use alluvium_testkit::promises::{BatchShape, Life, observe};
use futures_util::StreamExt;
use futures_util::future::{Either, select};

use crate::rng::Rng;
use crate::world::{Presence, Shared};

/// One client task.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) shared: Shared,
    pub(crate) store: Store,
    pub(crate) rng: Rng,
    /// Number of its first step in the lineage.
    pub(crate) first_step: u64,
}

impl Client {
    /// Does `ops` operations, or fewer when a promise is broken.
    pub(crate) async fn run(mut self, ops: u64) {
        let mut chance = self.rng.clone();
        for step in self.first_step..self.first_step + ops {
            if self.shared.is_broken() {
                return;
            }
            self.rng = chance.fork();
            if !self.shared.begins(step) {
                continue;
            }
            let slots = self.shared.with(|w| w.slots.len()) as u64;
            let n = usize::try_from(self.rng.range(0, slots - 1)).unwrap_or(0);
            self.step(n).await;
        }
    }

    async fn step(&mut self, n: usize) {
        // Only one client makes and deletes partitions.
        if self.number == 0 && self.manage(n).await {
            return;
        }
        let Some(handle) = self.shared.handle(n) else {
            return self.pause(300).await;
        };
        match self.rng.range(0, 99) {
            0..=29 => self.append(n, &handle).await,
            30..=44 => self.burst(n, &handle).await,
            45..=51 => self.begin(n, &handle).await,
            52..=56 => self.append_at(n, &handle).await,
            57..=65 => self.read(n, &handle).await,
            66..=70 => self.subscribe(n, &handle).await,
            71..=74 => self.sync(n, &handle).await,
            75..=86 => self.trim(n, &handle).await,
            87..=90 => self.truncate(n, &handle).await,
            91..=94 => self.pause(8000).await,
            _ => self.pause(400).await,
        }
    }

    async fn pause(&mut self, micros_max: u64) {
        let micros = self.rng.range(1, micros_max);
        self.shared.sim.sleep(Duration::from_micros(micros)).await;
    }

    fn level(&mut self) -> Ack {
        self.rng
            .pick(&[Ack::Durable, Ack::Durable, Ack::Written, Ack::Accepted])
    }

    fn shape(&mut self) -> BatchShape {
        let opaque = self.rng.percent(20);
        let count = u32::try_from(self.rng.range(1, 5)).unwrap_or(1);
        let bytes_max = if self.rng.percent(25) { 700 } else { 120 };
        let record_bytes = usize::try_from(self.rng.range(16, bytes_max)).unwrap_or(16);
        BatchShape {
            count,
            record_bytes,
            opaque,
        }
    }

    fn submit(&mut self, n: usize, handle: &Partition) -> Option<(Batch, BatchId)> {
        let (shape, number) = (self.shape(), self.number);
        let id = self
            .shared
            .life(n, handle, |life: &mut Life| life.submit(number, shape))?;
        self.shared.count(|c| c.batches_submitted += 1);
        Some((shape.encode(id), id))
    }

    async fn append(&mut self, n: usize, handle: &Partition) {
        let Some((batch, id)) = self.submit(n, handle) else {
            return;
        };
        let level = self.level();
        if self.rng.percent(8) {
            // The caller gives up; the append may take place all the same.
            let patience = Duration::from_micros(self.rng.range(0, 300));
            let append = pin!(handle.append_with(batch, level));
            let sleep = pin!(self.shared.sim.sleep(patience));
            match select(append, sleep).await {
                Either::Left((result, _)) => self.shared.answered(n, handle, id, level, result),
                Either::Right(_) => self.shared.count(|c| c.futures_dropped += 1),
            }
            return;
        }
        let result = handle.append_with(batch, level).await;
        self.shared.answered(n, handle, id, level, result);
    }

    /// Several appends at once, in order.
    async fn burst(&mut self, n: usize, handle: &Partition) {
        let mut waiting = Vec::new();
        // Many, each with time for a group of its own, or a few in a row.
        let many = self.rng.percent(40);
        let most = if many { 24 } else { 6 };
        for _ in 0..self.rng.range(2, most) {
            let Some((batch, id)) = self.submit(n, handle) else {
                break;
            };
            let level = self.level();
            match handle.try_append(batch, AppendOptions::from(level)) {
                Ok(answer) => waiting.push((answer, level, id)),
                Err(refused) => {
                    let refused = Err(refused.error);
                    self.shared.answered(n, handle, id, level, refused);
                }
            }
            if many {
                self.pause(5).await;
            } else if self.rng.percent(30) {
                self.pause(60).await;
            }
        }
        for (answer, level, id) in waiting {
            let result = answer.await;
            self.shared.answered(n, handle, id, level, result);
        }
    }

    async fn begin(&mut self, n: usize, handle: &Partition) {
        let Some((batch, id)) = self.submit(n, handle) else {
            return;
        };
        let level = self.level();
        match handle.begin_append(batch, level).await {
            Err(e) => self.shared.answered(n, handle, id, level, Err(e)),
            Ok(pending) => {
                let base = pending.base_offset();
                let placed = self.shared.life(n, handle, |l| l.placed(id, base));
                self.shared.check(placed.unwrap_or(Ok(())));
                if self.rng.percent(15) {
                    self.shared.count(|c| c.futures_dropped += 1);
                    return;
                }
                let result = pending.acknowledged().await;
                self.shared.answered(n, handle, id, level, result);
            }
        }
    }

    async fn append_at(&mut self, n: usize, handle: &Partition) {
        let expected = handle.offsets().log_end();
        let Some((batch, id)) = self.submit(n, handle) else {
            return;
        };
        let result = handle.append_at(expected, batch).await;
        if let Ok(appended) = &result
            && appended.base_offset != expected
        {
            let text = format!("append_at({expected}) went to {}", appended.base_offset);
            self.shared.violate("P5", text);
        }
        self.shared.answered(n, handle, id, Ack::Durable, result);
    }

    async fn read(&mut self, n: usize, handle: &Partition) {
        let visibility = self.rng.pick(&[Visibility::Durable, Visibility::Visible]);
        let offsets = handle.offsets();
        let from = self.rng.range(offsets.log_start(), offsets.log_end());
        let limits = if self.rng.percent(50) {
            ReadLimits::default()
        } else {
            let bytes_max = usize::try_from(self.rng.range(1, 4000)).unwrap_or(1);
            ReadLimits {
                bytes_max,
                records_max: self.rng.range(1, 12),
            }
        };
        let Some(start) = self.shared.life(n, handle, |l| l.read_start(from)) else {
            return;
        };
        let result = handle.read(from, limits, visibility).await;
        self.shared.count(|c| c.reads += 1);
        match result {
            Ok(fetched) => {
                let checked = self.shared.life(n, handle, |l| {
                    let seen = observe(l, &fetched)?;
                    l.read(start, visibility, &fetched, &seen)
                });
                self.shared.check(checked.unwrap_or(Ok(())));
            }
            Err(Error::PartitionFailed { .. }) if visibility == Visibility::Durable => {
                self.shared
                    .violate("P8", format!("durable data at {from} is not readable"));
            }
            Err(e @ Error::Io { .. }) => self.shared.violate("P1", format!("read {from}: {e}")),
            Err(e) => {
                self.shared.note(|| format!("read at {from}: {e}"));
                self.shared.failed(n, handle, &e);
            }
        }
    }

    async fn subscribe(&mut self, n: usize, handle: &Partition) {
        let offsets = handle.offsets();
        let from = self.rng.range(offsets.log_start(), offsets.log_end());
        let mut items = handle.subscribe_with(
            from,
            ReadLimits {
                bytes_max: 900,
                records_max: 7,
            },
        );
        for _ in 0..self.rng.range(1, 4) {
            let from = items.next_offset();
            let Some(start) = self.shared.life(n, handle, |l| l.read_start(from)) else {
                return;
            };
            let patience = Duration::from_micros(self.rng.range(100, 2000));
            let sleep = pin!(self.shared.sim.sleep(patience));
            let Either::Left((item, _)) = select(items.next(), sleep).await else {
                return;
            };
            match item {
                None => return,
                Some(Err(e)) => return self.shared.failed(n, handle, &e),
                Some(Ok(fetched)) => {
                    self.shared.count(|c| c.subscriber_items += 1);
                    let checked = self.shared.life(n, handle, |l| {
                        let seen = observe(l, &fetched)?;
                        l.read(start, Visibility::Durable, &fetched, &seen)
                    });
                    self.shared.check(checked.unwrap_or(Ok(())));
                }
            }
        }
    }

    async fn sync(&mut self, n: usize, handle: &Partition) {
        let Some(start) = self.shared.life(n, handle, |l| l.read_start(0)) else {
            return;
        };
        match handle.sync().await {
            Ok(end) => {
                self.shared
                    .note(|| format!("partition {} synced to {end}", handle.id()));
                self.shared.count(|c| c.syncs += 1);
                self.shared.life(n, handle, |l| l.synced(start, end));
            }
            Err(e) => self.shared.failed(n, handle, &e),
        }
    }

    async fn trim(&mut self, n: usize, handle: &Partition) {
        let offsets = handle.offsets();
        let to = self.rng.range(offsets.log_start(), offsets.log_end());
        if self.shared.life(n, handle, |l| l.trim_asked(to)).is_none() {
            return;
        }
        match handle.trim_before(to).await {
            Ok(()) => {
                self.shared
                    .note(|| format!("partition {} trimmed to {to}", handle.id()));
                self.shared.count(|c| c.trims += 1);
                self.shared.life(n, handle, |l| l.trimmed(to));
            }
            Err(e) => self.shared.failed(n, handle, &e),
        }
    }

    async fn truncate(&mut self, n: usize, handle: &Partition) {
        let offsets = handle.offsets();
        let low = offsets
            .log_end()
            .saturating_sub(20)
            .max(offsets.log_start());
        let to = self.rng.range(low, offsets.log_end());
        let begun = self.shared.life(n, handle, |l| {
            let free = !l.is_cutting();
            if free {
                l.cut_asked(to);
            }
            free
        });
        if begun != Some(true) {
            return;
        }
        self.shared
            .note(|| format!("partition {} truncate to {to}", handle.id()));
        let result = handle.truncate_to(to).await;
        self.shared
            .note(|| format!("partition {} truncate to {to}: {result:?}", handle.id()));
        match result {
            Ok(()) => {
                self.shared.count(|c| c.truncations += 1);
                self.shared.life(n, handle, Life::cut_done);
            }
            Err(e) => {
                if e.is_not_applied() {
                    self.shared.life(n, handle, Life::cut_refused);
                }
                self.shared.failed(n, handle, &e);
            }
        }
    }

    /// Creates a missing partition, at times deletes one. Whether it did something.
    async fn manage(&mut self, n: usize) -> bool {
        let (presence, id) = self.shared.slot(n, |s| (s.presence, s.id));
        match presence {
            Presence::Absent => self.create(n, id).await,
            Presence::Present if self.rng.percent(2) => self.delete(n, id).await,
            _ => return false,
        }
        true
    }

    async fn create(&mut self, n: usize, id: u64) {
        self.shared.with(|w| {
            w.lives += 1;
            let slot = &mut w.slots[n];
            slot.life = Life::new(w.lives, w.retention);
            slot.presence = Presence::Creating;
            slot.incarnation = None;
            slot.failed = false;
        });
        let result = self.store.create_partition(id).await;
        self.shared
            .note(|| format!("create {id}: {:?}", result.as_ref().map(|_| ())));
        match result {
            Ok(handle) => {
                self.shared.count(|c| c.partitions_created += 1);
                self.shared.slot(n, |s| {
                    s.presence = Presence::Present;
                    s.incarnation = Some(handle.incarnation());
                    s.handle = Some(handle);
                });
            }
            Err(e @ (Error::Io { .. } | Error::NoSpace { .. }))
                if !self.shared.with(|w| w.faults) =>
            {
                self.shared
                    .violate("P8", format!("create without any fault: {e}"));
            }
            // Its directory may be there after a crash, empty.
            Err(Error::Io { .. }) => {}
            Err(e) if e.is_not_applied() => {
                self.shared.slot(n, |s| s.presence = Presence::Absent);
            }
            Err(_) => {}
        }
    }

    async fn delete(&mut self, n: usize, id: u64) {
        let handle = self.shared.slot(n, |s| {
            s.presence = Presence::Deleting;
            s.handle.take()
        });
        let Some(handle) = handle else { return };
        let result = self.store.delete_partition(&handle).await;
        self.shared.note(|| format!("delete {id}: {result:?}"));
        if result.is_ok() {
            self.shared.count(|c| c.partitions_deleted += 1);
            self.shared.slot(n, |s| {
                s.presence = Presence::Absent;
                s.incarnation = None;
            });
        }
    }
}

type Batch = alluvium::format::Batch;
type BatchId = alluvium_testkit::promises::BatchId;
