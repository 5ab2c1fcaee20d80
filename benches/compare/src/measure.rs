//! What is measured, and how it is summed up.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// One run of one workload by one contender.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) seconds: f64,
}

impl Run {
    pub(crate) fn until(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    pub(crate) latency_ns: Histogram<u64>,
}

/// Medians over the rounds.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) ops: f64,
    pub(crate) mib: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) cpu: f64,
}

/// What a workload does, in a line.
pub(crate) fn describe(workload: &str) -> &'static str {
    match workload {
        "W1" => "durable append, 1 producer, 1 KiB, one at a time",
        "W2" => "durable append, 64 producers, 1 partition, 1 KiB",
        "W3" => "durable append, 256 producers, 16 partitions, 1 KiB",
        "W4" => "durable batches of 64 x 1 KiB, 8 producers",
        "W5" => "`Written` appends of 64 KiB batches, 8 producers, one sync at the end, included",
        "W6" => "sequential read of 1 KiB records, every checksum verified, page cache warm",
        "WB" => "bridge alone: 64 callers, round trips without work",
        "WB1" => "bridge alone: 1 caller, round trips without work",
        _ => "unknown",
    }
}

/// Measures wall and CPU time from its creation on.
#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    cpu: Duration,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            cpu: cpu_time(),
        }
    }

    pub(crate) fn finish(self, latency_ns: Histogram<u64>, operations: u64, bytes: u64) -> Outcome {
        let elapsed = self.started.elapsed();
        let cpu = cpu_time().saturating_sub(self.cpu);
        Outcome {
            operations,
            bytes,
            elapsed,
            cpu,
            latency_ns,
        }
    }
}

/// A histogram of nanoseconds up to a minute, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3)
        .unwrap_or_else(|_| unreachable!("fixed bounds"))
}

/// CPU time of the whole process, user and system.
fn cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is a valid value, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let duration = |t: libc::timeval| {
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or(0))
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

#[expect(clippy::cast_precision_loss, reason = "figures for a table")]
fn float(n: u64) -> f64 {
    n as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Outcome {
    fn rate(&self) -> f64 {
        float(self.operations) / self.elapsed.as_secs_f64()
    }
}

/// Median of the ratios of rates, round by round.
pub(crate) fn median_ratio(a: &[Outcome], b: &[Outcome]) -> f64 {
    median(a.iter().zip(b).map(|(a, b)| a.rate() / b.rate()).collect())
}

pub(crate) fn summarize(outcomes: &[Outcome]) -> Summary {
    let over = |f: &dyn Fn(&Outcome) -> f64| median(outcomes.iter().map(f).collect());
    let quantile = |q: f64| over(&|o: &Outcome| float(o.latency_ns.value_at_quantile(q)) / 1_000.0);
    Summary {
        ops: over(&Outcome::rate),
        mib: over(&|o| float(o.bytes) / 1_048_576.0 / o.elapsed.as_secs_f64()),
        p50: quantile(0.5),
        p99: quantile(0.99),
        p999: quantile(0.999),
        cpu: over(&|o| o.cpu.as_secs_f64() * 1e6 / float(o.operations.max(1))),
    }
}
