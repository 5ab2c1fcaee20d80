//! The machine: qemu without any help of the processor, so that it runs wherever there is qemu.
//!
//! Three things make a cut of it one of the real kind:
//!
//! * the drive has a volatile cache. The guest's flushes, and nothing else, become syncs of the
//!   image, which is a file of the disk that loses power; qemu itself caches nothing
//!   (`cache=none`);
//! * when that disk fails, the machine stands still (`werror=stop`) until it is killed: no guest
//!   ever sees an error and does something about it;
//! * what the writer says is in the host's pipe before its write to the port returns: without
//!   `ioeventfd` the processor that writes carries the bytes over by itself. So a step that was
//!   taken was said, as with a process that writes to a pipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alluvium_powercut::Layout;
use alluvium_testkit::stress::Writer;

use crate::guest::{Guest, file_system};

/// Name of the program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Lines of the console that a report shows.
const CONSOLE_LINES: usize = 60;

/// A guest, and where its console goes.
#[derive(Debug)]
pub(crate) struct Vm {
    guest: Guest,
    console: PathBuf,
}

impl Vm {
    pub(crate) fn new(guest: Guest, console: PathBuf) -> Self {
        Self { guest, console }
    }

    /// Version of the guest's kernel.
    pub(crate) fn release(&self) -> &str {
        self.guest.release()
    }

    /// The command that switches it on, on a drive: its standard output is what the writer says.
    pub(crate) fn command(&self, layout: Layout, image: &Path, writer: &Writer) -> Command {
        let (name, value) = writer.to_environment();
        // The kernel hands to the first process what it does not know itself.
        let parameters = format!(
            "console=ttyS0 loglevel=4 panic=-1 mitigations=off FS={} {name}={value}",
            file_system(layout)
        );
        let drive = format!(
            "if=none,id=disk,format=raw,cache=none,werror=stop,rerror=stop,file.locking=off,file={}",
            image.display()
        );
        let mut qemu = Command::new(QEMU);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.args(["-display", "none", "-m", "512", "-smp", "2"]);
        // Random numbers are needed early; some crc32c in one instruction.
        qemu.args(["-accel", "tcg", "-cpu", "Nehalem,+rdrand"]);
        qemu.arg("-kernel").arg(&self.guest.kernel);
        qemu.arg("-initrd").arg(&self.guest.initramfs);
        qemu.args(["-append", &parameters]);
        qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        qemu.args(["-chardev", "file,id=said,path=/dev/stdout"]);
        qemu.args(["-device", "virtio-serial-pci,ioeventfd=off"]);
        qemu.args(["-device", "virtserialport,chardev=said"]);
        qemu.arg("-serial");
        qemu.arg(format!("file:{}", self.console.display()));
        qemu
    }

    /// What the console said last.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }
}
