//! Primitives for loom: its own where it has them, the rest made of its atomics.
//!
//! `OnceLock` and `ArcSwap` have here exactly the orders that they promise, and no more: setting
//! and storing release, getting and loading acquire. What they hold lies beside the atomic, where
//! loom does not look; all threads of a model run on one, and none is switched while it is there.

use std::sync::{Arc, Mutex as Unseen, OnceLock as UnseenOnce, PoisonError};

pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};

use atomic::{AtomicBool, AtomicUsize, Ordering};

#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    value: UnseenOnce<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self {
            is_set: AtomicBool::new(false),
            value: UnseenOnce::new(),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.is_set
            .load(Ordering::Acquire)
            .then(|| self.value.get())
            .flatten()
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }
}

/// Every value that was ever stored, and which of them is the present one.
#[derive(Debug)]
pub(crate) struct ArcSwap<T> {
    present: AtomicUsize,
    all: Unseen<Vec<Arc<T>>>,
}

impl<T: Default> Default for ArcSwap<T> {
    fn default() -> Self {
        Self {
            present: AtomicUsize::new(0),
            all: Unseen::new(vec![Arc::default()]),
        }
    }
}

impl<T> ArcSwap<T> {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Arc<T>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn store(&self, value: Arc<T>) {
        let at = {
            let mut all = self.all();
            all.push(value);
            all.len() - 1
        };
        self.present.store(at, Ordering::Release);
    }

    pub(crate) fn load(&self) -> Arc<T> {
        let at = self.present.load(Ordering::Acquire);
        Arc::clone(&self.all()[at])
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.load()
    }
}
