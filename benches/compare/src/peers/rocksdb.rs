//! rocksdb: an LSM tree whose write-ahead log is synced per write, with group commit inside; records
//! under partition and number.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ::rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use alluvium_workloads::{AtAck, Error, Level, Payload, Result};

use super::{Peer, READ_RECORDS};

/// An open database.
pub(super) struct Rocks {
    database: DB,
    next: Vec<AtomicU64>,
}

fn key(partition: usize, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&(partition as u64).to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

impl Peer for Rocks {
    const NAME: &'static str = "rocksdb";
    const AT_ACK: AtAck = AtAck::Durable;
    const READS: bool = true;

    fn open(dir: &Path, partitions: usize) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        Ok(Self {
            database: DB::open(&options, dir.join("rocksdb")).map_err(Error::peer)?,
            next: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let records = payload.records() as u64;
        let first = self.next[partition].fetch_add(records, Ordering::Relaxed);
        let mut batch = WriteBatch::default();
        for n in first..first + records {
            batch.put(key(partition, n), payload.value());
        }
        let mut options = WriteOptions::default();
        options.set_sync(level == Level::Durable);
        self.database
            .write_opt(&batch, &options)
            .map_err(Error::peer)
    }

    fn sync(&self) -> Result<()> {
        self.database.flush_wal(true).map_err(Error::peer)
    }

    fn read(&self, partition: usize, from: u64) -> Result<u64> {
        let first = key(partition, from);
        let mut records = 0;
        let mode = IteratorMode::From(&first, Direction::Forward);
        for found in self.database.iterator(mode) {
            let (key, value) = found.map_err(Error::peer)?;
            if records == READ_RECORDS || key[..8] != first[..8] {
                break;
            }
            std::hint::black_box(value);
            records += 1;
        }
        Ok(records)
    }
}
