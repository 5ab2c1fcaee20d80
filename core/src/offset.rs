//! The offsets of a partition, in one place with checked setters.
//!
//! All ends are half-open: an end offset names the next offset. The invariant
//! `log start <= durable <= written <= log end` holds after every setter; a setter that would break
//! it is a bug in the engine and panics the shard, which answers every waiter.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// What a partition holds now. All ends are exclusive.
///
/// ```
/// let offsets = alluvium_core::Offsets::new(5, 8);
/// assert_eq!((offsets.log_start(), offsets.durable(), offsets.log_end()), (5, 8, 8));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    log_start: u64,
    durable: u64,
    written: u64,
    log_end: u64,
}

impl Offsets {
    /// Offsets of a log whose records `[log_start, end)` are all durable.
    ///
    /// # Panics
    /// When `log_start > end`.
    pub fn new(log_start: u64, end: u64) -> Self {
        let offsets = Self {
            log_start,
            durable: end,
            written: end,
            log_end: end,
        };
        offsets.check();
        offsets
    }

    /// First offset that may be read.
    pub fn log_start(&self) -> u64 {
        self.log_start
    }

    /// Every record below is on stable media.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Every record below has been written; it survives the process, not the power.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The offset that the next record gets.
    pub fn log_end(&self) -> u64 {
        self.log_end
    }

    pub(crate) fn set_log_end(&mut self, end: u64) {
        assert!(
            end >= self.log_end,
            "the log end moves back only by a truncation"
        );
        self.log_end = end;
    }

    pub(crate) fn set_written(&mut self, written: u64) {
        self.written = self.written.max(written);
        self.check();
    }

    pub(crate) fn set_durable(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
        self.written = self.written.max(self.durable);
        self.check();
    }

    pub(crate) fn set_log_start(&mut self, start: u64) {
        self.log_start = self.log_start.max(start);
        self.check();
    }

    /// After a truncation: everything at or above `end` is gone, everything below is durable.
    pub(crate) fn truncate(&mut self, end: u64) {
        assert!(end <= self.log_end, "a truncation cannot lengthen the log");
        *self = Self::new(self.log_start.min(end), end);
    }

    fn check(&self) {
        assert!(
            self.log_start <= self.durable
                && self.durable <= self.written
                && self.written <= self.log_end,
            "offsets out of order: {self:?}"
        );
    }
}

/// Offsets, and the epoch of the log that they belong to, for readers on any thread.
///
/// A sequence lock with one writer: the writer never waits, and a reader that met a change in the
/// middle looks again. Everything is atomic, so what a reader throws away was no data race.
#[derive(Debug)]
pub(crate) struct SharedOffsets {
    /// Odd while the writer is at it.
    sequence: AtomicU64,
    /// Epoch, log start, durable, written, log end.
    words: [AtomicU64; 5],
}

/// How often a reader looks again before it gives up. A model checker has to see it give up.
const LOOKS: u32 = if cfg!(any(alluvium_loom, alluvium_shuttle)) {
    1
} else {
    100
};

impl SharedOffsets {
    pub(crate) fn new(epoch: u64, offsets: Offsets) -> Self {
        Self {
            sequence: AtomicU64::new(0),
            words: Self::words(epoch, offsets).map(AtomicU64::new),
        }
    }

    fn words(epoch: u64, o: Offsets) -> [u64; 5] {
        [epoch, o.log_start, o.durable, o.written, o.log_end]
    }

    /// Replaces what readers see. Only one thread may call this at a time.
    pub(crate) fn store(&self, epoch: u64, offsets: Offsets) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        // The odd number is seen by whoever sees one of the words below.
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(Self::words(epoch, offsets)) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The epoch and the offsets as they were together at one moment, and everything that the
    /// writer did before it stored them; `None` when the writer stands in the middle of a change
    /// for so long that it is not worth waiting for.
    pub(crate) fn load(&self) -> Option<(u64, Offsets)> {
        for _ in 0..LOOKS {
            let before = self.sequence.load(Ordering::Acquire);
            let [epoch, log_start, durable, written, log_end] = self
                .words
                .each_ref()
                .map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                let offsets = Offsets {
                    log_start,
                    durable,
                    written,
                    log_end,
                };
                return Some((epoch, offsets));
            }
            std::hint::spin_loop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_offsets_are_never_torn() {
        let shared = SharedOffsets::new(0, Offsets::new(0, 0));
        let rounds = 200_000;
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    let mut last = 0;
                    while last < rounds {
                        let Some((epoch, offsets)) = shared.load() else {
                            continue;
                        };
                        assert_eq!(offsets, Offsets::new(epoch, epoch));
                        assert!(epoch >= last, "what was seen once is not taken back");
                        last = epoch;
                    }
                });
            }
            for n in 1..=rounds {
                shared.store(n, Offsets::new(n, n));
            }
        });
    }

    #[test]
    fn ends_move_forward_in_order() {
        let mut o = Offsets::new(0, 0);
        o.set_log_end(10);
        o.set_written(7);
        o.set_durable(5);
        o.set_log_start(3);
        assert_eq!(
            (o.log_start(), o.durable(), o.written(), o.log_end()),
            (3, 5, 7, 10)
        );
        o.truncate(4);
        assert_eq!(
            (o.log_start(), o.durable(), o.written(), o.log_end()),
            (3, 4, 4, 4)
        );
    }

    #[test]
    #[should_panic(expected = "offsets out of order")]
    fn durable_never_passes_the_end() {
        Offsets::new(0, 3).set_durable(4);
    }
}
