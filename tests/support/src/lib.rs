//! Test suites that every backend of Alluvium has to pass: one body, many providers.
//!
//! Everything here panics to report a failure; it is a library only so that several test binaries
//! can share it.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is how a test reports a failure"
)]

#[cfg(feature = "sim")]
pub mod fuzz;
pub mod io_conformance;
pub mod logs;
pub mod promises;
pub mod simulation;
pub mod store_conformance;
pub mod stress;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Suites run one after the other: some checks count what belongs to the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits for the others that count what the process has, and keeps them waiting.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
