//! Why a comparison could not be made.

use std::io;
use std::path::{Path, PathBuf};

use crate::case::Case;

/// Result of a measurement.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no workload of that name.
    #[error("unknown workload `{name}`; there are {}", Case::names().join(", "))]
    UnknownWorkload {
        /// What was asked for.
        name: String,
    },
    /// The plan cannot be carried out as it stands.
    #[error("{setting} is {value}: {allowed}")]
    InvalidPlan {
        /// What is wrong.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The file system has no room for what would be written.
    #[error(
        "{} has {free_bytes} bytes free, the workloads may need {needed_bytes}", dir.display()
    )]
    NoSpace {
        /// Where the files would be.
        dir: PathBuf,
        /// What is free there, in bytes.
        free_bytes: u64,
        /// What the largest workload may need, in bytes.
        needed_bytes: u64,
    },
    /// An operation on a file failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// Alluvium failed.
    #[error(transparent)]
    Store(#[from] alluvium::Error),
    /// Another log failed, or read something else than was written.
    #[error("{0}")]
    Peer(String),
    /// A task of the driver ended before its time.
    #[error("a task of the workload failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The caller stopped the session.
    #[error("stopped")]
    Stopped,
    /// What failed, and in which workload.
    #[error("{contender}, {case}: {source}")]
    In {
        /// Who failed.
        contender: String,
        /// In which workload.
        case: Case,
        /// What came of it.
        source: Box<Error>,
    },
}

impl Error {
    /// An error of an operation on a file.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// An error of another log.
    pub fn peer(error: impl std::fmt::Display) -> Self {
        Self::Peer(error.to_string())
    }
}
