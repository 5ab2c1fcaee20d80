//! A layer around a backend: what sees every operation on its way down, to time it, to count it or
//! to put a fault in.
//!
//! A layer costs an allocation and an indirect call more per operation. Only who asks for one has
//! it: a store that is opened on a [`BackendKind`] or a factory has none.
//!
//! ```
//! use std::path::Path;
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use alluvium_backends::layer::{Layer, Layered};
//!
//! /// Counts what is asked of the disk.
//! #[derive(Clone, Default)]
//! struct Count(Arc<AtomicU64>);
//!
//! #[async_trait::async_trait(?Send)]
//! impl Layer for Count {
//!     fn before(&self, _operation: &'static str, _path: &Path) {
//!         self.0.fetch_add(1, Ordering::Relaxed);
//!     }
//! }
//!
//! # #[cfg(feature = "tokio")] {
//! use alluvium_backends::BackendKind;
//! use alluvium_core::Store;
//! # let dir = tempfile::tempdir().unwrap();
//! # let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
//! # rt.block_on(async {
//! let count = Count::default();
//! let backend = Layered::new(BackendKind::Tokio, count.clone());
//! let (store, _) = Store::builder(dir.path()).backend(backend).open().await?;
//! assert!(count.0.load(Ordering::Relaxed) > 0);
//! store.close(std::time::Duration::from_secs(10)).await?;
//! # Ok::<(), alluvium_core::Error>(())
//! # }).unwrap();
//! # }
//! ```

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_core::io::{
    AlignedBuf, Arena, BackendFactory, Capabilities, DirEntry, EntryKind, FileMap, FsSpace,
    IoBackend, IoFile, LocalFuture, LockKind, OpenOptions, ShardMain, ShardSpec,
};
use alluvium_core::{OpenRequest, OpenStore, RecoveryReport, Result, Store};
use async_trait::async_trait;
use bytes::Bytes;

use crate::BackendKind;

/// What is done on the way to the backend. By itself it does nothing: implement what is of interest.
///
/// It is cloned for every shard and every file; the methods run on the shards' threads.
#[async_trait(?Send)]
pub trait Layer: Clone + Send + Sync + 'static {
    /// Before an operation, which is told by the name of its method, on the file or directory that it
    /// works on (empty for what has none). A panic here is a panic of the backend.
    fn before(&self, operation: &'static str, path: &Path) {
        let _ = (operation, path);
    }

    /// After an operation on a file that goes to the disk (not when its future was dropped), with the
    /// time from its hand-over to the moment that the engine sees its end.
    fn after(&self, operation: &'static str, path: &Path, took: Duration) {
        let _ = (operation, path, took);
    }

    /// In place of [`IoFile::write_durable`], whose contract it has to keep.
    async fn write_durable<F: IoFile>(
        &self,
        file: &F,
        buf: Bytes,
        offset: u64,
    ) -> (io::Result<usize>, Bytes) {
        file.write_durable(buf, offset).await
    }

    /// In place of [`IoFile::sync_data`], whose contract it has to keep.
    async fn sync_data<F: IoFile>(&self, file: &F) -> io::Result<()> {
        file.sync_data().await
    }

    /// In place of [`IoBackend::sync_dir`], whose contract it has to keep.
    async fn sync_dir<B: IoBackend>(&self, backend: &B, dir: &Path) -> io::Result<()> {
        backend.sync_dir(dir).await
    }

    /// In place of [`IoFile::allocate`], whose contract it has to keep.
    async fn allocate<F: IoFile>(&self, file: &F, len: u64) -> io::Result<()> {
        file.allocate(len).await
    }

    /// In place of [`IoBackend::background_writes_max`].
    fn background_writes_max<B: IoBackend>(&self, backend: &B) -> usize {
        backend.background_writes_max()
    }

    /// In place of [`IoBackend::finish_calls`].
    fn finish_calls<B: IoBackend>(&self, backend: &B) -> bool {
        backend.finish_calls()
    }
}

/// A factory (or a [`BackendKind`]) with a layer around it.
#[derive(Debug, Clone)]
pub struct Layered<F, L> {
    inner: F,
    layer: L,
}

impl<F, L: Layer> Layered<F, L> {
    /// Puts `layer` around `inner`.
    pub fn new(inner: F, layer: L) -> Self {
        Self { inner, layer }
    }
}

impl<L: Layer> OpenStore for Layered<BackendKind, L> {
    /// As `BackendKind` opens it.
    async fn open(self, request: OpenRequest) -> Result<(Store, RecoveryReport)> {
        crate::open::on(self.inner, Within(self.layer), request).await
    }
}

