//! A small file system that may be filled, remounted and shut down.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::fs::FallocateFlags;

/// The disks that `FULL_DISKS` names; says so when there is none, past the capture of test output.
pub(crate) fn disks() -> Vec<SmallDisk> {
    let given = std::env::var("FULL_DISKS").unwrap_or_default();
    let paths = given.split(':').filter(|path| !path.is_empty());
    let disks: Vec<_> = paths
        .map(|path| SmallDisk {
            path: PathBuf::from(path),
        })
        .collect();
    if disks.is_empty() {
        let line = "full_disk: SKIPPED, FULL_DISKS is not set (see tests/full_disk/run)\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    disks
}

/// The mount point of a file system that nobody else uses.
#[derive(Debug, Clone)]
pub(crate) struct SmallDisk {
    path: PathBuf,
}

/// A file that takes up space until it is dropped.
pub(crate) struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

impl SmallDisk {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what the tests have left.
    pub(crate) fn clear(&self) {
        for entry in fs::read_dir(&self.path).unwrap().flatten() {
            if entry.file_name() != "lost+found" {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }

    /// Takes up space until about `free` bytes are left.
    pub(crate) fn leave(&self, free: u64) -> Ballast {
        let name = (0..).map(|n| self.path.join(format!("ballast-{n}")));
        let path = name.into_iter().find(|path| !path.exists()).unwrap();
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = match made {
            Ok(file) => file,
            // Full to the last inode already.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => return Ballast(path),
            Err(e) => panic!("{}: {e}", path.display()),
        };
        // Space that was freed a moment ago comes back with the file system's next commit.
        rustix::fs::syncfs(&file).unwrap();
        let (mut len, mut step) = (0, 1 << 28);
        while step >= 4096 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), len, step) {
                Ok(()) => len += step,
                Err(_) => step /= 2,
            }
        }
        // What statfs(2) calls free is not all to be had: all is taken, and some given back.
        file.set_len(len.saturating_sub(free)).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        file.sync_all().unwrap();
        Ballast(path)
    }

    pub(crate) fn remount(&self, how: &str) {
        self.mount_command(&["-o", &format!("remount,{how}")]);
    }

    fn mount_command(&self, arguments: &[&str]) {
        // Descriptors of a store that was just closed may take a moment to go.
        for _ in 0..500 {
            let done = Command::new("mount")
                .args(arguments)
                .arg(&self.path)
                .output()
                .unwrap();
            if done.status.success() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("mount {arguments:?} {} does not work", self.path.display());
    }

    fn source(&self) -> (String, String) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(1) == self.path.to_str());
        let mut fields = line.expect("it is mounted").split(' ');
        let device = fields.next().unwrap().to_owned();
        (device, fields.nth(1).unwrap().to_owned())
    }

    /// Makes the file system fail as after an error of its own.
    pub(crate) fn shut_down(&self) {
        let (device, kind) = self.source();
        if kind == "ext4" {
            let name = Path::new(&device).file_name().unwrap();
            let trigger = Path::new("/sys/fs/ext4")
                .join(name)
                .join("trigger_fs_error");
            fs::write(trigger, "a test of a failing file system").unwrap();
        } else {
            let shutdown = Command::new("xfs_io")
                .args(["-x", "-c", "shutdown"])
                .arg(&self.path)
                .status();
            assert!(shutdown.unwrap().success());
        }
    }

    /// Mounts it afresh, as after a repair.
    pub(crate) fn mount_again(&self) {
        let (device, kind) = self.source();
        for attempt in 0.. {
            let done = Command::new("umount").arg(&self.path).output().unwrap();
            if done.status.success() {
                break;
            }
            assert!(attempt < 500, "{}", String::from_utf8_lossy(&done.stderr));
            thread::sleep(Duration::from_millis(10));
        }
        if kind == "ext4" {
            // Exit code 1: errors were corrected.
            Command::new("e2fsck")
                .args(["-p", &device])
                .output()
                .unwrap();
        }
        let done = Command::new("mount")
            .arg(&device)
            .arg(&self.path)
            .status()
            .unwrap();
        assert!(done.success());
    }
}
