//! The event loop of a shard, and everything that lives on its thread.
//!
//! One turn:
//!
//! 1. take over what other threads have woken;
//! 2. poll at most [`TURN_POLLS`] tasks, which queue operations;
//! 3. enter the kernel: hand over the operations, and sleep if nothing else is to be done (spin
//!    first, if that promises to be cheaper). Not at all when there is nothing to hand over and
//!    nothing to fetch;
//! 4. take completions out, fire timers, wake those who yielded.
//!
//! So a task that always yields, or a crowd of busy tasks, keeps neither completions nor wakes of
//! other threads waiting for more than a turn.
//!
//! No borrow is held while code of others runs: polling and dropping tasks, waking, dropping what
//! an operation owned.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use alluvium_core::io::{LocalFuture, ShardMain};
use rustix::io::Errno;

use super::UringBackend;
use super::in_flight::{Completed, InFlight};
use super::op::Owned;
use super::ring::{Completion, Ring, Wait};
use super::slab::{Key, Slab};
use super::spin::Spins;
use super::timers::Timers;
use super::wake::{Ready, Remote, Task};
use crate::names::Names;
use crate::posix;
use crate::shard::{caught, drop_quietly};

/// Most tasks that one turn polls before it looks at the ring.
const TURN_POLLS: usize = 64;

/// Looks at the ring between two looks at the clock while spinning.
const LOOKS_PER_CLOCK: usize = 16;

/// What belongs to one shard's thread.
pub(super) struct Local {
    pub(super) ring: RefCell<Ring>,
    pub(super) ops: RefCell<InFlight<Owned>>,
    pub(super) timers: RefCell<Timers>,
    pub(super) yielded: RefCell<Vec<Waker>>,
    pub(super) names: Names,
    tasks: RefCell<Slab<Lodging>>,
    closed: Cell<bool>,
    ready: Rc<Ready>,
    remote: Arc<Remote>,
    spins: RefCell<Spins>,
    /// Kept for its memory.
    completions: RefCell<Vec<Completion>>,
    /// Whether the kernel knows polls that go on after an event.
    multishot: Cell<bool>,
}

/// Where a task lies while it is not being polled: empty while it is.
type Lodging = Option<(LocalFuture<()>, Waker)>;

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("flags", &self.ring.borrow().flags())
            .field("in_kernel", &self.ops.borrow().in_kernel())
            .finish_non_exhaustive()
    }
}

impl Local {
    pub(super) fn new(ring: Ring, spin: Duration, names: Names) -> io::Result<Rc<Self>> {
        let remote = Remote::new()?;
        let local = Self {
            ring: RefCell::new(ring),
            ops: RefCell::default(),
            timers: RefCell::default(),
            yielded: RefCell::default(),
            names,
            tasks: RefCell::default(),
            closed: Cell::new(false),
            ready: Ready::new(&remote),
            remote,
            spins: RefCell::new(Spins::new(spin)),
            completions: RefCell::default(),
            multishot: Cell::new(true),
        };
        local.arm_event();
        Ok(Rc::new(local))
    }

    /// Takes in a task; dropped at once when the shard is ending.
    pub(super) fn spawn(&self, task: LocalFuture<()>) -> Option<Key> {
        if self.closed.get() {
            drop_quietly(task);
            return None;
        }
        let key = self.tasks.borrow_mut().insert(None);
        let waker = Waker::from(Arc::new(Task::new(key, &self.remote)));
        waker.wake_by_ref();
        if let Some(place) = self.tasks.borrow_mut().get_mut(key) {
            *place = Some((task, waker));
        }
        Some(key)
    }

