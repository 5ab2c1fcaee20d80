//! Opening a log of many segments: side by side, and dropped at any moment.

use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium_testkit::logs::{close, fill, verify};
use futures_util::FutureExt;
use futures_util::future::{Either, select};

use crate::machine::{machine, open, store_and_partition};

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

#[test]
fn dropped_at_any_moment() {
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
