//! What the store must hold: a plain model that judges every recovery.

use std::collections::{BTreeMap, BTreeSet};

use alluvium::{Ack, Offsets};

/// Names a record: the batch that it came in, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) batch: u64,
    pub(crate) index: u32,
}

/// A batch that was handed to the store.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) count: u32,
    pub(crate) opaque: bool,
    /// Producers are sequential: their batches stand in this order.
    pub(crate) producer: u64,
    /// May it still appear?
    pub(crate) alive: bool,
}

/// The worst that has happened since the last time everything was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    Nothing,
    Kill,
    Power,
}

/// The model of one partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) submitted: BTreeMap<u64, Submitted>,
    /// Records acknowledged or shown, by offset, with the level.
    pub(crate) records: BTreeMap<u64, (Name, Ack)>,
    /// Every offset that an acknowledgement or a durable read has shown, and to what.
    pub(crate) shown: BTreeMap<u64, Name>,
    pub(crate) log_start: u64,
    /// Everything below is durable and was said to be.
    pub(crate) durable: u64,
    /// A trim or truncation that was asked for and has not returned.
    pub(crate) trimming: Option<u64>,
    pub(crate) truncating: Option<u64>,
    /// Batches that a truncation has cut in two, and how many of their records it has left.
    cut: BTreeMap<u64, u32>,
}

pub(crate) type Verdict = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}
pub(crate) use ensure;

impl Log {
    /// An append was acknowledged.
    pub(crate) fn acknowledged(&mut self, batch: u64, base: u64, level: Ack) -> Verdict {
        let count = self.submitted[&batch].count;
        for index in 0..count {
            let offset = base + u64::from(index);
            let name = Name { batch, index };
            self.show(offset, name)?;
            self.records.insert(offset, (name, level));
        }
        if level == Ack::Durable {
            self.durable = self.durable.max(base + u64::from(count));
        }
        Ok(())
    }

    /// An offset was shown to somebody: it belongs to that record for ever.
    pub(crate) fn show(&mut self, offset: u64, name: Name) -> Verdict {
        if let Some(before) = self.shown.insert(offset, name) {
            ensure!(
                before == name,
                "P5 offset {offset} was {before:?}, now it is {name:?}"
            );
        }
        Ok(())
    }

    /// A truncation took effect: offsets from `to` on are free again, what they held is dead.
    pub(crate) fn truncated(&mut self, to: u64) {
        self.records.split_off(&to);
        self.shown.split_off(&to);
        if let Some((_, (Name { batch, index }, _))) = self.records.last_key_value()
            && self
                .submitted
                .get(batch)
                .is_some_and(|s| *index + 1 < s.count)
        {
            self.cut.insert(*batch, *index + 1);
        }
        self.durable = self.durable.min(to);
        self.truncating = None;
        self.bury();
    }

    /// What is not among the records can never appear again.
    pub(crate) fn bury(&mut self) {
        // In order of offsets they are nearly in order.
        let mut kept: Vec<u64> = self.records.values().map(|(name, _)| name.batch).collect();
        kept.sort_unstable();
        self.submitted
            .retain(|batch, submitted| submitted.alive && kept.binary_search(batch).is_ok());
        self.cut
            .retain(|batch, _| kept.binary_search(batch).is_ok());
    }

