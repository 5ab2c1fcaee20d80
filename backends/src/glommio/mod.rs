//! glommio: one thread per shard with glommio's executor and its three rings.
//!
//! # Durable writes
//!
//! A durable write is a write and then an `fdatasync`, inside one operation: glommio sends no
//! `RWF_DSYNC`. `O_DSYNC` on the descriptor would save the second step, but the lock must be on
//! the very descriptor that does the transfers, so it would make every write durable: measured,
//! appends that ask for `Written` became 3 to 7 times slower, and durable ones slower too (half the
//! throughput with 64 producers; the likely cause is the zeroing ahead of the log, which then waits
//! for the device as well).
//!
//! # Traps of glommio 0.9, and what is done about them
//!
//! * It panics when io_uring is denied and ends the process when an opcode is missing: `setup`.
//! * Its `DmaFile` misjudges polled I/O on an empty file: `file`.
//! * Wakes and completions wait for its preemption timer while a shard is busy: `turn`.
//! * It goes to sleep with a task that is to run when it is preempted before that task has run: `turn`.
//! * A future that is dropped cancels its operation, and buffers of operations in flight are freed
//!   with the rings: here every operation runs to its end, and the shard waits for all (`tasks`).
//! * A panic in a task ends the executor, one in a destructor the process: `tasks`.
//! * Files are closed some turns after they were dropped: `file`.
//! * **Not curable here:** where the kernel refuses a submission for want of memory just before a shard
//!   sleeps, glommio panics, and the shard ends with [`ShardDead`](alluvium_core::Error::ShardDead).
//! * **Not curable here:** each shard that ends leaves one event descriptor open (glommio frees the
//!   headers of its tasks without dropping them). A process that opens and closes stores many
//!   times should use another backend.
//!
//! Every transfer is copied once, into or out of glommio's own buffers. `/proc` must be mounted.

mod backend;
mod file;
mod hub;
mod setup;
mod tasks;
mod turn;

use std::io;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use alluvium_core::io::{BackendFactory, ShardMain, ShardSpec};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};

use crate::names::Names;
use crate::posix;
use crate::shard::{self, caught};
use backend::Local;

pub use backend::GlommioBackend;
pub use file::GlommioFile;

/// Starts shards on glommio.
///
/// ```no_run
/// use alluvium_backends::glommio::GlommioFactory;
/// use alluvium_core::io::{BackendFactory, ShardSpec};
/// let factory = GlommioFactory::new().ring_entries(256);
/// let spec = ShardSpec { name: "shard-0".into(), core: Some(0) };
/// factory.spawn_shard(spec, Box::new(|_backend| Box::pin(async {})))?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct GlommioFactory {
    ring_entries: u32,
    io_memory_bytes: usize,
}

impl GlommioFactory {
    /// Name in configurations.
    pub const NAME: &'static str = "glommio";

    /// The defaults: 128 entries in each of the three rings, 10 MiB of registered buffers.
    pub const fn new() -> Self {
        Self {
            ring_entries: 128,
            io_memory_bytes: 10 << 20,
        }
    }

    /// Sets the size of each submission queue; at least 8. More operations than that may be in
    /// flight; they are submitted in more than one call.
    #[must_use]
    pub fn ring_entries(mut self, count: u32) -> Self {
        self.ring_entries = count.max(8);
        self
    }

    /// Sets the memory for transfers that is registered with the rings, in bytes per shard; at
    /// least 64 KiB. It counts three times against the limit of locked memory. Transfers that do
    /// not fit use ordinary memory.
    #[must_use]
    pub fn io_memory_bytes(mut self, bytes: usize) -> Self {
        self.io_memory_bytes = bytes.max(64 << 10);
        self
    }

    /// Whether the kernel lets this thread have what a shard needs.
    pub(crate) fn check(&self) -> io::Result<()> {
        setup::check(self.ring_entries)
    }

    /// Builds the executor on the calling thread.
    fn build(&self) -> io::Result<LocalExecutor> {
        self.check()?;
        // Unbound: the thread is pinned already, by the scheduler's mask.
        let builder = LocalExecutorBuilder::new(Placement::Unbound)
            .ring_depth(usize::try_from(self.ring_entries).unwrap_or(usize::MAX))
            .io_memory(self.io_memory_bytes)
            .preempt_timer(PREEMPTION);
        caught(|| builder.make())
            .ok_or_else(setup::setup_panicked)?
            .map_err(setup::to_io)
    }
}

impl Default for GlommioFactory {
    fn default() -> Self {
        Self::new()
    }
}

impl BackendFactory for GlommioFactory {
    type Backend = GlommioBackend;

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn allowed_cores(&self) -> Vec<usize> {
        posix::allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<GlommioBackend>) -> io::Result<()> {
        let factory = self.clone();
        let build = move |names| Ok((factory.build()?, names));
        shard::start(spec, build, |(executor, names)| {
            run(executor, names, main);
        })
    }
}

/// When glommio takes the processor from its tasks: never, by its standards. Its one task here lets the
/// run queue go empty by itself, and a preemption that comes before that task has run is one that glommio
/// sleeps through.
const PREEMPTION: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs `main` to its end, and drops the rings when nothing uses them any more.
fn run(executor: LocalExecutor, names: Names, main: ShardMain<GlommioBackend>) {
    let local = Rc::new(Local::new(names));
    let backend = GlommioBackend::new(Rc::clone(&local));
    let incoming = Rc::clone(&local.incoming);
    let ran = caught(|| executor.run(turn::run(backend, incoming, main)));
    if ran.is_none() {
        // glommio itself gave up (the hook has reported why). Whoever waits for a task hears of it.
        // The kernel may still be at work: memory that operations use must stay, and descriptors
        // with it.
        local.incoming.end();
        local.incoming.drop_tasks();
        mem::forget((executor, local));
    }
}
