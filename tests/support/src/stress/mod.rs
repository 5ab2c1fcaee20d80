//! A process that appends, and a judge of what it was promised.
//!
//! The harnesses that take a real process, kernel or disk away from under a store share these
//! parts:
//!
//! * [`Writer`] is what the victim does: several partitions, producers at every acknowledgement
//!   level, rolls, trims, truncations, syncs. It says every step through a pipe *before* and
//!   *after* it is taken ([`Event`]);
//! * [`Victim`] is that process as its killer sees it;
//! * [`Judge`] keeps a [`Life`](crate::promises::Life) per partition, takes the events in, opens
//!   what is left of the store, and compares.
//!
//! A pipe keeps what a killed process has written into it, so a step that was said was taken, and
//! an answer that was said was given.

mod event;
mod judge;
mod omit;
mod rng;
mod victim;
mod writer;

use std::time::Duration;

use alluvium_backends::BackendKind;
use alluvium_core::{Error, OpenStore, RecoveryReport, Shards, Store, StoreConfig};

pub use event::Event;
pub use judge::{Judge, Judged};
pub use omit::{Late, Omit};
pub use rng::Rng;
pub use victim::Victim;
pub use writer::{Behaviour, SlotPlan, Writer};

/// Partitions that a writer uses.
pub const SLOTS: usize = 3;

/// The id of the partition in a slot.
pub fn partition_id(slot: usize) -> u64 {
    slot as u64 + 1
}

/// Settings that make a short run cross many segments with several writes in flight. Odd seeds
/// have retention.
pub fn configure(config: &mut StoreConfig, seed: u64) {
    config.shards = Shards::Count(1 + usize::from(seed % 4 >= 2));
    config.segment_bytes = 96 << 10;
    config.group_bytes_max = 16 << 10;
    config.group_bytes_min = 4 << 10;
    config.writes_in_flight_max = 6;
    config.mailbox_bytes_max = 4 << 20;
    config.initialise_ahead_bytes = 16 << 10;
    config.seal_after = Duration::from_millis(4);
    if has_retention(seed) {
        config.retention_bytes = Some(300 << 10);
        config.retention_interval = Duration::from_millis(20);
    }
}

/// Whether the store of this seed trims by itself.
pub fn has_retention(seed: u64) -> bool {
    seed % 2 == 1
}

/// The backends of this build that work here.
pub fn backends() -> Vec<BackendKind> {
    let compiled = BackendKind::CONCRETE.into_iter();
    compiled.filter(|kind| kind.resolve().is_ok()).collect()
}

/// Opens a store of [`configure`] and `change`, as soon as the process before has let go of its
/// lock.
///
/// # Errors
/// Those of [`alluvium_core::ConfiguredBuilder::open`]; [`Error::AlreadyOpen`] only after a minute.
pub async fn open<O: OpenStore + Clone>(
    dir: &std::path::Path,
    seed: u64,
    backend: O,
    change: fn(&mut StoreConfig),
) -> Result<(Store, RecoveryReport), Error> {
    /// Ten thousand times six milliseconds.
    const ATTEMPTS: usize = 10_000;
    let mut attempts = 0;
    loop {
        let builder = Store::builder(dir).configure(|config| {
            configure(config, seed);
            change(config);
        });
        match builder.backend(backend.clone()).open().await {
            Err(Error::AlreadyOpen { .. }) if attempts < ATTEMPTS => attempts += 1,
            done => return done,
        }
        tokio::time::sleep(Duration::from_millis(if attempts < 100 { 1 } else { 6 })).await;
    }
}
