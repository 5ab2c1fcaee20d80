//! One file of a uring shard.

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use alluvium_core::io::{AlignedBuf, IoFile, LockKind};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;

use super::executor::Local;
use super::op::{Buffer, Owned, Request, Target, submit};
use crate::posix::{self, PosixFile, check_range};

/// An open file, shared by its handle and the operations under way on it.
///
/// The ring's table holds the open file description as a descriptor does, and the kernel gets round
/// to tidying the table of a process that was killed only when all its operations have ended. So a
/// file takes a place there with its first transfer: the store's lock, which has none, does not
/// wait for the disk. The end of the last operation (or of the handle) ends a lock at once.
pub(super) struct OpenFile {
    file: PosixFile,
    /// Place in the ring's table; `None` when there was none to be had.
    slot: OnceCell<Option<u32>>,
    local: Rc<Local>,
}

impl OpenFile {
    pub(super) fn slot(&self) -> Option<u32> {
        self.slot.get().copied().flatten()
    }

    /// See [`PosixFile::is_buffered`].
    pub(super) fn is_buffered(&self) -> bool {
        self.file.is_buffered()
    }

    fn register(&self) {
        let mut ring = self.local.ring.borrow_mut();
        self.slot
            .get_or_init(|| ring.register_file(self.file.as_fd()));
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(slot) = self.slot() {
            self.local.ring.borrow_mut().unregister_file(slot);
        }
    }
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFile")
            .field("file", &self.file)
            .field("slot", &self.slot())
            .finish_non_exhaustive()
    }
}

/// A file opened by [`UringBackend`](super::UringBackend).
#[derive(Debug)]
pub struct UringFile {
    file: Rc<OpenFile>,
}

impl UringFile {
    pub(super) fn new(file: PosixFile, local: &Rc<Local>) -> Self {
        Self {
            file: Rc::new(OpenFile {
                file,
                slot: OnceCell::new(),
                local: Rc::clone(local),
            }),
        }
    }

    async fn run(&self, buffer: Buffer, request: Request) -> (io::Result<usize>, Option<Owned>) {
        self.file.register();
        let target = Target::File(Rc::clone(&self.file));
        submit(&self.file.local, Owned { target, buffer }, request).await
    }

    async fn write(&self, buf: Bytes, offset: u64, durable: bool) -> (io::Result<usize>, Bytes) {
        if let Err(e) = check_range(offset) {
            return (Err(e), buf);
        }
        let request = Request::Write { offset, durable };
        match self.run(Buffer::Out(buf), request).await {
            (result, Some(Owned { buffer, .. })) => match buffer {
                Buffer::Out(buf) => (result, buf),
                Buffer::In(_) | Buffer::Map(_) | Buffer::None => (result, Bytes::new()),
            },
            (result, None) => (result, Bytes::new()),
        }
    }

    async fn control(&self, request: Request) -> io::Result<()> {
        self.run(Buffer::None, request).await.0.map(drop)
    }
}

#[async_trait(?Send)]
impl IoFile for UringFile {
    fn alignment(&self) -> u32 {
        self.file.file.alignment()
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
        if let Err(e) = check_range(offset) {
            return (Err(e), buf);
        }
        let request = Request::Read { offset, len };
        let (result, owned) = self.run(Buffer::In(buf), request).await;
        let mut buf = match owned {
            Some(Owned {
                buffer: Buffer::In(buf),
                ..
            }) => buf,
            _ => AlignedBuf::with_capacity(0),
        };
        // The kernel never counts more than it was asked for.
        let result = result.map(|n| n.min(len).min(buf.capacity()));
        buf.set_len(*result.as_ref().unwrap_or(&0));
        (result, buf)
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.write(buf, offset, false).await
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.write(buf, offset, true).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.control(Request::SyncData).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let before = self.file.file.len()?;
        let result = self.control(Request::Allocate { len }).await;
        result.map_err(|e| self.file.file.undo_allocate(before, e))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        // Not through the ring: its opcode is newer (6.9) than kernels that we support.
        let fd = self.file.as_fd().try_clone_to_owned()?;
        let call = move || posix::set_len(fd, len);
        self.file.local.names.run(call).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.file.file.len()
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.file.file.try_lock(kind)
    }
}
