//! The workloads that Alluvium is measured with, and who they are run against.
//!
//! `alluvium compare` and the peers' comparison in `benches/compare` both run these: a
//! [`Session`] takes [`Contender`]s round by round through [`Case`]s and sums up in a [`Report`].
//! Each workload stands beside what bounds it, measured in the same round: the disk itself
//! ([`RawDisk`]), or a scan of the same bytes ([`ChecksumScan`]).
//!
//! How it is measured:
//!
//! * A round runs every contender once, one after the other, and each round begins with another
//!   one, so that drift of the machine hits all alike. Ratios are taken within a round; their
//!   median is told.
//! * Throughput comes from a closed loop: producers are tasks on the caller's tokio runtime, as
//!   those of an embedding program are, and each waits for its answer.
//! * Latency under load (WT) comes from an open loop: arrivals do not wait for answers, and the
//!   latency counts from the moment an append was due.
//! * CPU time is that of the whole process, producers included.
//! * Payloads are random bytes: nobody gains by compressing them.

mod case;
mod contender;
mod drive;
mod engine;
mod engines;
mod error;
mod machine;
mod measure;
mod raw;
mod report;
mod session;
mod syscalls;

pub use case::{Case, Workload};
pub use contender::{Contender, Driven, Role};
pub use engine::{AtAck, Engine, Level, Log, LogReader, Payload, RECORD_LEN, Setup};
pub use engines::{Alluvium, Naive};
pub use error::{Error, Result};
pub use machine::Machine;
pub use measure::cpu_time;
pub use measure::{Outcome, Run, Sizes, Stop};
pub use raw::{ChecksumScan, RawDisk};
pub use report::{CaseReport, ContenderReport, Figures, Report, Table, micros};
pub use session::{Plan, Session, Step};
pub use syscalls::SyscallCounter;
