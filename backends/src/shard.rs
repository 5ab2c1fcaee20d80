//! Starting a shard's thread, the same for all real backends.

use std::io;
use std::sync::mpsc;
use std::thread;

use alluvium_core::io::ShardSpec;
use rustix::io::Errno;

use crate::posix;

/// Starts a thread, pins it if asked, runs `build` on it, and `run` with what was built.
///
/// Returns when `build` is done, with its error if it has one.
pub(crate) fn start<R>(
    spec: ShardSpec,
    build: impl FnOnce() -> io::Result<R> + Send + 'static,
    run: impl FnOnce(R) + Send + 'static,
) -> io::Result<()> {
    if spec.name.contains('\0') {
        return Err(Errno::INVAL.into());
    }
    let (ready, is_ready) = mpsc::sync_channel(1);
    thread::Builder::new().name(spec.name).spawn(move || {
        let pinned = spec.core.map_or(Ok(()), posix::pin_to_core);
        match pinned.and_then(|()| build()) {
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
