//! The engine of Alluvium.

pub mod format;
pub mod io;

mod commit;
mod config;
mod error;
mod metrics;
mod offset;
mod partition;
mod recovery;
mod segment;

pub use config::{OnCorruption, Shards, StoreConfig};
pub use error::{Corruption, CorruptionKind, Error, ErrorClass, IoError, Result};
pub use metrics::ShardStats;
pub use offset::Offsets;
pub use partition::{Ack, Appended, Fetched, PartitionInfo, ReadLimits, Visibility};
pub use recovery::{PartitionReport, RecoveryReport, TailCase};
