//! What a simulated machine is like.

use std::time::Duration;

/// Bounds of a latency; drawn evenly between them, and ten times as long once in 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// The shortest.
    pub min: Duration,
    /// The longest of the usual ones.
    pub max: Duration,
}

impl Latency {
    /// Bounds in microseconds.
    pub const fn micros(min: u64, max: u64) -> Self {
        Self {
            min: Duration::from_micros(min),
            max: Duration::from_micros(max),
        }
    }
}

/// The machine that a [`Sim`](super::Sim) simulates. Every field is free to be changed.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Fixes everything that chance decides.
    pub seed: u64,
    /// Of reads.
    pub read: Latency,
    /// Of writes.
    pub write: Latency,
    /// Of durable writes.
    pub write_durable: Latency,
    /// Of syncs of a file.
    pub sync: Latency,
    /// Of operations on directories and on a file's length.
    pub metadata: Latency,
    /// Virtual time that one step of a task takes.
    pub step: Duration,
    /// How long after the death of its process an operation may still land.
    pub zombie_delay_max: Duration,
    /// Size of the disk.
    pub capacity_bytes: u64,
    /// Alignment of direct transfers, in bytes: a power of two.
    pub alignment: u32,
    /// Whether files may be opened for direct I/O; `EINVAL` otherwise.
    pub direct_io: bool,
    /// Open descriptors before `EMFILE`.
    pub descriptors_max: usize,
    /// How many reads and writes in 1,000 come back short.
    pub short_per_mille: u64,
    /// How many reads and writes in 1,000 come back with `EINTR`.
    pub interrupted_per_mille: u64,
    /// The trace covers the bytes that are written and read, too, and the names. Slower.
    pub trace_bytes: bool,
    /// Negative control: durable writes and syncs report success and make nothing durable.
    pub lying_flush: bool,
    /// A panic of a task of a shard ends that shard and is counted, instead of leaving `block_on`.
    /// Violations of the seam's contract always leave it.
    pub catch_panics: bool,
    /// Virtual time that one run may take before it is stopped as hanging.
    pub run_time_max: Duration,
    /// Steps that one run may take before it is stopped as hanging.
    pub run_steps_max: u64,
}

impl SimConfig {
    /// The usual machine: a fast disk of 1 GiB, direct I/O at 512 bytes, no faults.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            read: Latency::micros(20, 200),
            write: Latency::micros(10, 100),
            write_durable: Latency::micros(30, 300),
            sync: Latency::micros(50, 500),
            metadata: Latency::micros(5, 50),
            step: Duration::from_nanos(200),
            zombie_delay_max: Duration::from_millis(500),
            capacity_bytes: 1 << 30,
            alignment: 512,
            direct_io: true,
            descriptors_max: 1024,
            short_per_mille: 0,
            interrupted_per_mille: 0,
            trace_bytes: false,
            lying_flush: false,
            catch_panics: false,
            run_time_max: Duration::from_secs(3600),
            run_steps_max: 100_000_000,
        }
    }
}
