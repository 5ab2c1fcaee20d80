//! Memory is bounded: with a disk that does not answer, callers wait or hear `Full`.

use alluvium::{Ack, Error, InspectRequest, ReadLimits, Visibility};
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

/// Requests that carry nothing take room all the same, also those whose callers have gone: who tries
/// again and again on a disk that stands still fills no queue.
#[test]
fn requests_of_every_kind_wait_within_the_bounds() {
    const ROOM: usize = 32;
    // Lookups by time alone would be answered from memory.
    for kinds in [&[0][..], &[1], &[3], &[0, 1, 2, 3]] {
        let sim = machine(5);
        sim.block_on(async {
            let opened = try_open(&sim, |c| c.mailbox_requests_max = ROOM);
            let (store, _) = opened.await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 500, 5).await;
            sim.set_stalled(true);
            let append = p.try_append(batch(500, 1), Ack::Durable.into());
            let append = append.unwrap_or_else(|refused| panic!("{}", refused.error));
            let ask = async |n: usize| match kinds[n % kinds.len()] {
                0 => p.sync().await.map(drop),
                1 => p.trim_before(1 + n as u64 % 100).await,
                2 => p.offset_for_timestamp(i64::MAX).await.map(drop),
                _ => p.inspect(InspectRequest::default()).await.map(drop),
            };
            let mut waiting = FuturesUnordered::new();
            for round in 0..50 {
                let stats = store.stats().await.unwrap()[0];
                assert!(stats.requests_under_way <= ROOM, "{stats:?}");
                for n in 0..40 {
                    let asked = ask(round * 40 + n);
                    if round % 2 == 0 {
                        drop(polled(Box::pin(asked), 1).await);
                    } else {
                        waiting.push(asked);
                    }
                }
                drop(polled(waiting.next(), 1).await);
                sim.sleep(std::time::Duration::from_millis(1)).await;
                // At first all callers have gone; among the kinds are some that are answered.
                if round == 49 || (round == 0 && kinds.len() == 1) {
                    let refused = p.try_append(batch(501, 1), Ack::Durable.into());
                    let refused = refused.err().expect("what waits fills the mailbox");
                    assert!(matches!(refused.error, Error::Full { what: "requests" }));
                }
            }
            sim.set_stalled(false);
            while let Some(result) = waiting.next().await {
                result.unwrap();
            }
            append.await.unwrap();
            at_rest(&sim, &store).await;
            let stats = store.stats().await.unwrap()[0];
            assert_eq!(stats.requests_under_way, 0, "{stats:?}");
            verify(&p, p.offsets().log_start(), 501).await;
            close(&store).await;
        });
    }
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
