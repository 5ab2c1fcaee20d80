//! A cgroup whose processes get few writes per second: what they had in flight when they were
//! killed lands long after their death.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Removed when dropped; its processes must have ended.
pub(crate) struct SlowDisk {
    group: PathBuf,
}

impl SlowDisk {
    /// Allows so many writes per second to the device of the target directory.
    ///
    /// Version 1 of the `blkio` controller where it is mounted, version 2's `io` otherwise.
    pub(crate) fn new(writes_per_second: u64) -> Self {
        let device = fs::metadata(env!("CARGO_TARGET_TMPDIR")).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let name = format!("alluvium-kill9-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let (group, file, limit) = if v1.is_dir() {
            let limit = format!("{major}:{minor} {writes_per_second}");
            (v1.join(name), "blkio.throttle.write_iops_device", limit)
        } else {
            let limit = format!("{major}:{minor} wiops={writes_per_second}");
            (Path::new("/sys/fs/cgroup").join(name), "io.max", limit)
        };
        let done = fs::create_dir(&group).and_then(|()| fs::write(group.join(file), limit));
        done.expect("SLOW_DISK_IOPS needs root and a cgroup controller for block devices");
        Self { group }
    }

    /// Slows a process down.
    pub(crate) fn add(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Left behind when a zombie is still in it; it holds nothing.
        fs::remove_dir(&self.group).ok();
    }
}
