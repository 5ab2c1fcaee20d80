//! Negative controls: a store that leaves out what makes it safe.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use alluvium_backends::layer::Layer;
use alluvium_core::io::{IoBackend, IoFile};
use async_trait::async_trait;
use bytes::Bytes;

/// What is answered as if it had been done. By itself nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Omit {
    /// Durable writes are plain ones.
    pub durable_writes: bool,
    /// Files and directories are not synced.
    pub syncs: bool,
    /// Files get their length and no blocks.
    pub allocation: bool,
}

#[async_trait(?Send)]
impl Layer for Omit {
    async fn write_durable<F: IoFile>(
        &self,
        file: &F,
        buf: Bytes,
        offset: u64,
    ) -> (io::Result<usize>, Bytes) {
        if self.durable_writes {
            return file.write_at(buf, offset).await;
        }
        file.write_durable(buf, offset).await
    }

    async fn sync_data<F: IoFile>(&self, file: &F) -> io::Result<()> {
        if self.syncs {
            return Ok(());
        }
        file.sync_data().await
    }

    async fn sync_dir<B: IoBackend>(&self, backend: &B, dir: &Path) -> io::Result<()> {
        if self.syncs {
            return Ok(());
        }
        backend.sync_dir(dir).await
    }

    async fn allocate<F: IoFile>(&self, file: &F, len: u64) -> io::Result<()> {
        if self.allocation {
            return file.set_len(len).await;
        }
        file.allocate(len).await
    }
}

/// Lets every write wait before it begins, so that what is said before it is said long before it: an
/// early acknowledgement is found out on a fast disk, too.
#[derive(Debug, Clone, Copy)]
pub struct Late(pub Duration);

#[async_trait(?Send)]
impl Layer for Late {
    fn before(&self, operation: &'static str, _: &Path) {
        if operation.starts_with("write_") {
            thread::sleep(self.0);
        }
    }
}
