//! The tasks of a shard, kept where they can be dropped before the ring is.
//!
//! compio drops left-over tasks together with its ring. They must go first, so that the
//! operations which they abandon can be waited for (see `run`). So compio's executor holds only a
//! shell around each task, and the future itself lies here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use alluvium_core::io::LocalFuture;

use crate::shard::{caught, drop_quietly};

/// All live tasks of one shard.
#[derive(Default)]
pub(super) struct Tasks {
    live: RefCell<BTreeMap<u64, Rc<Slot>>>,
    next_id: Cell<u64>,
    closed: Cell<bool>,
}

/// Where a future lies while it is not being polled.
type Slot = RefCell<Option<LocalFuture<()>>>;

impl Tasks {
    /// Takes in a task and returns the shell to run; `None` when the shard is ending, and the
    /// task is dropped.
    pub(super) fn add(self: &Rc<Self>, task: LocalFuture<()>) -> Option<Shell> {
        if self.closed.get() {
            drop_quietly(task);
            return None;
        }
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let slot = Rc::new(RefCell::new(Some(task)));
        self.live.borrow_mut().insert(id, Rc::clone(&slot));
        Some(Shell {
            id,
            slot,
            tasks: Rc::clone(self),
        })
    }

    /// Drops all tasks, and from now on every new one.
    pub(super) fn close(&self) {
        self.closed.set(true);
        // One at a time and without a borrow: a destructor may come back to `add`.
        loop {
            let Some((_, slot)) = self.live.borrow_mut().pop_first() else {
                break;
            };
            let task = slot.borrow_mut().take();
            if let Some(task) = task {
                drop_quietly(task);
            }
        }
    }

    fn forget(&self, id: u64) {
        // The slot is dropped after the borrow has ended.
        let slot = self.live.borrow_mut().remove(&id);
        drop(slot);
    }
}

/// What compio's executor runs: polls the task in its slot, and ends when the task ends, panics
/// or is gone.
pub(super) struct Shell {
    id: u64,
    slot: Rc<Slot>,
    tasks: Rc<Tasks>,
}

impl Future for Shell {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut task) = self.slot.borrow_mut().take() else {
            return Poll::Ready(());
        };
        match caught(|| task.as_mut().poll(cx)) {
            Some(Poll::Pending) => {
                *self.slot.borrow_mut() = Some(task);
                Poll::Pending
            }
            // Ended, or panicked (the panic hook has reported it): the others go on.
            Some(Poll::Ready(())) | None => {
                self.tasks.forget(self.id);
                drop_quietly(task);
                Poll::Ready(())
            }
        }
    }
}
