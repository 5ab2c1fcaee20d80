//! compio: one thread per shard with an io_uring of its own.
//!
//! Data goes through operations of our own (see `op`), so that a durable write is one submission
//! with `RWF_DSYNC`. Syncing a directory and allocating go through the ring as well; other calls
//! that may wait for the file system's journal (on names, and changes of a length) have a thread of
//! their own: compio's pool would make one for each, and with none left wait on the shard's.
//!
//! There is no fallback inside: where io_uring is forbidden, starting a shard fails with the
//! kernel's error, and the `tokio` module is the way to go.
//!
//! **Do not enable compio's `polling` feature** anywhere in the build. It changes the traits that
//! an operation must implement, and this module would not compile.

mod backend;
mod file;
mod op;
mod tasks;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use alluvium_core::io::{BackendFactory, ShardMain, ShardSpec};
use compio::driver::ProactorBuilder;
use compio::driver::op::OpCodeFlag;
use compio::runtime::{Runtime, RuntimeBuilder};
use rustix::io::Errno;

use crate::names::Names;
use crate::posix;
use crate::shard::{self, caught};
use backend::Local;

pub use backend::CompioBackend;
pub use file::CompioFile;

/// Starts shards on compio.
///
/// ```no_run
/// use alluvium_backends::compio::CompioFactory;
/// use alluvium_core::io::{BackendFactory, ShardSpec};
/// let factory = CompioFactory::new().ring_entries(256);
/// let spec = ShardSpec { name: "shard-0".into(), core: Some(0) };
/// factory.spawn_shard(spec, Box::new(|_backend| Box::pin(async {})))?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CompioFactory {
    ring_entries: u32,
    sqpoll_idle: Option<Duration>,
}

impl CompioFactory {
    /// Name in configurations.
    pub const NAME: &'static str = "compio";

    /// The defaults: 1024 entries, no kernel polling thread.
    pub const fn new() -> Self {
        Self {
            ring_entries: 1024,
            sqpoll_idle: None,
        }
    }

    /// Sets the size of the submission queue; the kernel rounds up to a power of two. More
    /// operations than that may be in flight; they are submitted in more than one call.
    #[must_use]
    pub fn ring_entries(mut self, count: u32) -> Self {
        self.ring_entries = count.max(1);
        self
    }

    /// Lets a kernel thread poll the submission queue and sleep after `idle`. Costs a core under
    /// load; `None` (the default) submits by system call.
    #[must_use]
    pub fn sqpoll_idle(mut self, idle: Option<Duration>) -> Self {
        self.sqpoll_idle = idle;
        self
    }

    /// Builds the runtime on the calling thread.
    fn build(&self) -> io::Result<Runtime> {
        // compio hides the kernel's error behind its check of opcodes, so ask the kernel first.
        drop(io_uring::IoUring::new(2)?);
        let runtime = match self.runtime_with(true) {
            // The hints are younger than io_uring itself; older kernels do without.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.runtime_with(false)
            }
            result => result,
        }?;
        if runtime.driver_type().is_iouring() {
            Ok(runtime)
        } else {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "compio built a {:?} driver instead of io_uring",
                    runtime.driver_type()
                ),
            ))
        }
    }

    fn runtime_with(&self, hints: bool) -> io::Result<Runtime> {
        let mut ring = ProactorBuilder::new();
        ring.capacity(self.ring_entries);
        // Without these compio would quietly move every transfer to a thread pool.
        ring.detect_opcode_support(OpCodeFlag::Read | OpCodeFlag::Write | OpCodeFlag::Fsync);
        if let Some(idle) = self.sqpoll_idle {
            ring.sqpoll_idle(idle);
        } else if hints {
            // Not DEFER_TASKRUN: while anything on the shard keeps waking, compio enters the kernel
            // without asking for events, and deferred completions would never be seen.
            ring.single_issuer(true)
                .coop_taskrun(true)
                .taskrun_flag(true);
        }
        RuntimeBuilder::new().with_proactor(ring).build()
    }
}

impl Default for CompioFactory {
    fn default() -> Self {
        Self::new()
    }
}

impl BackendFactory for CompioFactory {
    type Backend = CompioBackend;

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn allowed_cores(&self) -> Vec<usize> {
        posix::allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<CompioBackend>) -> io::Result<()> {
        let factory = self.clone();
        let build = move |names| Ok((factory.build()?, names));
        shard::start(spec, build, |(runtime, names)| run(runtime, names, main))
    }
}

/// Runs `main` to its end. What is left is dropped in this order, also when `main` panics: the
/// future of `main`, the tasks, the operations when the kernel is done with them, the ring.
fn run(runtime: Runtime, names: Names, main: ShardMain<CompioBackend>) {
    let local = Rc::new(Local::new(names));
    // A panic was reported by the panic hook; there is nobody to hand it on to.
    caught(|| runtime.enter(|| drive(&runtime, &local, main)));
    caught(|| runtime.enter(|| local.tasks.close()));
    // Closing a ring does not wait for its operations (the kernel does that later, in the
    // background), and compio frees their buffers right after closing. So wait before.
    let drained = caught(|| {
        runtime.enter(|| {
            while local.in_flight() > 0 {
                runtime.poll_with(Some(DRAIN_INTERVAL));
            }
        });
    });
    if drained.is_none() {
        // The ring refuses to be waited for: memory that the kernel may still use must stay.
        std::mem::forget(runtime);
    }
}

/// Upper bound of one wait for the last operations, in case a wake is lost.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// The event loop. As compio's own `block_on`, but tasks that yielded are woken after the ring
/// was looked at: compio by itself runs dozens of task polls before it does.
fn drive(runtime: &Runtime, local: &Rc<Local>, main: ShardMain<CompioBackend>) {
    let backend = Rc::new(CompioBackend::new(Rc::clone(local)));
    let waker = runtime.waker();
    let mut context = std::task::Context::from_waker(&waker);
    let mut main = main(backend);
    while main.as_mut().poll(&mut context).is_pending() {
        let busy = runtime.run() || local.has_yielded();
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            runtime.current_timeout()
        };
        runtime.poll_with(timeout);
        local.wake_yielded();
    }
}
