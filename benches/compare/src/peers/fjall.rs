//! fjall: an LSM tree with a journal; a keyspace per partition, records under their number.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use alluvium_workloads::{AtAck, Error, Level, Payload, Result};

use super::{Peer, READ_RECORDS};

/// An open database.
pub(super) struct Fjall {
    database: Database,
    partitions: Vec<(Keyspace, AtomicU64)>,
}

impl Peer for Fjall {
    const NAME: &'static str = "fjall";
    const AT_ACK: AtAck = AtAck::Durable;
    const READS: bool = true;

    fn open(dir: &Path, partitions: usize) -> Result<Self> {
        let database = Database::builder(dir.join("fjall")).open();
        let database = database.map_err(Error::peer)?;
        let mut keyspaces = Vec::new();
        for n in 0..partitions {
            let keyspace = database.keyspace(&n.to_string(), KeyspaceCreateOptions::default);
            keyspaces.push((keyspace.map_err(Error::peer)?, AtomicU64::new(0)));
        }
        Ok(Self {
            database,
            partitions: keyspaces,
        })
    }

    fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let (keyspace, next) = &self.partitions[partition];
        let mode = match level {
            Level::Written => PersistMode::Buffer,
            Level::Durable => PersistMode::SyncData,
        };
        let mut batch = self.database.batch().durability(Some(mode));
        let first = next.fetch_add(payload.records() as u64, Ordering::Relaxed);
        for n in first..first + payload.records() as u64 {
            batch.insert(keyspace, n.to_be_bytes(), payload.value());
        }
        batch.commit().map_err(Error::peer)
    }

    fn sync(&self) -> Result<()> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(Error::peer)
    }

    fn read(&self, partition: usize, from: u64) -> Result<u64> {
        let (keyspace, _) = &self.partitions[partition];
        let mut records = 0;
        for found in keyspace.range(from.to_be_bytes()..(from + READ_RECORDS).to_be_bytes()) {
            std::hint::black_box(found.value().map_err(Error::peer)?);
            records += 1;
        }
        Ok(records)
    }
}
