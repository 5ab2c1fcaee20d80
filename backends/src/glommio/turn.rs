//! The event loop: one glommio task that runs everything else of a shard.
//!
//! glommio looks at its rings, its timers and the wakes of other threads only when its run queue
//! is empty or its preemption timer has fired (100 ms as a rule). A shard that always has
//! something to do would see completions and callers that late. So this task never asks to be run
//! again directly: after a bounded amount of work it lets the run queue go empty and comes back
//! with the reactor's next turn. That makes the default queue safe, and its wakes cost other
//! threads a system call only when the shard is asleep.
//!
//! glommio 0.9 can go to sleep although this task is to run: when its latency ring holds a completion
//! right after a look at it, it does not run the task ("preempted") and takes that for an empty run queue;
//! if the completion then wakes nobody, it sleeps. Nobody wakes it, because to the hub the loop has
//! been woken. (Known upstream as "do not park the executor while a task queue is still runnable",
//! glommio/glommio#53; a signal ends the sleep.) One such completion is that of the preemption timer, on
//! a machine that stood still for its 100 ms just then: so a shard has none that ends, see
//! [`PREEMPTION`](super::PREEMPTION). Another is that of the event descriptor, written late by a thread
//! whose wake was already seen, or by the kernel when as many transfers as the ring has entries are done
//! just then: so a shard wakes by itself, too, see [`Heartbeat`].

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

/// The same if the turn that the heartbeat began is the one that glommio sleeps through. Taken back
/// long before it is due, unless that happens.
const LAST_RESORT: Duration = Duration::from_secs(10);

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
        heartbeat: Heartbeat::default(),
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
    heartbeat: Heartbeat,
}

impl Shard {
    async fn drive(&mut self, until: Until) {
        let mut turn = None;
        // The first round may follow a drive that saw the notification.
        self.hub.stay_notified();
        poll_fn(|cx| {
            self.hub.set_event_loop(cx.waker());
            self.heartbeat.keep(cx);
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

/// Timers that wake its task: one is due within [`HEARTBEAT`] of each poll, and another one always
/// outlives it.
#[derive(Default)]
struct Heartbeat {
    beat: Option<(Timer, Instant)>,
    last_resort: Option<(Timer, Instant)>,
}

impl Heartbeat {
    fn keep(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        renew(&mut self.beat, HEARTBEAT, now, now, cx);
        renew(
            &mut self.last_resort,
            LAST_RESORT,
            now,
            now + LAST_RESORT / 2,
            cx,
        );
    }
}

/// Sets the timer anew if it is due by `by`.
fn renew(
    timer: &mut Option<(Timer, Instant)>,
    after: Duration,
    now: Instant,
    by: Instant,
    cx: &mut Context<'_>,
) {
    if timer.as_ref().is_some_and(|(_, due)| by < *due) {
        return;
    }
    let mut new = Timer::new(after);
    if pin!(&mut new).poll(cx).is_ready() {
        // That long has gone since the line before: the next look comes at once.
        cx.waker().wake_by_ref();
    }
    *timer = Some((new, now + after));
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
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::thread;

    use glommio::{LocalExecutorBuilder, Placement};

    use super::super::GlommioFactory;
    use super::*;

    #[test]
    fn a_loop_that_stood_still_is_not_preempted() {
        let Ok(executor) = GlommioFactory::new().build() else {
            return;
        };
        let preempted = executor.run(async {
            // Longer than glommio lets tasks run.
            thread::sleep(Duration::from_millis(150));
            // What was submitted at once is done by now.
            glommio::executor().need_preempt()
        });
        assert!(!preempted, "the turn after this one would be lost");
    }

    /// Should the turn that the beat begins be lost, there is another timer.
    #[test]
    fn another_timer_outlives_the_beat() {
        let Ok(executor) = GlommioFactory::new().build() else {
            return;
        };
        executor.run(poll_fn(|cx| {
            let (mut heartbeat, start) = (Heartbeat::default(), Instant::now());
            heartbeat.keep(cx);
            let (_, beat) = heartbeat.beat.as_ref().unwrap();
            let (_, last_resort) = heartbeat.last_resort.as_ref().unwrap();
            assert!(*beat >= start + HEARTBEAT && *last_resort >= *beat + LAST_RESORT / 2);
            Poll::Ready(())
        }));
    }

    #[test]
    fn a_lost_wake_costs_a_heartbeat_at_most() {
        let (ended, end) = mpsc::channel();
        let sleeper = thread::spawn(move || {
            sleep_through_a_wake();
            ended.send(()).unwrap();
        });
        // Many heartbeats: a loop that has none never gets here.
        let woken = end.recv_timeout(Duration::from_secs(60));
        assert_ne!(woken, Err(RecvTimeoutError::Timeout), "it sleeps on");
        sleeper.join().unwrap();
    }

    fn sleep_through_a_wake() {
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
                heartbeat: Heartbeat::default(),
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