    /// Polls one task. One that ends or panics (the panic hook has reported it) is dropped; the
    /// others go on.
    fn poll(&self, key: Key) {
        let lodging = self.tasks.borrow_mut().get_mut(key).and_then(Option::take);
        let Some((mut task, waker)) = lodging else {
            return;
        };
        let mut cx = Context::from_waker(&waker);
        let polled = caught(|| task.as_mut().poll(&mut cx));
        if let Some(Poll::Pending) = polled
            && let Some(place) = self.tasks.borrow_mut().get_mut(key)
        {
            *place = Some((task, waker));
            return;
        }
        let place = self.tasks.borrow_mut().remove(key);
        drop(place);
        drop_quietly(task);
    }

    /// Polls tasks that are ready, as many as a turn may, until `main` has ended: then the shard has
    /// let go of its store, and nobody may go on. Whether it has.
    fn poll_ready(&self, main: Key) -> bool {
        for _ in 0..TURN_POLLS {
            let Some(task) = self.ready.pop() else {
                return false;
            };
            task.unqueue();
            self.poll(task.key);
            if task.key == main && !self.tasks.borrow().contains(main) {
                return true;
            }
        }
        false
    }

    /// Runs `main` to its end, and the other tasks meanwhile. An error means that the ring cannot
    /// be used any more.
    pub(super) fn run(self: &Rc<Self>, main: ShardMain<UringBackend>) -> io::Result<()> {
        let backend = Rc::new(UringBackend::new(Rc::clone(self)));
        let Some(main) = self.spawn(main(backend)) else {
            return Ok(());
        };
        loop {
            self.ready.take_remote();
            if self.poll_ready(main) {
                return Ok(());
            }
            self.enter()?;
            self.take_completions();
            self.fire_timers();
            self.wake_yielded();
        }
    }

    /// Enters the kernel if there is a reason to, and sleeps there if there is nothing to do.
    fn enter(&self) -> io::Result<()> {
        if !self.ready.is_empty() || !self.yielded.borrow().is_empty() {
            return self.hand_over();
        }
        let mut sleep = self.time_to_timer();
        if sleep == Some(Duration::ZERO) {
            return self.hand_over();
        }
        let under_way = self.ops.borrow().in_kernel() > 0;
        let spin = self.spins.borrow_mut().of(under_way).before_sleep();
        if let Some(spin) = spin {
            self.hand_over()?;
            let limit = sleep.map_or(spin, |sleep| sleep.min(spin));
            let paid_off = self.watch_for(limit) && self.has_come()?;
            self.spins.borrow_mut().of(under_way).spun(paid_off);
            if paid_off {
                return Ok(());
            }
            sleep = self.time_to_timer();
        }
        if !self.remote.park.park() {
            return self.hand_over();
        }
        let idle = self.ops.borrow().in_kernel() == 0;
        let result = self.ring.borrow_mut().enter(Wait::Until(sleep), idle);
        self.remote.park.unpark();
        result
    }

