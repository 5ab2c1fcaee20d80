//! Waking a shard, from its own thread and from others.
//!
//! A task that is woken on its own thread goes to a local queue: no lock, no system call. From
//! another thread it goes to a shared queue, and the event loop is told.
//!
//! # Park and notify
//!
//! One atomic says where the loop is:
//!
//! | state | who sets it | meaning |
//! | --- | --- | --- |
//! | `RUNNING` | the loop | it will look at the state again before it sleeps |
//! | `NOTIFIED` | a waker | the shared queue has something |
//! | `PARKED` | the loop | it sleeps, or is about to, and needs the event descriptor |
//!
//! A waker **pushes, then swaps in `NOTIFIED`**, and writes to the event descriptor only when it
//! swapped out `PARKED`. So a burst of wakes costs one system call: every later one swaps out
//! `NOTIFIED`. The loop **takes `NOTIFIED` back before it reads the queue**, and sleeps only after
//! a compare-and-swap from `RUNNING` to `PARKED`.
//!
//! No wake is lost, because all changes of the one atomic have one order. A waker's swap comes
//! * before the loop parks: then the loop's compare-and-swap fails, or the loop had already taken
//!   the notice back after the push, and reads the queue after that; or
//! * after the loop has parked: then this waker (or one before it, in the same sleep) swaps out
//!   `PARKED` and writes to the descriptor, whose poll stands in the ring while the loop sleeps.
//!   The descriptor counts, so a write before the poll is armed is seen when it is armed.
//!
//! A waker that found the loop parked may write after the loop has woken for another reason: a
//! needless round of the loop, nothing worse.
//!
//! A task is queued at most once (`queued`). The loop clears that before it polls, and both sides
//! change it by read-modify-write: a wake that finds it set happens before the loop's clearing,
//! so the poll that follows sees what the wake was about.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::task::Wake;

use rustix::event::EventfdFlags;

use super::slab::Key;
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// What a waker holds of a task. The future is elsewhere and never leaves its thread.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) key: Key,
    queued: AtomicBool,
    remote: Arc<Remote>,
}

impl Task {
    pub(super) fn new(key: Key, remote: &Arc<Remote>) -> Self {
        Self {
            key,
            queued: AtomicBool::new(false),
            remote: Arc::clone(remote),
        }
    }

    /// To be called before the task is polled: from now on a wake queues it again.
    pub(super) fn unqueue(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }

    fn enqueue(self: Arc<Self>) {
        if let Err(task) = push_if_local(self) {
            let remote = Arc::clone(&task.remote);
            remote.push(task);
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.enqueue();
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            Arc::clone(self).enqueue();
        }
    }
}

/// Tasks to poll, in order of their wakes; belongs to the shard's thread.
#[derive(Debug)]
pub(super) struct Ready {
    queue: RefCell<VecDeque<Arc<Task>>>,
    remote: Arc<Remote>,
}

thread_local! {
    /// The queue of the shard that runs on this thread.
    static CURRENT: RefCell<Option<Rc<Ready>>> = const { RefCell::new(None) };
}

/// Pushes to the queue of this thread's shard if the task belongs there, else hands it back.
fn push_if_local(task: Arc<Task>) -> Result<(), Arc<Task>> {
    let mut task = Some(task);
    // Late in the life of a thread its storage is gone; then it is any thread.
    let looked = CURRENT.try_with(|current| {
        if let Ok(current) = current.try_borrow()
            && let Some(ready) = &*current
            && let Some(woken) = task.take_if(|t| Arc::ptr_eq(&t.remote, &ready.remote))
        {
            ready.queue.borrow_mut().push_back(woken);
        }
    });
    looked.unwrap_or(());
    task.map_or(Ok(()), Err)
}

impl Ready {
    pub(super) fn new(remote: &Arc<Remote>) -> Rc<Self> {
        Rc::new(Self {
            queue: RefCell::default(),
            remote: Arc::clone(remote),
        })
    }

    /// Makes this the queue of the calling thread until the guard is dropped.
    pub(super) fn enter(self: &Rc<Self>) -> Entered {
        CURRENT.set(Some(Rc::clone(self)));
        Entered
    }

    pub(super) fn pop(&self) -> Option<Arc<Task>> {
        self.queue.borrow_mut().pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Moves over what other threads have woken.
    pub(super) fn take_remote(&self) {
        if self.remote.park.take_notice() {
            let mut woken = self.remote.lock();
            self.queue.borrow_mut().extend(woken.tasks.drain(..));
        }
    }

    pub(super) fn clear(&self) {
        let left = self.queue.take();
        drop(left);
    }
}

/// Takes the queue of the thread away when dropped.
#[derive(Debug)]
pub(super) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        drop(CURRENT.take());
    }
}

/// The part of a shard that other threads reach.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) park: Park,
    woken: Mutex<Woken>,
    event: OwnedFd,
}

#[derive(Debug, Default)]
struct Woken {
    tasks: Vec<Arc<Task>>,
    closed: bool,
}

