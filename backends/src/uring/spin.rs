//! Whether to spin before sleeping.
//!
//! Going to sleep and being woken costs the shard and the waker a few microseconds each, and more
//! until the scheduler runs it again. When the next event comes sooner than that, looking a little
//! longer is cheaper. Whether it will is guessed from whether it did: each spin that was in vain
//! doubles the number of sleeps that go without one, each that paid off starts afresh. So a shard
//! under a ping-pong load spins always, one that waits for a disk or for nobody hardly ever, and
//! an idle one never: it does not get to sleep often enough.
//!
//! There are two guesses, because there are two kinds of sleeps. One append at a time makes the shard
//! wait for the disk, then for the next append, in turns; the first takes longer than a spin, the
//! second does not, and one guess for both would be wrong about each of them.

use std::time::Duration;

/// Most sleeps without a spin in a row.
const SKIPS_MAX: u32 = 512;

/// The two guesses of a shard.
#[derive(Debug)]
pub(super) struct Spins {
    /// For sleeps with nothing under way: only other threads end them.
    callers: Spin,
    /// For sleeps with operations in the kernel.
    operations: Spin,
}

impl Spins {
    /// Spins for up to `limit`; zero never spins.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            callers: Spin::new(limit),
            operations: Spin::new(limit),
        }
    }

    /// The guess for a sleep that is due now.
    pub(super) fn of(&mut self, operations_under_way: bool) -> &mut Spin {
        if operations_under_way {
            &mut self.operations
        } else {
            &mut self.callers
        }
    }
}

/// One decision, and what it is based on.
#[derive(Debug)]
pub(super) struct Spin {
    limit: Duration,
    /// Sleeps without a spin that follow the next spin in vain.
    penalty: u32,
    skips_left: u32,
}

impl Spin {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            penalty: 1,
            skips_left: 0,
        }
    }

    /// How long to spin before the sleep that is due now.
    pub(super) fn before_sleep(&mut self) -> Option<Duration> {
        if self.limit.is_zero() {
            return None;
        }
        if self.skips_left > 0 {
            self.skips_left -= 1;
            return None;
        }
        Some(self.limit)
    }

    /// What came of a spin.
    pub(super) fn spun(&mut self, paid_off: bool) {
        if paid_off {
            self.penalty = 1;
        } else {
            self.skips_left = self.penalty;
            self.penalty = (self.penalty * 2).min(SKIPS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(20);

    fn spins_in(spin: &mut Spin, sleeps: u32, pays: bool) -> u32 {
        let mut spins = 0;
        for _ in 0..sleeps {
            if spin.before_sleep().is_some() {
                spins += 1;
                spin.spun(pays);
            }
        }
        spins
    }

    #[test]
    fn it_spins_always_while_that_pays() {
        assert_eq!(spins_in(&mut Spin::new(LIMIT), 1000, true), 1000);
    }

    #[test]
    fn in_vain_it_gives_up_but_looks_again_now_and_then() {
        let mut spin = Spin::new(LIMIT);
        let spins = spins_in(&mut spin, 100_000, false);
        assert!((100..300).contains(&spins), "{spins}");
        // One success is enough to come back.
        while spin.before_sleep().is_none() {}
        spin.spun(true);
        assert_eq!(spins_in(&mut spin, 100, true), 100);
    }

    #[test]
    fn waits_for_the_disk_say_nothing_of_waits_for_callers() {
        let mut spins = Spins::new(LIMIT);
        for _ in 0..1000 {
            if spins.of(true).before_sleep().is_some() {
                spins.of(true).spun(false);
            }
            assert_eq!(spins_in(spins.of(false), 1, true), 1);
        }
    }

    #[test]
    fn zero_turns_it_off() {
        assert_eq!(spins_in(&mut Spin::new(Duration::ZERO), 1000, true), 0);
    }
}
