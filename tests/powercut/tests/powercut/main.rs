//! Power cuts under every real backend, through the real kernel.
//!
//! A process appends to a store on a disk that keeps what was not synced volatile, tears at 512
//! bytes and completes out of order ([`alluvium_powercut`]). At a random operation the power fails:
//! the process is killed, the disk is mounted again with what a cut may leave, and every promise
//! is checked. The recovery itself is struck as well. Then the next process goes on.
//!
//! The same with a file system of the kernel's between the store and the disk: ext4 and xfs on a
//! block device that is a file of that disk. What a cut leaves is an image as a crash leaves it; the
//! file system replays its journal, and the store recovers on top of that. Below xfs the disk tears at
//! 4096 bytes, which is what xfs itself survives.
//!
//! `CUTS` sets the number of cuts per backend, `IMAGES` that of images of ext4 (and a sixth as many
//! of xfs), `SEED` where chance begins. Needs root, `/dev/fuse`, and for the images `losetup` and
//! `mkfs`; says so and does nothing otherwise, unless `POWERCUT=required`. `tests/powercut/run` sets
//! up what is missing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test reports a failure"
)]

mod cuts;

use std::io::Write as _;
use std::time::{Duration, Instant};

use alluvium_powercut::{Disk, Layout, Options, Volume};
use alluvium_testkit::stress::{Behaviour, Writer, backends};

use cuts::{Cuts, scratch};

/// Cuts per backend without `CUTS`.
const CUTS: u64 = 15;
/// Images per backend and file system without `IMAGES`; with fewer a cut may come before anything
/// is acknowledged.
const IMAGES: u64 = 6;
/// Cuts within which a negative control has to be caught.
const CONTROL_CUTS: u64 = 60;

/// Not a test by itself: the process that the others take the disk away from.
#[test]
fn writer() {
    if let Some(writer) = Writer::from_environment() {
        writer.run();
    }
}

#[test]
fn what_was_acknowledged_durable_survives_power_cuts() {
    survives(Layout::Plain, setting("CUTS").unwrap_or(CUTS));
}

#[test]
fn what_was_acknowledged_durable_survives_in_images_of_ext4() {
    survives(Layout::Ext4, setting("IMAGES").unwrap_or(IMAGES));
}

#[test]
fn what_was_acknowledged_durable_survives_in_images_of_xfs() {
    let images = setting("IMAGES").unwrap_or(IMAGES);
    survives(Layout::Xfs, images.div_ceil(6).max(IMAGES));
}

fn survives(layout: Layout, cuts: u64) {
    if !is_usable(layout) {
        return;
    }
    let seed = setting("SEED").unwrap_or(1);
    for (n, kind) in backends().into_iter().enumerate() {
        let begun = Instant::now();
        let mut store = Cuts::new(kind, layout, seed + n as u64);
        for cut in 0..cuts {
            if let Err(violation) = store.cut(Behaviour::Sound) {
                let evidence = store.bench.keep_evidence(scratch());
                panic!(
                    "{kind} on {layout:?}, seed {seed}, cut {cut}: {violation}; see {}",
                    evidence.display()
                );
            }
        }
        eprintln!(
            "{kind} on {layout:?}: {:?} {:?}",
            store.tally(),
            begun.elapsed()
        );
        assert!(
            store.bench.judged.acknowledged > 5 * cuts,
            "hardly anything was acknowledged"
        );
        assert!(
            store.bench.judged.records > cuts,
            "hardly anything was read back"
        );
    }
}

#[test]
fn a_disk_that_lies_about_its_flush_is_caught() {
    for layout in [Layout::Plain, Layout::Ext4, Layout::Xfs] {
        if !is_usable(layout) {
            continue;
        }
        for kind in backends() {
            let mut store = Cuts::new(kind, layout, 5);
            // A store that stands, so that more than its beginning can be lost.
            store.cut(Behaviour::Sound).unwrap();
            store.bench.lie();
            let violation = (0..CONTROL_CUTS).find_map(|_| store.cut(Behaviour::Sound).err());
            let tally = store.tally();
            eprintln!("{kind} on {layout:?}, lying disk: {violation:?} after {tally:?}");
            assert!(
                violation.is_some(),
                "nobody noticed that the disk of {kind} on {layout:?} lies"
            );
        }
    }
}

/// Every backend writes durably in its own way; only that is left out.
#[test]
fn a_store_whose_durable_writes_are_plain_is_caught() {
    for layout in [Layout::Plain, Layout::Ext4, Layout::Xfs] {
        is_caught(layout, Behaviour::PlainWrites, 6);
    }
}

/// On the disk itself: a file system makes names durable along with what is written into them.
#[test]
fn a_store_that_leaves_out_its_syncs_is_caught() {
    is_caught(Layout::Plain, Behaviour::NoSyncs, 7);
}

fn is_caught(layout: Layout, behaviour: Behaviour, seed: u64) {
    if !is_usable(layout) {
        return;
    }
    for kind in backends() {
        let mut store = Cuts::new(kind, layout, seed);
        let violation = (0..CONTROL_CUTS).find_map(|_| store.cut(behaviour).err());
        let tally = store.tally();
        eprintln!("{kind} on {layout:?}, {behaviour:?}: {violation:?} after {tally:?}");
        assert!(
            violation.is_some(),
            "nobody noticed the {behaviour:?} of {kind} on {layout:?}"
        );
    }
}

/// SIGKILL on a slow disk: writes of the dead land while the store is opened again.
#[test]
fn writes_of_the_dead_do_not_overwrite_those_of_the_living() {
    if !is_usable(Layout::Plain) {
        return;
    }
    let kills = setting("CUTS").unwrap_or(CUTS).div_ceil(3);
    for kind in backends() {
        let mut store = Cuts::new(kind, Layout::Plain, 9);
        store.bench.slow_down(Duration::from_millis(60));
        for kill in 0..kills {
            if let Err(violation) = store.kill() {
                panic!("{kind}, kill {kill}: {violation}");
            }
        }
        eprintln!("{kind}, slow disk: {:?}", store.tally());
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// Whether such a disk can be mounted here. Says so when not, past the capture of test output.
fn is_usable(layout: Layout) -> bool {
    let place = tempfile::tempdir_in(scratch()).unwrap();
    let mounted = Volume::mount(Disk::new(0), place.path(), layout, Options::default());
    match mounted.and_then(Volume::unmount) {
        Ok(_) => true,
        Err(e) => {
            let required = std::env::var("POWERCUT").is_ok_and(|value| value == "required");
            assert!(!required, "no {layout:?} disk can be mounted: {e}");
            let line = format!("powercut: SKIPPED, no {layout:?} disk can be mounted: {e}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
    }
}
