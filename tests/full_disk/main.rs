//! Full and read-only disks under the real backends: small file systems of their own.
//!
//! `tests/full_disk/run` makes an ext4 and an xfs on loop devices and hands their mount points over
//! in `FULL_DISKS` (separated by colons); it needs root. Without the variable these tests say that
//! they were skipped. The simulated disk asks the same in `tests/contract`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test reports a failure"
)]

mod disk;

use std::path::Path;
use std::time::Duration;

use alluvium::backends::layer::Layered;
use alluvium::format::Batch;
use alluvium::{BackendKind, Error, OpenStore, Partition, Result, Store};
use alluvium_testkit::logs::{batch, close, fill, verify};
use alluvium_testkit::stress::{Omit, backends};

use disk::{SmallDisk, disks};

const SEGMENT_BYTES: u64 = 256 << 10;
/// More than a sweep needs: the partition's first files and a few segments.
const SWEEP_BYTES: u64 = 2 << 20;
const SWEEP_STEP: usize = 20 << 10;

async fn open<O: OpenStore>(dir: &Path, backend: O) -> Result<Store> {
    let builder = Store::builder(dir).configure(|config| {
        config.segment_bytes = SEGMENT_BYTES;
        config.group_bytes_max = 32 << 10;
        config.group_bytes_min = 4 << 10;
        config.initialise_ahead_bytes = 32 << 10;
        config.seal_after = Duration::from_millis(5);
    });
    builder
        .backend(backend)
        .open()
        .await
        .map(|(store, _)| store)
}

/// Runs a check on every disk and backend, each in a fresh directory.
fn everywhere<F: Future<Output = ()>>(check: impl Fn(SmallDisk, BackendKind) -> F) {
    for disk in disks() {
        for kind in backends() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.unwrap().block_on(check(disk.clone(), kind));
            disk.clear();
        }
    }
}

/// Appends until there is no space, and returns the log end.
async fn fill_up(p: &Partition) -> u64 {
    loop {
        let at = p.offsets().log_end();
        match p.append(batch(at, 30)).await {
            Ok(appended) => assert_eq!(appended.base_offset, at),
            Err(e) => {
                assert!(matches!(e, Error::NoSpace { .. }), "{e:?}");
                assert!(e.is_not_applied() && e.is_retriable(), "{e:?}");
                assert_eq!(p.offsets().log_end(), at, "certainly not applied");
                return at;
            }
        }
    }
}

#[test]
fn appends_are_refused_and_go_on_when_space_is_back() {
    everywhere(async |disk, kind| {
        let dir = disk.path().join("store");
        let ballast = disk.leave(4 << 20);
        let store = open(&dir, kind).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        let end = fill_up(&p).await;
        assert!(end > 500, "{end}");
        for _ in 0..20 {
            assert_eq!(fill_up(&p).await, end, "still full");
        }
        // Reads, syncs, a clean close and an opening need no space.
        assert_eq!(p.sync().await.unwrap(), end);
        verify(&p, 0, end).await;
        close(&store).await;
        let store = open(&dir, kind).await.unwrap();
        let p = store.partition(1).await.unwrap();
        verify(&p, 0, end).await;
        assert_eq!(fill_up(&p).await, end);
        let e = store.create_partition(2).await.unwrap_err();
        assert!(matches!(e, Error::NoSpace { .. }), "{e:?}");
        drop(ballast);
        fill(&p, 500, 5).await;
        store.create_partition(2).await.unwrap();
        verify(&p, 0, end + 500).await;
        close(&store).await;
        let store = open(&dir, kind).await.unwrap();
        verify(&store.partition(1).await.unwrap(), 0, end + 500).await;
        close(&store).await;
    });
}

/// The control: without blocks that were taken ahead, a full disk strikes in the middle of a write; unless
/// it happens to strike where a spare is made, so there are several disks.
#[test]
fn a_store_that_takes_no_blocks_ahead_is_caught() {
    everywhere(async |disk, kind| {
        let omit = Omit {
            allocation: true,
            ..Omit::default()
        };
        let dir = disk.path().join("store");
        let mut told = vec![];
        for n in 0..16 {
            let ballast = disk.leave((4 << 20) + n * (76 << 10));
            let store = open(&dir, Layered::new(kind, omit)).await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            let e = loop {
                if let Err(e) = p.append(batch(p.offsets().log_end(), 30)).await {
                    break e;
                }
            };
            let noticed = !matches!(e, Error::NoSpace { .. });
            told.push(e);
            store.close(Duration::from_secs(30)).await.ok();
            drop((store, p, ballast));
            if noticed {
                eprintln!("{kind} on {}: noticed on disk {n}", disk.path().display());
                return;
            }
            std::fs::remove_dir_all(&dir).unwrap();
        }
        panic!("{kind}: nobody noticed: {told:?}");
    });
}

#[test]
fn trim_works_on_a_full_disk_and_frees_space() {
    everywhere(async |disk, kind| {
        let dir = disk.path().join("store");
        let ballast = disk.leave(4 << 20);
        let mut store = open(&dir, kind).await.unwrap();
        let mut p = store.create_partition(1).await.unwrap();
        let mut start = 0;
        for round in 0..5 {
            fill_up(&p).await;
            // Not a byte is left, for the file system's own needs neither.
            let rest = disk.leave(0);
            let end = fill_up(&p).await;
            start = start.max(end - 60 - round);
            p.trim_before(start).await.unwrap();
            verify(&p, start, end).await;
            fill(&p, 300, 5).await;
            verify(&p, start, end + 300).await;
            close(&store).await;
            store = open(&dir, kind).await.unwrap();
            p = store.partition(1).await.unwrap();
            assert_eq!(p.offsets().log_start(), start);
            verify(&p, start, end + 300).await;
            drop(rest);
        }
        close(&store).await;
        drop(ballast);
    });
}

