//! The seam's traits on the simulated machine.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alluvium_core::io::{
    AlignedBuf, BackendFactory, Capabilities, DirEntry, EntryKind, FsSpace, IoBackend, IoFile,
    LocalFuture, LockKind, OpenOptions, ShardMain, ShardSpec,
};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;

use super::executor::{ExecutorRef, Owner};
use super::fault::Fate;
use super::op::{OpKind, Output, Phase};
use super::slab::Key;
use super::world::{NewShard, Shared};

/// A simulated process: names itself and starts shards in it.
#[derive(Debug, Clone)]
pub struct SimFactory {
    shared: Arc<Shared>,
    process: ProcessId,
}

/// Names a simulated process; never used again after its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(pub(super) u32);

impl SimFactory {
    pub(super) fn new(shared: Arc<Shared>, process: u32) -> Self {
        Self {
            shared,
            process: ProcessId(process),
        }
    }

    /// The process that this factory starts shards in.
    pub fn process(&self) -> ProcessId {
        self.process
    }
}

impl BackendFactory for SimFactory {
    type Backend = SimBackend;

    fn name(&self) -> &'static str {
        "sim"
    }

    fn allowed_cores(&self) -> Vec<usize> {
        Vec::new()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<SimBackend>) -> io::Result<()> {
        let mut world = self.shared.lock();
        if !world.alive(self.process.0) {
            return Err(Errno::SRCH.into());
        }
        if let Some(core) = spec.core {
            let message = format!("core {core} cannot be pinned to: a simulation has no cores");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        world.shards.push(NewShard {
            process: self.process.0,
            spec,
            main,
        });
        Ok(())
    }
}

/// The runtime of one simulated shard.
pub struct SimBackend {
    shared: Arc<Shared>,
    executor: ExecutorRef,
    owner: Owner,
    process: u32,
}

impl fmt::Debug for SimBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBackend")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl SimBackend {
    pub(super) fn new(shared: Arc<Shared>, executor: ExecutorRef, owner: Owner) -> Self {
        let process = owner.process.unwrap_or(u32::MAX);
        Self {
            shared,
            executor,
            owner,
            process,
        }
    }

    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    async fn names(&self, kind: OpKind) -> io::Result<Output> {
        Ok(OpFuture::new(&self.shared, self.process, Key::NONE, kind)
            .await
            .0?)
    }

    async fn change_names(&self, kind: OpKind) -> io::Result<()> {
        self.names(kind).await.map(drop)
    }
}

/// What an output of the wrong shape is: a defect of the simulation.
fn wrong_output<T>() -> io::Result<T> {
    Err(io::Error::other("the simulation answered something else"))
}

#[async_trait(?Send)]
impl IoBackend for SimBackend {
    type File = SimFile;

    fn capabilities(&self) -> Capabilities {
        let direct_io = self.shared.lock().config.direct_io;
        Capabilities {
            backend: "sim",
            durable_write: "simulated",
            direct_io,
        }
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<SimFile> {
        let Output::Fd(fd) = self
            .names(OpKind::Open {
                path: path.into(),
                options,
            })
            .await?
        else {
            return wrong_output();
        };
        let alignment = self
            .shared
            .lock()
            .disk
            .fds
            .get(fd)
            .map_or(1, |fd| fd.alignment);
        Ok(SimFile {
            shared: Arc::clone(&self.shared),
            process: self.process,
            fd,
            alignment,
        })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        match self.names(OpKind::List { path: dir.into() }).await? {
            Output::Entries(entries) => Ok(entries),
            _ => wrong_output(),
        }
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        match self.names(OpKind::Kind { path: path.into() }).await? {
            Output::Kind(kind) => Ok(kind),
            _ => wrong_output(),
        }
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change_names(OpKind::CreateDir { path: path.into() })
            .await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change_names(OpKind::Rename {
            from: from.into(),
            to: to.into(),
        })
        .await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change_names(OpKind::Remove {
            path: path.into(),
            dir: false,
        })
        .await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change_names(OpKind::Remove {
            path: path.into(),
            dir: true,
        })
        .await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change_names(OpKind::SyncDir {
            path: dir.into(),
            stamp: 0,
        })
        .await
    }

    async fn space(&self, _path: &Path) -> io::Result<FsSpace> {
        match self.names(OpKind::Space).await? {
            Output::Space(space) => Ok(space),
            _ => wrong_output(),
        }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.shared.lock().now)
    }

    fn wall_clock_ms(&self) -> i64 {
        self.shared.lock().wall_clock_ms()
    }

    async fn sleep(&self, duration: Duration) {
        if self.shared.lock().alive(self.process) {
            Sleep::new(&self.shared, duration).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    async fn yield_now(&self) {
        YieldNow::default().await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        if self.shared.lock().alive(self.process)
            && let Some(executor) = self.executor.upgrade()
        {
            executor.spawn(self.owner, false, task);
        }
    }

    fn random_u64(&self) -> u64 {
        self.shared.lock().entropy.next_u64()
    }
}

/// An open file of a simulated process.
pub struct SimFile {
    shared: Arc<Shared>,
    process: u32,
    fd: Key,
    alignment: u32,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.shared.lock().disk.close(self.fd);
    }
}

impl SimFile {
    fn op(&self, kind: OpKind) -> OpFuture<'_> {
        OpFuture::new(&self.shared, self.process, self.fd, kind)
    }

