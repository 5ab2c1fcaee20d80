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
    /// The store's directory
    #[arg(long, global = true, env = "ALLUVIUM_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What the store runs on: auto, tokio, compio or uring
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