/// With ever more space: it runs out in the creation of the store, of a partition, of a segment.
#[test]
fn space_that_runs_out_at_any_point_loses_nothing() {
    everywhere(async |disk, kind| {
        let (mut refused, mut filled) = (0, 0);
        for free in (0..SWEEP_BYTES).step_by(SWEEP_STEP) {
            let dir = disk.path().join(format!("store-{free}"));
            let ballast = disk.leave(free);
            let tried = run_out(&dir, kind).await;
            drop(ballast);
            match &tried {
                // There was no room for the first segment.
                Ok(0) => refused += 1,
                Ok(_) => filled += 1,
                Err(e) => {
                    assert!(is_full(e), "{free} bytes free: {e:?}");
                    refused += 1;
                }
            }
            // What was begun goes on with space, and holds what was acknowledged.
            let store = open(&dir, kind).await.unwrap();
            let p = store.partition_or_create(1).await.unwrap();
            let end = tried.unwrap_or(0);
            verify(&p, 0, end).await;
            fill(&p, 20, 5).await;
            verify(&p, 0, end + 20).await;
            close(&store).await;
            std::fs::remove_dir_all(&dir).unwrap();
        }
        assert!(
            refused > 2 && filled > 5,
            "refused {refused}, filled {filled}"
        );
    });
}

/// Up to where the log is acknowledged when the space is gone.
async fn run_out(dir: &Path, kind: BackendKind) -> Result<u64> {
    let store = open(dir, kind).await?;
    let p = match store.create_partition(1).await {
        Ok(p) => p,
        Err(e) => {
            close(&store).await;
            return Err(e);
        }
    };
    let end = fill_up(&p).await;
    close(&store).await;
    Ok(end)
}

fn is_full(e: &Error) -> bool {
    match e {
        Error::NoSpace { .. } => true,
        Error::Io { source, .. } => source.kind == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}

#[test]
fn a_read_only_file_system_refuses_writers_and_serves_readers() {
    everywhere(async |disk, kind| {
        let dir = disk.path().join("store");
        let store = open(&dir, kind).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 200, 4).await;
        close(&store).await;
        disk.remount("ro");
        let e = open(&dir, kind).await.map(|_| ()).unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "{e:?}");
        let reader = Store::builder(&dir).read_only().backend(kind);
        let (store, _) = reader.open().await.unwrap();
        let p = store.partition(1).await.unwrap();
        verify(&p, 0, 200).await;
        let e = p.append(batch(200, 1)).await.unwrap_err();
        assert!(matches!(e, Error::ReadOnly { .. }), "{e:?}");
        close(&store).await;
        disk.remount("rw");
        let store = open(&dir, kind).await.unwrap();
        let p = store.partition(1).await.unwrap();
        fill(&p, 50, 5).await;
        verify(&p, 0, 250).await;
        close(&store).await;
    });
}

/// The kernel takes the file system away from under an open store, as it does after an error.
#[test]
fn a_file_system_that_shuts_down_fails_appends_and_keeps_what_was_acknowledged() {
    everywhere(async |disk, kind| {
        let dir = disk.path().join("store");
        let store = open(&dir, kind).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 300, 4).await;
        disk.shut_down();
        let mut refusals = 0;
        for _ in 0..50 {
            let at = p.offsets().log_end();
            match p.append(batch(at, 1)).await {
                Ok(_) => {}
                Err(Error::OutcomeUnknown { .. } | Error::PartitionFailed { .. }) => refusals += 1,
                Err(e) => assert!(e.is_not_applied(), "{e:?}"),
            }
        }
        assert!(refusals > 0, "the shut down file system took every append");
        let e = p
            .append(Batch::from_values(["x"]).unwrap())
            .await
            .unwrap_err();
        assert!(matches!(e, Error::PartitionFailed { .. }), "{e:?}");
        let end = p.offsets().durable();
        // Nothing can be written: it says so, or gives up, but it ends.
        store.close(Duration::from_secs(30)).await.ok();
        drop(store);
        drop(p);
        disk.mount_again();
        let store = open(&dir, kind).await.unwrap();
        let p = store.partition(1).await.unwrap();
        assert!(p.offsets().log_end() >= end.max(300));
        verify(&p, 0, p.offsets().log_end()).await;
        fill(&p, 20, 2).await;
        close(&store).await;
    });
}

/// The control: what was never made durable goes with the file system's journal.
#[test]
fn a_store_that_makes_nothing_durable_is_caught() {
    everywhere(async |disk, kind| {
        let omit = Omit {
            durable_writes: true,
            syncs: true,
            ..Omit::default()
        };
        let dir = disk.path().join("store");
        let store = open(&dir, Layered::new(kind, omit)).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 300, 4).await;
        disk.shut_down();
        store.close(Duration::from_secs(30)).await.ok();
        drop(store);
        drop(p);
        disk.mount_again();
        let left = left_of(&dir, kind).await;
        eprintln!("{kind} on {}: {left:?} of 300", disk.path().display());
        assert!(left.is_none_or(|end| end < 300), "nothing was lost");
    });
}

/// Log end of what is left of a store; `None` without a partition.
async fn left_of(dir: &Path, kind: BackendKind) -> Option<u64> {
    let store = open(dir, kind).await.ok()?;
    let end = match store.partition(1).await {
        Ok(p) => Some(p.offsets().log_end()),
        Err(_) => None,
    };
    close(&store).await;
    end
}
