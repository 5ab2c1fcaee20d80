//! The runtime of one tokio shard: directories, clocks and tasks.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alluvium_core::io::{
    Capabilities, DirEntry, EntryKind, FileMap, FsSpace, IoBackend, LocalFuture, OpenOptions,
};
use async_trait::async_trait;

use super::{TokioFactory, TokioFile};
use crate::map;
use crate::names::Names;
use crate::posix::{self, PosixFile};
use crate::shard::caught;

/// tokio on a shard's thread; made by [`TokioFactory`].
pub struct TokioBackend {
    names: Names,
    blocking_threads_max: usize,
    /// Its methods use the runtime of the thread that it was made on.
    stays_here: PhantomData<Rc<()>>,
}

impl TokioBackend {
    pub(super) fn new(names: Names, blocking_threads_max: usize) -> Self {
        Self {
            names,
            blocking_threads_max,
            stays_here: PhantomData,
        }
    }
}

impl fmt::Debug for TokioBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokioBackend").finish_non_exhaustive()
    }
}

#[async_trait(?Send)]
impl IoBackend for TokioBackend {
    type File = TokioFile;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: TokioFactory::NAME,
            durable_write: "RWF_DSYNC (pwritev2)",
            direct_io: true,
        }
    }

    fn background_writes_max(&self) -> usize {
        // The first appends to 1,000 partitions waited a second for their zeros without a bound.
        (self.blocking_threads_max / 8).max(1)
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<TokioFile> {
        self.names
            .on(path, move |path| PosixFile::open(path, options))
            .await
            .map(TokioFile::new)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.names.on(dir, posix::list).await
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.names.on(path, posix::kind).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.names.on(path, posix::create_dir).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = to.to_path_buf();
        self.names
            .on(from, move |from| posix::rename(from, &to))
            .await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.names.on(path, posix::remove_file).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.names.on(path, posix::remove_dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.names.on(dir, posix::sync_dir).await
    }

    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        map::map(path, len)
    }

    fn is_mapped(&self, path: &Path) -> bool {
        map::is_mapped(path)
    }

    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        let map = map.clone();
        in_pool(move || map::populate(&map, range)).await
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        self.names.on(path, posix::space).await
    }

    fn finish_calls(&self) -> bool {
        self.names.finish()
    }

    fn now(&self) -> Duration {
        posix::now()
    }

    fn wall_clock_ms(&self) -> i64 {
        posix::wall_clock_ms()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn yield_now(&self) {
        // Wakes the task only after the runtime has looked at its drivers.
        tokio::task::yield_now().await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        // Detached: a panic ends the task alone, tokio drops what it captured.
        drop(tokio::task::spawn_local(task));
    }

    fn random_u64(&self) -> u64 {
        posix::random_u64()
    }
}

/// Runs one call in the blocking pool.
///
/// An error of kind `Other` says that it did not run to its end: the call panicked, the runtime is ending,
/// or the system refused the pool its first thread. There tokio panics and keeps the call, to run it once a
/// thread can be had; so it is taken away, with what it holds, unless another thread has begun it.
pub(super) async fn in_pool<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let call = Arc::new(Mutex::new(Some(call)));
    let take = |call: &Mutex<Option<_>>| call.lock().unwrap_or_else(PoisonError::into_inner).take();
    let pooled = Arc::clone(&call);
    let run = move || match take(&pooled) {
        Some(call) => call(),
        None => Err(refused()),
    };
    if let Some(done) = caught(|| tokio::task::spawn_blocking(run)) {
        return done.await.map_err(io::Error::other)?;
    }
    drop(take(&call));
    Err(refused())
}

fn refused() -> io::Error {
    io::Error::other("the system refuses a thread for the call")
}
