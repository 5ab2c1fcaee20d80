//! Other projects' logs behind the face that the workloads know, each as durable at its
//! acknowledgement as it can be made.
//!
//! All of them block, so an embedding program on tokio calls them by `spawn_blocking`; so does this.
//! Left out is what a project does not offer: a write-ahead log that is only read when it is
//! recovered is not read here.

#[cfg(feature = "commitlog")]
mod commitlog;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "okaywal")]
mod okaywal;
#[cfg(feature = "raft-engine")]
mod raft_engine;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "walrus")]
mod walrus;

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use alluvium_workloads::{
    AtAck, Contender, Driven, Engine, Error, Level, Log, LogReader, Payload, Result, Role, Setup,
    Workload,
};

/// Records that a reader takes at a time, at most.
const READ_RECORDS: u64 = 4_096;

/// A log whose calls block.
trait Peer: Sized + Send + Sync + 'static {
    const NAME: &'static str;
    const AT_ACK: AtAck;
    /// Whether it can be read from the beginning while it is open.
    const READS: bool;

    fn open(dir: &Path, partitions: usize) -> Result<Self>;

    fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()>;

    fn sync(&self) -> Result<()>;

    /// Looks at up to [`READ_RECORDS`] records from number `from` on; how many there were.
    fn read(&self, partition: usize, from: u64) -> Result<u64>;
}

/// Every peer that is compiled in.
pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    vec![
        #[cfg(feature = "raft-engine")]
        contender::<raft_engine::RaftEngine>(),
        #[cfg(feature = "fjall")]
        contender::<fjall::Fjall>(),
        #[cfg(feature = "okaywal")]
        contender::<okaywal::OkayWal>(),
        #[cfg(feature = "walrus")]
        contender::<walrus::WalrusLog>(),
        #[cfg(feature = "commitlog")]
        contender::<commitlog::Commit>(),
        #[cfg(feature = "rocksdb")]
        contender::<rocksdb::Rocks>(),
    ]
}

fn contender<P: Peer>() -> Box<dyn Contender> {
    Box::new(Driven(PeerEngine::<P>(PhantomData)))
}

/// A peer as an engine of the workloads.
struct PeerEngine<P>(PhantomData<P>);

impl<P: Peer> fmt::Debug for PeerEngine<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(P::NAME)
    }
}

impl<P: Peer> Engine for PeerEngine<P> {
    type Log = PeerLog<P>;

    fn name(&self) -> String {
        P::NAME.to_owned()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn at_ack(&self) -> AtAck {
        P::AT_ACK
    }

    fn runs(&self, workload: Workload) -> bool {
        match workload {
            Workload::W1 | Workload::W2 | Workload::W3 | Workload::W4 | Workload::W5 => true,
            Workload::W6 => P::READS,
            // A thousand blocked threads, or a crash that is none, would measure something else.
            _ => false,
        }
    }

    async fn open(&self, setup: &Setup) -> Result<PeerLog<P>> {
        let (dir, partitions) = (setup.dir.clone(), setup.partitions);
        let opened = tokio::task::spawn_blocking(move || P::open(&dir, partitions));
        Ok(PeerLog(Arc::new(opened.await??)))
    }
}

/// An open peer.
struct PeerLog<P>(Arc<P>);

impl<P> Clone for PeerLog<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Peer> PeerLog<P> {
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&P) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let peer = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&peer)).await?
    }
}

impl<P: Peer> Log for PeerLog<P> {
    type Reader = PeerReader<P>;

    async fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let payload = payload.clone();
        self.call(move |peer| peer.append(partition, &payload, level))
            .await
    }

    async fn sync(&self) -> Result<()> {
        self.call(P::sync).await
    }

    async fn reader(&self, partition: usize) -> Result<PeerReader<P>> {
        Ok(PeerReader {
            log: self.clone(),
            partition,
            at: 0,
        })
    }

    async fn close(self) -> Result<()> {
        self.call(P::sync).await?;
        // Closing joins threads: that blocks, too.
        Ok(tokio::task::spawn_blocking(move || drop(self)).await?)
    }
}

/// Reads a peer by record number.
struct PeerReader<P> {
    log: PeerLog<P>,
    partition: usize,
    at: u64,
}

impl<P: Peer> LogReader for PeerReader<P> {
    async fn next(&mut self) -> Result<u64> {
        let (partition, at) = (self.partition, self.at);
        let records = self.log.call(move |peer| peer.read(partition, at)).await?;
        self.at += records;
        Ok(records)
    }
}

/// For peers that are not read.
#[cfg(any(feature = "okaywal", feature = "walrus"))]
fn not_read() -> Result<u64> {
    Err(Error::Peer("cannot be read again and again".to_owned()))
}

/// For a lock whose holder panicked.
#[cfg(any(feature = "commitlog", feature = "raft-engine"))]
fn poisoned<T>(_: std::sync::PoisonError<T>) -> Error {
    Error::Peer("another thread panicked in an append".to_owned())
}
