//! The second storage path: a fixed pool of threads with a bounded queue for libraries that will
//! never be asynchronous, such as RocksDB.
//!
//! tokio's own blocking pool grows to hundreds of threads and queues without a bound. This one has
//! a fixed number of threads, a queue that pushes back, and says what became of each job: a panic
//! in a job is an error of that job alone, and nobody is left waiting.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use std::collections::VecDeque;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::sync::{Condvar, Mutex, MutexGuard};

type Job = Box<dyn FnOnce() + Send>;

/// Starts a named thread: core itself starts none.
pub type SpawnThread<'a> = &'a dyn Fn(String, Box<dyn FnOnce() + Send>) -> std::io::Result<()>;

/// A fixed pool of threads for synchronous calls. Clones share it; the threads end when the last
/// clone is dropped and the queue is empty.
///
/// ```
/// use alluvium_core::BlockingPool;
/// let spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
///     std::thread::Builder::new().name(name).spawn(body).map(|_| ())
/// };
/// let pool = BlockingPool::start("kv", 2, 64, &spawn)?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// assert_eq!(pool.run(|| 6 * 7).await, Ok(42));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BlockingPool {
    inner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
}

struct Shared {
    state: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Why a job gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The queue is full; the job was not started.
    #[error("the queue of the blocking pool is full; retry later")]
    Full,
    /// The job panicked; the pool goes on.
    #[error("the job panicked")]
    Panicked,
}

impl BlockingPool {
    /// Starts `threads` threads (at least one) with room for `queue_max` waiting jobs. `spawn`
    /// starts a thread; it may pin it as it likes.
    ///
    /// # Errors
    /// Those of `spawn`; threads that were started end again.
    pub fn start(
        name: &str,
        threads: usize,
        queue_max: usize,
        spawn: SpawnThread<'_>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
        });
        let room = Arc::new(Semaphore::new(queue_max.clamp(1, Semaphore::MAX_PERMITS)));
        let pool = Self {
            inner: Arc::new(Owner {
                shared: Arc::clone(&shared),
                room,
            }),
        };
        for n in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            spawn(format!("{name}-{n}"), Box::new(move || shared.work()))?;
        }
        Ok(pool)
    }

    /// Runs `job` on the pool; waits for room in the queue first, in order of arrival.
    ///
    /// Dropping the future before there is room drops the job; after that the job runs and its
    /// result is dropped.
    ///
    /// # Errors
    /// [`PoolError::Panicked`].
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        match Arc::clone(&self.inner.room).acquire_owned().await {
            Ok(permit) => self.enqueue(permit, job).await,
            Err(_) => Err(PoolError::Full),
        }
    }

    /// As [`run`](Self::run), but fails at once when the queue is full.
    ///
    /// # Errors
    /// [`PoolError::Full`], [`PoolError::Panicked`].
    pub async fn try_run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        match Arc::clone(&self.inner.room).try_acquire_owned() {
            Ok(permit) => self.enqueue(permit, job).await,
            Err(_) => Err(PoolError::Full),
        }
    }

    async fn enqueue<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(job)).map_err(|_| PoolError::Panicked);
            drop(permit);
            if reply.send(result).is_err() {
                // The caller has gone; the job was done all the same.
            }
        });
        let shared = &self.inner.shared;
        shared.lock().jobs.push_back(job);
        shared.work.notify_one();
        answer.await.unwrap_or(Err(PoolError::Panicked))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Jobs run outside of the lock and their panics are caught.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let job = {
                let mut queue = self.lock();
                loop {
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    if queue.closed {
                        return;
                    }
                    queue = self
                        .work
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            // A panic of the job itself is its caller's to hear of. This one is of what it leaves behind:
            // a result that nobody took, what the panic carried, the caller's waker.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
                std::mem::forget(payload);
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.lock();
        f.debug_struct("Shared")
            .field("waiting", &queue.jobs.len())
            .field("closed", &queue.closed)
            .finish_non_exhaustive()
    }
}
