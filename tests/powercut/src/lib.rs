//! A disk that loses power under a running process, as a FUSE file system.
//!
//! [`Disk`] is the model: what was written, and what of it is on stable media. [`Mount`] serves it
//! through the kernel, so that every backend runs on it unchanged. [`Volume`] puts a file system of the
//! kernel's on top of it, [`Bench`] a store with its judge.
//!
//! # Fault model
//!
//! * A write is volatile until a sync of its file, or until it completes when it asked for
//!   `O_DSYNC` or `RWF_DSYNC`; then it, and the length of the file, are stable. It makes nothing
//!   else stable.
//! * A power cut keeps of every sector of 512 bytes one of the versions since the last sync, each
//!   sector by itself: reordered and torn. That includes the writes that were in flight. Below
//!   xfs, and on request, it tears at 4096 bytes only, and keeps the newest version or the one before the
//!   sync.
//! * Lengths and directory entries are stable after a sync of the file or directory. A cut keeps
//!   the changes of a file's length, or of one directory, up to any point.
//! * Operations may complete late and out of order; any operation can fail with an error.
//! * A lying disk answers every sync and does nothing: the negative control.
//!
//! Renames between directories are refused: the store needs none.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

mod bench;
mod disk;
mod file;
mod mount;
mod serve;
mod volume;

pub use bench::Bench;
pub use disk::{Attributes, Disk, Kind, ROOT};
pub use mount::{Mount, Options, Switch};
pub use volume::{Layout, Volume};
