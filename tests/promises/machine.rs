//! What a lineage runs on: a small, slow, odd machine and a store of tiny segments.

use std::time::Duration;

use alluvium::backends::sim::{Latency, SimConfig};
use alluvium::{Shards, StoreConfig};

use crate::rng::Rng;

/// A machine drawn by chance.
pub(crate) fn machine(seed: u64, rng: &mut Rng, sound: bool) -> SimConfig {
    let mut config = SimConfig::new(seed);
    config.zombie_delay_max = Duration::from_millis(rng.pick(&[1, 5, 40]));
    if rng.percent(20) && !sound {
        config.short_per_mille = 30;
        config.interrupted_per_mille = 30;
    }
    if rng.percent(30) {
        // Writes overtake one another and are often under way when the crash comes.
        config.write_durable = Latency::micros(20, 2000);
        config.write = Latency::micros(10, 1500);
    }
    config.run_time_max = Duration::from_secs(120);
    config.run_steps_max = 2_000_000;
    config
}

/// A store drawn by chance: everything small, so that everything happens.
pub(crate) fn store(rng: &mut Rng) -> StoreConfig {
    let mut config = StoreConfig::default();
    config.shards = Shards::Count(1);
    config.segment_bytes = 16 << 10;
    config.writes_in_flight_max = u16::try_from(rng.range(1, 16)).unwrap_or(1);
    config.group_bytes_max = 4096;
    config.group_bytes_min = rng.pick(&[0, 0, 1024, 4096]);
    config.mailbox_requests_max = 32;
    config.mailbox_bytes_max = 64 << 10;
    config.tail_cache_bytes_max = rng.pick(&[0, 4096, 1 << 20]);
    config.preinitialise = rng.percent(30);
    config.direct_io = rng.percent(70);
    config.spare_segments_max = rng.pick(&[1, 2]);
    config.seal_after = Duration::from_micros(rng.pick(&[1000, 2000, 4000]));
    config.index_interval_bytes = rng.pick(&[512, 4096]);
    config.read_chunk_bytes = 4096;
    config.fence_timeout = Duration::from_secs(30);
    config.read_ahead_chunks = rng.pick(&[0, 2]);
    match rng.range(0, 99) {
        0..=14 => config.retention_bytes = Some(24 << 10),
        15..=22 => config.retention_age = Some(Duration::from_millis(8)),
        _ => {}
    }
    config.retention_interval = Duration::from_millis(2);
    config
}

/// Whether the log's start may move by itself.
pub(crate) fn retains(config: &StoreConfig) -> bool {
    config.retention_bytes.is_some() || config.retention_age.is_some()
}
