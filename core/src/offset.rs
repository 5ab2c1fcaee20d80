//! The offsets of a partition, in one place with checked setters.
//!
//! All ends are half-open: an end offset names the next offset. The invariant
//! `log start <= durable <= written <= log end` holds after every setter; a setter that would break
//! it is a bug in the engine and panics the shard, which answers every waiter.

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

#[cfg(test)]
mod tests {
    use super::*;

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
