//! A backend around another one that runs a hook before every operation: the hook may panic.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use alluvium::io::{
    AlignedBuf, BackendFactory, Capabilities, DirEntry, EntryKind, FsSpace, IoBackend, IoFile,
    LocalFuture, LockKind, OpenOptions, ShardMain, ShardSpec,
};
use async_trait::async_trait;
use bytes::Bytes;

/// Sees the name of an operation and the path that it works on.
pub(crate) type Hook = Arc<dyn Fn(&'static str, &Path) + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Hooked<F> {
    pub(crate) factory: F,
    pub(crate) hook: Hook,
}

pub(crate) struct HookedBackend<B> {
    backend: Rc<B>,
    hook: Hook,
}

pub(crate) struct HookedFile<F> {
    file: F,
    path: PathBuf,
    hook: Hook,
}

impl<F: BackendFactory> BackendFactory for Hooked<F> {
    type Backend = HookedBackend<F::Backend>;

    fn name(&self) -> &'static str {
        self.factory.name()
    }

    fn allowed_cores(&self) -> Vec<usize> {
        self.factory.allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<Self::Backend>) -> io::Result<()> {
        let hook = Arc::clone(&self.hook);
        let inner = move |backend| main(Rc::new(HookedBackend { backend, hook }));
        self.factory.spawn_shard(spec, Box::new(inner))
    }
}

#[async_trait(?Send)]
impl<B: IoBackend> IoBackend for HookedBackend<B> {
    type File = HookedFile<B::File>;

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Self::File> {
        (self.hook)("open", path);
        let file = self.backend.open(path, options).await?;
        let (path, hook) = (path.to_path_buf(), Arc::clone(&self.hook));
        Ok(HookedFile { file, path, hook })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        (self.hook)("list", dir);
        self.backend.list(dir).await
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        (self.hook)("kind", path);
        self.backend.kind(path).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        (self.hook)("create_dir", path);
        self.backend.create_dir(path).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.hook)("rename", from);
        self.backend.rename(from, to).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        (self.hook)("remove_file", path);
        self.backend.remove_file(path).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        (self.hook)("remove_dir", path);
        self.backend.remove_dir(path).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        (self.hook)("sync_dir", dir);
        self.backend.sync_dir(dir).await
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        (self.hook)("space", path);
        self.backend.space(path).await
    }

    fn now(&self) -> Duration {
        self.backend.now()
    }

    fn wall_clock_ms(&self) -> i64 {
        self.backend.wall_clock_ms()
    }

    async fn sleep(&self, duration: Duration) {
        self.backend.sleep(duration).await;
    }

    async fn yield_now(&self) {
        (self.hook)("yield_now", Path::new(""));
        self.backend.yield_now().await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        (self.hook)("spawn", Path::new(""));
        self.backend.spawn(task);
    }

    fn random_u64(&self) -> u64 {
        self.backend.random_u64()
    }
}

#[async_trait(?Send)]
impl<F: IoFile> IoFile for HookedFile<F> {
    fn alignment(&self) -> u32 {
        self.file.alignment()
    }

    async fn read_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        (self.hook)("read_at", &self.path);
        self.file.read_at(buf, offset, len).await
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        (self.hook)("write_at", &self.path);
        self.file.write_at(buf, offset).await
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        (self.hook)("write_durable", &self.path);
        self.file.write_durable(buf, offset).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        (self.hook)("sync_data", &self.path);
        self.file.sync_data().await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        (self.hook)("allocate", &self.path);
        self.file.allocate(len).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        (self.hook)("set_len", &self.path);
        self.file.set_len(len).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.file.len().await
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.file.try_lock(kind)
    }
}

impl<F> fmt::Debug for HookedFile<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
