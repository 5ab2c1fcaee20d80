//! Sleeping tasks by deadline.
//!
//! The event loop hands the next deadline to the kernel as the time limit of its wait, so a sleep
//! costs no operation and no descriptor.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

/// Deadlines on the monotonic clock; the number tells equal ones apart, in order of arrival.
pub(super) type TimerKey = (Duration, u64);

/// All timers of a shard.
#[derive(Debug, Default)]
pub(super) struct Timers {
    waiting: BTreeMap<TimerKey, Waker>,
    next: u64,
}

impl Timers {
    pub(super) fn add(&mut self, deadline: Duration, waker: Waker) -> TimerKey {
        let key = (deadline, self.next);
        self.next += 1;
        self.waiting.insert(key, waker);
        key
    }

    /// Who is to be woken may change between polls.
    pub(super) fn update(&mut self, key: TimerKey, waker: &Waker) {
        if let Some(known) = self.waiting.get_mut(&key) {
            known.clone_from(waker);
        }
    }

    /// Takes a timer out. Its waker is the caller's to drop, when nothing is borrowed.
    pub(super) fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.waiting.remove(&key)
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.waiting.keys().next().map(|key| key.0)
    }

    /// Takes out one timer whose deadline has come.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<Waker> {
        if self.next_deadline()? > now {
            return None;
        }
        self.waiting.pop_first().map(|(_, waker)| waker)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_due_in_order() {
        let ms = Duration::from_millis;
        let mut timers = Timers::default();
        assert_eq!(timers.next_deadline(), None);
        timers.add(ms(30), Waker::noop().clone());
        let first = timers.add(ms(10), Waker::noop().clone());
        timers.add(ms(10), Waker::noop().clone());
        assert_eq!(timers.next_deadline(), Some(ms(10)));
        assert!(timers.pop_due(ms(9)).is_none());
        assert!(timers.remove(first).is_some());
        assert!(timers.remove(first).is_none());
        assert!(timers.pop_due(ms(10)).is_some());
        assert!(timers.pop_due(ms(10)).is_none());
        assert_eq!(timers.next_deadline(), Some(ms(30)));
        assert!(!timers.is_empty());
    }
}
