//! Where it was measured: figures mean nothing without it.

use std::fs;
use std::path::Path;

use alluvium::backends::probe::probe_dir;

use crate::error::{Error, Result};

/// Facts about the machine and the directory.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Machine {
    /// Version of Alluvium.
    pub version: String,
    /// Whether it was compiled without optimisation for release.
    pub debug_build: bool,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor, as the kernel names it; empty when it does not.
    pub processor: String,
    /// Cores that the process may use.
    pub cores: usize,
    /// Main memory in bytes; zero when it is not known.
    pub memory_bytes: u64,
    /// File system of the directory.
    pub file_system: String,
    /// Whether it has `O_DIRECT`.
    pub direct_io: bool,
    /// Alignment of direct I/O in bytes; 1 without.
    pub alignment: u32,
    /// The core that takes the interrupts of its disk, when it is one.
    pub interrupt_core: Option<usize>,
}

impl Machine {
    /// Looks at this machine and the directory.
    ///
    /// # Errors
    /// [`Error::Io`] when no file can be created in the directory.
    pub fn look(dir: &Path) -> Result<Self> {
        let probed = probe_dir(dir).map_err(Error::io("probe the directory", dir))?;
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let memory_kib: u64 = value_of(&read("/proc/meminfo"), "MemTotal")
            .and_then(|v| v.trim_end_matches("kB").trim().parse().ok())
            .unwrap_or(0);
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            debug_build: cfg!(debug_assertions),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: value_of(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_default()
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            file_system: probed.file_system,
            direct_io: probed.direct_io,
            alignment: probed.alignment,
            interrupt_core: probed.interrupt_core,
        })
    }

    /// The facts in a line.
    pub fn describe(&self) -> String {
        let direct = if self.direct_io {
            format!("direct I/O by {} bytes", self.alignment)
        } else {
            "no direct I/O".to_owned()
        };
        let interrupts = self.interrupt_core.map_or_else(String::new, |core| {
            format!(", the disk's interrupts on core {core}")
        });
        format!(
            "Alluvium {}{}, Linux {}, {} cores ({}), {} GiB, {}, {direct}{interrupts}",
            self.version,
            if self.debug_build {
                " (debug build)"
            } else {
                ""
            },
            self.kernel,
            self.cores,
            if self.processor.is_empty() {
                "unknown"
            } else {
                &self.processor
            },
            self.memory_bytes >> 30,
            self.file_system,
        )
    }
}

/// The value of a line `name : value`.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .find(|(key, _)| key.trim() == name)
        .map(|(_, v)| v.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_understood() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: fast\nmodel name\t: Other\n";
        assert_eq!(value_of(text, "model name"), Some("Some CPU: fast"));
        assert_eq!(value_of(text, "flags"), None);
    }
}
