//! Memory is bounded: with a disk that does not answer, callers wait or hear `Full`.

use alluvium::{Ack, Error, InspectRequest, Partition, ReadLimits, Visibility};
use alluvium_testkit::logs::{batch, close, fill, verify};
use futures_util::future::join_all;
use futures_util::join;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::machine::{
    at_rest, check_answers, machine, polled, reopened, store_and_partition, try_open,
};

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
            assert_eq!(stats.requests_under_way, 32, "{stats:?}");
            assert!(sim.in_flight() <= 32);
        }
        let refused = p.try_append(batch(500, 1), Ack::Durable.into());
        let refused = refused.err().expect("reads fill the mailbox").error;
        assert!(
            matches!(refused, Error::Full { what: "requests" }),
            "{refused}"
        );
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
                // At first all callers have gone, which ends searches.
                if round == 49 || (round == 0 && matches!(kinds, [0 | 1])) {
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

/// So do creations, each of another partition. What has room takes effect, though nobody waits for it.
#[test]
fn creations_wait_within_the_bounds() {
    const ROOM: usize = 8;
    let sim = machine(7);
    sim.block_on(async {
        let opened = try_open(&sim, |c| c.mailbox_requests_max = ROOM);
        let (store, _) = opened.await.unwrap();
        sim.set_stalled(true);
        for id in 0..100 {
            assert!(polled(store.create_partition(id), 1).await.is_none());
            sim.sleep(std::time::Duration::from_millis(1)).await;
            let stats = store.stats().await.unwrap()[0];
            let asked = usize::try_from(id).unwrap() + 1;
            assert_eq!(stats.requests_under_way, ROOM.min(asked), "{stats:?}");
        }
        sim.set_stalled(false);
        at_rest(&sim, &store).await;
        let created = store.list_partitions().await.unwrap();
        let created: Vec<_> = created.iter().map(|p| p.id).collect();
        assert_eq!(created, (0..ROOM as u64).collect::<Vec<_>>());
        close(&store).await;
    });
}

/// Searches read much for little: they end when their callers have gone, with the read that is under way.
#[test]
fn searches_end_when_their_callers_have_gone() {
    let sim = machine(8);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 1500, 5).await;
        let segments = p.describe().await.unwrap().segments as u64;
        assert!(segments > 15);
        let asks = async |kind: usize, p: &Partition| match kind {
            0 => p.inspect(InspectRequest::default()).await.map(drop),
            // The indexes are read one by one.
            _ => p.offset_for_timestamp(i64::MAX).await.map(drop),
        };
        let mut opened = (store, p);
        for kind in [0, 1] {
            for abandoned in [true, false] {
                opened = reopened(&sim, opened.0).await;
                let (store, p) = &opened;
                let before = sim.counters().reads;
                let mut asked = Box::pin(asks(kind, p));
                if abandoned {
                    while sim.counters().reads == before {
                        assert!(polled(&mut asked, 1).await.is_none());
                        sim.sleep(std::time::Duration::from_micros(1)).await;
                    }
                    drop(asked);
                } else {
                    asked.await.unwrap();
                }
                at_rest(&sim, store).await;
                let reads = sim.counters().reads - before;
                let (least, most) = if abandoned {
                    (1, 3)
                } else {
                    (segments - 1, u64::MAX)
                };
                assert!(
                    reads >= least && reads <= most,
                    "{reads}, {segments} segments"
                );
            }
        }
        close(&opened.0).await;
    });
}

/// Whatever is asked for at a time, one place in the mailbox is enough: nobody who has it waits for another.
#[test]
fn every_request_goes_through_a_mailbox_with_one_place() {
    let sim = machine(9);
    sim.block_on(async {
        let opened = try_open(&sim, |c| {
            c.mailbox_requests_max = 1;
            c.tail_cache_bytes_max = 0;
        });
        let (store, _) = opened.await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 600, 4).await;
        let several = [p.clone(), p.clone()];
        let subscribed = async {
            let (mut items, mut next) = (p.subscribe(100), 100);
            while next < 500 {
                next = items.next().await.unwrap().unwrap().next_offset;
            }
        };
        let begun = async {
            let pending = p.begin_append(batch(604, 2), Ack::Durable).await?;
            pending.acknowledged().await
        };
        let results = join!(
            p.append(batch(600, 2)),
            p.sync(),
            p.trim_before(100),
            p.read(300, ReadLimits::default(), Visibility::Durable),
            p.offset_for_timestamp(i64::MAX),
            p.inspect(InspectRequest::default()),
            store.create_partition(2),
            p.append_with(batch(602, 2), Ack::Accepted),
            begun,
            store.sync_many(&several),
            subscribed,
        );
        assert_eq!(results.0.unwrap().base_offset, 600);
        assert_eq!(results.1.unwrap(), 602);
        results.2.unwrap();
        assert!(!results.3.unwrap().is_empty());
        assert_eq!(results.4.unwrap(), None);
        assert!(!results.5.unwrap().segments.is_empty());
        assert_eq!(results.6.unwrap().offsets().log_end(), 0);
        assert_eq!(results.7.unwrap().base_offset, 602);
        assert_eq!(results.8.unwrap().base_offset, 604);
        results.9.unwrap();
        p.truncate_to(500).await.unwrap();
        store.delete_partition(&p).await.unwrap();
        at_rest(&sim, &store).await;
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
            let one = batch(0, 1).encoded_len();
            let room = BYTES_MAX - stats.bytes_under_way;
            assert!(room < one, "{stats:?}");
        }
        // Offsets are given to what has room, and to nothing else.
        let placed: u64 = partitions.iter().map(|p| p.offsets().log_end()).sum();
        let placed = usize::try_from(placed).unwrap() * batch(0, 1).encoded_len();
        assert!(placed <= BYTES_MAX, "{placed} bytes");
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
