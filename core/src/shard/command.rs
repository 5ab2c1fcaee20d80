//! What comes through a shard's mailbox.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::layout::FoundPartition;
use crate::io::Capabilities;
use crate::metrics::ShardStats;
use crate::offset::Offsets;
use crate::partition::{
    Asked, Fetched, InspectRequest, Inspection, Located, PartitionInfo, RawPiece, Reading, Reply,
    Request, Tail, Wanted,
};
use crate::recovery::PartitionReport;
use crate::sync::yield_thread;

/// A partition that is ready, as its handles know it.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) id: u64,
    pub(crate) incarnation: u32,
    pub(crate) offsets: watch::Receiver<Offsets>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) batch_bytes_max: usize,
    pub(crate) report: PartitionReport,
}

/// The store's directory, opened.
#[derive(Debug)]
pub(crate) struct Booted {
    /// How long the opening of the directory took.
    pub(crate) took: Duration,
    pub(crate) store_id: u64,
    pub(crate) capabilities: Capabilities,
    /// Whether segments are opened with O_DIRECT.
    pub(crate) direct: bool,
    pub(crate) partitions: Vec<FoundPartition>,
}

/// A request to a shard. Partitions are named by id and incarnation, so that a late request for a
/// deleted partition cannot touch its successor.
#[derive(Debug)]
pub(crate) enum Command {
    Boot(Reply<Booted>),
    Adopt {
        partitions: Vec<FoundPartition>,
        direct: bool,
        reply: Reply<(Vec<Adopted>, Duration)>,
    },
    Create {
        id: u64,
        asked: Asked<Adopted>,
    },
    Find {
        id: u64,
        reply: Reply<Adopted>,
    },
    Delete {
        id: u64,
        incarnation: u32,
        reply: Reply<()>,
    },
    List(Reply<Vec<PartitionInfo>>),
    Describe {
        id: u64,
        incarnation: u32,
        reply: Reply<PartitionInfo>,
    },
    Inspect {
        id: u64,
        incarnation: u32,
        request: InspectRequest,
        asked: Asked<Inspection>,
    },
    Submit {
        id: u64,
        incarnation: u32,
        request: Request,
    },
    Read {
        id: u64,
        incarnation: u32,
        reading: Reading,
        asked: Asked<Fetched>,
    },
    /// The beginning of a read whose bytes the caller decodes.
    Locate {
        id: u64,
        incarnation: u32,
        reading: Reading,
        asked: Asked<Located>,
        /// Room of the read-ahead, if it is one.
        ahead: Option<OwnedSemaphorePermit>,
    },
    /// A piece of a segment, raw.
    Piece {
        id: u64,
        incarnation: u32,
        wanted: Wanted,
        asked: Asked<Option<RawPiece>>,
        /// Room of the read-ahead, if it is one.
        ahead: Option<OwnedSemaphorePermit>,
    },
    OffsetForTimestamp {
        id: u64,
        incarnation: u32,
        timestamp_ms: i64,
        asked: Asked<Option<u64>>,
    },
    Stats(Reply<ShardStats>),
    Close {
        deadline: Duration,
        reply: Reply<()>,
    },
    Ping(oneshot::Sender<()>),
}

/// The commands, as the shard takes them.
///
/// Dropped, it waits for those that are being sent and drops them too: the channel counts a message
/// before it holds it, and what arrived behind a receiver that has gone would stay, and its reply with it,
/// as long as there is a sender. Whoever waits for the answer is one.
#[derive(Debug)]
pub(crate) struct Commands(mpsc::UnboundedReceiver<Command>);

impl Commands {
    pub(crate) fn new(receiver: mpsc::UnboundedReceiver<Command>) -> Self {
        Self(receiver)
    }

    /// The next command; `None` when every sender has gone.
    pub(crate) async fn recv(&mut self) -> Option<Command> {
        self.0.recv().await
    }

    /// Appends up to `limit` commands to `turn`, at least one unless every sender has gone.
    pub(crate) async fn recv_many(&mut self, turn: &mut Vec<Command>, limit: usize) -> usize {
        self.0.recv_many(turn, limit).await
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.0.close();
        loop {
            match self.0.try_recv() {
                Ok(command) => drop(command),
                // Counted, and not there yet.
                Err(mpsc::error::TryRecvError::Empty) => yield_thread(),
                Err(mpsc::error::TryRecvError::Disconnected) => return,
            }
        }
    }
}
