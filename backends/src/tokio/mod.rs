//! tokio: one thread per shard with a current-thread runtime, data on a blocking pool.
//!
//! Works everywhere; the fallback when io_uring is forbidden. Data goes by positional
//! `preadv2`/`pwritev2` with `RWF_DSYNC` for durable writes, never through `tokio::fs::File`,
//! which reports a write as done before it is. Calls on names have a thread of their own.
//!
//! Each shard has its own pool. Its threads are started when needed, end after ten idle seconds,
//! and inherit the core of a pinned shard. Operations beyond
//! [`blocking_threads_max`](TokioFactory::blocking_threads_max) queue up.

mod backend;
mod file;

use std::io;
use std::rc::Rc;

use alluvium_core::io::{BackendFactory, ShardMain, ShardSpec};
use tokio::runtime;
use tokio::task::LocalSet;

use crate::{posix, shard};

pub use backend::TokioBackend;
pub use file::TokioFile;

/// Starts shards on tokio.
///
/// ```
/// use alluvium_backends::tokio::TokioFactory;
/// use alluvium_core::io::{BackendFactory, IoBackend, ShardSpec};
/// let (sender, receiver) = std::sync::mpsc::channel();
/// let spec = ShardSpec { name: "shard-0".into(), core: None };
/// TokioFactory::new().spawn_shard(
///     spec,
///     Box::new(move |backend| {
///         Box::pin(async move {
///             backend.yield_now().await;
///             sender.send(backend.capabilities().backend).expect("the test waits");
///         })
///     }),
/// )?;
/// assert_eq!(receiver.recv(), Ok("tokio"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TokioFactory {
    blocking_threads_max: usize,
}

impl TokioFactory {
    /// Name in configurations.
    pub const NAME: &'static str = "tokio";

    /// The defaults: at most 32 blocking threads per shard. With few partitions few are started;
    /// with many, the kernel makes one flush of those that come together: 32 do twice as many
    /// durable appends to 1,000 partitions as 8.
    pub const fn new() -> Self {
        Self {
            blocking_threads_max: 32,
        }
    }

    /// Sets how many system calls of one shard may be in flight at once; at least 1.
    #[must_use]
    pub fn blocking_threads_max(mut self, count: usize) -> Self {
        self.blocking_threads_max = count.max(1);
        self
    }
}

impl Default for TokioFactory {
    fn default() -> Self {
        Self::new()
    }
}

impl BackendFactory for TokioFactory {
    type Backend = TokioBackend;

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn allowed_cores(&self) -> Vec<usize> {
        posix::allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<TokioBackend>) -> io::Result<()> {
        let threads = self.blocking_threads_max;
        let thread_name = format!("{}-io", spec.name);
        let build = move |names| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_time()
                .max_blocking_threads(threads)
                .thread_name(thread_name)
                .build()?;
            Ok((runtime, names))
        };
        shard::start(spec, build, move |(runtime, names)| {
            let backend = TokioBackend::new(names, threads);
            run(&runtime, backend, main);
        })
    }
}

/// Runs `main` to its end. What is left is dropped in this order, also when `main` panics: the
/// future of `main`, the tasks, the runtime, which waits for the system calls under way.
fn run(runtime: &runtime::Runtime, backend: TokioBackend, main: ShardMain<TokioBackend>) {
    let tasks = LocalSet::new();
    let backend = Rc::new(backend);
    tasks.block_on(runtime, async move { main(backend).await });
}
