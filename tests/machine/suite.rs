//! Power loss of a whole machine: kernel, file system, block layer, drive.
//!
//! A virtual machine with Debian's kernel runs the writer of the stress harness on ext4 or xfs on a
//! drive with a volatile cache: the disk of [`alluvium_powercut`], which keeps of what was not
//! flushed what chance will have. The machine dies at a random operation of its disk or at a random
//! step of the writer; its memory, page cache and block queue go with it. What is left boots again
//! and is struck again while the kernel replays its journal and the store recovers, and is then
//! judged on this machine, half-way through a boot or after a recovery in the guest.
//!
//! `CUTS` sets the number of judged cuts per backend, `SEED` where chance begins. Needs root,
//! `/dev/fuse`, loop devices, qemu, a kernel with modules, a static busybox and cpio; says so and
//! does nothing otherwise, unless `MACHINE=required`. `tests/machine/run` sets up what is missing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test reports a failure"
)]

mod guest;
mod rig;
mod vm;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use alluvium_backends::BackendKind;
use alluvium_powercut::{Disk, Layout, Options, Volume};
use alluvium_testkit::stress::{Behaviour, Writer, backends};

use guest::Guest;
use rig::Rig;
use vm::Vm;

/// Cuts per backend and file system without `CUTS`.
const CUTS: u64 = 4;
/// Cuts within which a negative control has to be caught.
const CONTROL_CUTS: u64 = 25;

/// Not a test by itself: what the guest runs.
#[test]
fn writer() {
    if let Some(writer) = Writer::from_environment() {
        writer.run();
    }
}

#[test]
fn what_was_acknowledged_durable_survives_the_death_of_a_machine_on_ext4() {
    survives(Layout::Ext4);
}

#[test]
fn what_was_acknowledged_durable_survives_the_death_of_a_machine_on_xfs() {
    survives(Layout::Xfs);
}

fn survives(layout: Layout) {
    let Some(machine) = Machine::new(layout) else {
        return;
    };
    let (cuts, seed) = (
        setting("CUTS").unwrap_or(CUTS),
        setting("SEED").unwrap_or(1),
    );
    for (n, kind) in backends().into_iter().enumerate() {
        let begun = Instant::now();
        let mut rig = machine.rig(kind, layout, seed + n as u64);
        for cut in 0..cuts {
            if let Err(violation) = rig.cut(Behaviour::Sound) {
                let evidence = rig.bench.keep_evidence(scratch());
                std::fs::write(evidence.join("console"), machine.vm.console()).unwrap();
                panic!(
                    "{kind} on {layout:?}, seed {seed}, cut {cut}: {violation}; see {}",
                    evidence.display()
                );
            }
        }
        eprintln!(
            "{kind} on {layout:?}, Linux {}: {:?} {:?}",
            machine.vm.release(),
            rig.tally(),
            begun.elapsed()
        );
        assert!(
            rig.bench.judged.acknowledged > 5 * cuts,
            "hardly anything was acknowledged"
        );
        assert!(
            rig.bench.judged.records > cuts,
            "hardly anything was read back"
        );
    }
}

#[test]
fn a_drive_that_ignores_flushes_is_caught() {
    is_caught(Behaviour::Sound, 5, true);
}

#[test]
fn a_store_whose_durable_writes_are_plain_is_caught() {
    is_caught(Behaviour::PlainWrites, 6, false);
}

fn is_caught(behaviour: Behaviour, seed: u64, lies: bool) {
    for layout in [Layout::Ext4, Layout::Xfs] {
        let Some(machine) = Machine::new(layout) else {
            continue;
        };
        // What makes writes durable differs by backend only above the guest's kernel.
        let kind = backends()[0];
        let mut rig = machine.rig(kind, layout, seed);
        // A machine that works.
        rig.cut(Behaviour::Sound).unwrap();
        if lies {
            rig.bench.lie();
        }
        let violation = (0..CONTROL_CUTS).find_map(|_| rig.cut(behaviour).err());
        let what = if lies {
            "a lying drive"
        } else {
            "plain writes"
        };
        eprintln!(
            "{kind} on {layout:?}, {what}: {violation:?} after {:?}",
            rig.tally()
        );
        assert!(violation.is_some(), "nobody noticed {what} on {layout:?}");
    }
}

/// What the machines of a test have in common.
struct Machine {
    vm: Vm,
    // Holds the guest.
    _work: tempfile::TempDir,
}

impl Machine {
    /// Says so when there can be none here, past the capture of test output.
    fn new(layout: Layout) -> Option<Self> {
        match Self::build(layout) {
            Ok(machine) => Some(machine),
            Err(e) => {
                let required = std::env::var("MACHINE").is_ok_and(|value| value == "required");
                assert!(!required, "no machine on {layout:?} here: {e}");
                let line = format!("machine: SKIPPED, no machine on {layout:?} here: {e}\n");
                io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    fn build(layout: Layout) -> io::Result<Self> {
        let work = tempfile::Builder::new()
            .prefix("machine-")
            .tempdir_in(scratch())?;
        let place = work.path().join("volume");
        std::fs::create_dir(&place)?;
        Volume::mount(Disk::new(0), &place, layout, Options::default())
            .and_then(Volume::unmount)?;
        let qemu = Command::new(vm::QEMU)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        qemu.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", vm::QEMU)))?;
        let guest = Guest::build(layout, work.path())?;
        let vm = Vm::new(guest, work.path().join("console"));
        Ok(Self { vm, _work: work })
    }

    fn rig(&self, kind: BackendKind, layout: Layout, seed: u64) -> Rig<'_> {
        Rig::new(&self.vm, kind, layout, seed, scratch())
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// Where disks are mounted, on the disk of the target directory.
fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
