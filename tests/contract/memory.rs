//! Memory is bounded: with a disk that does not answer, callers wait or hear `Full`.

use alluvium::{Ack, Error, ReadLimits, Visibility};
use alluvium_testkit::logs::{batch, close, fill, verify};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::machine::{at_rest, check_answers, machine, polled, try_open};

const BYTES_MAX: usize = 64 << 10;

#[test]
fn appends_wait_within_the_bounds() {
    for (level, requests_max) in [
        (Ack::Durable, 5000),
        (Ack::Accepted, 5000),
        (Ack::Written, 16),
    ] {
        let sim = machine(2);
        sim.block_on(async {
            let opened = try_open(&sim, |c| {
                c.mailbox_bytes_max = BYTES_MAX;
                c.mailbox_requests_max = requests_max;
            });
            let (store, _) = opened.await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 2, 1).await;
            sim.set_stalled(true);
            let mut under_way: FuturesUnordered<_> = (0..3000)
                .map(|_| p.append_with(batch(2, 1), level))
                .collect();
            let mut done = 0;
            for _ in 0..50 {
                while let Some(Some(appended)) = polled(under_way.next(), 1).await {
                    appended.unwrap();
                    done += 1;
                }
                sim.sleep(std::time::Duration::from_millis(1)).await;
                let stats = store.stats().await.unwrap()[0];
                assert!(stats.bytes_under_way <= BYTES_MAX, "{stats:?}");
                assert!(stats.requests_under_way <= requests_max, "{stats:?}");
            }
            assert!(done < 3000, "the bound holds somebody back");
            let refused = p.try_append(batch(2, 1), level.into()).err().unwrap();
            check_answers(&refused.error);
            assert!(
                matches!(refused.error, Error::Full { .. }),
                "{}",
                refused.error
            );
            sim.set_stalled(false);
            while let Some(appended) = under_way.next().await {
                appended.unwrap();
                done += 1;
            }
            assert_eq!(done, 3000);
            p.sync().await.unwrap();
            at_rest(&sim, &store).await;
            assert_eq!(p.offsets().durable(), 3002);
            close(&store).await;
        });
    }
}

#[test]
fn reads_wait_within_the_bounds() {
    let sim = machine(4);
    sim.block_on(async {
        let opened = try_open(&sim, |c| {
            c.mailbox_requests_max = 32;
            c.tail_cache_bytes_max = 0;
        });
        let (store, _) = opened.await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 500, 5).await;
        sim.set_stalled(true);
        let limits = ReadLimits {
            bytes_max: 4096,
            records_max: 10,
        };
        let mut reads: FuturesUnordered<_> = (0..2000)
            .map(|i| p.read(i % 400, limits, Visibility::Durable))
            .collect();
        for _ in 0..50 {
            assert!(polled(reads.next(), 1).await.is_none());
            sim.sleep(std::time::Duration::from_millis(1)).await;
            let stats = store.stats().await.unwrap()[0];
            assert!(stats.requests_under_way <= 32, "{stats:?}");
        }
        sim.set_stalled(false);
        while let Some(read) = reads.next().await {
            assert!(!read.unwrap().is_empty());
        }
        at_rest(&sim, &store).await;
        let all = (0..10).map(|_| verify(&p, 0, 500));
        join_all(all).await;
        close(&store).await;
    });
}

/// Many partitions share one bound.
#[test]
fn the_bound_is_one_for_all_partitions_of_a_shard() {
    let sim = machine(6);
    sim.block_on(async {
        let opened = try_open(&sim, |c| c.mailbox_bytes_max = BYTES_MAX);
        let (store, _) = opened.await.unwrap();
        let mut partitions = vec![];
        for id in 0..16 {
            partitions.push(store.create_partition(id).await.unwrap());
        }
        sim.set_stalled(true);
        let mut under_way: FuturesUnordered<_> = (0..1600)
            .map(|i| partitions[i % 16].append(batch(0, 1)))
            .collect();
        for _ in 0..50 {
            assert!(polled(under_way.next(), 1).await.is_none());
            sim.sleep(std::time::Duration::from_millis(1)).await;
            let stats = store.stats().await.unwrap()[0];
            assert!(stats.bytes_under_way <= BYTES_MAX, "{stats:?}");
        }
        sim.set_stalled(false);
        while let Some(appended) = under_way.next().await {
            appended.unwrap();
        }
        at_rest(&sim, &store).await;
        for p in &partitions {
            assert_eq!(p.offsets().durable(), 100);
        }
        close(&store).await;
    });
}