impl Remote {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            park: Park::default(),
            woken: Mutex::default(),
            event,
        }))
    }

    /// The descriptor that becomes readable when a parked loop is to wake.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Makes the descriptor unreadable again.
    pub(super) fn reset_event(&self) {
        // Nothing to read is as good.
        rustix::io::read(&self.event, &mut [0_u8; 8]).ok();
    }

    fn lock(&self) -> MutexGuard<'_, Woken> {
        // Nothing that is done under this lock panics half-way.
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, task: Arc<Task>) {
        {
            let mut woken = self.lock();
            if woken.closed {
                return;
            }
            woken.tasks.push(task);
        }
        if self.park.notify() {
            // Fails only when the counter is full, and then it is readable.
            rustix::io::write(&self.event, &1_u64.to_ne_bytes()).ok();
        }
    }

    /// From now on wakes go nowhere. Wakers and this hold each other until then.
    pub(super) fn close(&self) {
        let left = {
            let mut woken = self.lock();
            woken.closed = true;
            std::mem::take(&mut woken.tasks)
        };
        drop(left);
    }
}

/// The state of the protocol described above.
#[derive(Debug, Default)]
pub(super) struct Park {
    state: AtomicU8,
}

const RUNNING: u8 = 0;
const NOTIFIED: u8 = 1;
const PARKED: u8 = 2;

impl Park {
    /// For wakers, after the push: whether the loop must be woken by the descriptor.
    #[must_use]
    pub(super) fn notify(&self) -> bool {
        self.state.swap(NOTIFIED, Ordering::AcqRel) == PARKED
    }

    /// For the loop: whether a notice is there; it stays.
    pub(super) fn is_notified(&self) -> bool {
        self.state.load(Ordering::Relaxed) == NOTIFIED
    }

    /// For the loop: takes a notice back. After `true` the queue must be read.
    #[must_use]
    pub(super) fn take_notice(&self) -> bool {
        self.is_notified() && self.state.swap(RUNNING, Ordering::AcqRel) == NOTIFIED
    }

    /// For the loop, before it sleeps: `false` when it must not, because a notice is there.
    #[must_use]
    pub(super) fn park(&self) -> bool {
        self.change(RUNNING, PARKED)
    }

    /// For the loop, after it slept. A notice that came meanwhile stays.
    pub(super) fn unpark(&self) {
        self.change(PARKED, RUNNING);
    }

    fn change(&self, from: u8, to: u8) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.state
            .compare_exchange(from, to, success, failure)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::task::Waker;
    use std::thread;

    use super::*;

    #[test]
    fn a_burst_on_a_parked_loop_rings_once() {
        let park = Park::default();
        assert!(!park.notify(), "the loop runs and will look");
        assert!(!park.park(), "a notice is there");
        assert!(park.take_notice());
        assert!(!park.take_notice());
        assert!(park.park());
        let rings = (0..10).filter(|_| park.notify()).count();
        assert_eq!(rings, 1);
        park.unpark();
        assert!(park.is_notified(), "waking up takes no notice away");
        assert!(park.take_notice());
        assert!(park.park());
        park.unpark();
        assert!(!park.is_notified());
    }

    fn task(index: usize, remote: &Arc<Remote>) -> Arc<Task> {
        let mut slab = super::super::slab::Slab::default();
        let keys: Vec<_> = (0..=index).map(|i| slab.insert(i)).collect();
        Arc::new(Task::new(keys[index], remote))
    }

    #[test]
    fn a_task_is_queued_once_wherever_it_is_woken() {
        let remote = Remote::new().expect("an event descriptor");
        let ready = Ready::new(&remote);
        let waker = Waker::from(task(0, &remote));
        {
            let _here = ready.enter();
            waker.wake_by_ref();
            waker.wake_by_ref();
            assert!(!remote.park.is_notified(), "a local wake tells nobody");
        }
        // Queued already: a foreign wake adds nothing.
        thread::scope(|scope| {
            scope.spawn(|| waker.wake_by_ref());
        });
        ready.take_remote();
        let woken = ready.pop().expect("it was woken");
        assert!(ready.pop().is_none());
        woken.unqueue();
        thread::scope(|scope| {
            scope.spawn(|| waker.wake_by_ref());
        });
        assert!(ready.is_empty(), "it came the other way");
        ready.take_remote();
        assert!(ready.pop().is_some());
    }

    #[test]
    fn foreign_wakes_all_arrive_and_none_after_closing() {
        let remote = Remote::new().expect("an event descriptor");
        let ready = Ready::new(&remote);
        let tasks: Vec<_> = (0..40).map(|i| task(i, &remote)).collect();
        let mut seen = BTreeSet::new();
        thread::scope(|scope| {
            for some in tasks.chunks(10) {
                scope.spawn(|| some.iter().for_each(Wake::wake_by_ref));
            }
            while seen.len() < tasks.len() {
                ready.take_remote();
                while let Some(task) = ready.pop() {
                    assert!(seen.insert(task.key.to_bits()), "queued twice");
                }
                thread::yield_now();
            }
        });
        remote.close();
        tasks[0].unqueue();
        tasks[0].wake_by_ref();
        ready.take_remote();
        assert!(ready.pop().is_none());
        assert_eq!(Arc::strong_count(&tasks[0]), 1, "no cycle is left");
    }
}
