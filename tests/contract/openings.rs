//! Opening a log of many segments: side by side, left by its caller at any moment, and ended by one
//! file while others are under way.

use std::collections::BTreeSet;
use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::{CorruptionKind, Error, InspectDetail, InspectRequest, OnCorruption};
use alluvium_testkit::logs::{batch, close, fill, verify};
use futures_util::FutureExt;
use futures_util::future::{Either, select};

use crate::machine::{EIO, machine, open, store_and_partition, try_open};

/// Records of the log; they take over a hundred segments.
const RECORDS: u64 = 12_000;

async fn long_log(sim: &Sim) {
    let (store, p) = store_and_partition(sim).await;
    fill(&p, RECORDS, 8).await;
    close(&store).await;
    let files = sim.list_files().len();
    assert!(files > 100, "{files} files");
}

#[test]
fn files_are_opened_side_by_side() {
    let sim = machine(7);
    sim.block_on(async {
        long_log(&sim).await;
        let mut opening = open(&sim).boxed_local();
        let mut most = 0;
        let store = loop {
            let tick = sim.sleep(Duration::from_micros(20)).boxed_local();
            match select(opening, tick).await {
                Either::Left((store, _)) => break store,
                Either::Right(((), rest)) => opening = rest,
            }
            most = most.max(sim.in_flight());
        };
        assert!((16..=64).contains(&most), "{most} operations at a time");
        verify(&store.partition(1).await.unwrap(), 0, RECORDS).await;
        close(&store).await;
    });
    assert_eq!(sim.open_descriptors(), 0);
}

/// An opening that nobody waits for ends by itself, and lets go of everything.
#[test]
fn left_at_any_moment() {
    let sim = machine(8);
    let mut dropped = 0;
    sim.block_on(async {
        long_log(&sim).await;
        for moment in 1..100_u32 {
            let patience = sim.sleep(Duration::from_micros(50) * moment).boxed_local();
            let opened = select(open(&sim).boxed_local(), patience).await;
            if let Either::Left((store, _)) = opened {
                close(&store).await;
                break;
            }
            drop(opened);
            dropped += 1;
            sim.sleep(Duration::from_secs(1)).await;
            assert_eq!(sim.open_descriptors(), 0, "after {moment}");
        }
        let store = open(&sim).await;
        verify(&store.partition(1).await.unwrap(), 0, RECORDS).await;
        close(&store).await;
    });
    assert!(
        (10..99).contains(&dropped),
        "{dropped} openings were dropped"
    );
}

/// Operations on up to 31 other files are under way, and dropped, when one fails.
#[test]
fn one_read_that_fails_ends_it_and_leaves_nothing_open() {
    let sim = machine(9);
    sim.block_on(async {
        long_log(&sim).await;
        let mut failed = 0;
        for n in 0..400 {
            sim.fail_read(sim.counters().reads + 1 + n, EIO);
            match try_open(&sim, |_| {}).await {
                Ok((store, _)) => close(&store).await,
                Err(e) => {
                    assert!(matches!(e, Error::Io { .. }), "{n}: {e}");
                    failed += 1;
                }
            }
            sim.cancel_failures();
            // At once: nothing that was dropped holds a file.
            let store = open(&sim).await;
            close(&store).await;
            assert_eq!(sim.open_descriptors(), 0, "read {n}");
        }
        assert!(failed > 100, "{failed} openings failed");
        let store = open(&sim).await;
        verify(&store.partition(1).await.unwrap(), 0, RECORDS).await;
        close(&store).await;
    });
}

/// A sector that the disk does not give keeps a partition from being opened: that one alone where damage
/// is read around, whatever the read was for.
#[test]
fn a_bad_sector_is_the_trouble_of_one_partition_where_damage_is_read_around() {
    let cut_other = OnCorruption::CutTail { partition: 77 };
    for policy in [OnCorruption::Salvage, cut_other] {
        let sim = machine(9);
        sim.block_on(async {
            for id in 1..4 {
                let store = open(&sim).await;
                let p = store.create_partition(id).await.unwrap();
                fill(&p, 60, 3).await;
                close(&store).await;
            }
            let (mut without, mut whole) = (BTreeSet::new(), 0);
            for n in 1..40 {
                // A header is tried twice, the second time without what follows it.
                for read in [n, n + 1] {
                    sim.fail_read(sim.counters().reads + read, EIO);
                }
                let opened = try_open(&sim, |c| c.on_corruption = policy).await;
                sim.cancel_failures();
                // The first reads are of the store's own file: nothing is known without it.
                let Ok((store, report)) = opened else {
                    assert!(n < 4, "read {n}: {:?}", opened.err());
                    continue;
                };
                for of_it in &report.partitions {
                    let p = store.partition(of_it.partition).await.unwrap();
                    if !of_it.damage.any() {
                        verify(&p, 0, 60).await;
                        continue;
                    }
                    let why = of_it.corruption.as_ref().map(|c| &c.found);
                    let unreadable = matches!(why, Some(CorruptionKind::Unreadable(_)));
                    assert!(unreadable, "read {n}: {of_it}");
                    let e = p.append(batch(60, 1)).await.unwrap_err();
                    assert!(matches!(e, Error::ReadOnly { .. }), "{e}");
                    // The header of a spare, say: nothing is missing.
                    if of_it.log_end >= 60 {
                        verify(&p, 0, 60).await;
                        whole += 1;
                    }
                    without.insert(of_it.partition);
                }
                close(&store).await;
            }
            assert_eq!(without.len(), 3, "each of them once");
            assert!(whole > 0, "a header that the log does not need");
            // The disk gives it again.
            let store = open(&sim).await;
            for id in 1..4 {
                verify(&store.partition(id).await.unwrap(), 0, 60).await;
            }
            close(&store).await;
        });
    }
}

/// Of two headers that claim the same place the one of the later opening must be the newer.
#[test]
fn each_opening_writes_with_a_generation_of_its_own() {
    let sim = machine(10);
    let mut last = 0;
    for round in 0..6 {
        let newest = sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 5, 1).await;
            let request = InspectRequest {
                detail: InspectDetail::Batches,
                ..InspectRequest::default()
            };
            let found = p.inspect(request).await.unwrap();
            if round % 2 == 0 {
                close(&store).await;
            }
            let batches = found.segments.iter().flat_map(|s| &s.batches);
            batches.map(|b| b.header.generation).max().unwrap()
        });
        assert!(newest > last, "{newest} after {last} in round {round}");
        last = newest;
        sim.power_loss();
    }
}
