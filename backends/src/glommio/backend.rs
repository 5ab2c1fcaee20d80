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
use crate::names::Names;
use crate::posix;
use crate::shard::caught;

/// What the event loop, the backend and the files of one shard share.
pub(super) struct Local {
    pub(super) incoming: Rc<Incoming>,
    pub(super) names: Names,
    blank: RefCell<Option<Rc<Handle>>>,
}

impl Local {
    pub(super) fn new(names: Names) -> Self {
        Self {
            incoming: Rc::default(),
            names,
            blank: RefCell::default(),
        }
    }

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
        self.local.names.on(dir, posix::list).await
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.local.names.on(path, posix::kind).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.local.names.on(path, posix::create_dir).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = to.to_path_buf();
        let rename = move |from: &Path| posix::rename(from, &to);
        self.local.names.on(from, rename).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.local.names.on(path, posix::remove_file).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.local.names.on(path, posix::remove_dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Not glommio's own `Directory::sync`: that is an `fdatasync`, which need not commit names.
        self.local.names.on(dir, posix::sync_dir).await
    }

    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        map::map(path, len)
    }

    fn is_mapped(&self, path: &Path) -> bool {
        map::is_mapped(path)
    }

    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        let map = map.clone();
        // On glommio's one blocking thread, which a panic would end.
        let populate = move || caught(|| map::populate(&map, range)).unwrap_or_else(lost);
        let populating = async move { glommio::executor().spawn_blocking(populate).await };
        let populating = self.local.incoming.submit(populating);
        populating.await.unwrap_or_else(lost)
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        self.local.names.on(path, posix::space).await
    }

    fn finish_calls(&self) -> bool {
        self.local.names.finish()
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
