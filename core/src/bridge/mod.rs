//! The caller's side: cheap handles for tokio tasks (or any other), and the mailboxes to the shards.
//!
//! A request crosses to its shard through one unbounded channel whose load is bounded by two
//! semaphores, in requests and in bytes; permits come back when the memory of the request is free
//! again. The answer is a one-shot. Beside that, readers look at what a partition publishes of its
//! tail; see `partition::tail`.
//!
//! Everything here is runtime-neutral: the futures may be polled by any executor.

mod blocking;
mod mailbox;
mod partition;
mod pending;
mod reading;
mod subscription;

pub use blocking::{BlockingPool, PoolError, SpawnThread};
pub(crate) use mailbox::Mailbox;
pub use partition::Partition;
pub(crate) use partition::sync_all;
pub use pending::{AppendOptions, PendingAppend, TryAppendError};
pub use subscription::Subscription;
