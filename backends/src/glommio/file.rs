//! One file of a glommio shard.
//!
//! Direct files are glommio's `DmaFile`, others its `BufferedFile`. Both take and give buffers of
//! glommio's own, so every transfer is copied once; there is no way around in its public API.
//! The operation owns that copy and the file until the kernel is done with both.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use alluvium_core::io::{AlignedBuf, IoFile, LockKind, OpenMode, OpenOptions};
use async_trait::async_trait;
use bytes::Bytes;
use glommio::io::{BufferedFile, DmaFile, OwnedDmaFile, ReadResult};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::backend::Local;
use super::setup::to_io;
use crate::posix::{PosixFile, check_range};

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
    posix: ManuallyDrop<PosixFile>,
    handle: Handle,
}

/// Who transfers, and owns the descriptor.
#[derive(Debug)]
enum Handle {
    /// glommio owns it, `posix` only borrows. `None` after the destructor has begun.
    Direct(Option<DmaFile>),
    /// `posix` owns it.
    Buffered(Rc<BufferedFile>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        match &mut self.handle {
            // Closed now, and with it the lock ends. `DmaFile` itself would close some turns
            // later, or never when the shard ends before.
            Handle::Direct(file) => drop(file.take().map(OwnedDmaFile::from)),
            Handle::Buffered(_) => {
                // SAFETY: dropped here, once, and not used after.
                unsafe { ManuallyDrop::drop(&mut self.posix) }
            }
        }
    }
}

impl GlommioFile {
    /// Opens a regular file as [`alluvium_core::io::IoBackend::open`] demands.
    pub(super) async fn open(
        local: &Rc<Local>,
        path: &Path,
        options: OpenOptions,
    ) -> io::Result<Self> {
        let posix = PosixFile::open(path, options)?;
        let inner = if options.direct {
            let submitted = local.incoming.submit(open_direct(posix, options.mode));
            submitted.await.unwrap_or_else(lost)?
        } else {
            Inner {
                handle: Handle::Buffered(local.buffered(&posix)),
                posix: ManuallyDrop::new(posix),
            }
        };
        Ok(Self {
            inner: Rc::new(inner),
            local: Rc::clone(local),
        })
    }

    async fn transfer(&self, buf: &Bytes, offset: u64, durable: bool) -> io::Result<usize> {
        check_range(offset)?;
        let bytes = buf.get(..TRANSFER_BYTES_MAX).unwrap_or(buf);
        if bytes.is_empty() {
            return Ok(0);
        }
        let file = Rc::clone(&self.inner);
        let submitted = match &self.inner.handle {
            Handle::Direct(Some(dma)) => {
                let mut copy = dma.alloc_dma_buffer(bytes.len());
                copy.as_bytes_mut().copy_from_slice(bytes);
                self.local.incoming.submit(async move {
                    let count = file.dma()?.write_at(copy, offset).await.map_err(to_io)?;
                    if durable {
                        file.sync_data().await?;
                    }
                    Ok(count)
                })
            }
            Handle::Direct(None) => return Err(Errno::BADF.into()),
            Handle::Buffered(buffered) => {
                let (buffered, copy) = (Rc::clone(buffered), bytes.to_vec());
                self.local.incoming.submit(async move {
                    let count = buffered.write_at(copy, offset).await.map_err(to_io)?;
                    if durable {
                        file.sync_data().await?;
                    }
                    Ok(count)
                })
            }
        };
        submitted.await.unwrap_or_else(lost)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<ReadResult> {
        let file = Rc::clone(&self.inner);
        let submitted = self.local.incoming.submit(async move {
            match &file.handle {
                Handle::Direct(_) => file.dma()?.read_at_aligned(offset, len).await,
                Handle::Buffered(buffered) => buffered.read_at(offset, len).await,
            }
            .map_err(to_io)
        });
        submitted.await.unwrap_or_else(lost)
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

/// Opens the file of `posix` once more, as glommio's own.
async fn open_direct(posix: PosixFile, mode: OpenMode) -> io::Result<Inner> {
    // By descriptor: the file was checked, and glommio panics when a path that it opened is gone.
    let path = format!("/proc/self/fd/{}", posix.as_raw_fd());
    let dma = glommio::io::OpenOptions::new()
        .read(true)
        .write(mode != OpenMode::Read)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .dma_open(path)
        .await
        .map_err(to_io)?;
    // SAFETY: open, and owned by `dma`. `Inner` never drops this second owner, and drops `dma`
    // after it.
    let borrowed = unsafe { OwnedFd::from_raw_fd(dma.as_raw_fd()) };
    let posix = ManuallyDrop::new(posix.with_descriptor(borrowed));
    Ok(Inner {
        posix,
        handle: Handle::Direct(Some(dma)),
    })
}

impl Inner {
    fn dma(&self) -> io::Result<&DmaFile> {
        match &self.handle {
            Handle::Direct(Some(file)) => Ok(file),
            Handle::Direct(None) | Handle::Buffered(_) => Err(Errno::BADF.into()),
        }
    }

    async fn sync_data(&self) -> io::Result<()> {
        match &self.handle {
            Handle::Direct(_) => self.dma()?.fdatasync().await,
            Handle::Buffered(file) => file.fdatasync().await,
        }
        .map_err(to_io)
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        match &self.handle {
            Handle::Direct(_) => self.dma()?.pre_allocate(len, false).await,
            Handle::Buffered(file) => file.pre_allocate(len, false).await,
        }
        .map_err(to_io)
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
        (self.transfer(&buf, offset, false).await, buf)
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        (self.transfer(&buf, offset, true).await, buf)
    }

    async fn sync_data(&self) -> io::Result<()> {
        let file = Rc::clone(&self.inner);
        let submitted = self
            .local
            .incoming
            .submit(async move { file.sync_data().await });
        submitted.await.unwrap_or_else(lost)
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let before = self.inner.posix.len()?;
        let file = Rc::clone(&self.inner);
        let submitted = self.local.incoming.submit(async move {
            let result = file.allocate(len).await;
            result.map_err(|e| file.posix.undo_allocate(before, e))
        });
        submitted.await.unwrap_or_else(lost)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.posix.set_len(len)
    }

    async fn len(&self) -> io::Result<u64> {
        self.inner.posix.len()
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.inner.posix.try_lock(kind)
    }
}
