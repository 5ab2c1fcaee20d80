//! Opening a partition after anything: facts, then a decision, then the repair.
//!
//! 1. [`inventory`] fences writes of a dead process, opens every segment file and reads its header.
//! 2. [`plan`] is pure: it picks the newest header, follows the chain of predecessors, and
//!    classifies the tail by a labelled table. So is [`opening`]: from what is damaged and the
//!    policy it decides whether the partition is opened, and for what.
//!    [`damage`] notes what is damaged, and reads around it.
//! 3. [`apply`] makes what was found durable, puts unused files into the spare pool, and moves to a new
//!    segment where the tail demands it.
//! 4. [`report`] tells the caller what was found and done.
//!
//! Nothing is written before the decision stands, and what is written is idempotent: a crash during
//! recovery leaves a directory that recovers to the same log.

mod apply;
mod damage;
mod header;
mod inventory;
mod opening;
mod plan;
mod report;

pub(crate) use apply::{RecoveredLog, RecoveryContext, recover_partition};
pub(crate) use damage::Known;
pub(crate) use header::NextHeader;
pub(crate) use inventory::fence;
pub use opening::{DamageFacts, NewestSegment, Opening};
pub use plan::{BehindEnd, ChainEnd, TailCase, TailFacts};
pub use report::{PartitionReport, RecoveryReport};
