//! The runtime of one uring shard: directories, clocks and tasks.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alluvium_core::io::{
    Arena, Capabilities, DirEntry, EntryKind, FileMap, FsSpace, IoBackend, LocalFuture, OpenOptions,
};
use async_trait::async_trait;

use super::executor::Local;
use super::op::{Buffer, Owned, Request, Target, submit};
use super::timers::TimerKey;
use super::{UringFactory, UringFile};
use crate::map;
use crate::posix::{self, PosixFile};

/// io_uring on a shard's thread; made by [`UringFactory`].
pub struct UringBackend {
    local: Rc<Local>,
}

impl UringBackend {
    pub(super) fn new(local: Rc<Local>) -> Self {
        Self { local }
    }
}

impl fmt::Debug for UringBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringBackend")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

#[async_trait(?Send)]
impl IoBackend for UringBackend {
    type File = UringFile;

    fn capabilities(&self) -> Capabilities {
        let ring = self.local.ring.borrow();
        Capabilities {
            backend: UringFactory::NAME,
            durable_write: match (ring.has_file_table(), ring.arena().is_some()) {
                (true, true) => "RWF_DSYNC (io_uring, registered files and memory)",
                (true, false) => "RWF_DSYNC (io_uring, registered files)",
                (false, true) => "RWF_DSYNC (io_uring, registered memory)",
                (false, false) => "RWF_DSYNC (io_uring)",
            },
            direct_io: true,
        }
    }

    fn arena(&self) -> Option<Arc<Arena>> {
        self.local.ring.borrow().arena().cloned()
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<UringFile> {
        let open = move |path: &Path| PosixFile::open(path, options);
        let file = self.local.names.on(path, open).await?;
        Ok(UringFile::new(file, &self.local))
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
        let owned = Owned {
            target: Target::Dir(self.local.names.on(dir, posix::open_dir).await?),
            buffer: Buffer::None,
        };
        let (result, owned) = submit(&self.local, owned, Request::SyncAll).await;
        drop(owned);
        result.map(drop)
    }

    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        map::map(path, len)
    }

    fn is_mapped(&self, path: &Path) -> bool {
        map::is_mapped(path)
    }

    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        for advice in map::POPULATE {
            let owned = Owned {
                target: Target::Memory,
                buffer: Buffer::Map(map.clone()),
            };
            let request = Request::Advise {
                start: range.start,
                end: range.end,
                advice: (advice as u32).cast_signed(),
            };
            // What is not mapped is not advised upon.
            map::address(map, range.clone())?;
            let (result, owned) = submit(&self.local, owned, request).await;
            drop(owned);
            result?;
        }
        Ok(())
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
        Sleep {
            local: Rc::clone(&self.local),
            deadline: posix::now().saturating_add(duration),
            timer: None,
        }
        .await;
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
        self.local.spawn(task);
    }

    fn random_u64(&self) -> u64 {
        posix::random_u64()
    }
}

/// Resolves when the monotonic clock has reached the deadline.
struct Sleep {
    local: Rc<Local>,
    deadline: Duration,
    timer: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if posix::now() >= self.deadline {
            return Poll::Ready(());
        }
        let this = &mut *self;
        let mut timers = this.local.timers.borrow_mut();
        match this.timer {
            Some(key) => timers.update(key, cx.waker()),
            None => this.timer = Some(timers.add(this.deadline, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.timer {
            let waker = self.local.timers.borrow_mut().remove(key);
            drop(waker);
        }
    }
}
