//! walrus: a log with a topic per partition, with files opened for synchronous writes.
//!
//! Reading moves a cursor that is kept, so it cannot be read again and again. A topic takes one
//! batch at a time and turns others away; here they wait for each other.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use alluvium_workloads::{AtAck, Error, Level, Payload, Result};
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use super::{Peer, not_read};

/// An open log.
pub(super) struct WalrusLog {
    log: Walrus,
    /// Names of the topics; held while a batch is appended.
    topics: Vec<Mutex<String>>,
}

impl Peer for WalrusLog {
    const NAME: &'static str = "walrus";
    const AT_ACK: AtAck = AtAck::Durable;
    const READS: bool = false;

    fn open(dir: &Path, partitions: usize) -> Result<Self> {
        // It keeps its files below the directory of an environment variable, which `main` sets.
        let key = dir.file_name().unwrap_or_default().to_string_lossy();
        let log = Walrus::with_consistency_and_schedule_for_key(
            &key,
            ReadConsistency::AtLeastOnce {
                persist_every: 1_000,
            },
            FsyncSchedule::SyncEach,
        );
        Ok(Self {
            log: log.map_err(Error::peer)?,
            topics: (0..partitions).map(|n| Mutex::new(n.to_string())).collect(),
        })
    }

    fn append(&self, partition: usize, payload: &Payload, _: Level) -> Result<()> {
        let topic = self.topics[partition]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let appended = if payload.records() == 1 {
            self.log.append_for_topic(&topic, payload.value())
        } else {
            let batch = vec![payload.value(); payload.records()];
            self.log.batch_append_for_topic(&topic, &batch)
        };
        appended.map_err(Error::peer)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: usize, _: u64) -> Result<u64> {
        not_read()
    }
}
