//! Waking a shard of the `uring` backend from other threads, under loom.
//!
//! Wakers, queue, notice and event descriptor are the real ones. The loop is written out again: its
//! turns are those of `executor`, with the read of the descriptor in place of the ring that sleeps
//! on it. A wake that is lost shows as a loop that sleeps when every waker has gone, which loom ends
//! as an execution without an end.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Wake;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::slab::Slab;
use super::wake::{Ready, Remote, Task};
use crate::explore::explore;

/// What other threads hold: tasks, and beside each what its wakes are about.
struct Shard {
    remote: Arc<Remote>,
    tasks: Vec<Arc<Task>>,
    work: Vec<AtomicU64>,
}

impl Shard {
    fn new(tasks: usize) -> (Arc<Self>, Rc<Ready>) {
        let remote = Remote::new().unwrap();
        let ready = Ready::new(&remote);
        let mut keys = Slab::default();
        let shard = Self {
            tasks: (0..tasks)
                .map(|_| Arc::new(Task::new(keys.insert(()), &remote)))
                .collect(),
            work: (0..tasks).map(|_| AtomicU64::new(0)).collect(),
            remote,
        };
        (Arc::new(shard), ready)
    }

    /// Gives the task a piece of work, told by nothing but the wake.
    fn wake(&self, task: usize) {
        self.work[task].fetch_add(1, Ordering::Relaxed);
        self.tasks[task].wake_by_ref();
    }

    /// Turns of the loop until the tasks have seen so much work.
    fn run(&self, ready: &Ready, wanted: u64, sleep: Sleep) {
        let mut seen = vec![0; self.tasks.len()];
        let mut sleep = sleep;
        loop {
            ready.take_remote();
            while let Some(task) = ready.pop() {
                task.unqueue();
                let at = self.tasks.iter().position(|t| Arc::ptr_eq(t, &task));
                let at = at.unwrap();
                // The poll.
                seen[at] = self.work[at].load(Ordering::Relaxed);
            }
            if seen.iter().sum::<u64>() == wanted {
                return;
            }
            if sleep == Sleep::AfterSpin && self.remote.park.is_notified() {
                continue;
            }
            if !self.remote.park.park() {
                continue;
            }
            if sleep == Sleep::EndsOnceByItself {
                // A completion or a timer.
                sleep = Sleep::AtOnce;
            } else {
                self.wait_for_event();
            }
            self.remote.park.unpark();
        }
    }

    fn wait_for_event(&self) {
        while rustix::io::read(self.remote.event(), &mut [0_u8; 8]).is_err() {
            thread::yield_now();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    AtOnce,
    AfterSpin,
    EndsOnceByItself,
}

const SLEEPS: [Sleep; 3] = [Sleep::AtOnce, Sleep::AfterSpin, Sleep::EndsOnceByItself];

#[test]
fn no_wake_of_two_threads_for_two_tasks_is_lost() {
    for sleep in SLEEPS {
        explore(3, move || {
            let (shard, ready) = Shard::new(2);
            let wakers: Vec<_> = (0..2)
                .map(|task| {
                    let shard = Arc::clone(&shard);
                    thread::spawn(move || shard.wake(task))
                })
                .collect();
            shard.run(&ready, 2, sleep);
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }
}

#[test]
fn no_wake_of_a_task_that_is_being_polled_is_lost() {
    for sleep in SLEEPS {
        explore(3, move || {
            let (shard, ready) = Shard::new(1);
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let shard = Arc::clone(&shard);
                    thread::spawn(move || shard.wake(0))
                })
                .collect();
            shard.run(&ready, 2, sleep);
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }
}

#[test]
fn a_wake_beside_the_end_of_the_shard_leaves_nothing_behind() {
    explore(3, || {
        let (shard, ready) = Shard::new(1);
        let waker = Arc::clone(&shard);
        let waker = thread::spawn(move || waker.wake(0));
        shard.remote.close();
        ready.clear();
        waker.join().unwrap();
        // What was woken before the end was dropped with the queue, what came after went nowhere.
        assert_eq!(Arc::strong_count(&shard.tasks[0]), 1);
    });
}
