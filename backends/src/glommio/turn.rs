//! The event loop: one glommio task that runs everything else of a shard.
//!
//! glommio looks at its rings, its timers and the wakes of other threads only when its run queue
//! is empty or its preemption timer has fired (100 ms as a rule). A shard that always has
//! something to do would see completions and callers that late. So this task never asks to be run
//! again directly: after a bounded amount of work it lets the run queue go empty and comes back
//! with the reactor's next turn. That makes the default queue safe, and its wakes cost other
//! threads a system call only when the shard is asleep.
//!
//! A shard wakes by itself once a second, too. On a machine that was out of memory, every thread
//! standing still for seconds at any place, shards of three processes slept through the wake of another
//! thread until a signal interrupted them; where it was lost, here or in glommio, is not known. Timers of
//! a store are under way at all times, so one more changes what a sleep costs by nothing.

use std::future::{Future, poll_fn};
use std::hint;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use alluvium_core::io::ShardMain;
use glommio::timer::Timer;

use super::GlommioBackend;
use super::hub::Hub;
use super::tasks::{Incoming, Role, Shell};

/// How often the loop goes round before it looks at the rings. A look costs several system calls
/// (glommio arms and cancels its timers each time); tasks that wake one another settle in a few
/// rounds.
const ROUNDS_MAX: u32 = 8;

/// Longest time until the loop looks whether something has happened.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// When the loop is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    MainEnded,
    Idle,
}

/// Runs `main` to its end. What is left goes in this order: the future of `main`, the tasks, the
/// operations when the kernel is done with them.
pub(super) async fn run(
    backend: GlommioBackend,
    incoming: Rc<Incoming>,
    main: ShardMain<GlommioBackend>,
) {
    let hub = Hub::new();
    let mut shard = Shard {
        waker: Waker::from(Arc::clone(&hub)),
        hub,
        incoming,
    };
    let backend = Rc::new(backend);
    // Called inside the task: also a panic before there is a future ends only the shard.
    let main = Box::pin(async move { main(backend).await });
    shard.incoming.run([Shell::new(main, Role::Main)]);
    shard.drive(Until::MainEnded).await;
    shard.incoming.end();
    shard.incoming.drop_tasks();
    shard.drive(Until::Idle).await;
    shard.hub.close();
    // A wake that came before may still wait in glommio's queue, where it would keep this task's
    // memory alive for ever.
    reactor_turn().await;
}

struct Shard {
    /// The hub as a waker.
    waker: Waker,
    hub: Arc<Hub>,
    incoming: Rc<Incoming>,
}

impl Shard {
    async fn drive(&mut self, until: Until) {
        let mut turn = None;
        let mut heartbeat = Heartbeat::default();
        // The first round may follow a drive that saw the notification.
        self.hub.stay_notified();
        poll_fn(|cx| {
            self.hub.set_event_loop(cx.waker());
            heartbeat.keep(cx);
            // Whoever wakes this task does so in a turn of the reactor.
            turn = None;
            self.incoming.wake_yielded();
            for _ in 0..ROUNDS_MAX {
                self.hub.take_notification();
                if self.round(until).is_ready() {
                    return Poll::Ready(());
                }
                if self.incoming.has_yielded() {
                    if !self.hub.is_notified() {
                        break;
                    }
                } else if self.hub.fall_asleep() {
                    return Poll::Pending;
                }
            }
            self.hub.stay_notified();
            turn = Some(ReactorTurn::begin(cx));
            Poll::Pending
        })
        .await;
    }

    /// Polls what is ready, once.
    fn round(&mut self, until: Until) -> Poll<()> {
        let mut cx = Context::from_waker(&self.waker);
        let ends_with = (until == Until::MainEnded).then_some(Role::Main);
        if self.incoming.poll_tasks(ends_with, &mut cx).is_ready() {
            return Poll::Ready(());
        }
        // Operations after tasks: what a task has just submitted starts in the same round.
        if self.incoming.poll_operations(&mut cx).is_ready() && until == Until::Idle {
            return Poll::Ready(());
        }
        let new = self.incoming.take_tasks();
        if !new.is_empty() {
            self.incoming.run(new);
            self.waker.wake_by_ref();
        }
        Poll::Pending
    }
}

/// Wakes its task, at the latest [`HEARTBEAT`] after it was last polled with none under way.
#[derive(Default)]
struct Heartbeat(Option<(Timer, Instant)>);

impl Heartbeat {
    fn keep(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        if self.0.as_ref().is_some_and(|(_, due)| now < *due) {
            return;
        }
        let mut timer = Timer::new(HEARTBEAT);
        if pin!(&mut timer).poll(cx).is_ready() {
            // A second has gone since the line before: the next look comes at once.
            cx.waker().wake_by_ref();
        }
        self.0 = Some((timer, now + HEARTBEAT));
    }
}

/// Waits until the reactor has looked at its rings, its timers and the wakes of other threads.
async fn reactor_turn() {
    let mut turn = None;
    poll_fn(|cx| {
        if turn.is_some() {
            return Poll::Ready(());
        }
        turn = Some(ReactorTurn::begin(cx));
        Poll::Pending
    })
    .await;
}

/// Wakes its task with the reactor's next turn.
///
/// glommio has no call for that: waking oneself goes past the reactor. But a timer that is due is
/// always found by the next turn, and keeps glommio from going to sleep.
struct ReactorTurn {
    /// Held for its destructor, which takes the timer back.
    _timer: Timer,
}

impl ReactorTurn {
    fn begin(cx: &mut Context<'_>) -> Self {
        loop {
            let mut timer = Timer::new(TICK);
            let due = Instant::now() + TICK;
            if pin!(&mut timer).poll(cx).is_pending() {
                // Due before the reactor looks, or it would sleep for the rest of the tick.
                while Instant::now() <= due {
                    hint::spin_loop();
                }
                return Self { _timer: timer };
            }
            // Due before it was armed: this thread was interrupted. Once more.
        }
    }
}

/// Long enough that a timer is not due yet when it is armed.
const TICK: Duration = Duration::from_nanos(150);

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;

    #[test]
    fn a_lost_wake_costs_a_heartbeat_at_most() {
        let Ok(executor) = LocalExecutorBuilder::new(Placement::Unbound).make() else {
            return;
        };
        let hub = Hub::new();
        let (sender, receiver) = mpsc::channel::<Waker>();
        let (happened, loses) = (Arc::new(AtomicBool::new(false)), Arc::clone(&hub));
        let happens = Arc::clone(&happened);
        let other = thread::spawn(move || {
            let waker = receiver.recv().unwrap();
            // The loop is asleep by now.
            thread::sleep(Duration::from_millis(100));
            happens.store(true, Ordering::Release);
            let kept = loses.take_event_loop();
            waker.wake();
            // Not dropped: the last waker of a task that goes schedules it once more.
            kept
        });
        executor.run(async {
            let incoming = Rc::<Incoming>::default();
            let waker = Waker::from(Arc::clone(&hub));
            let mut shard = Shard {
                waker,
                hub,
                incoming,
            };
            let main = poll_fn(move |cx| {
                if happened.load(Ordering::Acquire) {
                    return Poll::Ready(());
                }
                sender.send(cx.waker().clone()).unwrap();
                Poll::Pending
            });
            shard.incoming.run([Shell::new(Box::pin(main), Role::Main)]);
            shard.drive(Until::MainEnded).await;
        });
        drop(other.join().unwrap());
    }
}
