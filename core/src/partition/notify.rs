//! A wake-up between tasks of one thread: one waiter, any number of notifiers, no lost wake.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// A flag that one task waits for and others on the same thread set.
#[derive(Debug, Default)]
pub(crate) struct LocalNotify {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl LocalNotify {
    /// Sets the flag and wakes the waiter, if there is one.
    pub(crate) fn notify(&self) {
        if self.set.replace(true) {
            return;
        }
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the flag; registers the waker when it is not set.
    pub(crate) fn poll_notified(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.set.replace(false) {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the flag is set, and takes it.
    pub(crate) async fn notified(&self) {
        poll_fn(|cx| self.poll_notified(cx)).await;
    }
}
