//! One partition from creation to deletion: what was submitted, answered, shown and removed.

use std::collections::BTreeMap;

use alluvium_core::{Ack, Appended, Fetched, Offsets, Visibility};

use super::{BatchId, BatchShape, Seen, Violation};

/// What has to be there after a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// Everything acknowledged written: the process died, the machine did not.
    Written,
    /// Everything acknowledged durable.
    Durable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Submitted, not answered yet, or never will be.
    Open,
    /// Acknowledged, or found by a recovery.
    Kept,
    /// The answer said so: certainly not applied.
    Refused,
    /// Trimmed, truncated, or lost by a recovery: must not come back.
    Gone,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) client: u32,
    pub(super) shape: BatchShape,
    pub(super) fate: Fate,
    pub(super) base: Option<u64>,
    /// Truncations that may have cut it.
    pub(super) clips: Vec<u64>,
    /// The lowest truncation that has cut it for certain.
    pub(super) cut_at: u64,
    /// Under way at the same time as a truncation: nobody can tell which came first.
    pub(super) blurred: bool,
    /// The lowest of those truncations.
    pub(super) blurred_at: u64,
    /// It was answered before the latest truncation was asked for.
    pub(super) before_cut: bool,
    /// The last check that saw it.
    pub(super) round: u32,
}

impl Entry {
    fn end(&self, base: u64) -> u64 {
        base + u64::from(self.shape.count)
    }

    /// Where it ends after the truncations.
    pub(super) fn kept_end(&self, base: u64) -> u64 {
        let cuts = self.clips.iter().copied().filter(|clip| *clip > base);
        cuts.min().unwrap_or(u64::MAX).min(self.end(base))
    }

    pub(super) fn exists(&self) -> bool {
        matches!(self.fate, Fate::Open | Fate::Kept)
    }
}

/// What was known when a read began.
#[derive(Debug, Clone, Copy)]
pub struct ReadStart {
    from: u64,
    epoch: u32,
    trimmed: u64,
    durable: u64,
}

/// One partition, as its clients know it.
#[derive(Debug)]
pub struct Life {
    pub(super) number: u64,
    pub(super) entries: Vec<Entry>,
    /// Offsets that an acknowledgement or a durable read has shown.
    pub(super) bound: BTreeMap<u64, (BatchId, u32)>,
    /// A truncation that was asked for and not answered yet.
    pub(super) cut: Option<u64>,
    /// Counts truncations, begun and ended.
    epoch: u32,
    /// Everything placed below has been promised durable.
    pub(super) durable: u64,
    /// Everything placed below has been promised written.
    pub(super) written: u64,
    /// Highest end that was acknowledged at any level.
    pub(super) accepted: u64,
    pub(super) trim_asked: u64,
    pub(super) trimmed: u64,
    /// Whether retention may trim by itself.
    pub(super) retention: bool,
    pub(super) round: u32,
    /// Weakly acknowledged batches that recoveries have lost, as they may.
    pub weak_lost: u64,
}

impl Life {
    /// A partition that has just been created; `number` is unique in a test.
    pub fn new(number: u32, retention: bool) -> Self {
        Self {
            number: u64::from(number),
            entries: Vec::new(),
            bound: BTreeMap::new(),
            cut: None,
            epoch: 0,
            durable: 0,
            written: 0,
            accepted: 0,
            trim_asked: 0,
            trimmed: 0,
            retention,
            round: 0,
            weak_lost: 0,
        }
    }

    /// A batch is about to be submitted. The batches of one client must be submitted in the order
    /// of these calls.
    pub fn submit(&mut self, client: u32, shape: BatchShape) -> BatchId {
        let id = BatchId(self.number << 32 | self.entries.len() as u64);
        let blurred = self.cut.is_some();
        let blurred_at = self.cut.unwrap_or(u64::MAX);
        let (fate, base, clips, round) = (Fate::Open, None, Vec::new(), 0);
        self.entries.push(Entry {
            client,
            shape,
            fate,
            base,
            clips,
            blurred,
            blurred_at,
            round,
            before_cut: false,
            cut_at: u64::MAX,
        });
        id
    }

    /// How many batches have been submitted.
    pub fn submitted(&self) -> usize {
        self.entries.len()
    }

    /// Whether `id` was submitted here.
    pub fn knows(&self, id: BatchId) -> bool {
        id.0 >> 32 == self.number && index(id) < self.entries.len()
    }

    /// The shape that `id` was submitted with.
    pub fn shape(&self, id: BatchId) -> BatchShape {
        self.entries[index(id)].shape
    }

    /// The batch has got its provisional place.
    pub fn placed(&mut self, id: BatchId, base: u64) -> Result<(), Violation> {
        self.set_base(id, base)
    }

