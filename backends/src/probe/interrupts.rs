//! Which core a disk reports to.
//!
//! A disk with a queue for each core reports where it was asked, and placement makes no difference.
//! The disks of most virtual machines have one queue: all their interrupts go to one core, and a
//! thread on another core is woken across, twice for a durable write without FUA (the write and the
//! flush). A core that has gone to sleep in a virtual machine takes tens of microseconds to come
//! back, which is a good part of what such a write takes.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::posix;

/// The core that takes all interrupts of the disk under a directory; `None` when there are several,
/// when the kernel does not tell, or when this process may not use that core.
pub(super) fn core_of(dir: &Path) -> Option<usize> {
    let device = rustix::fs::stat(dir).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let core = core_of_device(Path::new("/"), &format!("{major}:{minor}"))?;
    posix::allowed_cores().contains(&core).then_some(core)
}

/// The same, of a block device, with `/sys` and `/proc` under a root.
fn core_of_device(root: &Path, device: &str) -> Option<usize> {
    let disk = whole_disk(root.join("sys/dev/block").join(device))?;
    // One per hardware queue.
    only(entries(&disk.join("mq")))?;
    let hardware = fs::canonicalize(disk.join("device")).ok()?;
    // The device on the bus: what is above it are bridges, with interrupts of their own.
    let on_bus = |dir: &&Path| dir.join("irq").exists() || dir.join("msi_irqs").exists();
    let on_bus = hardware.ancestors().find(on_bus)?;
    let lines: Vec<u32> = entries(&on_bus.join("msi_irqs"))
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect();
    let interrupts = fs::read_to_string(root.join("proc/interrupts")).ok()?;
    // Others of the device tell of changes to its configuration: next to none.
    let busiest = busiest(&lines, &interrupts)?;
    let effective = root.join(format!("proc/irq/{busiest}/effective_affinity_list"));
    fs::read_to_string(effective).ok()?.trim().parse().ok()
}

/// The disk that a partition is part of, or a mapped device stands on alone.
fn whole_disk(device: PathBuf) -> Option<PathBuf> {
    /// Layers of mapping that are looked through.
    const LAYERS_MAX: usize = 8;

    let mut disk = fs::canonicalize(device).ok()?;
    for _ in 0..LAYERS_MAX {
        if disk.join("partition").exists() {
            disk = disk.parent()?.to_path_buf();
        }
        let below = entries(&disk.join("slaves"));
        if below.is_empty() {
            return Some(disk);
        }
        disk = fs::canonicalize(only(below)?).ok()?;
    }
    None
}

/// What a directory holds; nothing when it cannot be read. Names that begin with a dot do not count.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed
        .filter(|entry| !entry.file_name().as_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect()
}

fn only<T>(mut list: Vec<T>) -> Option<T> {
    let last = list.pop()?;
    list.is_empty().then_some(last)
}

/// Which of these has come most often, by the table of `/proc/interrupts`; `None` when none has.
fn busiest(lines: &[u32], interrupts: &str) -> Option<u32> {
    let mut rows = interrupts.lines();
    let cores = rows.next()?.split_whitespace().count();
    let counts = rows.filter_map(|row| {
        let (number, rest) = row.split_once(':')?;
        let number = number.trim().parse().ok()?;
        let columns = rest.split_whitespace().take(cores);
        let count: u64 = columns.filter_map(|c| c.parse::<u64>().ok()).sum();
        (lines.contains(&number) && count > 0).then_some((count, number))
    });
    counts.max().map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const INTERRUPTS: &str = "\
           CPU0       CPU1       CPU2
 35:          0          1          0 PCI-MSIX-0000:00:02.0   0-edge      virtio1-config
 36:          7   23988369          2 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0
 38:   99999999   99999999          0 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
NMI:          5          5          5   Non-maskable interrupts
";

    #[test]
    fn the_line_with_most_interrupts_is_the_queue() {
        assert_eq!(busiest(&[35, 36], INTERRUPTS), Some(36));
        assert_eq!(busiest(&[35], INTERRUPTS), Some(35));
        assert_eq!(busiest(&[37], INTERRUPTS), None);
        assert_eq!(busiest(&[36], ""), None);
        assert_eq!(busiest(&[1], "CPU0\n 1: 0 nothing came\n"), None);
    }

    /// A machine with disk 254:0, its partition 254:1, 253:0 on that, and 253:1 on two disks.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, queues: usize) -> Self {
            let id = std::process::id();
            let root = std::env::temp_dir().join(format!("alluvium-interrupts-{name}-{id}"));
            let dir = |path: &str| fs::create_dir_all(root.join(path)).expect("create");
            let file =
                |path: &str, text: &str| fs::write(root.join(path), text).expect("write a file");
            let link = |to: &str, at: &str| symlink(root.join(to), root.join(at)).expect("link");
            dir("sys/pci/msi_irqs");
            file("sys/pci/msi_irqs/35", "");
            file("sys/pci/msi_irqs/36", "");
            for queue in 0..queues {
                dir(&format!("sys/pci/virtio1/block/vda/mq/{queue}"));
            }
            dir("sys/pci/virtio1/block/vda/slaves");
            dir("sys/pci/virtio1/block/vda/vda1");
            file("sys/pci/virtio1/block/vda/vda1/partition", "1");
            link("sys/pci/virtio1", "sys/pci/virtio1/block/vda/device");
            for mapped in ["dm-0", "dm-1"] {
                dir(&format!("sys/virtual/{mapped}/slaves"));
                link(
                    "sys/pci/virtio1/block/vda/vda1",
                    &format!("sys/virtual/{mapped}/slaves/vda1"),
                );
            }
            link("sys/pci/virtio1/block/vda", "sys/virtual/dm-1/slaves/vda");
            dir("sys/dev/block");
            link("sys/pci/virtio1/block/vda", "sys/dev/block/254:0");
            link("sys/pci/virtio1/block/vda/vda1", "sys/dev/block/254:1");
            link("sys/virtual/dm-0", "sys/dev/block/253:0");
            link("sys/virtual/dm-1", "sys/dev/block/253:1");
            dir("proc/irq/36");
            file("proc/interrupts", INTERRUPTS);
            file("proc/irq/36/effective_affinity_list", "1\n");
            Self(root)
        }

        fn core_of(&self, device: &str) -> Option<usize> {
            core_of_device(&self.0, device)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("remove");
        }
    }

    #[test]
    fn a_disk_with_one_queue_reports_to_one_core() {
        let machine = Machine::new("one", 1);
        for device in ["254:0", "254:1", "253:0"] {
            assert_eq!(machine.core_of(device), Some(1), "{device}");
        }
        for device in ["253:1", "0:42"] {
            assert_eq!(machine.core_of(device), None, "{device}");
        }
        let affinity = machine.0.join("proc/irq/36/effective_affinity_list");
        fs::write(affinity, "0-1\n").expect("write");
        assert_eq!(machine.core_of("254:0"), None);
    }

    #[test]
    fn a_disk_with_several_queues_reports_to_several() {
        assert_eq!(Machine::new("several", 2).core_of("254:0"), None);
        assert_eq!(Machine::new("none", 0).core_of("254:0"), None);
    }

    #[test]
    fn what_is_no_disk_has_no_core() {
        assert_eq!(core_of(Path::new("/proc")), None);
        assert_eq!(core_of(Path::new("/does/not/exist")), None);
    }
}
