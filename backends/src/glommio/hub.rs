//! How the event loop is told to run again, from its own thread and from others.
//!
//! glommio's own wakers are kept away from foreign threads as far as possible: they have 15 bits
//! of reference count, and one that is dropped elsewhere after its executor ended leaks the task
//! and an event descriptor. Here foreign threads hold a [`Hub`]; only the hub holds a glommio
//! waker, uses it once per sleep of the loop, and lets go of it on the loop's thread.

use std::sync::{Arc, PoisonError};
use std::task::{Wake, Waker};

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The loop is at work, and nothing new has happened.
const RUNNING: u8 = 0;
/// Something has happened that the loop has not looked at. It will look without being woken.
const NOTIFIED: u8 = 1;
/// The loop has returned to glommio and must be woken.
const ASLEEP: u8 = 2;

/// The waker behind all tasks and operations of a shard.
#[derive(Debug)]
pub(super) struct Hub {
    state: AtomicU8,
    event_loop: Mutex<Option<Waker>>,
}

impl Hub {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU8::new(NOTIFIED),
            event_loop: Mutex::new(None),
        })
    }

    fn event_loop(&self) -> MutexGuard<'_, Option<Waker>> {
        // The waker is whole whoever panicked.
        self.event_loop
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which glommio task is the loop. On the loop's thread only, like all that follow.
    pub(super) fn set_event_loop(&self, waker: &Waker) {
        let mut current = self.event_loop();
        if !current.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *current = Some(waker.clone());
        }
    }

    /// Whether something happened since this was last asked; the loop is at work from here on.
    pub(super) fn take_notification(&self) -> bool {
        self.state.swap(RUNNING, Ordering::AcqRel) == NOTIFIED
    }

    /// Whether something has happened that the loop has not looked at.
    pub(super) fn is_notified(&self) -> bool {
        self.state.load(Ordering::Acquire) == NOTIFIED
    }

    /// The loop comes back by itself: nobody needs to wake it until then.
    pub(super) fn stay_notified(&self) {
        // Not a store: it would hide the wake of another thread, and with it what that was about, from
        // the taking of the notification that follows.
        self.state.swap(NOTIFIED, Ordering::AcqRel);
    }

    /// Lets the loop go to sleep unless something has happened; then `false`.
    pub(super) fn fall_asleep(&self) -> bool {
        self.state
            .compare_exchange(RUNNING, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Keeps the next wake from the loop, for tests.
    #[cfg(test)]
    pub(super) fn take_event_loop(&self) -> Option<Waker> {
        self.event_loop().take()
    }

    /// From now on nothing wakes glommio any more.
    pub(super) fn close(&self) {
        // Nobody is inside `wake` with the waker once the lock is ours.
        *self.event_loop() = None;
    }
}

impl Wake for Hub {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
            && let Some(waker) = self.event_loop().as_ref()
        {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_loop_is_woken_once_per_sleep_and_never_while_it_runs() {
        let count = Arc::new(Count::default());
        let wakes = || count.0.load(Ordering::Relaxed);
        let hub = Hub::new();
        hub.set_event_loop(&Waker::from(Arc::clone(&count)));
        assert!(hub.take_notification(), "a new loop has something to do");
        assert!(!hub.take_notification());

        hub.wake_by_ref();
        assert!(!hub.fall_asleep(), "the wake is not lost");
        assert!(hub.take_notification());
        assert_eq!(wakes(), 0, "the loop was awake");

        assert!(hub.fall_asleep());
        hub.wake_by_ref();
        hub.wake_by_ref();
        assert_eq!(wakes(), 1);

        assert!(hub.take_notification());
        hub.stay_notified();
        hub.wake_by_ref();
        assert_eq!(wakes(), 1, "the loop comes back by itself");

        assert!(hub.take_notification());
        assert!(hub.fall_asleep());
        hub.close();
        hub.wake_by_ref();
        assert_eq!(wakes(), 1, "closed");
    }
}
