//! Where a store lies on the disk that loses power: right on it, or in a file system of the kernel's
//! on a block device that is a file of that disk.
//!
//! The loop device passes each request on past the page cache and each flush as a sync of the file,
//! so what the disk keeps of the file is what a disk keeps of its blocks.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::{Disk, Mount, Options};

/// Attempts to let go of a file system, ten milliseconds apart: the calls of a process that was
/// killed end a moment later.
const UNMOUNT_ATTEMPTS: u32 = 1000;

/// What is between the store and the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Nothing.
    Plain,
    /// ext4 on a loop device.
    Ext4,
    /// xfs on a loop device.
    Xfs,
}

impl Layout {
    /// The directory of the store on a volume at `place`.
    pub fn store(self, place: &Path) -> PathBuf {
        match self {
            Self::Plain => place.join("store"),
            Self::Ext4 | Self::Xfs => place.join("fs").join("store"),
        }
    }

    /// The directory of the disk itself, which holds the image of a block device.
    pub fn disk(self, place: &Path) -> PathBuf {
        match self {
            Self::Plain => place.to_path_buf(),
            Self::Ext4 | Self::Xfs => place.join("disk"),
        }
    }

    /// The file of the disk that is the block device.
    pub fn image(self, place: &Path) -> PathBuf {
        self.disk(place).join("image")
    }

    fn file_system(self) -> Option<FileSystem> {
        match self {
            Self::Plain => None,
            // Discards would only be refused.
            Self::Ext4 => Some(FileSystem {
                image_bytes: 64 << 20,
                make: &["mkfs.ext4", "-q", "-F", "-E", "nodiscard"],
                options: "noatime",
            }),
            // The smallest that its tools make. The same identity is mounted again and again.
            Self::Xfs => Some(FileSystem {
                image_bytes: 300 << 20,
                make: &["mkfs.xfs", "-q", "-f", "-K"],
                options: "noatime,nouuid",
            }),
        }
    }
}

struct FileSystem {
    image_bytes: u64,
    make: &'static [&'static str],
    options: &'static str,
}

/// A mounted disk, with what lies on it.
#[derive(Debug)]
pub struct Volume {
    // Goes first: it lies on the disk.
    device: Option<Device>,
    /// The disk.
    pub mount: Mount,
}

impl Volume {
    /// Mounts `disk` in the directory `place`; makes the file system if there is none yet.
    ///
    /// # Errors
    /// Those of mounting, of `losetup` and of `mkfs`.
    pub fn mount(disk: Disk, place: &Path, layout: Layout, options: Options) -> io::Result<Self> {
        let Some(file_system) = layout.file_system() else {
            let mount = Mount::new(disk, place, options)?;
            return Ok(Self {
                device: None,
                mount,
            });
        };
        let (below, above) = (layout.disk(place), place.join("fs"));
        fs::create_dir_all(&below)?;
        fs::create_dir_all(&above)?;
        let mount = Mount::new(disk, &below, options)?;
        let device = Device::attach(&layout.image(place), &above, &file_system)?;
        Ok(Self {
            device: Some(device),
            mount,
        })
    }

    /// Unmounts, and returns the disk: as it was, or what the power cut left of it.
    ///
    /// # Errors
    /// Those of unmounting.
    pub fn unmount(self) -> io::Result<Disk> {
        drop(self.device);
        self.mount.unmount()
    }
}

/// A loop device, and the file system on it once it is mounted.
#[derive(Debug)]
struct Device {
    name: String,
    mounted_at: Option<PathBuf>,
}

impl Device {
    fn attach(image: &Path, at: &Path, file_system: &FileSystem) -> io::Result<Self> {
        let is_new = !image.exists();
        if is_new {
            let file = File::create(image)?;
            file.set_len(file_system.image_bytes)?;
            file.sync_all()?;
            if let Some(disk) = image.parent() {
                File::open(disk)?.sync_all()?;
            }
        }
        let find = ["losetup", "--find", "--show", "--direct-io=on"];
        let name = run(&find, image)?.trim().to_owned();
        let mut device = Self {
            name,
            mounted_at: None,
        };
        if is_new {
            run(file_system.make, device.name.as_ref())?;
        }
        run(&["mount", "-o", file_system.options, &device.name], at)?;
        device.mounted_at = Some(at.to_path_buf());
        Ok(device)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(at) = &self.mounted_at {
            let mut attempts = 0;
            while run(&["umount"], at).is_err() && attempts < UNMOUNT_ATTEMPTS {
                attempts += 1;
                thread::sleep(Duration::from_millis(10));
            }
            if attempts == UNMOUNT_ATTEMPTS {
                // The disk below says that it is busy, if it still is.
                run(&["umount", "--lazy"], at).ok();
            }
        }
        run(&["losetup", "--detach"], self.name.as_ref()).ok();
    }
}

/// Runs a command with one more argument; its output, or what it complained of.
fn run(command: &[&str], argument: &Path) -> io::Result<String> {
    let done = Command::new(command[0])
        .args(&command[1..])
        .arg(argument)
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", command[0])))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
    Err(io::Error::other(format!(
        "{}: {}",
        command[0],
        complaint.trim()
    )))
}
