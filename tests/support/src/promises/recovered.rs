//! What a recovery has brought back, against what was promised.

use std::collections::BTreeMap;

use alluvium_core::Offsets;

use super::life::{Fate, Life, Survival, index};
use super::{BatchId, Seen, Violation};

impl Life {
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
        // What is lost is lost from the end: what stands before a record that is there, is there.
        let promised = promised.max(seen.last().map_or(0, |last| last.offset));
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
            let entry = &self.entries[index(batch)];
            if offset >= entry.cut_at || (offset < log_start && !entry.shape.opaque) {
                let text = format!("{batch} is at {offset}, which was cut or trimmed away");
                return Err(Violation::new("P6", text));
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