    async fn write(&self, buf: Bytes, offset: u64, durable: bool) -> (io::Result<usize>, Bytes) {
        self.check("write", offset, buf.len(), buf.as_ptr() as usize);
        let (result, _) = self
            .op(OpKind::Write {
                buf: buf.clone(),
                offset,
                durable,
            })
            .await;
        (count(result), buf)
    }

    async fn change(&self, kind: OpKind) -> io::Result<()> {
        Ok(self.op(kind).await.0.map(drop)?)
    }

    /// What the kernel would answer with `EINVAL`, and what it might not even notice.
    fn check(&self, what: &str, offset: u64, len: usize, address: usize) {
        let unit = self.alignment as usize;
        let aligned = offset.is_multiple_of(u64::from(self.alignment))
            && len.is_multiple_of(unit)
            && address.is_multiple_of(unit);
        if !aligned {
            self.shared.lock().violated(&format!(
                "direct {what} of {len} bytes at {offset} from address {address:#x} is not \
                 aligned to {unit}"
            ));
        }
    }
}

fn count(result: Result<Output, Errno>) -> io::Result<usize> {
    match result? {
        Output::Count(n) => Ok(n),
        _ => wrong_output(),
    }
}

#[async_trait(?Send)]
impl IoFile for SimFile {
    fn alignment(&self) -> u32 {
        self.alignment
    }

    async fn read_at(
        &self,
        mut buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        self.check("read", offset, len, buf.as_mut_ptr() as usize);
        if buf.capacity() < len {
            let capacity = buf.capacity();
            self.shared.lock().violated(&format!(
                "a read of {len} bytes was given a buffer of {capacity}"
            ));
        }
        let (result, kind) = self
            .op(OpKind::Read {
                buf: Some(buf),
                offset,
                len,
            })
            .await;
        match kind {
            OpKind::Read { buf: Some(buf), .. } => (count(result), buf),
            _ => (wrong_output(), AlignedBuf::with_capacity(0)),
        }
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.write(buf, offset, false).await
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.write(buf, offset, true).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.change(OpKind::Sync { stamp: 0 }).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(OpKind::Allocate { len }).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(OpKind::SetLen { len }).await
    }

    async fn len(&self) -> io::Result<u64> {
        match self.op(OpKind::Len).await.0? {
            Output::Len(len) => Ok(len),
            _ => wrong_output(),
        }
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        let mut world = self.shared.lock();
        if let Some(Fate::Fails(errno)) = world.count_call("try_lock", 0, 1) {
            return Err(errno.into());
        }
        Ok(world.disk.try_lock(self.fd, kind))
    }
}

/// Waits for one operation, which begins at the first poll and goes on without the future.
#[derive(Debug)]
struct OpFuture<'a> {
    shared: &'a Arc<Shared>,
    process: u32,
    fd: Key,
    state: OpState,
}

#[derive(Debug)]
enum OpState {
    New(OpKind),
    Started(Key),
    Ended,
}

impl<'a> OpFuture<'a> {
    fn new(shared: &'a Arc<Shared>, process: u32, fd: Key, kind: OpKind) -> Self {
        Self {
            shared,
            process,
            fd,
            state: OpState::New(kind),
        }
    }
}

impl Future for OpFuture<'_> {
    type Output = (Result<Output, Errno>, OpKind);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = self.shared;
        let mut world = shared.lock();
        let key = match std::mem::replace(&mut self.state, OpState::Ended) {
            OpState::New(kind) => world.start(self.process, self.fd, kind),
            OpState::Started(key) => key,
            OpState::Ended => Key::NONE,
        };
        self.state = OpState::Started(key);
        let Some(op) = world.ops.get_mut(key) else {
            return Poll::Pending;
        };
        if matches!(op.phase, Phase::InFlight) {
            if !op
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(context.waker()))
            {
                op.waker = Some(context.waker().clone());
            }
            return Poll::Pending;
        }
        let Some(op) = world.ops.remove(key) else {
            return Poll::Pending;
        };
        drop(world);
        self.state = OpState::Ended;
        match op.phase {
            Phase::Finished(result) => Poll::Ready((result, op.kind)),
            Phase::InFlight => Poll::Pending,
        }
    }
}

impl Drop for OpFuture<'_> {
    fn drop(&mut self) {
        let OpState::Started(key) = self.state else {
            return;
        };
        let mut world = self.shared.lock();
        let Some(op) = world.ops.get_mut(key) else {
            return;
        };
        op.abandoned = true;
        op.waker = None;
        if let Phase::Finished(result) = &op.phase {
            let opened = if let Ok(Output::Fd(fd)) = result {
                Some(*fd)
            } else {
                None
            };
            world.ops.remove(key);
            if let Some(fd) = opened {
                world.disk.close(fd);
            }
        }
    }
}

/// Waits for virtual time.
#[derive(Debug)]
pub(super) struct Sleep<'a> {
    shared: &'a Arc<Shared>,
    timer: Key,
}

impl<'a> Sleep<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, duration: Duration) -> Self {
        let timer = shared.lock().add_timer(duration);
        Self { shared, timer }
    }
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut world = self.shared.lock();
        match world.timers.get_mut(self.timer) {
            Some(timer) if timer.fired => Poll::Ready(()),
            Some(timer) => {
                timer.waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        self.shared.lock().timers.remove(self.timer);
    }
}

/// Ready at the second poll.
#[derive(Debug, Default)]
pub(super) struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
