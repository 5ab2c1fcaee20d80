//! The runtime of one glommio shard: directories, clocks and tasks.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use alluvium_core::io::{
    Capabilities, DirEntry, EntryKind, FileMap, FsSpace, IoBackend, LocalFuture, OpenOptions,
};
use async_trait::async_trait;
use glommio::timer::Timer;

use super::file::{Handle, lost};
use super::tasks::Incoming;
use super::{GlommioFactory, GlommioFile};
use crate::map;
use crate::posix;

/// What the event loop, the backend and the files of one shard share.
#[derive(Default)]
pub(super) struct Local {
    pub(super) incoming: Rc<Incoming>,
    blank: RefCell<Option<Rc<Handle>>>,
}

impl Local {
    /// See [`Handle::blank`]; made when it is first needed.
    pub(super) async fn blank(&self) -> io::Result<Rc<Handle>> {
        if let Some(blank) = self.blank.borrow().as_ref() {
            return Ok(Rc::clone(blank));
        }
        let opening = self.incoming.submit(Handle::blank());
        let blank = Rc::new(opening.await.unwrap_or_else(lost)?);
        *self.blank.borrow_mut() = Some(Rc::clone(&blank));
        Ok(blank)
    }

    /// Makes a call that may wait on glommio's blocking thread.
    pub(super) async fn elsewhere<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let call = async move { glommio::executor().spawn_blocking(call).await };
        self.incoming.submit(call).await.unwrap_or_else(lost)
    }

    pub(super) async fn by_name<T: Send + 'static>(
        &self,
        path: &Path,
        call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = path.to_path_buf();
        self.elsewhere(move || call(&path)).await
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

/// glommio on a shard's thread; made by [`GlommioFactory`].
#[derive(Debug)]
pub struct GlommioBackend {
    local: Rc<Local>,
}

impl GlommioBackend {
    pub(super) fn new(local: Rc<Local>) -> Self {
        Self { local }
    }
}

#[async_trait(?Send)]
impl IoBackend for GlommioBackend {
    type File = GlommioFile;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: GlommioFactory::NAME,
            durable_write: "write + fdatasync (io_uring)",
            direct_io: true,
        }
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<GlommioFile> {
        GlommioFile::open(&self.local, path, options).await
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.local.by_name(dir, posix::list).await
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.local.by_name(path, posix::kind).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.local.by_name(path, posix::create_dir).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = to.to_path_buf();
        let rename = move |from: &Path| posix::rename(from, &to);
        self.local.by_name(from, rename).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.local.by_name(path, posix::remove_file).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.local.by_name(path, posix::remove_dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Not glommio's own `Directory::sync`: that is an `fdatasync`, which need not commit names.
        self.local.by_name(dir, posix::sync_dir).await
    }

    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        map::map(path, len)
    }

    fn is_mapped(&self, path: &Path) -> bool {
        map::is_mapped(path)
    }

    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        let map = map.clone();
        let populate = move || map::populate(&map, range);
        self.local.elsewhere(populate).await
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        self.local.by_name(path, posix::space).await
    }

    fn now(&self) -> Duration {
        posix::now()
    }

    fn wall_clock_ms(&self) -> i64 {
        posix::wall_clock_ms()
    }

    async fn sleep(&self, duration: Duration) {
        Timer::new(duration.min(SLEEP_MAX)).await;
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            // Woken by the event loop, after the reactor has looked at the rings.
            self.local.incoming.wake_after_turn(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        self.local.incoming.spawn(task);
    }

    fn random_u64(&self) -> u64 {
        posix::random_u64()
    }
}

/// Longer sleeps than this would overflow the clock's arithmetic: a century.
const SLEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
