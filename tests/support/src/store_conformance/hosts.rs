//! Hosts: this machine with one of its backends, and the simulated machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium_backends::sim::{Sim, SimConfig, SimFactory};
use alluvium_core::io::{BackendFactory, LocalFuture};

use super::Host;

/// How long one check may take before it counts as hanging.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// This machine; callers run on a tokio runtime of one thread.
#[derive(Debug, Clone)]
pub struct RealHost<F> {
    factory: F,
}

impl<F: BackendFactory + Clone> RealHost<F> {
    /// Opens every store with clones of this factory.
    pub fn new(factory: F) -> Self {
        Self { factory }
    }
}

impl<F: BackendFactory + Clone> Host for RealHost<F> {
    type Factory = F;

    fn factory(&self) -> F {
        self.factory.clone()
    }

    fn name(&self) -> &'static str {
        self.factory.name()
    }

    fn create_dir(&self, path: &Path) {
        fs::create_dir(path).unwrap();
    }

    fn run(&self, check: LocalFuture<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let ended = tokio::time::timeout(CHECK_TIMEOUT, check).await;
            ended.expect("the check hangs");
        });
    }

    fn pause(&self, time: Duration) -> LocalFuture<()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn files(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![dir.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            // What vanishes while we look is not there.
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if let Ok(content) = fs::read(&path) {
                    files.insert(path, content);
                }
            }
        }
        files
    }

    fn write_file(&self, path: &Path, content: &[u8]) {
        fs::write(path, content).unwrap();
    }
}

/// A simulated machine; every opening is a process of its own.
#[derive(Debug, Clone)]
pub struct SimHost {
    sim: Sim,
}

impl SimHost {
    /// A machine of this seed, as a test owns it, and the host that runs on it.
    pub fn from_seed(seed: u64) -> (Sim, Self) {
        let mut config = SimConfig::new(seed);
        config.capacity_bytes = 4 << 30;
        let sim = Sim::new(config);
        let host = Self { sim: sim.clone() };
        (sim, host)
    }
}

impl Host for SimHost {
    type Factory = SimFactory;

    fn factory(&self) -> SimFactory {
        self.sim.new_process()
    }

    fn name(&self) -> &'static str {
        "sim"
    }

    fn create_dir(&self, path: &Path) {
        self.sim.create_dir_all(path).unwrap();
    }

    fn run(&self, check: LocalFuture<()>) {
        self.sim.block_on(check);
    }

    fn pause(&self, time: Duration) -> LocalFuture<()> {
        let sim = self.sim.clone();
        Box::pin(async move { sim.sleep(time).await })
    }

    fn files(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let all = self.sim.list_files();
        let below = all.into_iter().filter(|path| path.starts_with(dir));
        below
            .map(|path| (path.clone(), self.sim.read_file(&path).unwrap()))
            .collect()
    }

    fn write_file(&self, path: &Path, content: &[u8]) {
        self.sim.write_file(path, content).unwrap();
    }
}
