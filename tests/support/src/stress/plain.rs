//! A negative control: durable writes that are plain ones.

use std::io;

use alluvium_backends::layer::Layer;
use alluvium_core::io::IoFile;
use async_trait::async_trait;
use bytes::Bytes;

/// `write_durable` says that it did and does [`IoFile::write_at`].
#[derive(Debug, Clone, Copy)]
pub struct PlainWrites;

#[async_trait(?Send)]
impl Layer for PlainWrites {
    async fn write_durable<F: IoFile>(
        &self,
        file: &F,
        buf: Bytes,
        offset: u64,
    ) -> (io::Result<usize>, Bytes) {
        file.write_at(buf, offset).await
    }
}
