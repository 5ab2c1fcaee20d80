//! The engine of Alluvium, a log-structured segment store that message queues embed.
//!
//! An append crosses to a shard thread, becomes part of a group commit, is written with its
//! checksums to the active segment, and is acknowledged when it is on stable media. The engine has
//! no runtime, no file system and no clock of its own: everything goes through [`io`], which a
//! backend implements. Embedding programs use the facade crate `alluvium`, which adds the
//! backends.
//!
//! # What an acknowledgement means
//!
//! | level | `append` returns when | survives `kill -9`, panic | survives power loss |
//! | --- | --- | --- | --- |
//! | [`Ack::Accepted`] | the shard has assigned offsets | no | no |
//! | [`Ack::Written`] | the write has completed | yes | no |
//! | [`Ack::Durable`] (default) | the batch and everything before it in the partition is on stable media | yes | yes |
//!
//! # Promises
//!
//! * **P1** A record acknowledged `Durable` is read back at its offset with its bytes after any crash.
//! * **P2** Acknowledgements of a partition come in offset order; log start <= durable <= log end
//!   always; all offsets below the durable offset are durable.
//! * **P3** A batch is atomic: after recovery it is whole or absent.
//! * **P4** Nothing is invented: every record visible after recovery was submitted by an append,
//!   once, in submission order. An unacknowledged one may be there.
//! * **P5** An offset that a reader, a subscriber or an acknowledgement has shown is never given to
//!   other data. Reads are limited to the durable offset unless the caller asks for
//!   [`Visibility::Visible`]; offsets acknowledged below `Durable` and lost are skipped, not reused.
//! * **P6** After `truncate_to(n)` has returned, no record at or above `n` from before comes back,
//!   whatever crashes follow; after `trim_before(n)`, none below.
//! * **P7** Damage inside the acknowledged region is reported, never hidden, and never repaired by
//!   cutting. The undamaged rest stays readable.
//! * **P8** A failed write or sync ends the write life of that partition alone; `reopen()` recovers
//!   it. A failed sync is never retried as if it could succeed.
//! * **P9** No space: appends that do not fit get [`Error::NoSpace`], certainly not applied; the
//!   partition heals by itself; trim and retention work on a full disk.
//! * **P10** Nobody hangs: every waiter gets an answer. Dropping an append's future neither cancels
//!   nor corrupts the write.
//! * **P11** One process owns a store directory: the second gets [`Error::AlreadyOpen`].
//!
//! Copy-on-write, network and memory file systems run, without the power-loss promise. Devices that
//! lie about their flush, and deliberate tampering, are out of scope.
//!
//! # Glossary
//!
//! | word | meaning |
//! | --- | --- |
//! | record | a value with optional key, headers and timestamp; has one offset |
//! | batch | records that are appended and recovered as one; may be opaque to the store |
//! | group | batches that are written by one write (group commit) |
//! | segment | one file of a log; the *active* one is appended to, the others are sealed |
//! | partition | one log, named by a 64-bit id |
//! | shard | a thread with an event loop that owns some of the partitions |
//! | base offset | offset of the first record of a batch or segment |
//! | log start offset, log end offset | the first readable offset, and the offset of the next record |
//! | durable offset | every record below it is on stable media |
//! | roll | moving appends to the next segment |
//! | seal | a small batch that says: everything before me is durable |
//! | trim, truncate | remove the prefix below an offset, the suffix from an offset on |
//! | retention | trimming by age or size |
//! | identity | random number of one use of a segment file; tells new bytes from old ones |
//! | generation | number of the writer; grows with each recovery and truncation |

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
mod sync;

#[cfg(all(test, alluvium_loom))]
#[path = "../../tests/concurrency/explore.rs"]
mod explore;
#[cfg(all(test, alluvium_loom))]
#[path = "../../tests/concurrency/offsets.rs"]
mod offsets_model;
#[cfg(all(test, alluvium_shuttle))]
#[path = "../../tests/concurrency/store/mod.rs"]
mod store_model;

pub use bridge::{
    AppendOptions, BlockingPool, Partition, PendingAppend, PoolError, SpawnThread, Subscription,
    TryAppendError,
};
pub use config::{OnCorruption, SealedReads, Shards, StoreConfig};
pub use error::{Corruption, CorruptionKind, Error, ErrorClass, IoError, Result};
pub use metrics::ShardStats;
pub use offset::Offsets;
pub use partition::{
    Ack, Appended, Fetched, InspectDetail, InspectRequest, InspectedBatch, InspectedSegment,
    Inspection, PartitionInfo, ReadLimits, Visibility,
};
pub use recovery::{
    BehindEnd, ChainEnd, DamageFacts, NewestSegment, Opening, PartitionReport, RecoveryReport,
    TailCase, TailFacts,
};
pub use store::{ConfiguredBuilder, OpenRequest, OpenStore, Store, StoreBuilder, StoreInfo};
