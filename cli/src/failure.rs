//! What a command ends with: an outcome or a failure, and their exit codes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alluvium::ErrorClass;

use crate::output::{command, complain};

/// How a command that could run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Stored bytes are damaged (and were told on standard output).
    Damaged,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Damaged => Self::from(DAMAGE),
        }
    }
}

const DAMAGE: u8 = 1;
const COULD_NOT_RUN: u8 = 2;

/// Why a command could not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    Store(alluvium::Error),
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Standard output is gone or full.
    Output(io::Error),
    Compare(alluvium_workloads::Error),
    Other(String),
}

impl Failure {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Tells standard error, and gives the exit code.
    pub(crate) fn report(&self, store: Option<&Path>) -> ExitCode {
        match self {
            // Whoever read our output has seen enough.
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Store(e) if e.class() == ErrorClass::Corrupt => {
                complain(&format!("alluvium: {self}"));
                let dir = store.unwrap_or(Path::new("DIR"));
                complain(&format!(
                    "all damage: {}\na remedy:   {}",
                    command(dir, "verify"),
                    command(dir, "repair"),
                ));
                ExitCode::from(DAMAGE)
            }
            _ => {
                complain(&format!("alluvium: {self}"));
                ExitCode::from(COULD_NOT_RUN)
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(e) => write_chain(f, e),
            Self::Compare(e) => write_chain(f, e),
            Self::Io {
                action,
                path,
                source,
            } => {
                write!(f, "{action} {}: {source}", path.display())
            }
            Self::Output(e) => write!(f, "write to standard output: {e}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// The error and its causes, without those whose text is told already.
fn write_chain(f: &mut fmt::Formatter<'_>, error: &dyn std::error::Error) -> fmt::Result {
    let mut told = error.to_string();
    f.write_str(&told)?;
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !told.contains(&text) {
            write!(f, "\n  because: {text}")?;
        }
        told = text;
        cause = next.source();
    }
    Ok(())
}

impl From<alluvium_workloads::Error> for Failure {
    fn from(error: alluvium_workloads::Error) -> Self {
        Self::Compare(error)
    }
}

impl From<alluvium::Error> for Failure {
    fn from(error: alluvium::Error) -> Self {
        Self::Store(error)
    }
}
