//! Errors that answer one question: what may the caller do now?

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::format::FormatError;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What happened to the request, and so what the caller may do.
///
/// | class | meaning | the caller may |
/// | --- | --- | --- |
/// | not applied | nothing happened and nothing will | retry, or correct the request |
/// | outcome unknown | the append may be in the log after a recovery | `reopen()`, read the log end |
/// | partition failed | this partition's write life is over | `reopen()` it; reads go on |
/// | corrupt | acknowledged bytes are damaged | restore a copy, or read around the damage |
/// | misuse | the request cannot be right | correct it |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Certainly not applied.
    NotApplied,
    /// May or may not be applied.
    OutcomeUnknown,
    /// The partition takes no writes until it is reopened. This request was not applied.
    PartitionFailed,
    /// Stored bytes are damaged.
    Corrupt,
    /// The request, path or configuration cannot be right. Not applied.
    Misuse,
}

/// An operating-system error that can be cloned to many waiters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoError {
    /// Portable kind.
    pub kind: io::ErrorKind,
    /// `errno`, where there is one.
    pub code: Option<i32>,
    message: String,
}

impl From<io::Error> for IoError {
    fn from(e: io::Error) -> Self {
        Self {
            kind: e.kind(),
            code: e.raw_os_error(),
            message: e.to_string(),
        }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for IoError {}

impl IoError {
    /// Whether the medium, or what the file system keeps on it, is bad: another try gives the same.
    pub(crate) fn is_of_the_medium(&self) -> bool {
        // EIO, ENODATA, EBADMSG, EILSEQ, EUCLEAN and EREMOTEIO of Linux: what block devices and file
        // systems answer.
        matches!(self.code, Some(5 | 61 | 74 | 84 | 117 | 121))
    }
}

/// Where stored bytes are damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The damaged file.
    pub path: PathBuf,
    /// Partition that it belongs to.
    pub partition: u64,
    /// Byte position of the first damaged structure in the file.
    pub position: u64,
    /// First offset that cannot be read.
    pub offset_start: u64,
    /// First offset after the damage that can be read again; `None` when that is not known.
    pub offset_end: Option<u64>,
    /// What was found.
    pub found: CorruptionKind,
}

/// What is wrong at the place of a [`Corruption`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptionKind {
    /// The bytes do not decode.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// A whole batch, but not the one that belongs here.
    #[error("a batch that does not belong here: {0}")]
    Misplaced(&'static str),
    /// A segment that the chain of segment headers names is not there.
    #[error("segment with identity {identity:#018x} is missing from the partition's directory")]
    MissingSegment {
        /// Identity that a later segment names as its predecessor.
        identity: u64,
    },
    /// The disk does not give the bytes by which a partition is opened.
    #[error("the disk does not give its bytes: {0}")]
    Unreadable(IoError),
    /// A file is shorter than its header or its successor says.
    #[error("the file ends at byte {len}, {needed} bytes are needed")]
    Shortened {
        /// Length found.
        len: u64,
        /// Length needed.
        needed: u64,
    },
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: damaged at byte {} (partition {}, offsets from {}",
            self.path.display(),
            self.position,
            self.partition,
            self.offset_start,
        )?;
        match self.offset_end {
            Some(end) => write!(f, " to {end}): {}", self.found),
            None => write!(f, "): {}", self.found),
        }
    }
}

