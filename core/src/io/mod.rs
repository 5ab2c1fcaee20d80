//! The seam between the engine and a runtime.
//!
//! Everything the engine does to the outside world goes through the three traits of this folder:
//! [`BackendFactory`] crosses threads and starts shards, [`IoBackend`] is the runtime of one shard
//! (directories, clocks, timers, local tasks), [`IoFile`] is one open file. The engine is generic
//! over them, so the only dynamic dispatch on the data path is the boxed future of `async-trait`.
//!
//! The contract is written per method in [`backend`]; the conformance suite of the `backends`
//! crate checks it for every implementation.

pub mod arena;
pub mod backend;
pub mod buf;
pub mod file;
pub mod map;

pub use arena::Arena;
pub use backend::{
    BackendFactory, Capabilities, DirEntry, EntryKind, FsSpace, IoBackend, IoFile, LocalFuture,
    LockKind, OpenMode, OpenOptions, ShardMain, ShardSpec,
};
pub use buf::{AlignedBuf, BUFFER_ALIGNMENT, BufPool};
pub use file::{Durability, FailStop};
pub use map::FileMap;
