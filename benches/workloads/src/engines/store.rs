//! Alluvium on one of its backends, with its default settings where a workload names none.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alluvium::backends::BackendKind;
use alluvium::format::Batch;
use alluvium::{Ack, Partition, ReadLimits, SealedReads, Shards, Store, Visibility};

use crate::case::Workload;
use crate::contender::Role;
use crate::engine::{AtAck, Engine, Level, Log, LogReader, Payload, Setup};
use crate::error::{Error, Result};

/// How long closing may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether a crashed store has let go of its files.
const CRASH_POLL: Duration = Duration::from_millis(1);
/// Often enough that files are free again before they are needed.
const RETENTION_INTERVAL: Duration = Duration::from_millis(20);
/// What a reader asks for at a time.
const READ_BYTES: usize = 4 << 20;

/// Alluvium on a backend.
#[derive(Debug, Clone)]
pub struct Alluvium {
    backend: BackendKind,
    sealed_reads: SealedReads,
    cores: Arc<[usize]>,
}

impl Alluvium {
    /// On this backend.
    pub fn new(backend: BackendKind) -> Self {
        Self {
            backend,
            sealed_reads: SealedReads::Direct,
            cores: Arc::default(),
        }
    }

    /// The same, with sealed segments read through memory maps; for the workloads that read.
    #[must_use]
    pub fn mapped(self) -> Self {
        Self {
            sealed_reads: SealedReads::Mmap,
            ..self
        }
    }

    /// The same, with a shard pinned to each of these cores; with none, placed as by default.
    #[must_use]
    pub fn on_cores(self, cores: &[usize]) -> Self {
        Self {
            cores: cores.into(),
            ..self
        }
    }

    /// On each backend that is compiled in and works here, best first.
    pub fn all() -> Vec<Self> {
        let works = |kind: &BackendKind| kind.resolve().is_ok();
        let kinds = BackendKind::CONCRETE.into_iter().filter(works);
        kinds.map(Self::new).collect()
    }
}

impl Engine for Alluvium {
    type Log = StoreLog;

    fn name(&self) -> String {
        let mut name = format!("alluvium/{}", self.backend);
        if !self.cores.is_empty() {
            let cores: Vec<_> = self.cores.iter().map(ToString::to_string).collect();
            name = format!("{name}@{}", cores.join(","));
        }
        if self.sealed_reads == SealedReads::Mmap {
            name.push_str(" mmap");
        }
        name
    }

    fn role(&self) -> Role {
        Role::Store
    }

    fn at_ack(&self) -> AtAck {
        AtAck::Durable
    }

    fn runs(&self, workload: Workload) -> bool {
        let reads = matches!(workload, Workload::W6 | Workload::W6c);
        reads || self.sealed_reads == SealedReads::Direct
    }

    fn recycles(&self) -> bool {
        true
    }

    async fn open(&self, setup: &Setup) -> Result<StoreLog> {
        let path = setup.dir.join("store");
        let (store, _) = Store::builder(&path)
            .configure(|config| {
                config.sealed_reads = self.sealed_reads;
                if !self.cores.is_empty() {
                    config.shards = Shards::Cores(self.cores.to_vec());
                }
                // Maps are to show the page cache.
                let own_cache = self.sealed_reads == SealedReads::Direct;
                if let Some(bytes) = setup.cache_bytes.filter(|_| own_cache) {
                    config.tail_cache_bytes_max = bytes;
                }
                if let Some(bytes) = setup.retention_bytes {
                    config.retention_bytes = Some(bytes);
                    config.retention_interval = RETENTION_INTERVAL;
                }
                if let Some(bytes) = setup.segment_bytes {
                    config.segment_bytes = bytes;
                    let quarter = u32::try_from(bytes / 4).unwrap_or(u32::MAX);
                    config.initialise_ahead_bytes = config.initialise_ahead_bytes.min(quarter);
                }
            })
            .backend(self.backend)
            .open()
            .await?;
        let mut creating = Vec::new();
        for id in 0..setup.partitions as u64 {
            let store = store.clone();
            creating.push(tokio::spawn(
                async move { store.partition_or_create(id).await },
            ));
        }
        let mut partitions = Vec::new();
        for created in creating {
            partitions.push(created.await??);
        }
        Ok(StoreLog {
            store,
            partitions: partitions.into(),
            path,
            backend: self.backend,
        })
    }
}

/// An open store with its partitions.
#[derive(Debug, Clone)]
pub struct StoreLog {
    store: Store,
    partitions: Arc<[Partition]>,
    path: PathBuf,
    backend: BackendKind,
}

impl Log for StoreLog {
    type Reader = PartitionReader;

    async fn append(&self, partition: usize, payload: &Payload, level: Level) -> Result<()> {
        let values = std::iter::repeat_n(payload.value(), payload.records());
        let batch = Batch::from_values(values).map_err(Error::peer)?;
        let ack = match level {
            Level::Written => Ack::Written,
            Level::Durable => Ack::Durable,
        };
        self.partitions[partition].append_with(batch, ack).await?;
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        Ok(self.store.sync_many(&self.partitions).await?)
    }

    async fn reader(&self, partition: usize) -> Result<PartitionReader> {
        let partition = self.partitions[partition].clone();
        Ok(PartitionReader {
            at: partition.offsets().log_start(),
            partition,
        })
    }

    async fn ping(&self) -> Result<()> {
        Ok(self.partitions[0].ping().await?)
    }

    async fn close(self) -> Result<()> {
        Ok(self.store.close(CLOSE_PATIENCE).await?)
    }

    async fn crash(self) -> Result<()> {
        let Self {
            store,
            partitions,
            path,
            backend,
        } = self;
        drop((store, partitions));
        // Its shards end by themselves; looking does not change what they left.
        loop {
            let looking = Store::builder(&path).read_only().backend(backend);
            match looking.open().await {
                Ok((store, _)) => return Ok(store.close(CLOSE_PATIENCE).await?),
                Err(alluvium::Error::AlreadyOpen { .. }) => tokio::time::sleep(CRASH_POLL).await,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Reads a partition by offset.
#[derive(Debug)]
pub struct PartitionReader {
    partition: Partition,
    at: u64,
}

impl LogReader for PartitionReader {
    async fn next(&mut self) -> Result<u64> {
        let limits = ReadLimits {
            bytes_max: READ_BYTES,
            ..ReadLimits::default()
        };
        let fetched = self
            .partition
            .read(self.at, limits, Visibility::Durable)
            .await?;
        let mut records = 0;
        for view in fetched.batches.iter().flat_map(|batch| batch.views()) {
            std::hint::black_box(view.map_err(Error::peer)?.value);
            records += 1;
        }
        self.at = fetched.next_offset;
        Ok(records)
    }
}
