//! What is measured in one run, and the clock and counters that do it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::error::{Error, Result};
use crate::syscalls::SyscallCounter;

/// Lets somebody else end a session early. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends the session: what is under way ends soon, with [`Error::Stopped`].
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the session is to end.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_stopped() {
            Err(Error::Stopped)
        } else {
            Ok(())
        }
    }
}

/// How much data the workloads handle, in bytes.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// What W6 and W6c read, and what the reader of WT reads again and again.
    pub read_bytes: u64,
    /// What the partition of W7 holds, one case each.
    pub reopen_bytes: Vec<u64>,
    /// What a run of a workload appends at most, whatever its time.
    pub append_bytes_max: u64,
    /// The file that the raw disk is measured on; all of it is written before.
    pub raw_file_bytes: u64,
    /// The files that a log which recycles its files goes round in, in the closed loops.
    pub recycled_bytes: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            read_bytes: 256 << 20,
            reopen_bytes: vec![256 << 20],
            append_bytes_max: 4 << 30,
            raw_file_bytes: 256 << 20,
            recycled_bytes: 256 << 20,
        }
    }
}

/// One run of one case by one contender.
#[derive(Debug)]
pub struct Run {
    /// A directory of its own.
    pub dir: PathBuf,
    /// How long it is measured.
    pub duration: Duration,
    /// How much data it handles.
    pub sizes: Sizes,
    /// Appends per second in WT.
    pub rate: Option<f64>,
    /// Ends it early.
    pub stop: Stop,
    /// Counts system calls, where that is allowed.
    pub syscalls: Arc<SyscallCounter>,
}

impl Run {
    /// Starts the clock: the moment when the measured part is over.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline {
            at: Instant::now() + self.duration,
            stop: self.stop.clone(),
        }
    }

    pub(crate) fn meter(&self) -> Meter {
        Meter {
            syscalls: self.syscalls.read(),
            counter: Arc::clone(&self.syscalls),
            cpu: cpu_time(),
            started: Instant::now(),
        }
    }
}

/// When a loop ends.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    at: Instant,
    stop: Stop,
}

impl Deadline {
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.at || self.stop.is_stopped()
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Operations, see [`Case::operation`](crate::Case::operation).
    pub operations: u64,
    /// Bytes of records in them.
    pub bytes: u64,
    /// Wall time.
    pub elapsed: Duration,
    /// CPU time of the process, user and system.
    pub cpu: Duration,
    /// System calls of the process, where they can be counted.
    pub syscalls: Option<u64>,
    /// Latencies in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// Operations per second that were asked for, in an open loop.
    pub offered_per_s: Option<f64>,
}

impl Outcome {
    /// Adds what another part of the same run has measured.
    pub(crate) fn absorb(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
        self.cpu += other.cpu;
        self.syscalls = self.syscalls.zip(other.syscalls).map(|(a, b)| a + b);
        merge(&mut self.latency_ns, &other.latency_ns);
    }
}

/// Measures wall time, CPU time and system calls from its creation on.
#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    cpu: Duration,
    syscalls: Option<u64>,
    counter: Arc<SyscallCounter>,
}

impl Meter {
    pub(crate) fn finish(self, latency_ns: Histogram<u64>, operations: u64, bytes: u64) -> Outcome {
        let elapsed = self.started.elapsed();
        let cpu = cpu_time().saturating_sub(self.cpu);
        let now = self.counter.read();
        Outcome {
            operations,
            bytes,
            elapsed,
            cpu,
            syscalls: now.zip(self.syscalls).map(|(b, a)| b.saturating_sub(a)),
            latency_ns,
            offered_per_s: None,
        }
    }
}

/// A histogram of nanoseconds up to ten minutes, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3)
        .unwrap_or_else(|_| unreachable!("fixed bounds"))
}

/// Notes the time since `started`.
pub(crate) fn record(latency: &mut Histogram<u64>, started: Instant) {
    latency.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

/// Adds a histogram of the same bounds.
pub(crate) fn merge(into: &mut Histogram<u64>, other: &Histogram<u64>) {
    into.add(other)
        .unwrap_or_else(|_| unreachable!("all have the same bounds"));
}

/// CPU time of the whole process, user and system.
pub fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}