/// Everything that can go wrong; [`class`](Self::class) says what a caller may do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range.
    #[error("setting {setting} is {value}, allowed is {allowed}")]
    InvalidConfig {
        /// Name of the setting.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The backend that was asked for does not work here.
    #[error("{why}")]
    BackendUnavailable {
        /// Its name.
        name: String,
        /// Why not, and what to do.
        why: String,
    },
    /// There is no store at this path.
    #[error("{}: {why}", path.display())]
    NotAStore {
        /// The path given.
        path: PathBuf,
        /// What was found instead, and what to do.
        why: &'static str,
    },
    /// Another process (or another `Store` in this one) has it open.
    #[error(
        "{}: the store is open in another process or handle; close that one first",
        path.display()
    )]
    AlreadyOpen {
        /// The store's directory.
        path: PathBuf,
    },
    /// A segment file is still locked: a dead process's writes have not landed yet.
    #[error(
        "{}: still locked after {waited_ms} ms; writes of an earlier process are in flight, or \
         another process holds the file",
        path.display()
    )]
    Fenced {
        /// The file.
        path: PathBuf,
        /// How long the lock was waited for, in milliseconds.
        waited_ms: u64,
    },
    /// Written by a newer version of this library.
    #[error(
        "{}: format version {found}, this library reads up to {supported}; upgrade the library",
        path.display()
    )]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Version found in it.
        found: u16,
        /// Newest version that this library reads.
        supported: u16,
    },
    /// Damage in stored bytes that were, or may have been, acknowledged.
    #[error("{0}")]
    Corrupt(Box<Corruption>),
    /// The operating system refused something; nothing was changed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: IoError,
    },
    /// No room on the disk for another segment. Not applied; works again when there is space.
    #[error("{}: no space left for another segment; free space or trim, then retry", path.display())]
    NoSpace {
        /// The partition's directory.
        path: PathBuf,
    },
    /// No partition of this id.
    #[error("partition {id} does not exist; create it first")]
    PartitionNotFound {
        /// The id asked for.
        id: u64,
    },
    /// A partition of this id is there already.
    #[error("partition {id} exists already")]
    PartitionExists {
        /// The id asked for.
        id: u64,
    },
    /// The partition is being created or deleted right now.
    #[error("partition {id} is being created or deleted; retry when that is done")]
    PartitionBusy {
        /// The id asked for.
        id: u64,
    },
    /// A write or sync of this partition failed earlier; it takes no more writes.
    #[error("partition {id} has failed ({cause}); reopen() it to recover, reads go on")]
    PartitionFailed {
        /// The partition.
        id: u64,
        /// The first failure.
        cause: IoError,
    },
    /// The write was submitted and then failed: after a recovery it may be there or not.
    #[error("partition {id}: outcome unknown ({cause}); reopen() it and read the log end")]
    OutcomeUnknown {
        /// The partition.
        id: u64,
        /// Why.
        cause: IoError,
    },
    /// Deleting the partition failed half-way: it takes no requests any more, and is there or not
    /// after the next opening. Deleting it once more may succeed.
    #[error("partition {id}: closed, but not known to be deleted ({cause}); delete it again")]
    DeletionUnknown {
        /// The partition.
        id: u64,
        /// Why.
        cause: IoError,
    },
    /// The store or partition was opened for reading only.
    #[error("partition {id} is open for reading only")]
    ReadOnly {
        /// The partition.
        id: u64,
    },
    /// A batch that can never fit.
    #[error("a batch of {size_bytes} bytes is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// Encoded size.
        size_bytes: usize,
        /// Largest size that is accepted.
        limit_bytes: usize,
    },
    /// Control batches are the log's own: recovery believes them.
    #[error("a control batch cannot be appended; append records or an opaque batch")]
    ControlBatch,
    /// An offset outside of what the partition holds. A reader goes on at `start`: after a trim that
    /// failed half-way it may be above what [`Partition::offsets`](crate::Partition::offsets) tells.
    /// An append gets it when there are no offsets left; only forged headers bring a log there.
    #[error("offset {requested} is outside of {start} to {end}")]
    OutOfRange {
        /// The offset asked for.
        requested: u64,
        /// Log start offset.
        start: u64,
        /// End of what may be read at the requested visibility.
        end: u64,
    },
    /// `append_at` found another log end than the caller expected. Not applied.
    #[error("append expected the log to end at {expected}, it ends at {actual}")]
    WrongOffset {
        /// What the caller expected.
        expected: u64,
        /// Where the log ends.
        actual: u64,
    },
    /// A truncation would split an opaque batch, which is one unit.
    #[error(
        "offset {requested} lies inside the opaque batch [{base}, {end}); truncate at its start"
    )]
    InsideOpaqueBatch {
        /// The offset asked for.
        requested: u64,
        /// Start of the batch.
        base: u64,
        /// End of the batch.
        end: u64,
    },
    /// The mailbox is full. Not applied; retry, or wait with `append`.
    #[error("the shard's mailbox is full ({what}); retry later")]
    Full {
        /// Which bound was hit.
        what: &'static str,
    },
    /// The store is closing or closed. Not applied.
    #[error("the store is closed")]
    Closed,
    /// The store was closed, or its last handle dropped, while the request was under way.
    #[error("the store was closed while the request was under way")]
    ClosedInFlight,
    /// `close` did not finish in time. What is acknowledged stays durable; the shards go on.
    #[error("the store did not close within {waited_ms} ms; what was acknowledged is safe")]
    CloseTimeout {
        /// The deadline given.
        waited_ms: u64,
    },
    /// A shard thread ended by a panic. Reopen the store.
    #[error("shard {shard} has died; drop the store and open it again")]
    ShardDead {
        /// Index of the shard.
        shard: usize,
    },
}

