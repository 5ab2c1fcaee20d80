//! The engine of Alluvium.

pub mod format;
pub mod io;

mod bridge;
mod commit;
mod config;
mod error;
mod metrics;
mod offset;
mod partition;
mod recovery;
mod segment;
mod shard;
mod store;

pub use bridge::{
    AppendOptions, BlockingPool, Partition, PendingAppend, PoolError, SpawnThread, Subscription,
    TryAppendError,
};
pub use config::{OnCorruption, Shards, StoreConfig};
pub use error::{Corruption, CorruptionKind, Error, ErrorClass, IoError, Result};
pub use metrics::ShardStats;
pub use offset::Offsets;
pub use partition::{
    Ack, Appended, Fetched, InspectDetail, InspectRequest, InspectedBatch, InspectedSegment,
    Inspection, PartitionInfo, ReadLimits, Visibility,
};
pub use recovery::{PartitionReport, RecoveryReport, TailCase};
pub use store::{ConfiguredBuilder, OpenRequest, OpenStore, Store, StoreBuilder, StoreInfo};
