//! uring: one thread per shard, with an io_uring and an executor of our own around it.
//!
//! The backend that should reach the disk's limit: nothing stands between the engine and the ring
//! that was made for somebody else. A durable write is one entry with `RWF_DSYNC`; a turn of the
//! event loop is at most one system call, which hands over all new operations and fetches all
//! completions.
//!
//! # Contract and invariants
//!
//! 1. **What an operation names, it owns, and keeps until its completion was taken out**
//!    (`in_flight`): buffer, open file, slot in the ring's table. Dropping the future that waits
//!    for it changes only who is told.
//! 2. **The ring is drained before anything is freed** (`run`): when `main` ends or panics, its
//!    future and the tasks are dropped first, then the loop waits for all operations. If the kernel
//!    refuses to be waited for, what they own is leaked.
//! 3. **A lock ends with the last operation** (`file`): a file leaves the ring's table when neither
//!    its handle nor an operation uses it, and it is unlocked then and there.
//! 4. **No wake is lost, and a burst of them costs one system call** (`wake`).
//! 5. **Nothing starves** (`executor`): a turn polls a bounded number of tasks, then looks at the
//!    completions, which is a look at shared memory.
//! 6. **No `IO_LINK`**: a short write would break the chain, and a sync behind it run early.
//!
//! | who | owns |
//! | --- | --- |
//! | `executor::Local` (one per thread, `Rc`) | ring, operations, tasks, timers |
//! | an operation | its buffer, and a share of its open file |
//! | `file::OpenFile` (shared by handle and operations) | descriptor, slot, lock |
//! | `wake::Remote` (shared by all wakers, `Arc`) | event descriptor, queue of foreign wakes |
//! | `wake::Task` (in wakers) | a key; the future stays with `Local` |
//!
//! `unsafe` is in few places: `op` hands an entry over (invariant 1), `ring` puts it into the
//! queue, waits with an argument, and registers memory.
//!
//! Syncing a directory and allocating go through the ring. Other calls that may wait for the file
//! system's journal (opening, renaming, removing, changing a length) are made by a thread of their own
//! (`names`): while ext4 commits, a creation waits for milliseconds, and appends with it if it
//! were made on the shard's thread.
//!
//! There is no fallback inside: where io_uring is forbidden, starting a shard fails with the
//! kernel's error, and the `tokio` module is the way to go. Kernels before 6.15 show an idle
//! shard as I/O pressure (it waits in the ring); newer ones are asked not to.

mod backend;
mod executor;
mod file;
mod in_flight;
mod op;
#[cfg(all(test, alluvium_loom))]
#[path = "../../../tests/concurrency/park.rs"]
mod park_model;
mod ring;
mod slab;
mod spin;
mod timers;
mod wake;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use alluvium_core::io::{BackendFactory, ShardMain, ShardSpec};

use crate::posix;
use crate::shard::{self, caught};
use executor::Local;
use ring::Ring;

pub use backend::UringBackend;
pub use file::UringFile;

/// Starts shards on io_uring.
///
/// ```no_run
/// use alluvium_backends::uring::UringFactory;
/// use alluvium_core::io::{BackendFactory, ShardSpec};
/// let factory = UringFactory::new().ring_entries(256);
/// let spec = ShardSpec { name: "shard-0".into(), core: Some(0) };
/// factory.spawn_shard(spec, Box::new(|_backend| Box::pin(async {})))?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct UringFactory {
    ring_entries: u32,
    spin: Duration,
    sqpoll_idle: Option<Duration>,
    registered_bytes: usize,
}

impl UringFactory {
    /// Name in configurations.
    pub const NAME: &'static str = "uring";

    /// The defaults: 1024 entries, up to 20 us of spinning, no kernel polling thread, no
    /// registered memory.
    pub const fn new() -> Self {
        Self {
            ring_entries: 1024,
            spin: Duration::from_micros(20),
            sqpoll_idle: None,
            registered_bytes: 0,
        }
    }

    /// Sets the size of the submission queue; the kernel rounds up to a power of two. More
    /// operations than that may be in flight; they are submitted in more than one call.
    #[must_use]
    pub fn ring_entries(mut self, count: u32) -> Self {
        self.ring_entries = count.max(1);
        self
    }

    /// Sets how long a shard may look for work before it sleeps; zero never looks. It does so only
    /// while that pays off, and hardly ever when it does not, so an idle shard costs nothing. At
    /// most a millisecond.
    #[must_use]
    pub fn spin(mut self, limit: Duration) -> Self {
        self.spin = limit.min(Duration::from_millis(1));
        self
    }

    /// Lets a kernel thread poll the submission queue and sleep after `idle`. Costs a core under
    /// load; `None` (the default) submits by system call.
    #[must_use]
    pub fn sqpoll_idle(mut self, idle: Option<Duration>) -> Self {
        self.sqpoll_idle = idle;
        self
    }

    /// Registers this many bytes of memory for buffers with each ring, at most 1 GiB; zero, the
    /// default, none. The kernel then does not pin and release the pages of every transfer, which
    /// saves about a tenth of the CPU of writes from 64 KiB on and nothing at 4 KiB. The memory is
    /// locked: where `RLIMIT_MEMLOCK` forbids it, the shard runs without, and its capabilities do
    /// not name it. The tail caches live in it too, so less than they hold is of little use.
    #[must_use]
    pub fn registered_bytes(mut self, bytes: usize) -> Self {
        self.registered_bytes = bytes.min(1 << 30);
        self
    }

    fn build(&self) -> io::Result<Ring> {
        Ring::new(self.ring_entries, self.sqpoll_idle, self.registered_bytes)
    }
}

impl Default for UringFactory {
    fn default() -> Self {
        Self::new()
    }
}

impl BackendFactory for UringFactory {
    type Backend = UringBackend;

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn allowed_cores(&self) -> Vec<usize> {
        posix::allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<UringBackend>) -> io::Result<()> {
        let factory = self.clone();
        // With one core a spinning shard only keeps away what it waits for.
        let alone = spec.core.is_none() && posix::allowed_cores().len() == 1;
        let spin = if alone { Duration::ZERO } else { self.spin };
        let build = move |names| Local::new(factory.build()?, spin, names);
        shard::start(spec, build, |local| run(&local, main))
    }
}

/// Runs `main` to its end. What is left is dropped in this order, also when `main` panics: the
/// future of `main`, the tasks, the operations when the kernel is done with them, the ring.
///
/// # Panics
/// When the ring cannot be used any more, after all that: there is nobody to hand the error on to,
/// and the panic hook reports it. Whoever waits for the shard hears that it has ended.
fn run(local: &Rc<Local>, main: ShardMain<UringBackend>) {
    let _woken_here = local.enter_thread();
    let ran = caught(|| local.run(main));
    // Goes on behind what a panic came from.
    let closed = caught(|| local.close()).or_else(|| caught(|| local.close()));
    // A ring that has failed may have lost completions, which would be waited for in vain.
    let patience = match ran {
        Some(Err(_)) => FAILED_RING_PATIENCE,
        _ => Duration::MAX,
    };
    let drained = caught(|| local.drain(patience));
    if closed.is_none() || !matches!(drained, Some(Ok(()))) {
        // The ring refuses to be waited for: memory that the kernel may still use must stay.
        std::mem::forget(Rc::clone(local));
    }
    if let Some(Err(e)) = ran {
        panic!("the ring of a shard cannot be used any more: {e}");
    }
}

/// How long operations of a ring that has failed are waited for.
const FAILED_RING_PATIENCE: Duration = Duration::from_secs(5);