    pub(super) fn set_base(&mut self, id: BatchId, base: u64) -> Result<(), Violation> {
        let entry = &mut self.entries[index(id)];
        match entry.base {
            Some(known) if known != base => {
                let text = format!("{id} was at {known} and is at {base}");
                Err(Violation::new("P4", text))
            }
            _ => {
                entry.base = Some(base);
                Ok(())
            }
        }
    }

    /// The batch was acknowledged, at the level `asked` for; `offsets` are the published ones, looked at
    /// after it.
    pub fn acknowledged(
        &mut self,
        id: BatchId,
        asked: Ack,
        appended: Appended,
        offsets: Offsets,
    ) -> Result<(), Violation> {
        if appended.level != asked {
            let text = format!("{id} asked for {asked:?} and is acknowledged as {appended:?}");
            return Err(Violation::new("P1", text));
        }
        self.set_base(id, appended.base_offset)?;
        let end = appended.end_offset();
        let entry = &mut self.entries[index(id)];
        if appended.count != entry.shape.count || entry.fate != Fate::Open {
            let text = format!(
                "{id} is acknowledged as {appended:?} while {:?}",
                entry.fate
            );
            return Err(Violation::new("P4", text));
        }
        entry.fate = Fate::Kept;
        if self.cut.is_none() && end <= entry.blurred_at {
            entry.blurred = false;
        }
        if entry.blurred {
            return Ok(());
        }
        for i in 0..appended.count {
            self.bind(Seen {
                offset: appended.base_offset + u64::from(i),
                batch: id,
                index: i,
            })?;
        }
        let reached = match appended.level {
            Ack::Durable => offsets.durable(),
            Ack::Written => offsets.written(),
            // Told before it is published.
            Ack::Accepted => end,
        };
        if reached < end && self.cut.is_none() {
            let text = format!("{id} is acknowledged up to {end}, published are {offsets:?}");
            return Err(Violation::new("P2", text));
        }
        self.accepted = self.accepted.max(end);
        if appended.level >= Ack::Written {
            self.written = self.written.max(end);
        }
        if appended.level == Ack::Durable {
            self.durable = self.durable.max(end);
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, seen: Seen) -> Result<(), Violation> {
        let Seen {
            offset,
            batch,
            index,
        } = seen;
        match self.bound.insert(offset, (batch, index)) {
            Some(before) if before != (batch, index) => {
                let text = format!(
                    "offset {offset} has shown record {} of {}, now record {index} of {batch}",
                    before.1, before.0
                );
                Err(Violation::new("P5", text))
            }
            _ => Ok(()),
        }
    }

    /// The batch was refused: certainly not applied.
    pub fn refused(&mut self, id: BatchId) {
        self.entries[index(id)].fate = Fate::Refused;
    }

    /// A read from `from` begins.
    pub fn read_start(&self, from: u64) -> ReadStart {
        let epoch = if self.cut.is_some() {
            u32::MAX
        } else {
            self.epoch
        };
        ReadStart {
            from,
            epoch,
            trimmed: self.trimmed,
            durable: self.durable,
        }
    }

    /// A read of a running log has returned.
    pub fn read(
        &mut self,
        start: ReadStart,
        visibility: Visibility,
        fetched: &Fetched,
        seen: &[Seen],
    ) -> Result<(), Violation> {
        if start.from < start.trimmed {
            let text = format!("a read at {} below the trim {}", start.from, start.trimmed);
            return Err(Violation::new("P6", text));
        }
        for one in seen {
            let entry = &self.entries[index(one.batch)];
            if entry.fate == Fate::Refused {
                let text = format!("{} was refused and is read at {}", one.batch, one.offset);
                return Err(Violation::new("P4", text));
            }
        }
        if start.epoch != self.epoch || self.cut.is_some() {
            // A truncation meanwhile: both what was and what is now may be seen.
            return Ok(());
        }
        let Fetched {
            next_offset,
            log_start,
            durable,
            log_end,
            ..
        } = *fetched;
        if log_start > durable || durable > log_end || durable < start.durable {
            let text = format!("offsets {log_start} {durable} {log_end}, before {start:?}");
            return Err(Violation::new("P2", text));
        }
        self.check_bounds(start, visibility, fetched, seen)?;
        for one in seen {
            let entry = &self.entries[index(one.batch)];
            if entry.blurred {
                continue;
            }
            if entry.fate == Fate::Gone || one.offset >= entry.cut_at {
                let text = format!("{} was gone and is read at {}", one.batch, one.offset);
                return Err(Violation::new("P6", text));
            }
            self.set_base(one.batch, one.offset.wrapping_sub(u64::from(one.index)))?;
            if visibility == Visibility::Durable {
                self.bind(*one)?;
            }
        }
        if visibility == Visibility::Durable {
            self.durable = self.durable.max(durable);
        }
        self.trimmed = self.trimmed.max(log_start);
        for (offset, (batch, _)) in self.bound.range(start.from..next_offset.max(start.from)) {
            let there = seen.binary_search_by_key(offset, |s| s.offset).is_ok();
            if !there && self.entries[index(*batch)].exists() && *offset < durable {
                let text = format!(
                    "a read of [{}, {next_offset}) leaves out {offset} of {batch}",
                    start.from
                );
                return Err(Violation::new("P1", text));
            }
        }
        Ok(())
    }

    /// A read returns what was asked for and may be seen, and nobody trims unasked.
    fn check_bounds(
        &self,
        start: ReadStart,
        visibility: Visibility,
        fetched: &Fetched,
        seen: &[Seen],
    ) -> Result<(), Violation> {
        let what = |promise, text: &str| {
            Err(Violation::new(
                promise,
                format!("{text}: {start:?}, {seen:?} of {fetched:?}"),
            ))
        };
        let end = match visibility {
            Visibility::Durable => fetched.durable,
            Visibility::Visible => fetched.log_end,
        };
        if seen.last().is_some_and(|last| last.offset >= end) {
            return what("P5", "a read behind what may be seen");
        }
        let opaque = |one: &Seen| self.entries[index(one.batch)].shape.opaque;
        if seen
            .first()
            .is_some_and(|first| first.offset < start.from && !opaque(first))
        {
            return what("P4", "a read before what was asked for");
        }
        if fetched.log_start > self.trims_reach() && !self.retention {
            return what("P1", "nobody trimmed as far");
        }
        Ok(())
    }

    /// A sync that began when `start` was taken has returned `end`.
    pub fn synced(&mut self, start: ReadStart, end: u64) {
        if start.epoch == self.epoch && self.cut.is_none() {
            self.durable = self.durable.max(end);
        }
    }

    /// The store was closed in order: everything acknowledged is durable.
    pub fn closed(&mut self) {
        self.durable = self.durable.max(self.written).max(self.accepted);
    }

    /// A trim is about to be asked for.
    pub fn trim_asked(&mut self, to: u64) {
        self.trim_asked = self.trim_asked.max(to);
    }

    /// The trim has returned.
    pub fn trimmed(&mut self, to: u64) {
        self.trimmed = self.trimmed.max(to);
    }

    /// First offset that may be there.
    pub fn log_start(&self) -> u64 {
        self.trimmed
    }

    /// First offset that the trims asked for leave.
    pub fn trims_reach(&self) -> u64 {
        self.trim_asked.max(self.trimmed)
    }

    /// Whether a truncation is under way or its outcome unknown.
    pub fn is_cutting(&self) -> bool {
        self.cut.is_some()
    }

    /// A truncation is about to be asked for; only one at a time.
    pub fn cut_asked(&mut self, to: u64) {
        assert!(self.cut.is_none(), "one truncation at a time");
        self.cut = Some(to);
        self.epoch += 1;
        for entry in &mut self.entries {
            entry.before_cut = entry.fate == Fate::Kept;
            if entry.fate == Fate::Open {
                entry.blurred = true;
                entry.blurred_at = entry.blurred_at.min(to);
            }
        }
    }

    /// The truncation has returned: everything at and above it is gone for ever.
    pub fn cut_done(&mut self) {
        let Some(to) = self.cut.take() else {
            return;
        };
        self.epoch += 1;
        self.bound.split_off(&to);
        self.durable = self.durable.min(to);
        self.written = self.written.min(to);
        self.accepted = self.accepted.min(to);
        for entry in self.entries.iter_mut().filter(|e| e.exists()) {
            let Some(base) = entry.base else {
                entry.clips.push(to);
                continue;
            };
            let end = entry.end(base);
            if end <= entry.blurred_at {
                entry.blurred = false;
            }
            if end <= to {
                continue;
            }
            if base < to {
                entry.clips.push(to);
                if entry.before_cut {
                    entry.cut_at = entry.cut_at.min(to);
                }
            } else if entry.before_cut {
                entry.fate = Fate::Gone;
            }
        }
    }

    /// The truncation was certainly not carried out.
    pub fn cut_refused(&mut self) {
        self.cut = None;
        self.epoch += 1;
    }
}

pub(super) fn index(id: BatchId) -> usize {
    usize::try_from(id.0 & 0xFFFF_FFFF).unwrap_or(usize::MAX)
}
