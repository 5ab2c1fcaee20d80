//! The simulated machine that whole stores are opened on, and what is planted there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use alluvium_backends::sim::{Latency, Sim, SimConfig};
use alluvium_core::StoreConfig;

pub(super) const STORE: &str = "/store";
/// The smallest segments there are.
pub(super) const SEGMENT_BYTES: u64 = 16 << 10;

/// Files and their content.
pub(super) type Image = BTreeMap<PathBuf, Vec<u8>>;

/// A machine; what hangs is stopped after steps that no sound run comes near to.
pub(super) fn machine(seed: u64) -> Sim {
    let mut config = SimConfig::new(seed);
    config.run_time_max = Duration::from_secs(600);
    config.run_steps_max = 1_000_000;
    config.capacity_bytes = 16 << 20;
    Sim::new(config)
}

/// As [`machine`], for one who wants to know what becomes of files, not what time it is.
pub(super) fn plant(image: &Image) -> Sim {
    let sim = machine(7);
    let quick = Latency::micros(1, 2);
    sim.configure(|config| {
        config.read = quick;
        config.write = quick;
        config.write_durable = quick;
        config.sync = quick;
        config.metadata = quick;
    });
    sim.create_dir_all(STORE).unwrap();
    for (path, bytes) in image {
        sim.write_file(path, bytes).unwrap();
    }
    sim
}

/// Small segments and buffers, nothing done ahead.
pub(super) fn configure(config: &mut StoreConfig) {
    crate::logs::small(config);
    config.segment_bytes = SEGMENT_BYTES;
    config.group_bytes_max = 8 << 10;
    config.group_bytes_min = 4 << 10;
    config.index_interval_bytes = 1 << 10;
    config.read_chunk_bytes = 4 << 10;
    config.preinitialise = false;
    config.spare_segments_max = 0;
}

/// Everything on the machine's disk.
pub(super) fn image_of(sim: &Sim) -> Image {
    let files = sim.list_files().into_iter();
    let read = |path: PathBuf| {
        let bytes = sim.read_file(&path).unwrap();
        (path, bytes)
    };
    files.map(read).collect()
}
