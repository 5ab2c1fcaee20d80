//! A backend for models: each shard is a thread of the scheduler, with the disk of [`disk`](super::disk).
//!
//! The thread runs what every real backend runs: the shard's main task and what it spawned, as they
//! are woken. Time stands still, but for short waits, which end after a few steps: so a wake that
//! is lost leaves nobody who could go on, and the scheduler reports a deadlock.

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{FuturesUnordered, Stream};
use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread::{self, JoinHandle};

use super::disk::{Disk, File, steps};
use crate::io::{
    BackendFactory, Capabilities, DirEntry, EntryKind, FsSpace, IoBackend, LocalFuture,
    OpenOptions, ShardMain, ShardSpec,
};

/// What ends after a few steps when it is slept for; longer times never end.
const SHORT: Duration = Duration::from_millis(100);

/// Starts shards on one disk.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) disk: Arc<Disk>,
    shards: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// After about so many steps of its loop a shard gives up, as a backend does whose loop cannot
    /// go on.
    pub(super) gives_up_within: Option<usize>,
}

impl Machine {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self {
            disk,
            shards: Arc::default(),
            gives_up_within: None,
        }
    }

    /// Waits until all shards have ended.
    pub(super) fn join(&self) {
        let shards = std::mem::take(&mut *self.shards.lock().unwrap());
        for shard in shards {
            shard.join().unwrap();
        }
    }
}

impl BackendFactory for Machine {
    type Backend = Backend;

    fn name(&self) -> &'static str {
        "model"
    }

    fn allowed_cores(&self) -> Vec<usize> {
        Vec::new()
    }

    fn spawn_shard(&self, _: ShardSpec, main: ShardMain<Backend>) -> io::Result<()> {
        let disk = Arc::clone(&self.disk);
        let gives_up = self.gives_up_within;
        let shard = thread::spawn(move || {
            let backend = Rc::new(Backend {
                disk,
                incoming: RefCell::default(),
            });
            let lives =
                gives_up.map_or(usize::MAX, |n| shuttle::rand::thread_rng().gen_range(1..n));
            backend.run(main(Rc::clone(&backend)), lives);
        });
        self.shards.lock().unwrap().push(shard);
        Ok(())
    }
}

/// The runtime of one shard.
pub(super) struct Backend {
    disk: Arc<Disk>,
    incoming: RefCell<Vec<LocalFuture<()>>>,
}

impl Backend {
    /// Runs `main` to its end, or for so many rounds; then drops it, and the tasks after it.
    fn run(&self, main: LocalFuture<()>, rounds: usize) {
        let tasks = RefCell::new(FuturesUnordered::new());
        let mut left = rounds;
        let mut main = Some(main);
        block_on(poll_fn(|cx| {
            loop {
                left -= 1;
                let Some(running) = main.as_mut().filter(|_| left > 0) else {
                    return Poll::Ready(());
                };
                if running.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                tasks.borrow_mut().extend(self.incoming.take());
                while let Poll::Ready(Some(())) = Pin::new(&mut *tasks.borrow_mut()).poll_next(cx) {
                }
                if self.incoming.borrow().is_empty() {
                    return Poll::Pending;
                }
            }
        }));
        drop(main.take());
        drop(tasks.take());
        drop(self.incoming.take());
    }
}

/// Wakes, and then lets the scheduler look at others: so a switch may come between any two steps
/// that have a consequence for somebody who waits.
struct Switching {
    waker: Waker,
    /// Looked at for nothing but the switch; a yield would tell the scheduler to prefer others.
    point: AtomicBool,
}

impl Wake for Switching {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.waker.wake_by_ref();
        self.point.load(Ordering::SeqCst);
    }
}

/// Runs a future on the calling thread of the model.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut switching = None;
    shuttle::future::block_on(poll_fn(|cx| {
        let own = || {
            let (waker, point) = (cx.waker().clone(), AtomicBool::new(false));
            Waker::from(Arc::new(Switching { waker, point }))
        };
        let waker = switching.get_or_insert_with(own);
        future.as_mut().poll(&mut Context::from_waker(waker))
    }))
}

#[async_trait(?Send)]
impl IoBackend for Backend {
    type File = File;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "model",
            durable_write: "in memory",
            direct_io: false,
        }
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<File> {
        self.disk.open(path, options.mode)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(dir)
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.disk.kind(path)
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    async fn sync_dir(&self, _: &Path) -> io::Result<()> {
        steps(2).await;
        Ok(())
    }

    async fn space(&self, _: &Path) -> io::Result<FsSpace> {
        Ok(FsSpace {
            total_bytes: 1 << 40,
            available_bytes: 1 << 40,
        })
    }

    fn now(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn wall_clock_ms(&self) -> i64 {
        1
    }

    async fn sleep(&self, duration: Duration) {
        if duration > SHORT {
            pending::<()>().await;
        }
        steps(4).await;
        self.yield_now().await;
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        self.incoming.borrow_mut().push(task);
    }

    fn random_u64(&self) -> u64 {
        self.disk.draw()
    }
}
