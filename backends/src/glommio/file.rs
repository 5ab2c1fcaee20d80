//! One file of a glommio shard.
//!
//! Transfers go through glommio's `DmaFile`, which takes and gives buffers of glommio's own: every
//! transfer is copied once, and its public API has no way around that. The operation owns that
//! copy and the file until the kernel is done with both.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use alluvium_core::io::{AlignedBuf, IoFile, LockKind, OpenOptions};
use async_trait::async_trait;
use bytes::Bytes;
use glommio::io::{DmaFile, OwnedDmaFile, ReadResult};
use rustix::fs::MemfdFlags;
use rustix::io::{DupFlags, Errno};

use super::backend::Local;
use super::setup::to_io;
use crate::posix::{self, PosixFile, check_range};
use crate::shard::caught;

/// Most bytes that one transfer moves: bounds the memory for its copy. Callers go on after short
/// counts. A multiple of every alignment.
const TRANSFER_BYTES_MAX: usize = 8 << 20;

/// A file opened by [`GlommioBackend`](super::GlommioBackend).
#[derive(Debug)]
pub struct GlommioFile {
    inner: Rc<Inner>,
    local: Rc<Local>,
}

#[derive(Debug)]
struct Inner {
    /// The same descriptor as `dma`, which owns it: never dropped.
    posix: ManuallyDrop<PosixFile>,
    dma: Handle,
}

/// A `DmaFile` that closes its descriptor when it is dropped, and with that ends the file's lock.
/// By itself it would close some turns later, or never when the shard ends before.
#[derive(Debug)]
pub(super) struct Handle(Option<DmaFile>);

impl Handle {
    /// What [`adopt`](Self::adopt) makes copies of: a file in memory.
    ///
    /// How a `DmaFile` does its transfers is decided when it is opened, by what it opens. On a
    /// real disk glommio tries polled I/O with a read at offset 0, takes the end of an empty file
    /// for success, and from then on every transfer on that device fails with `EOPNOTSUPP`; and it
    /// panics over a `/sys` that it does not expect. For a file in memory it does nothing of that
    /// and uses plain reads and writes on its main ring.
    pub(super) async fn blank() -> io::Result<Self> {
        let memory = rustix::fs::memfd_create("alluvium-blank", MemfdFlags::CLOEXEC)?;
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let mut options = glommio::io::OpenOptions::new();
        let opened = options.read(true).write(true).dma_open(path).await;
        opened.map(|file| Self(Some(file))).map_err(to_io)
    }

    /// A handle like this one, on the open file description of `file`.
    fn adopt(&self, file: PosixFile) -> io::Result<Inner> {
        let dma = Self(Some(self.dup().map_err(to_io)?));
        // SAFETY: open, and owned by `dma`. This second owner is never dropped, and `Inner` keeps
        // it no longer than the first.
        let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(dma.as_raw_fd()) });
        rustix::io::dup3(&file, &mut fd, DupFlags::CLOEXEC)?;
        let posix = file.with_descriptor(ManuallyDrop::into_inner(fd));
        Ok(Inner {
            posix: ManuallyDrop::new(posix),
            dma,
        })
    }
}

impl Deref for Handle {
    type Target = DmaFile;

    fn deref(&self) -> &DmaFile {
        match &self.0 {
            Some(file) => file,
            None => unreachable!("taken out only by the destructor"),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let file = self.0.take();
        // glommio panics when `close` fails, as it may on a network file system. The descriptor is
        // closed all the same, and what was to be durable has been synced.
        caught(|| drop(file.map(OwnedDmaFile::from)));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.posix.unlock();
    }
}

impl GlommioFile {
    /// Opens a regular file as [`alluvium_core::io::IoBackend::open`] demands.
    pub(super) async fn open(
        local: &Rc<Local>,
        path: &Path,
        options: OpenOptions,
    ) -> io::Result<Self> {
        // First: afterwards there is nothing to undo when the caller loses interest.
        let blank = local.blank().await?;
        let open = move |path: &Path| PosixFile::open(path, options);
        let posix = local.names.on(path, open).await?;
        Ok(Self {
            inner: Rc::new(blank.adopt(posix)?),
            local: Rc::clone(local),
        })
    }

    /// Runs an operation on the file to its end, whoever waits for it.
    async fn submit<T, F, O>(&self, operation: O) -> io::Result<T>
    where
        T: 'static,
        F: Future<Output = io::Result<T>> + 'static,
        O: FnOnce(Rc<Inner>) -> F,
    {
        let running = self
            .local
            .incoming
            .submit(operation(Rc::clone(&self.inner)));
        running.await.unwrap_or_else(lost)
    }

    async fn write(&self, buf: &Bytes, offset: u64, durable: bool) -> io::Result<usize> {
        check_range(offset)?;
        let bytes = buf.get(..TRANSFER_BYTES_MAX).unwrap_or(buf);
        // glommio has no buffers of zero bytes.
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut copy = self.inner.dma.alloc_dma_buffer(bytes.len());
        copy.as_bytes_mut().copy_from_slice(bytes);
        self.submit(async move |file| {
            let count = file.dma.write_at(copy, offset).await.map_err(to_io)?;
            if durable {
                file.dma.fdatasync().await.map_err(to_io)?;
            }
            Ok(count)
        })
        .await
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<ReadResult> {
        self.submit(async move |file| file.dma.read_at_aligned(offset, len).await.map_err(to_io))
            .await
    }

    /// How much of `len` bytes at `offset` the file has, in whole blocks: glommio allocates what
    /// it is asked for, and zero bytes it cannot.
    fn available(&self, offset: u64, len: usize) -> io::Result<usize> {
        let left = self.inner.posix.len()?.saturating_sub(offset);
        let left = left.next_multiple_of(u64::from(self.inner.posix.alignment()));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        Ok(len.min(left).min(TRANSFER_BYTES_MAX))
    }
}

/// An operation that ended by a panic inside glommio.
pub(super) fn lost<T>() -> io::Result<T> {
    Err(io::Error::other("an operation panicked inside glommio"))
}

#[async_trait(?Send)]
impl IoFile for GlommioFile {
    fn alignment(&self) -> u32 {
        self.inner.posix.alignment()
    }

    async fn read_at(
        &self,
        mut buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        buf.clear();
        if len > buf.capacity() {
            return (Err(Errno::INVAL.into()), buf);
        }
        let len = match check_range(offset).and_then(|()| self.available(offset, len)) {
            Ok(0) => return (Ok(0), buf),
            Ok(len) => len,
            Err(e) => return (Err(e), buf),
        };
        match self.read(offset, len).await {
            Ok(bytes) => {
                // The kernel never counts more than it was asked for.
                let bytes = bytes.get(..len).unwrap_or(&bytes);
                buf.extend_from_slice(bytes);
                (Ok(bytes.len()), buf)
            }
            Err(e) => (Err(e), buf),
        }
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        (self.write(&buf, offset, false).await, buf)
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        (self.write(&buf, offset, true).await, buf)
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.submit(async |file| file.dma.fdatasync().await.map_err(to_io))
            .await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let before = self.inner.posix.len()?;
        self.submit(async move |file| {
            let result = file.dma.pre_allocate(len, false).await.map_err(to_io);
            result.map_err(|e| file.posix.undo_allocate(before, e))
        })
        .await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let fd = self.inner.posix.as_fd().try_clone_to_owned()?;
        self.local.names.run(move || posix::set_len(fd, len)).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.inner.posix.len()
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.inner.posix.try_lock(kind)
    }
}
