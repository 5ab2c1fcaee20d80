//! One file of a compio shard.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use alluvium_core::io::{AlignedBuf, IoFile, LockKind};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;

use super::backend::Local;
use super::op::{Control, InFlight, Read, Request, Write, submit};
use crate::posix::{PosixFile, check_range};

/// A file opened by [`CompioBackend`](super::CompioBackend).
#[derive(Debug)]
pub struct CompioFile {
    file: Arc<PosixFile>,
    local: Rc<Local>,
}

impl CompioFile {
    pub(super) fn new(file: PosixFile, local: Rc<Local>) -> Self {
        Self {
            file: Arc::new(file),
            local,
        }
    }

    async fn write(&self, buf: Bytes, offset: u64, durable: bool) -> (io::Result<usize>, Bytes) {
        if let Err(e) = check_range(offset) {
            return (Err(e), buf);
        }
        let file = Arc::clone(&self.file);
        let in_flight = InFlight::new(&self.local.in_flight);
        let (result, op) = submit(Write {
            file,
            buf,
            offset,
            durable,
            in_flight,
        })
        .await;
        (result, op.buf)
    }

    async fn control(&self, request: Request) -> io::Result<()> {
        let fd = Arc::clone(&self.file);
        let in_flight = InFlight::new(&self.local.in_flight);
        submit(Control {
            fd,
            request,
            in_flight,
        })
        .await
        .0
        .map(drop)
    }
}

#[async_trait(?Send)]
impl IoFile for CompioFile {
    fn alignment(&self) -> u32 {
        self.file.alignment()
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
        let file = Arc::clone(&self.file);
        let in_flight = InFlight::new(&self.local.in_flight);
        let (result, op) = submit(Read {
            file,
            buf,
            offset,
            len,
            in_flight,
        })
        .await;
        let mut buf = op.buf;
        // The kernel never counts more than it was asked for.
        let result = result.map(|n| n.min(len));
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
        let before = self.file.len()?;
        let result = self.control(Request::Allocate { len }).await;
        result.map_err(|e| self.file.undo_allocate(before, e))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        // Not through the ring: its opcode is newer (6.9) than kernels that we support.
        let file = Arc::clone(&self.file);
        self.local.names.run(move || file.set_len(len)).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.file.try_lock(kind)
    }
}
