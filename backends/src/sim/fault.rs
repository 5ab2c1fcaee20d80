//! Scripted faults: what shall happen to which operation.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

/// How a scripted crash happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashKind {
    /// The process that issued the operation is killed; the disk goes on.
    Kill,
    /// The machine loses power.
    PowerLoss,
}

/// When a scripted crash happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When its operation begins: it is in flight.
    Begin,
    /// After the effect of its operation and before its report.
    End,
}

/// What becomes of one data operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing special.
    Fine,
    /// Fails; of a write, any part may have landed.
    Fails(Errno),
    /// `EINTR`, nothing done.
    Interrupted,
    /// Only so many bytes are transferred.
    Short(usize),
    /// Reported as done, not done.
    Lost,
    /// Reported as done, done elsewhere in the file.
    Misdirected,
}

/// The script.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// By number of the counted operation.
    pub(super) fail: BTreeMap<u64, Errno>,
    /// By number of the read.
    pub(super) fail_reads: BTreeMap<u64, Errno>,
    /// Without a moment, chance decides.
    pub(super) crash: Option<(u64, CrashKind, Option<Moment>)>,
    /// By number of the call, of every kind.
    pub(super) fail_calls: BTreeMap<u64, Errno>,
    pub(super) short_calls: BTreeSet<u64>,
    /// By number of the write.
    pub(super) lost: BTreeSet<u64>,
    pub(super) misdirected: BTreeSet<u64>,
    pub(super) stalled: bool,
}

/// What has been done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Writes that are not durable by themselves.
    pub writes: u64,
    /// Durable writes.
    pub durable_writes: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// Syncs of directories.
    pub dir_syncs: u64,
    /// Creations, renames and removals.
    pub dir_changes: u64,
    /// Allocations and changes of length.
    pub length_changes: u64,
    /// Bytes that reads have returned.
    pub bytes_read: u64,
    /// Bytes that writes were given.
    pub bytes_written: u64,
    /// Writes of living processes that were in flight at the last crash.
    pub in_flight_at_crash: u64,
    /// Panics of tasks that were caught.
    pub panics_caught: u64,
    /// Times that somebody began to wait for the clock.
    pub sleeps: u64,
}
