//! Waiting a moment for company, and only when company has been coming: pure.
//!
//! When a group is acknowledged, its producers are about to send their next appends, a few
//! microseconds apart. Writing the first one at once would leave the others to the group after it,
//! and every producer would wait for two writes instead of one. So after a completion the
//! partition lingers: it goes on when as many more appends have come as were just acknowledged, at
//! the latest after [`LINGER_MAX`]. Those that came while the write was in flight wait with them:
//! else the producers would stay split in two halves that take turns. A single producer is never
//! delayed: its one append is all that is expected.
//!
//! Lingering keeps the shard's thread awake, which also spares the next append a thread wake-up.
//! It pays only while producers answer quickly: credit is won by lingers that were met and lost by
//! those that were not, and without credit only every [`RETRY_EVERY`]th completion tries again. An
//! idle partition never lingers.

use std::time::Duration;

/// Longest wait after a completion.
const LINGER_MAX: Duration = Duration::from_micros(40);
/// Most lingers in a row that may fail before lingering stops.
const CREDIT_MAX: u32 = 8;
/// Without credit, one completion in so many lingers all the same.
const RETRY_EVERY: u32 = 64;

/// Whether to wait for more appends before the next group is formed.
#[derive(Debug, Default)]
pub(crate) struct Linger {
    waiting: Option<Waiting>,
    credit: u32,
    skipped: u32,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    until: Duration,
    /// Appends that waited when it began.
    from: usize,
    /// Appends that are expected to wait when it ends.
    to: usize,
}

impl Linger {
    /// `acknowledged` appends have just been answered, and `waiting` wait already.
    pub(crate) fn acknowledged(&mut self, acknowledged: usize, waiting: usize, now: Duration) {
        if acknowledged == 0 {
            return;
        }
        if self.credit == 0 {
            self.skipped += 1;
            if self.skipped < RETRY_EVERY {
                return;
            }
            self.skipped = 0;
        }
        let until = now.saturating_add(LINGER_MAX);
        let to = waiting + acknowledged;
        self.waiting = Some(Waiting {
            until,
            from: waiting,
            to,
        });
    }

    /// Whether to go on waiting, with `waiting` appends in the queue.
    pub(crate) fn should_wait(&mut self, waiting: usize, now: impl FnOnce() -> Duration) -> bool {
        let Some(Waiting { until, from, to }) = self.waiting else {
            return false;
        };
        if waiting >= to {
            self.credit = (self.credit + 2).min(CREDIT_MAX);
        } else if now() >= until {
            // Half of those expected is still company worth having waited for.
            if waiting.saturating_sub(from) * 2 < to - from {
                self.credit = self.credit.saturating_sub(1);
            }
        } else {
            return true;
        }
        self.waiting = None;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Duration = Duration::from_micros;

    fn with_credit() -> Linger {
        Linger {
            credit: CREDIT_MAX,
            ..Linger::default()
        }
    }

    #[test]
    fn it_waits_until_as_many_are_back_as_were_acknowledged() {
        let mut linger = with_credit();
        assert!(!linger.should_wait(0, || AT(0)), "nothing was acknowledged");
        linger.acknowledged(3, 2, AT(100));
        assert!(linger.should_wait(0, || AT(101)));
        assert!(linger.should_wait(4, || AT(110)));
        assert!(!linger.should_wait(5, || AT(111)));
        assert!(
            !linger.should_wait(0, || AT(112)),
            "it waits once per completion"
        );
    }

    #[test]
    fn it_never_waits_longer_than_the_limit() {
        let mut linger = with_credit();
        linger.acknowledged(64, 0, AT(100));
        assert!(linger.should_wait(1, || AT(139)));
        assert!(!linger.should_wait(1, || AT(140)));
    }

    #[test]
    fn slow_producers_cost_nothing_after_a_few_tries_and_get_a_new_chance_later() {
        let mut linger = with_credit();
        let mut lingered = 0;
        for n in 0..1_000 {
            linger.acknowledged(1, 0, AT(n * 1_000));
            if linger.should_wait(0, || AT(n * 1_000)) {
                lingered += 1;
                assert!(!linger.should_wait(0, || AT(n * 1_000 + 40)));
            }
        }
        assert!(
            lingered <= u64::from(CREDIT_MAX) + 1_000 / u64::from(RETRY_EVERY) + 1,
            "{lingered}"
        );
        // They come back fast: the next chance is taken and kept.
        let mut met = 0;
        for n in 0..200 {
            linger.acknowledged(1, 0, AT(n));
            if linger.should_wait(0, || AT(n)) {
                assert!(!linger.should_wait(1, || AT(n)));
                met += 1;
            }
        }
        assert!(met > 100, "{met}");
    }
}
