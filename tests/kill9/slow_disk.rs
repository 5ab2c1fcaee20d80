//! A cgroup whose processes get few writes per second: what they had in flight when they were
//! killed lands long after their death.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Removed when dropped; its processes must have ended.
pub(crate) struct SlowDisk {
    group: PathBuf,
    /// Numbers of the disk, as the controller has them.
    disk: String,
    is_v1: bool,
}

impl SlowDisk {
    /// Allows so many writes per second to the disk of the target directory.
    ///
    /// Version 1 of the `blkio` controller where it is mounted, version 2's `io` otherwise.
    pub(crate) fn new(writes_per_second: u64) -> Self {
        let device = fs::metadata(env!("CARGO_TARGET_TMPDIR")).unwrap().dev();
        let disk = disk_of(rustix::fs::major(device), rustix::fs::minor(device));
        let name = format!("alluvium-kill9-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let is_v1 = v1.is_dir();
        let (group, file, limit) = if is_v1 {
            let limit = format!("{disk} {writes_per_second}");
            (v1.join(name), "blkio.throttle.write_iops_device", limit)
        } else {
            let limit = format!("{disk} wiops={writes_per_second}");
            (Path::new("/sys/fs/cgroup").join(name), "io.max", limit)
        };
        let done = fs::create_dir(&group).and_then(|()| fs::write(group.join(file), limit));
        done.expect("SLOW_DISK_IOPS needs root and a cgroup controller for block devices");
        Self { group, disk, is_v1 }
    }

    /// Slows a process down.
    pub(crate) fn add(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Writes that the limit has applied to: none, and the disk was as fast as ever.
    pub(crate) fn writes(&self) -> u64 {
        let (file, before) = if self.is_v1 {
            ("blkio.throttle.io_serviced", "Write ")
        } else {
            ("io.stat", "wios=")
        };
        let counts = fs::read_to_string(self.group.join(file)).unwrap();
        let of_disk = counts.lines().filter_map(|line| {
            let counted = line.strip_prefix(&self.disk)?;
            let (_, count) = counted.split_once(before)?;
            count.split(' ').next()?.parse::<u64>().ok()
        });
        of_disk.sum()
    }
}

/// Limits are for whole disks: that of a partition, or the device itself.
fn disk_of(major: u32, minor: u32) -> String {
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if device.join("partition").exists() {
        let disk = fs::read_to_string(device.join("../dev")).unwrap();
        return disk.trim().to_owned();
    }
    format!("{major}:{minor}")
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Left behind when a zombie is still in it; it holds nothing.
        fs::remove_dir(&self.group).ok();
    }
}
