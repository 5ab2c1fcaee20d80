//! One partition from creation to deletion: what was submitted, answered, shown and removed.

use std::collections::BTreeMap;

use alluvium_core::{Appended, Fetched, Offsets, Visibility};

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
enum Fate {
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
struct Entry {
    client: u32,
    shape: BatchShape,
    fate: Fate,
    base: Option<u64>,
    /// Truncations that may have cut it.
    clips: Vec<u64>,
    /// Under way at the same time as a truncation: nobody can tell which came first.
    blurred: bool,
    /// The lowest of those truncations.
    blurred_at: u64,
    /// It was answered before the latest truncation was asked for.
    before_cut: bool,
    /// The last check that saw it.
    round: u32,
}

impl Entry {
    fn end(&self, base: u64) -> u64 {
        base + u64::from(self.shape.count)
    }

    /// Where it ends after the truncations.
    fn kept_end(&self, base: u64) -> u64 {
        let cuts = self.clips.iter().copied().filter(|clip| *clip > base);
        cuts.min().unwrap_or(u64::MAX).min(self.end(base))
    }

    fn exists(&self) -> bool {
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
    number: u64,
    entries: Vec<Entry>,
    /// Offsets that an acknowledgement or a durable read has shown.
    bound: BTreeMap<u64, (BatchId, u32)>,
    /// A truncation that was asked for and not answered yet.
    cut: Option<u64>,
    /// Counts truncations, begun and ended.
    epoch: u32,
    /// Everything placed below has been promised durable.
    durable: u64,
    /// Everything placed below has been promised written.
    written: u64,
    /// Highest end that was acknowledged at any level.
    accepted: u64,
    trim_asked: u64,
    trimmed: u64,
    /// Whether retention may trim by itself.
    retention: bool,
    round: u32,
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

    fn set_base(&mut self, id: BatchId, base: u64) -> Result<(), Violation> {
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

    /// The batch was acknowledged; `offsets` are the published ones, looked at after it.
    pub fn acknowledged(
        &mut self,
        id: BatchId,
        appended: Appended,
        offsets: Offsets,
    ) -> Result<(), Violation> {
        use alluvium_core::Ack;
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

    fn bind(&mut self, seen: Seen) -> Result<(), Violation> {
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
        for one in seen {
            let entry = &self.entries[index(one.batch)];
            if entry.blurred {
                continue;
            }
            if entry.fate == Fate::Gone {
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

    /// Compares the model with everything that can be read after a recovery, and makes that the
    /// state from now on. `seen` is all of `[log start, durable)`.
    pub fn recovered(
        &mut self,
        survival: Survival,
        offsets: Offsets,
        seen: &[Seen],
    ) -> Result<(), Violation> {
        self.round += 1;
        let promised = match survival {
            Survival::Written => self.durable.max(self.written),
            Survival::Durable => self.durable,
        };
        let promised = self.settle_cut(promised, seen);
        self.check_start(offsets)?;
        self.check_seen(offsets.log_start(), seen)?;
        for (i, entry) in self.entries.iter().enumerate() {
            let Some(base) = entry.base else { continue };
            let end = entry.kept_end(base);
            let owed = entry.exists() && !entry.blurred && end <= promised;
            if owed && end > offsets.log_start() && entry.round != self.round {
                let text = format!(
                    "batch {}.{i} at [{base}, {end}) of a log promised up to {promised} is lost; \
                     {offsets:?}",
                    self.number
                );
                return Err(Violation::new("P1", text));
            }
        }
        for entry in &mut self.entries {
            if entry.round == self.round {
                entry.fate = Fate::Kept;
            } else if entry.exists() {
                self.weak_lost += u64::from(entry.fate == Fate::Kept);
                entry.fate = Fate::Gone;
            }
            entry.blurred = false;
            entry.blurred_at = u64::MAX;
        }
        self.bound = self.bound.split_off(&offsets.log_start());
        for one in seen {
            self.bind(*one)?;
        }
        self.durable = offsets.durable();
        self.written = self.durable;
        self.accepted = self.durable;
        self.trimmed = offsets.log_start();
        Ok(())
    }

    /// Whether a truncation of unknown outcome was carried out; from now on it stays so. Returns up
    /// to where the log is promised.
    fn settle_cut(&mut self, promised: u64, seen: &[Seen]) -> u64 {
        let Some(to) = self.cut else {
            return promised;
        };
        let old = |id: BatchId| self.entries[index(id)].before_cut;
        if seen.iter().any(|s| s.offset >= to && old(s.batch)) {
            self.cut_refused();
            return promised;
        }
        self.cut_done();
        promised.min(to)
    }

    fn check_start(&self, offsets: Offsets) -> Result<(), Violation> {
        let start = offsets.log_start();
        if start > offsets.durable() || offsets.durable() > offsets.log_end() {
            return Err(Violation::new("P2", format!("after recovery {offsets:?}")));
        }
        if start < self.trimmed {
            let text = format!(
                "the log starts at {start}, it was trimmed to {}",
                self.trimmed
            );
            return Err(Violation::new("P6", text));
        }
        if start > self.trim_asked.max(self.trimmed) && !self.retention {
            let text = format!(
                "the log starts at {start}, nobody trimmed beyond {}",
                self.trim_asked
            );
            return Err(Violation::new("P1", text));
        }
        Ok(())
    }

    fn check_seen(&mut self, log_start: u64, seen: &[Seen]) -> Result<(), Violation> {
        let mut newest: BTreeMap<u32, BatchId> = BTreeMap::new();
        let mut before: Option<Seen> = None;
        for one in seen {
            let Seen {
                offset,
                batch,
                index: i,
            } = *one;
            if before.is_some_and(|b| b.offset >= offset) {
                return Err(Violation::new(
                    "P4",
                    format!("offset {offset} is read twice"),
                ));
            }
            let goes_on = before
                .is_some_and(|b| b.batch == batch && b.index + 1 == i && b.offset + 1 == offset);
            if !goes_on {
                if let Some(before) = before {
                    self.check_end(before)?;
                }
                self.check_first(*one, log_start, &mut newest)?;
            }
            if let Some(known) = self
                .bound
                .get(&offset)
                .filter(|known| **known != (batch, i))
            {
                let text = format!("offset {offset} has shown {}, now {batch}", known.0);
                return Err(Violation::new("P5", text));
            }
            before = Some(*one);
        }
        before.map_or(Ok(()), |last| self.check_end(last))
    }

    fn check_first(
        &mut self,
        one: Seen,
        log_start: u64,
        newest: &mut BTreeMap<u32, BatchId>,
    ) -> Result<(), Violation> {
        let Seen {
            offset,
            batch,
            index: i,
        } = one;
        if i != 0 && offset != log_start {
            let text = format!("{batch} begins with record {i} at {offset}");
            return Err(Violation::new("P3", text));
        }
        self.set_base(batch, offset.wrapping_sub(u64::from(i)))?;
        let round = self.round;
        let entry = &mut self.entries[index(batch)];
        let promise = match entry.fate {
            Fate::Gone if !entry.clips.is_empty() || offset < log_start => "P6",
            Fate::Gone | Fate::Refused => "P4",
            Fate::Open | Fate::Kept if entry.round == round => "P4",
            Fate::Open | Fate::Kept => {
                entry.round = round;
                let last = newest.insert(entry.client, batch);
                return match last {
                    Some(last) if last >= batch => Err(Violation::new(
                        "P4",
                        format!("{last} stands before {batch}"),
                    )),
                    _ => Ok(()),
                };
            }
        };
        let text = format!(
            "{batch} is at {offset} after it was {:?} or seen already",
            entry.fate
        );
        Err(Violation::new(promise, text))
    }

    fn check_end(&self, last: Seen) -> Result<(), Violation> {
        let entry = &self.entries[index(last.batch)];
        let whole = last.index + 1 == entry.shape.count;
        let clipped = entry.clips.contains(&(last.offset + 1));
        if whole || clipped {
            return Ok(());
        }
        let text = format!(
            "{} ends with record {} at {}",
            last.batch, last.index, last.offset
        );
        Err(Violation::new("P3", text))
    }
}

fn index(id: BatchId) -> usize {
    usize::try_from(id.0 & 0xFFFF_FFFF).unwrap_or(usize::MAX)
}
