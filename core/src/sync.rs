//! What threads share, under one name: the primitives of every build, and in a build for a model
//! checker those that it watches instead.
//!
//! Only unit tests that are built with `--cfg alluvium_loom` or `--cfg alluvium_shuttle` see the
//! latter; `tests/concurrency/run` does that. In all other builds these are plain re-exports. (The
//! names are our own, because dependencies that know `--cfg loom` would change along with us.)
//!
//! The channels, one-shots and semaphores of the bridge are tokio's in every build: the checkers
//! take each call of theirs as one step.

#[cfg(not(all(test, any(alluvium_loom, alluvium_shuttle))))]
mod primitives {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, atomic};
}

#[cfg(all(test, alluvium_loom))]
#[path = "../../tests/concurrency/loom_primitives.rs"]
mod primitives;

#[cfg(all(test, alluvium_shuttle, not(alluvium_loom)))]
mod primitives {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic};
    pub(crate) use std::sync::OnceLock;
}

/// Gives another thread the core, in all builds.
pub(crate) fn yield_thread() {
    std::thread::yield_now();
}

pub(crate) use primitives::{ArcSwap, Condvar, Mutex, MutexGuard, OnceLock, atomic};
