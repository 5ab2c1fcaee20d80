//! What threads share, under one name, so that loom can watch it; see `tests/concurrency/run`.
//!
//! Only unit tests that are built with `--cfg alluvium_loom` see loom's primitives.

#[cfg(not(all(test, alluvium_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, alluvium_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
