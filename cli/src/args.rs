//! The command line.

use std::path::PathBuf;

use alluvium::BackendKind;
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::target::Target;

/// Looks at Alluvium stores, verifies and repairs them, appends to them and reads them.
#[derive(Debug, Parser)]
#[command(
    name = "alluvium",
    version,
    after_help = "Exit codes: 0 done (verify: clean), 1 damage was found, 2 could not run."
)]
pub(crate) struct Cli {
    /// The store's directory; for `compare` (there the current one when missing) and `stress` one to
    /// make temporary stores in
    #[arg(long, global = true, env = "ALLUVIUM_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What the store runs on: auto, uring, compio, tokio or glommio, as far as compiled in
    #[arg(long, global = true, env = "ALLUVIUM_BACKEND", default_value = "auto")]
    backend: BackendKind,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    pub(crate) fn target(&self) -> Target {
        Target::new(self.dir.clone(), self.backend)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    OnOneThread(StoreCommand),
    /// Measures the backends here against the disk itself, and the plain way
    Compare(CompareArgs),
    /// Loads a store for a while and watches memory, descriptors and pauses
    Stress(StressArgs),
}

/// What is done with one store, on one thread.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Tells which backends work here and what the file system offers, and why the rest does not
    Probe,
    /// Appends records from a file or standard input; creates store and partition when missing
    Append(AppendArgs),
    /// Prints records
    Read(ReadArgs),
    /// Prints the last records, and with --follow those that come
    Tail(TailArgs),
    /// Shows partitions, segments and batches as they are on the disk
    Inspect(InspectArgs),
    /// Checks every checksum of every segment in use; changes nothing
    Verify(VerifyArgs),
    /// Shows what a repair would cut; cuts damaged partitions with --apply
    Repair(RepairArgs),
}

/// How records are told apart in a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Lines,
    LengthPrefixed,
}

#[derive(Debug, Args)]
pub(crate) struct AppendArgs {
    /// Partition to append to; created when it is missing
    #[arg(long, short, default_value_t = 0)]
    pub(crate) partition: u64,

    /// Records are preceded by their length (32 bits, little-endian) instead of ended by a newline
    #[arg(long)]
    length_prefixed: bool,

    /// Records per batch; a batch is one atomic append
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,

    /// Batches that may be unacknowledged at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) inflight: u32,

    /// How far a batch must have come to count as acknowledged
    #[arg(long, value_enum, default_value_t = AckLevel::Durable)]
    pub(crate) ack: AckLevel,

    /// Skip as many records of the input as the partition already holds. Only for partitions that
    /// were filled from this very input
    #[arg(long)]
    pub(crate) resume: bool,

    /// After each acknowledgement, write the acknowledged end offset to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) acked_to: Option<PathBuf>,

    /// Size of new segment files
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) segment_bytes: ByteSize,

    /// Input; standard input when missing or `-`
    pub(crate) file: Option<PathBuf>,
}

