//! A simulated disk, scheduler and clock: a whole store in one thread, fixed by one seed.
//!
//! # Fault model
//!
//! **Tolerated; every promise of the engine must hold.**
//!
//! * *Process death at any instruction* ([`Sim::kill`], [`CrashKind::Kill`]). All tasks of the
//!   process are dropped. Completed writes stay. Operations in flight on files become zombies: a
//!   write lands whole, in part (any 512-byte sectors) or never, up to
//!   [`SimConfig::zombie_delay_max`] later; syncs, allocations and changes of length happen late
//!   or never. The descriptor, and with it its `flock`, is held until its last operation has
//!   ended; all other locks are free at once. Operations on names are done or not at once.
//! * *Loss of power* ([`Sim::power_loss`], [`CrashKind::PowerLoss`]) with a device that honours
//!   flushes. Of every sector survives what the last durable write or sync covered, or any version
//!   written since, in any combination over sectors and files, torn at any sector; of writes in
//!   flight, any sectors. (Whole writes kept, everything kept and everything lost are drawn often,
//!   because independent sectors alone would hardly ever leave a whole batch.)
//! * *What is durable.* [`write_durable`] covers its own bytes and the length needed to read them,
//!   nothing else, not even the rest of its sector. [`sync_data`] covers the writes, length and
//!   allocation that *completed before it was called*. A change of length that is not covered may be
//!   undone: a file that was created and never synced has any length that it ever had, and cut bytes
//!   may come back, sector by sector.
//! * *Names.* Per directory, a random prefix of the changes since the last completed [`sync_dir`]
//!   survives (changes that completed before that call are covered by it). Syncing a file does not
//!   make its name durable. A rename within a directory is one change. A rename between directories
//!   is one in each; they survive together while neither directory is synced, and independently
//!   when only one is.
//! * *Short reads and writes, `EINTR`* by chance; *any error* on any operation
//!   ([`Sim::fail_op`], [`Sim::fail_call`]): any part of a failed write may have landed, and of the writes that a
//!   failed sync covered some may never become durable, whatever later syncs report.
//! * *No space:* creations, growth by `set_len`, allocations and writes into unallocated blocks
//!   fail with `ENOSPC` and change nothing; renames do so at times on a full disk. Writes into
//!   allocated blocks never do. Blocks of a removed file are free when its removal is durable and
//!   its last descriptor closed. *Too many descriptors:* `EMFILE`.
//! * *A stalled disk* ([`Sim::set_stalled`]), *dropped futures* (the operation goes on), *wall clock
//!   jumps* ([`Sim::jump_wall_clock`]), *a second process* ([`Sim::new_process`]), *readers that
//!   race with a write*: its sectors become visible one by one.
//!
//! **To be detected and reported:** decay ([`Sim::flip_bit`], [`Sim::corrupt`]), failed reads
//! ([`Sim::fail_read`]), writes that are acknowledged and not done ([`Sim::lose_write`]) or done elsewhere in the file
//! ([`Sim::misdirect_write`]), foreign, shortened and swapped files ([`Sim::write_file`]).
//!
//! **Out of scope; for negative controls:** a device that lies about flushes
//! ([`SimConfig::lying_flush`]).
//!
//! **Not modelled:** threads (a shard is a group of tasks; code between two awaits is atomic),
//! permissions, symbolic links, `..` in paths (`EINVAL`), moving a directory to another parent
//! (`EXDEV`), sectors torn inside their 512 bytes, blocks taken by names and metadata, wakes from other
//! threads (they break determinism). A loss of power does not reorder changes of one directory.
//!
//! # What else it checks
//!
//! It panics with a clear text when the engine breaks the contract of the seam: two writes in flight
//! on overlapping bytes from one process, misaligned direct transfers, buffers that are too small.
//! A hang is found as [`Stop::Stuck`]: nothing is ready and nothing is pending.
//!
//! # Time and order
//!
//! Each step polls one ready task, drawn by chance, and takes [`SimConfig::step`]. When none is
//! ready, time jumps to the next timer or completion. Same seed, same configuration and same calls
//! give the same run; [`Sim::trace_hash`] shows it.
//!
//! [`write_durable`]: alluvium_core::io::IoFile::write_durable
//! [`sync_data`]: alluvium_core::io::IoFile::sync_data
//! [`sync_dir`]: alluvium_core::io::IoBackend::sync_dir

mod backend;
mod config;
mod directory;
mod disk;
mod effect;
mod executor;
mod fault;
mod file;
mod handle;
mod op;
mod rng;
mod slab;
#[cfg(test)]
mod tests;
mod world;

pub use backend::{ProcessId, SimBackend, SimFactory, SimFile};
pub use config::{Latency, SimConfig};
pub use executor::Stop;
pub use fault::{Counters, CrashKind, Moment};
pub use handle::Sim;
