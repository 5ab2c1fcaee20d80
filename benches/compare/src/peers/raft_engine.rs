//! raft-engine: the log of TiKV's Raft groups. All groups share its files.
//!
//! A group takes one writer at a time, who numbers the entries; so a partition is as many groups as
//! keep the producers of W2 apart. Group commit happens inside of it, across groups.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use alluvium_workloads::{AtAck, Error, Level, Payload, Result};
use protobuf::descriptor::UninterpretedOption;
use raft_engine::{Config, Engine, LogBatch, MessageExt};

use super::{Peer, READ_RECORDS, poisoned};

/// Groups per partition.
const GROUPS: usize = 64;

/// An entry: of the messages that protobuf itself has, this one has a number and bytes.
#[derive(Clone)]
struct Entry;

impl MessageExt for Entry {
    type Entry = UninterpretedOption;

    fn index(entry: &UninterpretedOption) -> u64 {
        entry.get_positive_int_value()
    }
}

/// An open engine.
pub(super) struct RaftEngine {
    engine: Engine,
    /// The next index of each group; those of partition `p` begin at `p * GROUPS`.
    groups: Vec<Mutex<u64>>,
    turn: AtomicU64,
}

impl RaftEngine {
    fn group(partition: usize, turn: u64) -> usize {
        partition * GROUPS + usize::try_from(turn % GROUPS as u64).unwrap_or(0)
    }
}

impl Peer for RaftEngine {
    const NAME: &'static str = "raft-engine";
    const AT_ACK: AtAck = AtAck::Durable;
    const READS: bool = true;

    fn open(dir: &Path, partitions: usize) -> Result<Self> {
        let config = Config {
            dir: dir.join("raft-engine").to_string_lossy().into_owned(),
            ..Config::default()
        };
        Ok(Self {
            engine: Engine::open(config).map_err(Error::peer)?,
            groups: (0..partitions * GROUPS).map(|_| Mutex::new(1)).collect(),
            turn: AtomicU64::new(0),
        })
    }

    fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let group = Self::group(partition, turn);
        let mut next = self.groups[group].lock().map_err(poisoned)?;
        let entries: Vec<_> = (0..payload.records() as u64)
            .map(|n| {
                let mut entry = UninterpretedOption::new();
                entry.set_positive_int_value(*next + n);
                entry.set_string_value(payload.value().to_vec());
                entry
            })
            .collect();
        let mut batch = LogBatch::with_capacity(1);
        batch
            .add_entries::<Entry>(group as u64 + 1, &entries)
            .map_err(Error::peer)?;
        self.engine
            .write(&mut batch, level == Level::Durable)
            .map_err(Error::peer)?;
        *next += payload.records() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.engine.sync().map_err(Error::peer)
    }

    fn read(&self, partition: usize, from: u64) -> Result<u64> {
        // Group after group: `from` counts through them.
        let mut before = 0;
        for turn in 0..GROUPS as u64 {
            let group = Self::group(partition, turn);
            let held = *self.groups[group].lock().map_err(poisoned)? - 1;
            if from < before + held {
                let first = from - before + 1;
                let end = (first + READ_RECORDS).min(held + 1);
                let mut entries = Vec::new();
                let fetched = self.engine.fetch_entries_to::<Entry>(
                    group as u64 + 1,
                    first,
                    end,
                    None,
                    &mut entries,
                );
                fetched.map_err(Error::peer)?;
                for entry in &entries {
                    std::hint::black_box(entry.get_string_value());
                }
                return Ok(entries.len() as u64);
            }
            before += held;
        }
        Ok(0)
    }
}
