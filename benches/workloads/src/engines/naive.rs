//! The plain way: one file per partition behind a mutex, `tokio::fs`, and a sync per append.
//!
//! Each record stands behind its length and checksum, which the least of logs needs.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

use crate::case::Workload;
use crate::contender::Role;
use crate::engine::{AtAck, Engine, Level, Log, LogReader, Payload, RECORD_LEN, Setup};
use crate::error::{Error, Result};

/// Length and checksum, 32 bits each.
const FRAME_LEN: usize = 8;
/// What a reader asks for at a time.
const READ_BYTES: usize = 1 << 20;

/// `write_all` and `sync_data` per append.
#[derive(Debug, Clone, Copy, Default)]
pub struct Naive;

impl Engine for Naive {
    type Log = NaiveLog;

    fn name(&self) -> String {
        "plain tokio::fs".to_owned()
    }

    fn role(&self) -> Role {
        Role::Plain
    }

    fn at_ack(&self) -> AtAck {
        AtAck::Durable
    }

    fn runs(&self, workload: Workload) -> bool {
        // It has no bridge, and nothing that deserves to be called recovery.
        !matches!(workload, Workload::WB | Workload::W7)
    }

    async fn open(&self, setup: &Setup) -> Result<NaiveLog> {
        let mut files = Vec::new();
        for n in 0..setup.partitions {
            let path = setup.dir.join(format!("log-{n}"));
            let mut options = OpenOptions::new();
            let file = options.create(true).append(true).open(&path).await;
            let file = Mutex::new(file.map_err(Error::io("open", &path))?);
            files.push(PartitionFile { path, file });
        }
        Ok(NaiveLog {
            files: files.into(),
        })
    }
}

#[derive(Debug)]
struct PartitionFile {
    path: PathBuf,
    file: Mutex<File>,
}

/// Open files.
#[derive(Debug, Clone)]
pub struct NaiveLog {
    files: Arc<[PartitionFile]>,
}

impl Log for NaiveLog {
    type Reader = NaiveReader;

    async fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let bytes = frames(payload);
        let PartitionFile { path, file } = &self.files[partition];
        let mut file = file.lock().await;
        file.write_all(&bytes)
            .await
            .map_err(Error::io("write", path))?;
        // The data may still be in the handle's own buffer.
        file.flush().await.map_err(Error::io("write", path))?;
        if level == Level::Durable {
            file.sync_data().await.map_err(Error::io("sync", path))?;
        }
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        for PartitionFile { path, file } in &*self.files {
            let file = file.lock().await;
            file.sync_data().await.map_err(Error::io("sync", path))?;
        }
        Ok(())
    }

    async fn reader(&self, partition: usize) -> Result<NaiveReader> {
        let path = self.files[partition].path.clone();
        let mut file = File::open(&path).await.map_err(Error::io("open", &path))?;
        file.set_max_buf_size(READ_BYTES);
        Ok(NaiveReader {
            path,
            file,
            buffer: Vec::new(),
        })
    }

    async fn close(self) -> Result<()> {
        self.sync().await
    }
}

fn frames(payload: &Payload) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((FRAME_LEN + RECORD_LEN) * payload.records());
    for _ in 0..payload.records() {
        let value = payload.value();
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

/// Reads a file from its beginning.
#[derive(Debug)]
pub struct NaiveReader {
    path: PathBuf,
    file: File,
    /// What was read and not yet taken apart.
    buffer: Vec<u8>,
}

impl LogReader for NaiveReader {
    async fn next(&mut self) -> Result<u64> {
        loop {
            self.buffer.reserve(READ_BYTES);
            let mut limited = (&mut self.file).take(READ_BYTES as u64);
            let read = limited.read_buf(&mut self.buffer).await;
            let read = read.map_err(Error::io("read", &self.path))?;
            let (records, taken) = verify(&self.buffer)?;
            self.buffer.drain(..taken);
            if records > 0 || read == 0 {
                return Ok(records);
            }
        }
    }
}

/// Whole records at the beginning of the bytes, and how many bytes they take.
fn verify(bytes: &[u8]) -> Result<(u64, usize)> {
    let (mut records, mut rest) = (0, bytes);
    while let Some((head, tail)) = rest.split_first_chunk::<FRAME_LEN>() {
        let [a, b, c, d, crc @ ..] = *head;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some((value, after)) = tail.split_at_checked(len) else {
            break;
        };
        if crc32fast::hash(value) != u32::from_le_bytes(crc) {
            return Err(Error::Peer("the checksum of a record is wrong".to_owned()));
        }
        std::hint::black_box(value);
        records += 1;
        rest = after;
    }
    Ok((records, bytes.len() - rest.len()))
}
