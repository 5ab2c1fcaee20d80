//! A full disk: appends are refused for certain, nothing is lost, and space heals everything.

use std::time::Duration;

use alluvium::format::Batch;
use alluvium::{Error, ReadLimits, Visibility};
use alluvium_testkit::logs::{batch, close, fill, verify};

use crate::machine::{
    EIO, check_answers, machine_with, open, reopened, store_and_partition, try_open,
};

const CAPACITY: u64 = 1 << 20;

/// Appends until there is no space; returns the log end.
async fn fill_up(p: &alluvium::Partition) -> u64 {
    loop {
        let at = p.offsets().log_end();
        match p.append(batch(at, 2)).await {
            Ok(appended) => assert_eq!(appended.base_offset, at),
            Err(e) => {
                check_answers(&e);
                assert!(matches!(e, Error::NoSpace { .. }), "{e}");
                assert_eq!(p.offsets().log_end(), at, "certainly not applied");
                return at;
            }
        }
    }
}

#[test]
fn appends_are_refused_and_go_on_when_space_is_back() {
    for seed in 0..10 {
        let sim = machine_with(seed, |c| c.capacity_bytes = CAPACITY);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            let end = fill_up(&p).await;
            assert!(end > 100);
            for _ in 0..20 {
                assert_eq!(fill_up(&p).await, end, "still full");
            }
            verify(&p, 0, end).await;
            // Reads, syncs and seals need no space; neither do a clean close and an opening.
            assert_eq!(p.sync().await.unwrap(), end);
            let (store, p) = reopened(&sim, store).await;
            verify(&p, 0, end).await;
            let e = store.create_partition(2).await.unwrap_err();
            check_answers(&e);
            assert!(matches!(e, Error::NoSpace { .. }), "{e:?}");
            assert_eq!(fill_up(&p).await, end);
            sim.set_capacity(2 * CAPACITY);
            fill(&p, 50, 3).await;
            verify(&p, 0, end + 50).await;
            store.create_partition(2).await.unwrap();
            let (store, p) = reopened(&sim, store).await;
            verify(&p, 0, end + 50).await;
            close(&store).await;
        });
    }
}

/// Each segment keeps room that only notes of the log to itself may use: so a trim needs no other one.
#[test]
fn a_trim_inside_of_a_segment_works_on_a_full_disk() {
    let sim = machine_with(1, |c| c.capacity_bytes = CAPACITY);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        // One record to a sector: in the end not even the smallest batch fits.
        let e = loop {
            if let Err(e) = p.append(Batch::from_values(["x"]).unwrap()).await {
                break e;
            }
        };
        assert!(matches!(e, Error::NoSpace { .. }), "{e}");
        let end = p.offsets().log_end();
        for start in 1..=3 {
            p.trim_before(start).await.unwrap();
            assert_eq!(p.offsets().log_start(), start);
        }
        let (store, p) = reopened(&sim, store).await;
        assert_eq!((p.offsets().log_start(), p.offsets().log_end()), (3, end));
        close(&store).await;
    });
}

#[test]
fn trim_works_on_a_full_disk_and_frees_space() {
    for seed in 0..10 {
        let sim = machine_with(seed, |c| c.capacity_bytes = CAPACITY);
        sim.block_on(async {
            let (mut store, mut p) = store_and_partition(&sim).await;
            let mut start = 0;
            for round in 0..6 {
                let end = fill_up(&p).await;
                // Trims that free no segment may use up what is reserved for them. They say so, and
                // those that free one work all the same.
                for _ in 0..30 {
                    match p.trim_before(start + 1).await {
                        Ok(()) => start += 1,
                        Err(e) => {
                            check_answers(&e);
                            assert!(matches!(e, Error::NoSpace { .. }), "{e:?}");
                            assert_eq!(p.offsets().log_start(), start);
                        }
                    }
                }
                start = start.max(end - 40 - round);
                p.trim_before(start).await.unwrap();
                verify(&p, start, end).await;
                fill(&p, 30, 3).await;
                verify(&p, start, end + 30).await;
                (store, p) = reopened(&sim, store).await;
                assert_eq!(p.offsets().log_start(), start);
                verify(&p, start, end + 30).await;
            }
            close(&store).await;
        });
    }
}

#[test]
fn retention_works_on_a_full_disk() {
    let sim = machine_with(3, |c| c.capacity_bytes = CAPACITY);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        let end = fill_up(&p).await;
        close(&store).await;
        let opened = try_open(&sim, |c| {
            c.retention_bytes = Some(CAPACITY / 2);
            c.retention_interval = Duration::from_millis(50);
        });
        let (store, _) = opened.await.unwrap();
        let p = store.partition(1).await.unwrap();
        for _ in 0..100 {
            sim.sleep(Duration::from_millis(10)).await;
        }
        let start = p.offsets().log_start();
        assert!(start > 0 && start < end);
        fill(&p, 60, 3).await;
        verify(&p, start.max(p.offsets().log_start()), end + 60).await;
        close(&store).await;
    });
}

