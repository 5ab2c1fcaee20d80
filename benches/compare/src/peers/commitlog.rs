//! commitlog: Kafka's segments and index, one writer per log.
//!
//! Its `flush` hands everything to the kernel, and there is no way to have it synced: it
//! acknowledges before the data is on the disk, and the tables say so.

use std::path::Path;
use std::sync::Mutex;

use ::commitlog::message::{MessageBuf, MessageSet};
use ::commitlog::{CommitLog, LogOptions, ReadLimit};
use alluvium_workloads::{AtAck, Error, Level, Payload, Result};

use super::{Peer, poisoned};

/// Bytes that a reader asks for at a time.
const READ_BYTES: usize = 4 << 20;

/// Open logs.
pub(super) struct Commit(Vec<Mutex<CommitLog>>);

impl Peer for Commit {
    const NAME: &'static str = "commitlog";
    const AT_ACK: AtAck = AtAck::NotDurable;
    const READS: bool = true;

    fn open(dir: &Path, partitions: usize) -> Result<Self> {
        let mut logs = Vec::new();
        for n in 0..partitions {
            let options = LogOptions::new(dir.join(format!("log-{n}")));
            logs.push(Mutex::new(CommitLog::new(options).map_err(Error::peer)?));
        }
        Ok(Self(logs))
    }

    fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let mut messages = MessageBuf::default();
        for _ in 0..payload.records() {
            let pushed = messages.push(payload.value());
            pushed.map_err(|e| Error::Peer(format!("{e:?}")))?;
        }
        let mut log = self.0[partition].lock().map_err(poisoned)?;
        log.append(&mut messages).map_err(Error::peer)?;
        if level == Level::Durable {
            log.flush().map_err(Error::peer)?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        for log in &self.0 {
            let mut log = log.lock().map_err(poisoned)?;
            log.flush().map_err(Error::peer)?;
        }
        Ok(())
    }

    fn read(&self, partition: usize, from: u64) -> Result<u64> {
        let log = self.0[partition].lock().map_err(poisoned)?;
        let read = log.read(from, ReadLimit::max_bytes(READ_BYTES));
        let messages = read.map_err(Error::peer)?;
        for message in messages.iter() {
            if !message.verify_hash() {
                return Err(Error::Peer("the hash of a message is wrong".to_owned()));
            }
            std::hint::black_box(message.payload());
        }
        Ok(messages.len() as u64)
    }
}
