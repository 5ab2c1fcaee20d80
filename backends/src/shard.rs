//! Starting a shard's thread and keeping panics in their place, the same for all real backends.

#![cfg_attr(
    not(all(
        feature = "compio",
        feature = "glommio",
        feature = "tokio",
        feature = "uring"
    )),
    allow(dead_code, reason = "each backend uses its part")
)]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use alluvium_core::io::ShardSpec;
use rustix::io::Errno;

use crate::names::Names;
use crate::posix;

/// What `f` returns, or `None` if it panicked, which the panic hook has reported.
pub(crate) fn caught<T>(f: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // Its destructor is code of others, too.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
            None
        }
    }
}

/// Drops what belongs to others; a panic in a destructor must not take more along.
pub(crate) fn drop_quietly<T>(value: T) {
    caught(|| drop(value));
}

/// Starts a thread and the one for its calls on names, pins the first if asked, runs `build` on it,
/// and `run` with what was built.
///
/// The thread for the calls keeps the cores of the process: on the shard's it would only get in the
/// way of what it is there to keep going.
///
/// Returns when `build` is done, with its error if it has one.
pub(crate) fn start<R>(
    spec: ShardSpec,
    build: impl FnOnce(Names) -> io::Result<R> + Send + 'static,
    run: impl FnOnce(R) + Send + 'static,
) -> io::Result<()> {
    if spec.name.contains('\0') {
        return Err(Errno::INVAL.into());
    }
    let (ready, is_ready) = mpsc::sync_channel(1);
    thread::Builder::new().name(spec.name).spawn(move || {
        let build_pinned = || {
            let names = Names::start()?;
            spec.core.map_or(Ok(()), posix::pin_to_core)?;
            build(names)
        };
        match build_pinned() {
            Ok(built) => {
                // The caller waits for this; if it is gone there is nobody to tell.
                ready.send(Ok(())).ok();
                run(built);
            }
            Err(e) => {
                ready.send(Err(e)).ok();
            }
        }
    })?;
    // The channel closes without a word when `build` panicked.
    is_ready.recv().unwrap_or_else(|_| {
        Err(io::Error::other(
            "the shard's thread ended while it was set up",
        ))
    })
}
