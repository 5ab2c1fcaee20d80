//! A negative control: a backend whose durable writes are plain ones.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use alluvium_core::io::{
    AlignedBuf, BackendFactory, Capabilities, DirEntry, EntryKind, FsSpace, IoBackend, IoFile,
    LocalFuture, LockKind, OpenOptions, ShardMain, ShardSpec,
};
use async_trait::async_trait;
use bytes::Bytes;

/// Wraps a factory: `write_durable` says that it did and does [`IoFile::write_at`].
#[derive(Debug, Clone)]
pub struct PlainWrites<F>(pub F);

/// The backend of [`PlainWrites`].
#[derive(Debug)]
pub struct PlainBackend<B>(Rc<B>);

/// A file of [`PlainBackend`].
#[derive(Debug)]
pub struct PlainFile<F>(F);

impl<F: BackendFactory> BackendFactory for PlainWrites<F> {
    type Backend = PlainBackend<F::Backend>;

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn allowed_cores(&self) -> Vec<usize> {
        self.0.allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<Self::Backend>) -> io::Result<()> {
        let main = move |backend| main(Rc::new(PlainBackend(backend)));
        self.0.spawn_shard(spec, Box::new(main))
    }
}

#[async_trait(?Send)]
impl<B: IoBackend> IoBackend for PlainBackend<B> {
    type File = PlainFile<B::File>;

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Self::File> {
        self.0.open(path, options).await.map(PlainFile)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(dir).await
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.0.kind(path).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir).await
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        self.0.space(path).await
    }

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn wall_clock_ms(&self) -> i64 {
        self.0.wall_clock_ms()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }

    async fn yield_now(&self) {
        self.0.yield_now().await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        self.0.spawn(task);
    }

    fn random_u64(&self) -> u64 {
        self.0.random_u64()
    }
}

#[async_trait(?Send)]
impl<F: IoFile> IoFile for PlainFile<F> {
    fn alignment(&self) -> u32 {
        self.0.alignment()
    }

    async fn read_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        self.0.read_at(buf, offset, len).await
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.0.write_at(buf, offset).await
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.0.write_at(buf, offset).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.0.try_lock(kind)
    }
}
