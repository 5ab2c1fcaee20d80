//! The model: what was submitted where, and what may not be lost.

use alluvium::Ack;
use alluvium::format::Batch;

/// A partition as a vector.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Value at each offset; `None` where offsets were skipped.
    log: Vec<Option<Vec<u8>>>,
    /// Bases of batches, for atomicity.
    batches: Vec<(u64, u64)>,
    log_start: u64,
    /// All below is durable.
    durable: u64,
    /// All below survives the death of the process.
    written: u64,
    /// Offsets below were shown to somebody.
    shown: u64,
    /// Makes every value unlike all others.
    submissions: u64,
}

impl Model {
    pub(crate) fn end(&self) -> u64 {
        self.log.len() as u64
    }

    /// A place between the log start and `end`, as a share of the way.
    pub(crate) fn place(&self, share: u8, end: u64) -> u64 {
        let span = end.saturating_sub(self.log_start);
        self.log_start + span * u64::from(share) / 255
    }

    /// A batch of new values at the end; returns its base.
    pub(crate) fn submit(&mut self, count: u64, _level: Ack) -> (u64, Batch) {
        let base = self.end();
        let mut values = Vec::new();
        for _ in 0..count {
            self.submissions += 1;
            let mut value = format!("submission {} ", self.submissions).into_bytes();
            let padding = usize::try_from(self.submissions * 31 % 300).unwrap();
            value.resize(value.len() + padding, b'-');
            self.log.push(Some(value.clone()));
            values.push(value);
        }
        self.batches.push((base, base + count));
        (base, Batch::from_values(values).unwrap())
    }

    pub(crate) fn shown(&mut self, end: u64) {
        self.shown = self.shown.max(end);
    }

    pub(crate) fn written(&mut self, end: u64) {
        self.written = self.written.max(end);
        self.shown(end);
    }

    /// Everything below is durable, the store says.
    pub(crate) fn acknowledge(&mut self, durable: u64) {
        let durable = durable.min(self.end());
        self.durable = self.durable.max(durable);
        self.written(durable);
    }

    /// The answers to the last appends were lost; what is durable may have been seen all the same.
    pub(crate) fn abandoned(&mut self, durable: u64) {
        self.acknowledge(durable);
    }

    pub(crate) fn trim(&mut self, to: u64) {
        self.log_start = self.log_start.max(to);
        self.acknowledge(to);
    }

    pub(crate) fn truncate(&mut self, to: u64) {
        self.log.truncate(usize::try_from(to).unwrap());
        self.batches.retain_mut(|(base, end)| {
            *end = (*end).min(to);
            base < end
        });
        self.durable = to;
        self.written = to;
        self.shown = to;
    }

    /// What was only written is no longer promised.
    pub(crate) fn power_lost(&mut self) {
        self.written = self.durable;
    }

    /// A new life: the log may end anywhere from what was promised on, at the border of a batch;
    /// from there on offsets are empty as far as they were shown.
    pub(crate) fn recovered(&mut self, log_start: u64, log_end: u64, found: &[(u64, Vec<u8>)]) {
        assert_eq!(log_start, self.log_start, "the log starts where it did");
        assert!(
            log_end >= self.written && log_end >= self.shown,
            "the log ends at {log_end}, {} was promised and {} shown",
            self.written,
            self.shown
        );
        // Records at the very end may be missing; those before them may not.
        let last = found.last().map_or(log_start, |(offset, _)| offset + 1);
        let kept = last.max(self.promised_records());
        let is_border = |end: u64| {
            end <= self.log_start || self.batches.iter().all(|(b, e)| end <= *b || end >= *e)
        };
        assert!(is_border(kept), "a batch is whole or absent: cut at {kept}");
        for (offset, value) in self.log.iter_mut().enumerate() {
            if offset as u64 >= kept {
                *value = None;
            }
        }
        self.log.resize(usize::try_from(log_end).unwrap(), None);
        self.batches.retain(|(base, _)| *base < kept);
        self.compare(log_start, log_end, found);
        self.durable = log_end;
        self.written = log_end;
        self.shown = log_end;
    }

    /// End of the last record that must be there.
    fn promised_records(&self) -> u64 {
        let promised = usize::try_from(self.written).unwrap().min(self.log.len());
        let last = self.log[..promised].iter().rposition(Option::is_some);
        last.map_or(0, |offset| offset as u64 + 1)
    }

    /// Compares what was read of `[from, to)` record by record.
    pub(crate) fn compare(&self, from: u64, to: u64, found: &[(u64, Vec<u8>)]) {
        let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
        let expected = self.log[range].iter().zip(from..);
        let expected: Vec<_> = expected
            .filter_map(|(value, offset)| value.as_ref().map(|v| (offset, v)))
            .collect();
        let offsets = |all: &mut dyn Iterator<Item = u64>| all.collect::<Vec<_>>();
        assert_eq!(
            offsets(&mut found.iter().map(|(o, _)| *o)),
            offsets(&mut expected.iter().map(|(o, _)| *o)),
            "offsets of [{from}, {to})"
        );
        for ((offset, found), (_, expected)) in found.iter().zip(expected) {
            assert!(found == expected, "another value at {offset}");
        }
    }
}
