//! Backends: the runtimes that can carry a store, behind the traits of
//! [`alluvium_core::io`].
//!
//! | module | feature | data path | works where |
//! | --- | --- | --- | --- |
//! | `tokio` | `tokio` (default) | `preadv2`/`pwritev2` on a small blocking pool | everywhere |
//! | `compio` | `compio` | io_uring | where the kernel and its policy allow io_uring |
//! | `uring` | `uring` | io_uring, with an event loop of our own | as `compio` |
//! | `glommio` | `glommio` | io_uring by glommio | where the kernel and its policy allow io_uring |
//! | `sim` | `sim` | a simulated disk in memory | in tests |
//!
//! A feature makes a type available and does nothing else. [`BackendKind`] turns a name from a
//! configuration into a choice, [`probe::probe`] says what works on this machine, and [`layer`] puts
//! eyes or faults between the engine and any of them.

pub mod kind;
pub mod layer;
pub mod probe;

#[cfg(feature = "compio")]
pub mod compio;
#[cfg(feature = "glommio")]
pub mod glommio;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "uring")]
pub mod uring;

#[cfg(any(
    feature = "compio",
    feature = "glommio",
    feature = "tokio",
    feature = "uring"
))]
mod map;
#[cfg(any(
    feature = "compio",
    feature = "glommio",
    feature = "tokio",
    feature = "uring"
))]
mod names;
mod open;
mod posix;
#[cfg(any(
    feature = "compio",
    feature = "glommio",
    feature = "tokio",
    feature = "uring"
))]
mod shard;
#[cfg(any(feature = "glommio", feature = "uring", all(test, alluvium_loom)))]
mod sync;

// Under loom the hub of the glommio backend stands alone: it needs nothing of glommio.
#[cfg(all(test, alluvium_loom))]
#[path = "../../tests/concurrency/explore.rs"]
mod explore;
#[cfg(all(test, alluvium_loom))]
#[path = "glommio/hub.rs"]
mod hub;
#[cfg(all(test, alluvium_loom))]
#[path = "../../tests/concurrency/hub.rs"]
mod hub_model;

pub use kind::{BackendKind, ResolveError, Resolved, UnknownBackend};
