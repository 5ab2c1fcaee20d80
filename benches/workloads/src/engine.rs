//! What a log must offer to be measured: the seam between the driver and the contenders.

use std::fmt;
use std::path::PathBuf;

use crate::case::Workload;
use crate::contender::Role;
use crate::error::{Error, Result};

/// Length of a record's value in bytes.
pub const RECORD_LEN: usize = 1024;

/// How far an append must have come when it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Handed to the kernel or the device; survives the process.
    Written,
    /// On stable media.
    Durable,
}

/// What an acknowledgement at [`Level::Durable`] means to a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtAck {
    /// The record is on stable media.
    Durable,
    /// The record is not yet on stable media: its figures are of another, weaker thing.
    NotDurable,
    /// It does not write.
    NoWrites,
}

impl AtAck {
    /// For a table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Durable => "yes",
            Self::NotDurable => "NO",
            Self::NoWrites => "-",
        }
    }
}

/// How the log is to be opened.
#[derive(Debug, Clone)]
pub struct Setup {
    /// A directory of its own; empty, or as the last log in it has left it.
    pub dir: PathBuf,
    /// Partitions, by index from zero.
    pub partitions: usize,
    /// Data that readers may find in memory, in bytes; `None` leaves the contender's default.
    pub cache_bytes: Option<usize>,
    /// Size of a segment file in bytes; `None` leaves the contender's default.
    pub segment_bytes: Option<u64>,
    /// What a partition keeps, in bytes; `None` keeps everything.
    pub retention_bytes: Option<u64>,
}

/// Records to append as one batch. Cheap to clone.
#[derive(Clone)]
pub struct Payload {
    value: std::sync::Arc<[u8]>,
    records: usize,
}

impl Payload {
    /// So many records of [`RECORD_LEN`] random bytes each.
    pub fn new(records: usize) -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut value = Vec::with_capacity(RECORD_LEN);
        while value.len() < RECORD_LEN {
            // xorshift64: no compressor makes anything of it.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            value.extend_from_slice(&state.to_le_bytes());
        }
        value.truncate(RECORD_LEN);
        Self {
            value: value.into(),
            records,
        }
    }

    /// The value of every record of the batch.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Records of the batch.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Bytes of all values.
    pub fn len_bytes(&self) -> usize {
        self.records * self.value.len()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

/// A kind of log that can be opened in a directory.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// The open log.
    type Log: Log;

    /// The name in tables, such as `alluvium/tokio`.
    fn name(&self) -> String;

    /// What it is in the comparison.
    fn role(&self) -> Role;

    /// What its acknowledgements mean.
    fn at_ack(&self) -> AtAck;

    /// Whether it can run the workload.
    fn runs(&self, workload: Workload) -> bool;

    /// Whether it writes into the files of what retention removed. Then the closed loops measure it
    /// as it runs for the rest of its life, and not while its first files come into being.
    fn recycles(&self) -> bool {
        false
    }

    /// Opens it, creating what is missing, or what a crashed log left behind.
    fn open(&self, setup: &Setup) -> impl Future<Output = Result<Self::Log>> + Send;
}

/// An open log.
pub trait Log: Clone + Send + Sync + 'static {
    /// Reads a partition from its beginning.
    type Reader: LogReader;

    /// Appends the batch; returns when it has come as far as `level`.
    fn append(
        &self,
        partition: usize,
        payload: &Payload,
        level: Level,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Makes everything that was appended durable.
    fn sync(&self) -> impl Future<Output = Result<()>> + Send;

    /// A reader at the beginning of the partition.
    fn reader(&self, partition: usize) -> impl Future<Output = Result<Self::Reader>> + Send;

    /// A round trip to whatever thread does the work, without any work.
    fn ping(&self) -> impl Future<Output = Result<()>> + Send {
        async { Err(Error::Peer("has no bridge to measure".to_owned())) }
    }

    /// Finishes what is under way.
    fn close(self) -> impl Future<Output = Result<()>> + Send;

    /// Lets go of the files without finishing anything, as a crash of the process would. Returns
    /// when the next opening need not wait.
    fn crash(self) -> impl Future<Output = Result<()>> + Send {
        async {
            drop(self);
            Ok(())
        }
    }
}

/// Reads a partition in order.
pub trait LogReader: Send + 'static {
    /// The next records, each with its checksum verified and its value looked at: how many they
    /// were, zero at the end.
    fn next(&mut self) -> impl Future<Output = Result<u64>> + Send;
}