/// Opens a store on a factory with a layer around it.
struct Within<L>(L);

impl<L: Layer> crate::open::OpenOn for Within<L> {
    async fn open<F: BackendFactory>(
        self,
        factory: F,
        request: OpenRequest,
    ) -> Result<(Store, RecoveryReport)> {
        Layered::new(factory, self.0).open(request).await
    }
}

impl<F: BackendFactory, L: Layer> BackendFactory for Layered<F, L> {
    type Backend = LayeredBackend<F::Backend, L>;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn allowed_cores(&self) -> Vec<usize> {
        self.inner.allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<Self::Backend>) -> io::Result<()> {
        let layer = self.layer.clone();
        let main = move |backend| main(Rc::new(LayeredBackend { backend, layer }));
        self.inner.spawn_shard(spec, Box::new(main))
    }
}

/// The backend of [`Layered`].
pub struct LayeredBackend<B, L> {
    backend: Rc<B>,
    layer: L,
}

/// A file of [`LayeredBackend`].
pub struct LayeredFile<F, L> {
    file: F,
    path: PathBuf,
    layer: L,
}

#[async_trait(?Send)]
impl<B: IoBackend, L: Layer> IoBackend for LayeredBackend<B, L> {
    type File = LayeredFile<B::File, L>;

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn arena(&self) -> Option<Arc<Arena>> {
        self.backend.arena()
    }

    fn background_writes_max(&self) -> usize {
        self.layer.background_writes_max(&*self.backend)
    }

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Self::File> {
        self.layer.before("open", path);
        let file = self.backend.open(path, options).await?;
        let (path, layer) = (path.to_path_buf(), self.layer.clone());
        Ok(LayeredFile { file, path, layer })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.layer.before("list", dir);
        self.backend.list(dir).await
    }

    async fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.layer.before("kind", path);
        self.backend.kind(path).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.layer.before("create_dir", path);
        self.backend.create_dir(path).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.layer.before("rename", from);
        self.backend.rename(from, to).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.layer.before("remove_file", path);
        self.backend.remove_file(path).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.layer.before("remove_dir", path);
        self.backend.remove_dir(path).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.layer.before("sync_dir", dir);
        self.layer.sync_dir(&*self.backend, dir).await
    }

    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        self.layer.before("map", path);
        self.backend.map(path, len)
    }

    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        self.layer.before("populate", Path::new(""));
        self.backend.populate(map, range).await
    }

    fn is_mapped(&self, path: &Path) -> bool {
        self.backend.is_mapped(path)
    }

    async fn space(&self, path: &Path) -> io::Result<FsSpace> {
        self.layer.before("space", path);
        self.backend.space(path).await
    }

    fn finish_calls(&self) -> bool {
        self.layer.finish_calls(&*self.backend)
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
        self.layer.before("yield_now", Path::new(""));
        self.backend.yield_now().await;
    }

    fn spawn(&self, task: LocalFuture<()>) {
        self.layer.before("spawn", Path::new(""));
        self.backend.spawn(task);
    }

    fn random_u64(&self) -> u64 {
        self.backend.random_u64()
    }
}

impl<F: IoFile, L: Layer> LayeredFile<F, L> {
    async fn seen<T>(&self, operation: &'static str, done: impl Future<Output = T>) -> T {
        self.layer.before(operation, &self.path);
        let started = Instant::now();
        let result = done.await;
        self.layer.after(operation, &self.path, started.elapsed());
        result
    }
}

#[async_trait(?Send)]
impl<F: IoFile, L: Layer> IoFile for LayeredFile<F, L> {
    fn alignment(&self) -> u32 {
        self.file.alignment()
    }

    async fn read_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        self.seen("read_at", self.file.read_at(buf, offset, len))
            .await
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.seen("write_at", self.file.write_at(buf, offset)).await
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.seen(
            "write_durable",
            self.layer.write_durable(&self.file, buf, offset),
        )
        .await
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.seen("sync_data", self.layer.sync_data(&self.file))
            .await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.seen("allocate", self.layer.allocate(&self.file, len))
            .await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.seen("set_len", self.file.set_len(len)).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.layer.before("len", &self.path);
        self.file.len().await
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.layer.before("try_lock", &self.path);
        self.file.try_lock(kind)
    }
}

impl<B, L> fmt::Debug for LayeredBackend<B, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredBackend").finish_non_exhaustive()
    }
}

impl<F, L> fmt::Debug for LayeredFile<F, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
