//! What a lineage runs on: a machine, and a store whose segments are the smallest there are.

use std::time::Duration;

use alluvium::StoreConfig;
use alluvium::backends::sim::{Latency, Sim, SimConfig};
use alluvium_testkit::simulation::Lineage;

use crate::case::Options;
use crate::rng::Rng;

/// Stands for what belongs to no life.
const ALL_LIVES: u64 = u64::MAX;

/// The machine of a lineage.
pub(crate) fn simulation(lineage: &Lineage, options: Options) -> Sim {
    let mut rng = Rng::of(lineage.seed, ALL_LIVES, 1);
    let mut config = SimConfig::new(lineage.seed);
    config.lying_flush = options.lying_flush;
    config.trace_bytes = options.trace_bytes;
    config.run_time_max = Duration::from_secs(120);
    let (odd, slow) = (rng.chance(20), rng.chance(35));
    if odd && !lineage.sound {
        config.short_per_mille = 20;
        config.interrupted_per_mille = 10;
    }
    if slow {
        // Many writes are under way at once, and overtake one another.
        config.write_durable = Latency::micros(100, 4000);
        config.write = Latency::micros(50, 3000);
        config.sync = Latency::micros(200, 5000);
    }
    let sim = Sim::new(config);
    sim.create_dir_all("/").unwrap();
    sim
}

/// How many lives it has.
pub(crate) fn lives(seed: u64) -> u64 {
    6 + Rng::of(seed, ALL_LIVES, 2).below(10)
}

/// Settings of a lineage: the smallest segments, so that everything happens all the time.
pub(crate) fn config(seed: u64) -> StoreConfig {
    let mut rng = Rng::of(seed, ALL_LIVES, 3);
    let mut c = StoreConfig::default();
    c.segment_bytes = 16 << 10;
    c.group_bytes_max = 4096;
    c.group_bytes_min = rng.pick(&[0, 2048]);
    c.writes_in_flight_max = u16::try_from(1 + rng.below(16)).unwrap();
    c.preinitialise = rng.chance(50);
    c.initialise_ahead_bytes = 4096;
    c.direct_io = rng.chance(70);
    c.spare_segments_max = usize::try_from(1 + rng.below(2)).unwrap();
    c.seal_after = Duration::from_millis(2);
    c.tail_cache_bytes_max = rng.pick(&[0, 64 << 10]);
    c.index_interval_bytes = rng.pick(&[512, 32 << 10]);
    c.read_chunk_bytes = rng.pick(&[4096, 1 << 20]);
    c.read_ahead_chunks = rng.pick(&[0, 2]);
    match rng.below(100) {
        0..=9 => c.retention_bytes = Some(48 << 10),
        10..=16 => c.retention_age = Some(Duration::from_millis(12)),
        _ => {}
    }
    c.retention_interval = Duration::from_millis(3);
    c
}

/// Whether the log's start may move by itself.
pub(crate) fn retains(config: &StoreConfig) -> bool {
    config.retention_bytes.is_some() || config.retention_age.is_some()
}

/// Now and then the next life has another device under it, or a program with other settings.
pub(crate) fn change_between_lives(
    sim: &Sim,
    seed: u64,
    life: u64,
    config: &mut StoreConfig,
) -> bool {
    let mut rng = Rng::of(seed, life, 90);
    if !rng.chance(12) {
        return false;
    }
    match rng.below(5) {
        0 => {
            let alignment = rng.pick(&[512, 4096]);
            sim.configure(|machine| machine.alignment = alignment);
        }
        1 => config.direct_io ^= true,
        2 => config.segment_bytes = rng.pick(&[16 << 10, 20 << 10, 32 << 10]),
        3 => config.writes_in_flight_max = u16::try_from(1 + rng.below(16)).unwrap(),
        _ => {
            let hours = i64::try_from(rng.below(48)).unwrap() - 24;
            sim.jump_wall_clock(hours * 3_600_000);
        }
    }
    true
}
