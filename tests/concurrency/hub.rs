//! Waking a shard of the `glommio` backend from other threads, under loom.
//!
//! The hub is the real one; the loop is written out again, with the turns of `glommio/turn.rs` and
//! a notice in place of glommio's own waker. A lost wake shows as a deadlock.

use std::sync::Arc;
use std::task::{Wake, Waker};

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use crate::explore::explore;
use crate::hub::Hub;

/// Rounds between two looks at the rings.
const ROUNDS: usize = 2;

/// What glommio wakes its loop with.
struct EventLoop(Notify);

impl Wake for EventLoop {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify();
    }
}

struct Shard {
    hub: Arc<Hub>,
    /// What the wakes are about, told by nothing but them.
    work: AtomicU64,
}

impl Shard {
    fn wake(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
        self.hub.wake_by_ref();
    }

    /// Turns of the loop until so much work was seen; it comes back by itself from the first ones.
    fn run(&self, wanted: u64, looks_at_rings: usize) {
        let event_loop = Arc::new(EventLoop(Notify::new()));
        let waker = Waker::from(Arc::clone(&event_loop));
        let mut looks_left = looks_at_rings;
        self.hub.stay_notified();
        loop {
            self.hub.set_event_loop(&waker);
            let mut asleep = false;
            for _ in 0..ROUNDS {
                self.hub.take_notification();
                // The round.
                if self.work.load(Ordering::Relaxed) == wanted {
                    self.hub.close();
                    return;
                }
                if looks_left > 0 {
                    // A task has yielded.
                    if !self.hub.is_notified() {
                        break;
                    }
                } else if self.hub.fall_asleep() {
                    asleep = true;
                    break;
                }
            }
            if asleep {
                event_loop.0.wait();
            } else {
                looks_left = looks_left.saturating_sub(1);
                self.hub.stay_notified();
            }
        }
    }
}

#[test]
fn no_wake_of_two_threads_is_lost() {
    for looks_at_rings in 0..2 {
        explore(3, move || {
            let shard = Arc::new(Shard {
                hub: Hub::new(),
                work: AtomicU64::new(0),
            });
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let shard = Arc::clone(&shard);
                    thread::spawn(move || shard.wake())
                })
                .collect();
            shard.run(2, looks_at_rings);
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }
}
