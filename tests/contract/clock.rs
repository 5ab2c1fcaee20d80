//! Jumps of the wall clock: the log's own time goes on, and with it lookups by time.

use alluvium::{Partition, ReadLimits, Visibility};
use alluvium_testkit::logs::{batch, close, fill, verify};

use crate::machine::{machine, open, store_and_partition};

/// A newest segment without a batch has only its header to tell the log's time: after a truncation, and
/// behind a tail that a crash left.
#[test]
fn an_empty_newest_segment_keeps_the_logs_time() {
    for truncated in [true, false] {
        let sim = machine(2);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 5, 1).await;
            if truncated {
                sim.jump_wall_clock(-HOUR_MS);
                p.truncate_to(3).await.unwrap();
                close(&store).await;
            }
        });
        if !truncated {
            sim.power_loss();
            sim.jump_wall_clock(-HOUR_MS);
            sim.block_on(async { close(&open(&sim).await).await });
        }
        sim.block_on(async {
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            fill(&p, 3, 1).await;
            let times = times(&p).await;
            assert!(
                times.len() >= 6 && times.is_sorted(),
                "{truncated}: {times:?}"
            );
            close(&store).await;
        });
    }
}

const HOUR_MS: i64 = 3_600_000;

async fn times(p: &Partition) -> Vec<i64> {
    let (mut at, mut times) = (p.offsets().log_start(), vec![]);
    while at < p.offsets().durable() {
        let read = p.read(at, ReadLimits::default(), Visibility::Durable);
        let read = read.await.unwrap();
        times.extend(read.records().map(|record| record.unwrap().timestamp));
        at = read.next_offset;
    }
    times
}

#[test]
fn the_logs_time_never_goes_back() {
    let sim = machine(1);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        // Back and forth, in all a day ahead, then far behind; a restart in between.
        for jump in [0, -HOUR_MS, 24 * HOUR_MS, -48 * HOUR_MS] {
            sim.jump_wall_clock(jump);
            fill(&p, 5, 1).await;
        }
        close(&store).await;
        drop((store, p));
        sim.jump_wall_clock(-HOUR_MS);
        let store = open(&sim).await;
        let p = store.partition(1).await.unwrap();
        fill(&p, 5, 1).await;
        verify(&p, 0, 25).await;
        let times = times(&p).await;
        assert!(times.is_sorted(), "{times:?}");
        assert!(times[10] >= times[9] + 20 * HOUR_MS, "forwards it follows");
        // So the first record of a time is found, whatever the clock did.
        for (offset, time) in (0..).zip(&times) {
            let first = times.partition_point(|earlier| earlier < time) as u64;
            let found = p.offset_for_timestamp(*time).await.unwrap();
            assert_eq!(found, Some(first), "of the record at {offset}");
        }
        let later = times[24] + 1;
        assert_eq!(p.offset_for_timestamp(later).await.unwrap(), None);
        sim.jump_wall_clock(100 * HOUR_MS);
        let appended = p.append(batch(25, 1)).await.unwrap();
        let found = p.offset_for_timestamp(later).await.unwrap();
        assert_eq!(found, Some(appended.base_offset));
        close(&store).await;
    });
}
