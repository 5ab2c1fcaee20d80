//! One file of a tokio shard: each operation is one system call in the blocking pool.
//!
//! The closure owns the descriptor and the buffer, so a dropped future leaves nothing dangling:
//! the call runs to its end and both are let go there.

use std::io;
use std::sync::Arc;

use alluvium_core::io::{AlignedBuf, IoFile, LockKind};
use async_trait::async_trait;
use bytes::Bytes;

use super::backend::in_pool;
use crate::posix::PosixFile;

/// A file opened by [`TokioBackend`](super::TokioBackend).
#[derive(Debug)]
pub struct TokioFile {
    file: Arc<PosixFile>,
}

impl TokioFile {
    pub(super) fn new(file: PosixFile) -> Self {
        Self {
            file: Arc::new(file),
        }
    }

    /// Runs one system call on the file in the pool.
    async fn offload<T: Send + 'static>(
        &self,
        call: impl FnOnce(&PosixFile) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = Arc::clone(&self.file);
        in_pool(move || {
            let result = call(&file);
            // Before the caller hears of it: when the caller then drops the file, it is closed.
            drop(file);
            result
        })
        .await
    }
}

#[async_trait(?Send)]
impl IoFile for TokioFile {
    fn alignment(&self) -> u32 {
        self.file.alignment()
    }

    async fn read_at(
        &self,
        mut buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        let done = self.offload(move |file| {
            let result = file.read_at(&mut buf, offset, len);
            Ok((result, buf))
        });
        match done.await {
            Ok((result, buf)) => (result, buf),
            // The buffer went down with the closure; the caller still gets one.
            Err(e) => (Err(e), AlignedBuf::with_capacity(0)),
        }
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        let shared = buf.clone();
        let done = self.offload(move |file| {
            let result = file.write_at(&shared, offset);
            drop(shared);
            result
        });
        (done.await, buf)
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        let shared = buf.clone();
        let done = self.offload(move |file| {
            let result = file.write_durable(&shared, offset);
            drop(shared);
            result
        });
        (done.await, buf)
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.offload(PosixFile::sync_data).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.offload(move |file| file.allocate(len)).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.offload(move |file| file.set_len(len)).await
    }

    async fn len(&self) -> io::Result<u64> {
        // Answered from memory by the kernel: not worth a thread switch.
        self.file.len()
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.file.try_lock(kind)
    }
}