impl AppendArgs {
    pub(crate) fn framing(&self) -> Framing {
        if self.length_prefixed {
            Framing::LengthPrefixed
        } else {
            Framing::Lines
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AckLevel {
    /// Offsets are assigned; a crash loses it
    Accepted,
    /// Written; survives the death of the process
    Written,
    /// On stable media
    Durable,
}

impl From<AckLevel> for alluvium::Ack {
    fn from(level: AckLevel) -> Self {
        match level {
            AckLevel::Accepted => Self::Accepted,
            AckLevel::Written => Self::Written,
            AckLevel::Durable => Self::Durable,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordFormat {
    /// The value and a newline
    Raw,
    /// The value behind its length (32 bits, little-endian)
    LengthPrefixed,
    /// One JSON object per line, with offset, timestamp, key and headers
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    /// Partition to read
    #[arg(long, short, default_value_t = 0)]
    pub(crate) partition: u64,

    /// First offset; the log start when missing
    #[arg(long, conflicts_with = "from_timestamp")]
    pub(crate) from: Option<u64>,

    /// Start at the first record of this time or later, in milliseconds since 1970
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub(crate) from_timestamp: Option<i64>,

    /// At most so many records
    #[arg(long, short)]
    pub(crate) count: Option<u64>,

    /// How records are printed
    #[arg(long, value_enum, default_value_t = RecordFormat::Raw)]
    pub(crate) format: RecordFormat,

    /// Go on behind damaged places; each is reported on standard error
    #[arg(long)]
    pub(crate) skip_damaged: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// Partition to read
    #[arg(long, short, default_value_t = 0)]
    pub(crate) partition: u64,

    /// Start so many records before the end
    #[arg(long, short = 'n', default_value_t = 10)]
    pub(crate) records: u64,

    /// Wait for more, until interrupted. A store that another process has open for writing is
    /// looked at when that one closes it
    #[arg(long, short)]
    pub(crate) follow: bool,

    /// How records are printed
    #[arg(long, value_enum, default_value_t = RecordFormat::Raw)]
    pub(crate) format: RecordFormat,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Only this partition
    #[arg(long, short)]
    pub(crate) partition: Option<u64>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Leave the batches out
    #[arg(long)]
    pub(crate) segments_only: bool,

    /// Show every batch in tables, not only the first and last of each segment
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Only this partition
    #[arg(long, short)]
    pub(crate) partition: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// Only this partition
    #[arg(long, short)]
    pub(crate) partition: Option<u64>,

    /// Cut. Without it nothing is changed
    #[arg(long)]
    pub(crate) apply: bool,

    /// Where the files that a cut touches are copied first; outside of the store's directory. By
    /// default beside it, `<DIR>.repair-<unix seconds>`
    #[arg(long, value_name = "DIR")]
    pub(crate) backup_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Workloads: W1 one producer; W2 64 producers, one partition; W3 256 producers, 16 partitions; W3k \
1,000 of both; W4 batches of 64; W5 acknowledged when written; W6 reading from memory, W6c from \
the disk; W7 opening after a crash; WT latency under half the load of W2 while a reader catches \
up; WB round trips without work. One case of them: WB/64, W3k/100, W7/1024MiB.\n\n\
Every figure is a median over the rounds, which take the contenders in turns.")]
pub(crate) struct CompareArgs {
    /// Backends to measure; all that work here when missing
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) backends: Vec<BackendKind>,

    /// Pin the stores' shards to these cores, one to each; otherwise they are placed as by default
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) cores: Vec<usize>,

    /// Workloads to run; all when missing
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) workloads: Vec<String>,

    /// Also measure this
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) against: Vec<Against>,

    /// Rounds [default: 5, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,

    /// Measured seconds per workload, contender and round [default: 1, with --quick 0.25]
    #[arg(long, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,

    /// Less than a minute in total: one short round, little data, and W3k only when it is named
    #[arg(long)]
    pub(crate) quick: bool,

    /// What W6, W6c and the reader of WT read [default: 256MiB, with --quick 32MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) read_size: Option<ByteSize>,

    /// What the partition of W7 holds; a list [default: 256MiB, with --quick 32MiB]
    #[arg(long, value_delimiter = ',', value_name = "SIZES")]
    pub(crate) reopen_size: Vec<ByteSize>,

    /// Write every figure of every round to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write a page with the curves of the latencies to this file; it needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Measure on a file system in memory, where nothing is durable
    #[arg(long)]
    pub(crate) allow_tmpfs: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A new store below --dir takes durable appends of 1 KiB, rolls and recycles its segments, and is \
removed in the end. An append of more than 10 ms is held against a second file that is written \
durably meanwhile, against the store's own durable writes as they were timed below the engine, \
against the shard's system calls that give the disk something to do, against a thread on each core \
that only sleeps (in front of all others, for root), and against the time that the shard waited for \
a core: what none of them saw for a third of the append's time is our own, and is told.")]
pub(crate) struct StressArgs {
    /// How long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) seconds: u64,

    /// Tasks that append, each one record at a time; with 0 the store is watched at rest
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) producers: u32,

    /// Seconds between two lines
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) interval: u64,

    /// Size of the segment files
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) segment_bytes: ByteSize,

    /// What retention keeps
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub(crate) retention_bytes: ByteSize,
}

/// What stores can be measured against, beside the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    /// One `tokio::fs` file per partition behind a mutex, a sync per append
    Naive,
}

/// Seconds that make sense as a duration.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n > 0.0 && n <= 3_600.0 => Ok(n),
        _ => Err("seconds are a number above 0, up to 3600".to_owned()),
    }
}