impl Error {
    /// What happened, as a class that decides what the caller may do.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NoSpace { .. }
            | Self::Full { .. }
            | Self::PartitionBusy { .. }
            | Self::Closed
            | Self::AlreadyOpen { .. }
            | Self::Fenced { .. }
            | Self::WrongOffset { .. }
            | Self::Io { .. } => ErrorClass::NotApplied,
            Self::OutcomeUnknown { .. }
            | Self::DeletionUnknown { .. }
            | Self::ShardDead { .. }
            | Self::ClosedInFlight
            | Self::CloseTimeout { .. } => ErrorClass::OutcomeUnknown,
            Self::PartitionFailed { .. } => ErrorClass::PartitionFailed,
            Self::Corrupt(_) => ErrorClass::Corrupt,
            Self::InvalidConfig { .. }
            | Self::BackendUnavailable { .. }
            | Self::NotAStore { .. }
            | Self::UnsupportedVersion { .. }
            | Self::PartitionNotFound { .. }
            | Self::PartitionExists { .. }
            | Self::ReadOnly { .. }
            | Self::TooLarge { .. }
            | Self::ControlBatch
            | Self::OutOfRange { .. }
            | Self::InsideOpaqueBatch { .. } => ErrorClass::Misuse,
        }
    }

    /// Whether the very same request may succeed later, without any other step.
    ///
    /// ```
    /// use alluvium_core::Error;
    /// assert!(Error::Full { what: "bytes" }.is_retriable());
    /// assert!(!Error::PartitionNotFound { id: 7 }.is_retriable());
    /// ```
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NoSpace { .. }
            | Self::Full { .. }
            | Self::PartitionBusy { .. }
            | Self::AlreadyOpen { .. }
            | Self::Fenced { .. } => true,
            Self::Io { source, .. } => {
                matches!(
                    source.kind,
                    io::ErrorKind::Interrupted
                        | io::ErrorKind::WouldBlock
                        | io::ErrorKind::OutOfMemory
                        | io::ErrorKind::StorageFull
                ) || matches!(source.code, Some(23 | 24))
            } // ENFILE, EMFILE
            _ => false,
        }
    }

    /// Whether the request certainly changed nothing.
    pub fn is_not_applied(&self) -> bool {
        !matches!(self.class(), ErrorClass::OutcomeUnknown)
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source: source.into(),
        }
    }

    pub(crate) fn corrupt(corruption: Corruption) -> Self {
        Self::Corrupt(Box::new(corruption))
    }

    /// Whether the cause is a full disk or an exhausted quota.
    pub(crate) fn is_no_space(error: &io::Error) -> bool {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) || matches!(error.raw_os_error(), Some(28 | 122)) // ENOSPC, EDQUOT
    }
}