    /// Judges what a recovery brought back, and takes it over.
    pub(crate) fn judge(
        &mut self,
        found: &BTreeMap<u64, Name>,
        opaque: &BTreeSet<u64>,
        offsets: Offsets,
        loss: Loss,
        retention: bool,
    ) -> Verdict {
        let (start, end) = (offsets.log_start(), offsets.durable());
        ensure!(start <= end && end <= offsets.log_end(), "P2 {offsets:?}");
        ensure!(
            start >= self.log_start,
            "P6 log start {start}, trimmed to {}",
            self.log_start
        );
        let trims = [Some(self.log_start), self.trimming];
        ensure!(
            retention || trims.contains(&Some(start)),
            "P1 log start {start} out of {trims:?}"
        );
        // A truncation under way happened or it did not.
        let cut = self.truncating.filter(|to| end == *to);
        // What is lost is lost from the end: what stands before a record that is there, is there.
        let last = found.last_key_value().map_or(start, |(offset, _)| *offset);
        let kept_below = self.durable.max(last);
        for (offset, (name, level)) in &self.records {
            let survives = match loss {
                Loss::Nothing => true,
                Loss::Kill => *level >= Ack::Written || *offset < kept_below,
                Loss::Power => *level == Ack::Durable || *offset < kept_below,
            };
            if *offset < start || !survives || cut.is_some_and(|to| *offset >= to) {
                continue;
            }
            let now = found.get(offset);
            ensure!(
                now == Some(name),
                "P1 {level:?} offset {offset} was {name:?}, is {now:?}"
            );
        }
        if let Some(to) = self.truncating.filter(|_| cut.is_some()) {
            self.truncated(to);
        }
        self.check_found(found, opaque, start, end, cut)?;
        // Shown once, an offset belongs to its record.
        for (offset, name) in found {
            self.show(*offset, *name)?;
        }
        self.records = found
            .iter()
            .map(|(o, n)| (*o, (*n, Ack::Durable)))
            .collect();
        // Nothing below can be shown again.
        self.shown = self.shown.split_off(&start);
        self.log_start = start;
        self.durable = end;
        (self.trimming, self.truncating) = (None, None);
        self.bury();
        Ok(())
    }

    /// P3 and P4: what is there was submitted, whole, once, in order, and may be there.
    fn check_found(
        &self,
        found: &BTreeMap<u64, Name>,
        opaque: &BTreeSet<u64>,
        start: u64,
        end: u64,
        cut: Option<u64>,
    ) -> Verdict {
        // Batch, its base, its last record that was met, and how many it has.
        let mut seen: Vec<(u64, u64, u32, u32)> = Vec::new();
        let mut last_of: BTreeMap<u64, u64> = BTreeMap::new();
        for (offset, Name { batch, index }) in found {
            ensure!(
                (start..end).contains(offset),
                "P6 offset {offset} outside [{start}, {end})"
            );
            let base = offset.wrapping_sub(u64::from(*index));
            if let Some((current, at, last, _)) = seen.last_mut()
                && (*current, *at, *last + 1) == (*batch, base, *index)
            {
                *last = *index;
                continue;
            }
            let twice = seen.iter().any(|(other, ..)| other == batch);
            ensure!(!twice, "P4 batch {batch} twice or torn");
            let Some(submitted) = self.submitted.get(batch) else {
                return Err(format!(
                    "P4/P6 offset {offset}: batch {batch} was cut, refused or lost, or never submitted"
                ));
            };
            let known = self
                .records
                .get(offset)
                .is_some_and(|(n, _)| n.batch == *batch);
            ensure!(
                submitted.alive || known,
                "P4/P6 offset {offset}: batch {batch} was cut, refused or lost, and came back"
            );
            ensure!(
                submitted.opaque == opaque.contains(batch),
                "P1 kind of batch {batch}"
            );
            let whole = *index == 0 || *offset == start;
            ensure!(
                whole,
                "P3 batch {batch} begins at index {index}, offset {offset}"
            );
            let last = last_of.insert(submitted.producer, *batch);
            ensure!(last < Some(*batch), "P4 batch {batch} after {last:?}");
            seen.push((*batch, base, *index, submitted.count));
        }
        for (batch, base, last, count) in seen {
            let end_of = base.wrapping_add(u64::from(last) + 1);
            let left = self.cut.get(&batch).copied().unwrap_or(count);
            ensure!(
                last < left,
                "P6 batch {batch}: {} records, a truncation has left {left}",
                last + 1
            );
            let clipped = cut == Some(end_of) || self.cuts_ever(end_of, batch);
            ensure!(
                last + 1 == count || clipped,
                "P3 batch {batch}: {} of {count}",
                last + 1
            );
        }
        Ok(())
    }

    /// Whether the batch had lost its end already to a truncation that returned.
    fn cuts_ever(&self, end: u64, batch: u64) -> bool {
        let before = self.records.get(&end.wrapping_sub(1));
        before.is_some_and(|(n, _)| n.batch == batch)
            && self.records.get(&end).is_none_or(|(n, _)| n.batch != batch)
    }
}
