//! okaywal: a write-ahead log per partition. Every commit is durable, and what was checkpointed is
//! gone, so it is only appended to.

use std::path::Path;

use ::okaywal::{LogVoid, WriteAheadLog};
use alluvium_workloads::{AtAck, Error, Level, Payload, Result};

use super::{Peer, not_read};

/// Open logs.
pub(super) struct OkayWal(Vec<WriteAheadLog>);

impl Peer for OkayWal {
    const NAME: &'static str = "okaywal";
    const AT_ACK: AtAck = AtAck::Durable;
    const READS: bool = false;

    fn open(dir: &Path, partitions: usize) -> Result<Self> {
        let logs = (0..partitions)
            .map(|n| WriteAheadLog::recover(dir.join(format!("wal-{n}")), LogVoid))
            .collect::<Result<_, _>>();
        Ok(Self(logs.map_err(Error::peer)?))
    }

    fn append(&self, partition: usize, payload: &Payload, _: Level) -> Result<()> {
        let append = || {
            let mut entry = self.0[partition].begin_entry()?;
            for _ in 0..payload.records() {
                entry.write_chunk(payload.value())?;
            }
            entry.commit()
        };
        append().map(drop).map_err(Error::peer)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: usize, _: u64) -> Result<u64> {
        not_read()
    }
}
