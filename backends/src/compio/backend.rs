//! The runtime of one compio shard: directories, clocks and tasks.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use alluvium_core::io::{
    Capabilities, DirEntry, EntryKind, FileMap, FsSpace, IoBackend, LocalFuture, OpenOptions,
};
use async_trait::async_trait;

use super::op::{Control, InFlight, Request, submit};
use super::tasks::Tasks;
use super::{CompioFactory, CompioFile};
use crate::map;
use crate::names::Names;
use crate::posix::{self, PosixFile};

/// What the event loop and the backend of one shard share.
pub(super) struct Local {
    pub(super) tasks: Rc<Tasks>,
    pub(super) in_flight: Rc<Cell<usize>>,
    pub(super) names: Names,
    yielded: RefCell<Vec<Waker>>,
}

impl Local {
    pub(super) fn new(names: Names) -> Self {
        Self {
            tasks: Rc::default(),
            in_flight: Rc::default(),
            names,
            yielded: RefCell::default(),
        }
    }

    /// Operations that the kernel may still work on.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    pub(super) fn has_yielded(&self) -> bool {
        !self.yielded.borrow().is_empty()
    }

    pub(super) fn wake_yielded(&self) {
        // Taken out first: a waker may run code that yields again.
        let yielded = self.yielded.take();
        yielded.into_iter().for_each(Waker::wake);
    }
}

/// compio on a shard's thread; made by [`CompioFactory`].
#[derive(Debug)]
pub struct CompioBackend {
    local: Rc<Local>,
}

impl CompioBackend {
    pub(super) fn new(local: Rc<Local>) -> Self {
        Self { local }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

#[async_trait(?Send)]
impl IoBackend for CompioBackend {
    type File = CompioFile;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: CompioFactory::NAME,
            durable_write: "RWF_DSYNC (io_uring)",
            direct_io: true,
        }
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<CompioFile> {
        let file = self
            .local
            .names
            .on(path, move |path| PosixFile::open(path, options))
            .await?;
        Ok(CompioFile::new(file, Rc::clone(&self.local)))
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
        self.local
            .names
            .on(from, move |from| posix::rename(from, &to))
            .await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.local.names.on(path, posix::remove_file).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.local.names.on(path, posix::remove_dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let fd = self.local.names.on(dir, posix::open_dir).await?;
        let in_flight = InFlight::new(&self.local.in_flight);
        submit(Control {
            fd,
            request: Request::SyncAll,
            in_flight,
        })
        .await
        .0
        .map(drop)
    }

    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        map::map(path, len)
    }

    fn is_mapped(&self, path: &Path) -> bool {
        map::is_mapped(path)
    }

    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        let map = map.clone();
        compio::runtime::spawn_blocking(move || map::populate(&map, range))
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the call was lost")))
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
        compio::runtime::time::sleep(duration.min(SLEEP_MAX)).await;
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            // Woken by the event loop, after it has looked at the ring.
            self.local.yielded.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        if let Some(shell) = self.local.tasks.add(task) {
            compio::runtime::spawn(shell).detach();
        }
    }

    fn random_u64(&self) -> u64 {
        posix::random_u64()
    }
}

/// Longer sleeps than this would overflow the clock's arithmetic: a century.
const SLEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
