//! The runtime of one glommio shard: directories, clocks and tasks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use alluvium_core::io::{
    Capabilities, DirEntry, EntryKind, FsSpace, IoBackend, LocalFuture, OpenOptions,
};
use async_trait::async_trait;
use glommio::io::BufferedFile;
use glommio::timer::Timer;

use super::file::lost;
use super::tasks::Incoming;
use super::{GlommioFactory, GlommioFile};
use crate::posix::{self, PosixFile};

/// What the event loop, the backend and the files of one shard share. Outlives the executor.
#[derive(Default)]
pub(super) struct Local {
    pub(super) incoming: Rc<Incoming>,
    /// glommio's view of descriptors that we own. Its destructor would close them, some turns
    /// later, so the handles are kept, one per number, until there is no reactor left to do that.
    buffered: RefCell<BTreeMap<RawFd, Rc<BufferedFile>>>,
}

impl Local {
    /// A handle for the transfers of `file`, which must be open while they run.
    pub(super) fn buffered(&self, file: &PosixFile) -> Rc<BufferedFile> {
        let fd = file.as_raw_fd();
        let mut handles = self.buffered.borrow_mut();
        let handle = handles.entry(fd).or_insert_with(|| {
            // SAFETY: the handle is used only while the descriptor is open (an operation owns
            // both), and is dropped only when the reactor that would close it is gone.
            Rc::new(unsafe { BufferedFile::from_raw_fd(fd) })
        });
        Rc::clone(handle)
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
        posix::list(dir)
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        posix::kind(path)
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        posix::create_dir(path)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        posix::rename(from, to)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        posix::remove_file(path)
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        posix::remove_dir(path)
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // On glommio's blocking thread: its own `Directory::sync` is an `fdatasync`, which need
        // not commit names.
        let dir = dir.to_path_buf();
        let submitted = self.local.incoming.submit(async move {
            glommio::executor()
                .spawn_blocking(move || posix::sync_dir(&dir))
                .await
        });
        submitted.await.unwrap_or_else(lost)
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        posix::space(path)
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
