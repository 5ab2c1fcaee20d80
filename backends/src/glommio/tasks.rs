//! What a shard runs: tasks, which may be dropped, and operations, which may not.
//!
//! Both live in collections of our own inside one glommio task. So a panic stays in its task
//! (glommio would end the shard, or abort the process in a destructor), tasks can be dropped
//! before the operations that they abandon, and the loop decides how much runs between two looks
//! at the rings.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use alluvium_core::io::LocalFuture;
use futures_util::stream::{FuturesUnordered, Stream};

use crate::shard::{caught, drop_quietly};

/// Which of a shard's futures has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The shard's `main`: the shard ends with it.
    Main,
    /// A spawned task.
    Task,
    /// An operation.
    Operation,
}

/// A task or operation; ready with its role when it has ended or panicked.
pub(super) struct Shell {
    task: Option<LocalFuture<()>>,
    role: Role,
}

impl Shell {
    pub(super) fn new(task: LocalFuture<()>, role: Role) -> Self {
        Self {
            task: Some(task),
            role,
        }
    }
}

impl Future for Shell {
    type Output = Role;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Role> {
        if let Some(mut task) = self.task.take() {
            let polled = caught(|| task.as_mut().poll(cx));
            if let Some(Poll::Pending) = polled {
                self.task = Some(task);
                return Poll::Pending;
            }
            // Ended, or panicked, which the panic hook has reported: the others go on.
            drop_quietly(task);
        }
        Poll::Ready(self.role)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            drop_quietly(task);
        }
    }
}

/// Where an operation leaves its result for whoever still waits.
struct Slot<T> {
    result: Cell<Option<T>>,
    waiter: Cell<Option<Waker>>,
    ended: Cell<bool>,
}

/// The operation's side: wakes the waiter when it goes, with a result or without.
struct Answer<T>(Rc<Slot<T>>);

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.0.ended.set(true);
        if let Some(waiter) = self.0.waiter.take() {
            waiter.wake();
        }
    }
}

/// Resolves when the operation has ended; `None` when it panicked.
pub(super) struct Submitted<T>(Rc<Slot<T>>);

impl<T> Future for Submitted<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if self.0.ended.get() {
            return Poll::Ready(self.0.result.take());
        }
        self.0.waiter.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// The tasks, and what arrived since the loop last looked.
#[derive(Default)]
pub(super) struct Incoming {
    /// Not in the loop itself: when glommio gives the loop up, they are still to be had.
    running: RefCell<FuturesUnordered<Shell>>,
    /// Operations under way; those stay with this when glommio gives the loop up.
    under_way: RefCell<FuturesUnordered<Shell>>,
    tasks: RefCell<Vec<Shell>>,
    operations: RefCell<Vec<Shell>>,
    yielded: RefCell<Vec<Waker>>,
    ending: Cell<bool>,
}

impl Incoming {
    /// Takes in a task; drops it when the shard is ending.
    pub(super) fn spawn(&self, task: LocalFuture<()>) {
        if self.ending.get() {
            drop_quietly(task);
        } else {
            self.tasks.borrow_mut().push(Shell::new(task, Role::Task));
        }
    }

    /// Runs an operation to its end, whether or not anybody waits for it: it owns what the kernel
    /// works on. It starts before the loop looks at the rings again.
    pub(super) fn submit<T: 'static>(
        &self,
        operation: impl Future<Output = T> + 'static,
    ) -> Submitted<T> {
        let slot = Rc::new(Slot {
            result: Cell::new(None),
            waiter: Cell::new(None),
            ended: Cell::new(false),
        });
        let answer = Answer(Rc::clone(&slot));
        let operation = Box::pin(async move {
            answer.0.result.set(Some(operation.await));
            drop(answer);
        });
        self.operations
            .borrow_mut()
            .push(Shell::new(operation, Role::Operation));
        Submitted(slot)
    }

    /// Wakes `waker` when the rings have been looked at.
    pub(super) fn wake_after_turn(&self, waker: Waker) {
        self.yielded.borrow_mut().push(waker);
    }

    pub(super) fn has_yielded(&self) -> bool {
        !self.yielded.borrow().is_empty()
    }

    pub(super) fn wake_yielded(&self) {
        // Taken out first: a waker may run code that yields again.
        let yielded = self.yielded.take();
        yielded.into_iter().for_each(Waker::wake);
    }

    pub(super) fn take_tasks(&self) -> Vec<Shell> {
        self.tasks.take()
    }

    /// Polls the tasks that are ready; ready when one of this role has ended.
    pub(super) fn poll_tasks(&self, until: Option<Role>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let polled = Pin::new(&mut *self.running.borrow_mut()).poll_next(cx);
            match polled {
                Poll::Ready(Some(role)) if Some(role) == until => return Poll::Ready(()),
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Starts new operations and polls those that are ready; ready when there is none left.
    pub(super) fn poll_operations(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.under_way.borrow_mut().extend(self.operations.take());
        loop {
            let polled = Pin::new(&mut *self.under_way.borrow_mut()).poll_next(cx);
            match polled {
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Adds tasks that are polled with the others from now on.
    pub(super) fn run(&self, tasks: impl IntoIterator<Item = Shell>) {
        self.running.borrow_mut().extend(tasks);
    }

    /// Drops all tasks.
    pub(super) fn drop_tasks(&self) {
        // Without a borrow: a destructor may come back here.
        drop(self.running.take());
    }

    /// From now on new tasks are dropped at once; operations are still taken.
    pub(super) fn end(&self) {
        self.ending.set(true);
        // Dropped without a borrow: a destructor may spawn.
        drop(self.take_tasks());
    }
}