/// A truncation needs a segment; without one it changes nothing, and works after a trim.
#[test]
fn a_truncation_without_space_changes_nothing() {
    let sim = machine_with(5, |c| c.capacity_bytes = CAPACITY);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        let end = fill_up(&p).await;
        match p.truncate_to(end - 7).await {
            Ok(()) => {}
            Err(e) => {
                check_answers(&e);
                assert!(matches!(e, Error::NoSpace { .. }), "{e}");
                assert_eq!(p.offsets().log_end(), end);
                verify(&p, 0, end).await;
                p.trim_before(end / 2).await.unwrap();
                p.truncate_to(end - 7).await.unwrap();
            }
        }
        assert_eq!(p.offsets().log_end(), end - 7);
        verify(&p, p.offsets().log_start(), end - 7).await;
        let (store, p) = reopened(&sim, store).await;
        verify(&p, p.offsets().log_start(), end - 7).await;
        close(&store).await;
    });
}

/// On a full disk a trim may take the oldest segment for the header that makes it durable. When
/// that write fails, nobody may be led past records that could come back.
#[test]
fn a_trim_that_fails_on_a_full_disk_hides_nothing() {
    let mut failed = 0;
    for step in 1..8 {
        for seed in 0..8 {
            let sim = machine_with(seed, |c| c.capacity_bytes = CAPACITY);
            sim.block_on(async {
                let (store, p) = store_and_partition(&sim).await;
                let end = fill_up(&p).await;
                sim.sleep(Duration::from_millis(200)).await;
                // Trims that free nothing, until there is no room to note one.
                let mut to = 1;
                while p.trim_before(to).await.is_ok() {
                    to += 1;
                }
                let start = p.offsets().log_start();
                sim.fail_op(sim.op_count() + step, EIO);
                let trimmed = p.trim_before(end - 20).await;
                sim.cancel_failures();
                let Err(e) = trimmed else { return };
                check_answers(&e);
                failed += u32::from(matches!(e, Error::OutcomeUnknown { .. }));
                for from in start..end {
                    let read = p.read(from, ReadLimits::default(), Visibility::Durable);
                    match read.await {
                        Ok(fetched) => {
                            let first = fetched.records().next().map(|r| r.unwrap().offset);
                            assert_eq!(first, Some(from), "records were passed over");
                        }
                        Err(e) => check_answers(&e),
                    }
                }
                p.reopen().await.unwrap();
                verify(&p, p.offsets().log_start(), end).await;
                close(&store).await;
            });
        }
    }
    assert!(failed >= 8, "{failed} headers were not written");
}

/// What was refused was not applied: nothing that is written later tells of it.
#[test]
fn a_trim_that_was_refused_leaves_no_trace() {
    for seed in 0..8 {
        let sim = machine_with(seed, |c| c.capacity_bytes = CAPACITY);
        let (mut start, mut end) = (0, 0);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            end = fill_up(&p).await;
            sim.sleep(Duration::from_millis(200)).await;
            // Trims that free nothing, until there is no room to note one.
            let refused = loop {
                match p.trim_before(start + 1).await {
                    Ok(()) => start += 1,
                    Err(e) => break e,
                }
            };
            assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
            assert_eq!(p.offsets().log_start(), start);
            // The header of the next segment tells the log start, and so does the seal when it rests.
            sim.set_capacity(2 * CAPACITY);
            fill(&p, 20, 2).await;
            end += 20;
            sim.sleep(Duration::from_millis(200)).await;
            close(&store).await;
        });
        sim.block_on(async {
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            assert_eq!(p.offsets().log_start(), start, "the refused trim came back");
            verify(&p, start, end).await;
            close(&store).await;
        });
    }
}

/// A crash on a full disk: the log opens, is read and trimmed, and goes on when space is back.
#[test]
fn a_crash_on_a_full_disk() {
    for seed in 0..20 {
        let sim = machine_with(seed, |c| c.capacity_bytes = CAPACITY);
        let mut end = 0;
        sim.block_on(async {
            let (_store, p) = store_and_partition(&sim).await;
            end = fill_up(&p).await;
            sim.power_loss();
        });
        sim.block_on(async {
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            verify(&p, 0, end).await;
            p.trim_before(end - 10).await.unwrap();
            verify(&p, end - 10, end).await;
            sim.set_capacity(2 * CAPACITY);
            fill(&p, 20, 2).await;
            verify(&p, end - 10, end + 20).await;
            close(&store).await;
        });
    }
}