    /// Enters the kernel without sleeping, if it has something for us or we for it.
    fn hand_over(&self) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        if ring.needs_enter() {
            ring.enter(Wait::No, false)?;
        }
        Ok(())
    }

    /// Whether what the spin saw is more than a mark. The kernel marks that work waits for this
    /// thread after it has put it on its list, and takes the mark off before it takes the list: where
    /// the two cross, the mark stays with nothing behind it, until other work comes. A shard that
    /// took it for work would never sleep again.
    fn has_come(&self) -> io::Result<bool> {
        self.hand_over()?;
        Ok(self.remote.park.is_notified() || self.ring.borrow_mut().has_entries())
    }

    /// Time until the next timer; `None` without timers.
    fn time_to_timer(&self) -> Option<Duration> {
        let deadline = self.timers.borrow().next_deadline()?;
        Some(deadline.saturating_sub(posix::now()))
    }

    /// Spins until there is something to do, at most for `limit`: `false` when that was in vain.
    fn watch_for(&self, limit: Duration) -> bool {
        let mut ring = self.ring.borrow_mut();
        let end = posix::now() + limit;
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if self.remote.park.is_notified() || ring.has_completions() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if posix::now() >= end {
                return false;
            }
        }
    }

    fn take_completions(&self) {
        let mut completions = self.completions.take();
        self.ring.borrow_mut().take_completions(&mut completions);
        for completion in completions.drain(..) {
            if completion.user_data == Key::RESERVED {
                self.event_came(completion);
                continue;
            }
            let key = Key::from_bits(completion.user_data);
            let completed = self.ops.borrow_mut().complete(key, completion.result);
            match completed {
                // A panic in one must not lose the completions behind it.
                Completed::Wake(waker) => {
                    caught(|| waker.wake());
                }
                Completed::Release(owned) => drop_quietly(owned),
                Completed::Nothing => {}
            }
        }
        self.completions.replace(completions);
    }

    /// The wake descriptor became readable. What was woken is found through the shared queue.
    fn event_came(&self, completion: Completion) {
        if completion.more {
            return;
        }
        if completion.result == -Errno::INVAL.raw_os_error() {
            self.multishot.set(false);
        }
        self.remote.reset_event();
        self.arm_event();
    }

    fn arm_event(&self) {
        let mut ring = self.ring.borrow_mut();
        ring.push_poll(self.remote.event(), self.multishot.get());
    }

    fn fire_timers(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = posix::now();
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else {
                return;
            };
            waker.wake();
        }
    }

    fn wake_yielded(&self) {
        if self.yielded.borrow().is_empty() {
            return;
        }
        // Taken out first: a waker may run code that yields again.
        let yielded = self.yielded.take();
        yielded.into_iter().for_each(Waker::wake);
    }

    /// Makes this the shard that wakes on the calling thread find, until the guard is dropped.
    pub(super) fn enter_thread(&self) -> impl Drop + use<> {
        self.ready.enter()
    }

    /// Drops all tasks, and from now on every new one. What they leave in the kernel stays.
    pub(super) fn close(&self) {
        self.closed.set(true);
        // One at a time and without a borrow: a destructor may come back to `spawn`.
        loop {
            let lodging = self.tasks.borrow_mut().pop();
            match lodging {
                Some(Some((task, _))) => drop_quietly(task),
                Some(None) => {}
                None => break,
            }
        }
        self.remote.close();
        self.ready.clear();
        let yielded = self.yielded.take();
        drop(yielded);
    }

    /// Waits until the kernel is done with every operation, for at most `patience`. An error means
    /// that it is not, or cannot be told, so that nothing which they own may be freed.
    pub(super) fn drain(&self, patience: Duration) -> io::Result<()> {
        let deadline = posix::now().saturating_add(patience);
        loop {
            self.take_completions();
            if self.ops.borrow().in_kernel() == 0 {
                return Ok(());
            }
            let left = deadline.saturating_sub(posix::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut ring = self.ring.borrow_mut();
            ring.enter(Wait::Until(Some(left)), false)?;
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]
mod tests {
    use super::super::ring::tests::Mark;
    use super::*;

    /// A mark that the kernel left, with nothing behind it, keeps nobody awake.
    #[test]
    fn a_mark_without_work_does_not_keep_the_shard_awake() {
        let Ok(ring) = Ring::new(8, None, 0) else {
            return;
        };
        let mark = Mark::of(&ring);
        let local = Local::new(ring, Duration::from_micros(20), Names::start().unwrap()).unwrap();
        local.hand_over().unwrap();
        mark.leave();
        assert!(local.ring.borrow_mut().has_completions(), "it is seen");
        let (waker, deadline) = (Waker::noop(), posix::now() + Duration::from_millis(30));
        local.timers.borrow_mut().add(deadline, waker.clone());
        let mut turns = 0;
        while !local.timers.borrow().is_empty() {
            local.ready.take_remote();
            local.enter().unwrap();
            local.take_completions();
            local.fire_timers();
            turns += 1;
        }
        assert!(turns < 10, "{turns} turns with nothing to do");
    }
}
