//! The read path: the tail without a request, read-ahead within its bounds, damage in front of it.

use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::format::Batch;
use alluvium::{
    Ack, Error, InspectDetail, InspectRequest, Partition, ReadLimits, Store, StoreConfig,
    Subscription, Visibility,
};
use alluvium_testkit::logs::{batch, close, fill, value, verify};
use futures_util::{FutureExt, StreamExt};

use crate::machine::{at_rest, machine, machine_from, polled, snapshot, try_open};

const AHEAD_BYTES_MAX: usize = 24 << 10;

/// Small pieces, nothing in memory.
fn from_disk(config: &mut StoreConfig) {
    config.tail_cache_bytes_max = 0;
    config.read_chunk_bytes = 8 << 10;
    config.read_ahead_chunks = 4;
    config.read_ahead_bytes_max = AHEAD_BYTES_MAX;
}

const SMALL: ReadLimits = ReadLimits {
    bytes_max: 4000,
    records_max: 7,
};

async fn reopened(sim: &Sim, store: Store) -> (Store, Partition) {
    close(&store).await;
    drop(store);
    let (store, _) = try_open(sim, from_disk).await.unwrap();
    let p = store.partition(1).await.unwrap();
    (store, p)
}

/// One poll is enough: on one thread, the shard cannot have had a part in it.
#[test]
fn the_tail_is_read_without_the_shard() {
    let sim = machine(1);
    sim.block_on(async {
        let opened = try_open(&sim, |c| c.tail_cache_bytes_max = 1 << 20);
        let (store, _) = opened.await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 40, 4).await;
        // Nothing can be asked of a disk that does not answer.
        sim.set_stalled(true);
        let mut at = 0;
        let mut stream = p.subscribe_with(0, SMALL);
        while at < 40 {
            let read = p.read(at, SMALL, Visibility::Durable).now_or_never();
            let fetched = read.expect("without waiting").unwrap();
            let same = stream.next().now_or_never().expect("without waiting");
            assert_eq!(same.unwrap().unwrap(), fetched);
            for record in fetched.records() {
                let record = record.unwrap();
                assert_eq!(record.value[..], value(record.offset)[..]);
            }
            at = fetched.next_offset;
        }
        let end = p.read(40, SMALL, Visibility::Durable).now_or_never();
        assert!(end.unwrap().unwrap().is_empty());
        let e = p.read(41, SMALL, Visibility::Durable).now_or_never();
        let e = e.unwrap().unwrap_err();
        assert!(matches!(e, Error::OutOfRange { end: 40, .. }), "{e}");
        sim.set_stalled(false);
        assert_eq!(store.stats().await.unwrap()[0].reads_from_disk, 0);
        close(&store).await;
        let e = p.read(0, SMALL, Visibility::Durable).now_or_never();
        assert_eq!(e.unwrap().unwrap_err(), Error::Closed);
    });
}

#[test]
fn offsets_do_not_lag_behind_an_acknowledgement_of_any_level() {
    let sim = machine(2);
    sim.block_on(async {
        let (store, _) = try_open(&sim, |_| {}).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        for level in [Ack::Accepted, Ack::Written, Ack::Durable] {
            for _ in 0..20 {
                let end = p.offsets().log_end();
                let appended = p.append_with(batch(end, 3), level).await.unwrap();
                assert!(p.offsets().log_end() >= appended.end_offset(), "{level:?}");
            }
        }
        p.sync().await.unwrap();
        sim.set_stalled(true);
        let end = p.offsets().log_end();
        let pending = p.begin_append(batch(end, 3), Ack::Durable).await.unwrap();
        assert_eq!(
            (p.offsets().log_end(), p.offsets().durable()),
            (end + 3, end)
        );
        let read = p.read(end, SMALL, Visibility::Visible).now_or_never();
        assert_eq!(read.unwrap().unwrap().records().count(), 3);
        sim.set_stalled(false);
        pending.acknowledged().await.unwrap();
        close(&store).await;
    });
}

/// Who subscribes where the log ends waits there, also while that end is on its way to the disk.
#[test]
fn a_subscription_at_the_log_end_waits() {
    let sim = machine(3);
    sim.block_on(async {
        let (store, _) = try_open(&sim, |_| {}).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        p.append(batch(0, 5)).await.unwrap();
        sim.set_stalled(true);
        let pending = p.begin_append(batch(5, 3), Ack::Durable).await.unwrap();
        assert_eq!(pending.end_offset(), 8);
        let mut stream = p.subscribe(p.offsets().log_end());
        assert_eq!(stream.next_offset(), 8);
        for _ in 0..3 {
            assert!(stream.next().now_or_never().is_none());
            sim.sleep(Duration::from_millis(1)).await;
        }
        sim.set_stalled(false);
        pending.acknowledged().await.unwrap();
        p.append(batch(8, 2)).await.unwrap();
        let fetched = stream.next().await.unwrap().unwrap();
        assert_eq!(fetched.records().next().unwrap().unwrap().offset, 8);
        close(&store).await;
    });
}

#[test]
fn partitions_share_the_memory_of_the_tail() {
    for budget in [0, 40 << 10, 256 << 10] {
        let sim = machine(3);
        sim.block_on(async {
            let opened = try_open(&sim, |c| c.tail_cache_bytes_max = budget);
            let (store, _) = opened.await.unwrap();
            for id in 0..12 {
                let p = store.create_partition(id).await.unwrap();
                let stats = store.stats().await.unwrap()[0];
                assert!(stats.tail_cache_bytes <= budget, "{stats:?}");
                fill(&p, 200, 3).await;
                p.sync().await.unwrap();
                // The driver evicts when it has gone round.
                sim.sleep(Duration::from_millis(100)).await;
                let stats = store.stats().await.unwrap()[0];
                assert!(stats.tail_cache_bytes <= budget, "{stats:?}");
                let share = budget / (usize::try_from(id).unwrap() + 1);
                assert!(budget < 256 << 10 || stats.tail_cache_bytes > share / 2);
                verify(&p, 0, 200).await;
            }
            close(&store).await;
        });
    }
}

async fn next(stream: &mut Subscription) -> u64 {
    let fetched = stream.next().await.unwrap().unwrap();
    for record in fetched.records() {
        let record = record.unwrap();
        assert_eq!(record.value[..], value(record.offset)[..]);
    }
    fetched.next_offset
}

#[test]
fn read_ahead_keeps_to_its_bound_and_ends_with_its_reader() {
    let sim = machine(4);
    sim.block_on(async {
        let (store, _) = try_open(&sim, from_disk).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 600, 3).await;
        let (store, p) = reopened(&sim, store).await;
        let mut streams: Vec<_> = (0..8).map(|n| p.subscribe_with(n * 20, SMALL)).collect();
        let mut most = 0;
        for _ in 0..20 {
            for stream in &mut streams {
                next(stream).await;
                let stats = store.stats().await.unwrap()[0];
                assert!(stats.read_ahead_bytes <= AHEAD_BYTES_MAX, "{stats:?}");
                most = most.max(stats.read_ahead_bytes);
            }
        }
        assert!(most > AHEAD_BYTES_MAX / 2, "{most} bytes ahead at most");
        // Dropped with reads on their way, in the middle of a read, and at rest.
        sim.set_stalled(true);
        for stream in &mut streams[..4] {
            while polled(stream.next(), 1).await.is_some() {}
        }
        drop(streams);
        sim.set_stalled(false);
        sim.sleep(Duration::from_secs(1)).await;
        let stats = store.stats().await.unwrap()[0];
        assert_eq!(stats.read_ahead_bytes, 0, "{stats:?}");
        at_rest(&sim, &store).await;
        // A handle that reads on is as good, and its last clone takes the read-ahead with it.
        let mut at = 0;
        for _ in 0..4 {
            let fetched = p.read(at, SMALL, Visibility::Durable).await.unwrap();
            at = fetched.next_offset;
        }
        assert!(store.stats().await.unwrap()[0].read_ahead_bytes > 0);
        drop(p);
        sim.sleep(Duration::from_secs(1)).await;
        assert_eq!(store.stats().await.unwrap()[0].read_ahead_bytes, 0);
        close(&store).await;
    });
}

#[test]
fn many_units_are_read_at_a_time() {
    for (chunks, deepest) in [(0, 1), (4, 3)] {
        let sim = machine(5);
        sim.block_on(async {
            let (store, _) = try_open(&sim, from_disk).await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 600, 3).await;
            close(&store).await;
            let opened = try_open(&sim, |c| {
                from_disk(c);
                c.read_ahead_chunks = chunks;
            });
            let (store, _) = opened.await.unwrap();
            let p = store.partition(1).await.unwrap();
            let mut stream = p.subscribe_with(0, SMALL);
            next(&mut stream).await;
            next(&mut stream).await;
            sim.set_stalled(true);
            while polled(stream.next(), 1).await.is_some() {}
            sim.sleep(Duration::from_millis(1)).await;
            let ahead = store.stats().await.unwrap()[0].read_ahead_bytes;
            assert_eq!(ahead > 8 << 10, deepest > 1, "{ahead} bytes ahead");
            sim.set_stalled(false);
            while stream.next_offset() < 600 {
                next(&mut stream).await;
            }
            close(&store).await;
        });
    }
}

/// Reads every item of a subscription, and goes on behind damage.
async fn survey(p: &Partition) -> (Vec<u64>, Vec<Error>) {
    let (mut offsets, mut errors) = (vec![], vec![]);
    let mut stream = p.subscribe_with(0, SMALL);
    let end = p.offsets().durable();
    while stream.next_offset() < end {
        match stream.next().await.unwrap() {
            Ok(fetched) => {
                for record in fetched.records() {
                    let record = record.unwrap();
                    assert_eq!(record.value[..], value(record.offset)[..]);
                    offsets.push(record.offset);
                }
            }
            Err(e) => {
                let Error::Corrupt(c) = &e else { panic!("{e}") };
                stream.seek(c.offset_end.unwrap());
                errors.push(e);
            }
        }
    }
    (offsets, errors)
}

#[test]
fn damage_in_what_was_read_ahead_is_reported_at_its_place() {
    let sim = machine(6);
    let found = sim.block_on(async {
        let (store, _) = try_open(&sim, from_disk).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 240, 3).await;
        let detail = InspectDetail::Batches;
        let request = InspectRequest {
            detail,
            ..InspectRequest::default()
        };
        let found = p.inspect(request).await.unwrap();
        close(&store).await;
        found
    });
    let files = snapshot(&sim);
    // The last one is looked at by the recovery already.
    let sealed = &found.segments[..found.segments.len() - 1];
    let mut seen = 0;
    for segment in sealed {
        for batch in segment.batches.iter().filter(|b| b.header.record_count > 0) {
            let mut damaged = files.clone();
            let content = damaged.get_mut(&segment.path).unwrap();
            let at = usize::try_from(batch.position).unwrap() + batch.size_bytes / 2;
            content[at] ^= 4;
            let sim = machine_from(&damaged);
            sim.block_on(async {
                let (store, _) = try_open(&sim, from_disk).await.unwrap();
                let p = store.partition(1).await.unwrap();
                let (offsets, errors) = survey(&p).await;
                let (start, end) = (batch.header.base_offset, batch.end_offset);
                let sound: Vec<_> = (0..240).filter(|o| *o < start || *o >= end).collect();
                assert_eq!(offsets, sound);
                let [Error::Corrupt(c)] = &errors[..] else {
                    panic!("{errors:?}")
                };
                assert_eq!(
                    (&c.path, c.position, c.offset_start, c.offset_end),
                    (&segment.path, batch.position, start, Some(end))
                );
                close(&store).await;
            });
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} batches");
}

fn other(from: u64, count: u64) -> Batch {
    Batch::from_values((from..from + count).map(|o| format!("new {o}"))).unwrap()
}

/// What was read ahead of a reader may be cut away, and its offsets given to other records.
#[test]
fn nothing_that_was_cut_is_served_from_what_was_read_ahead() {
    for cut in [61, 70, 100, 200, 400] {
        for subscribed in [false, true] {
            let sim = machine(cut);
            sim.block_on(async {
                let (store, _) = try_open(&sim, from_disk).await.unwrap();
                let p = store.create_partition(1).await.unwrap();
                fill(&p, 600, 3).await;
                let (store, p) = reopened(&sim, store).await;
                let mut stream = p.subscribe_with(0, SMALL);
                let mut at = 0;
                while at < 60 {
                    at = if subscribed {
                        next(&mut stream).await
                    } else {
                        let read = p.read(at, SMALL, Visibility::Durable).await;
                        read.unwrap().next_offset
                    };
                }
                p.truncate_to(cut).await.unwrap();
                for _ in 0..200 {
                    let end = p.offsets().log_end();
                    p.append(other(end, 3)).await.unwrap();
                }
                let end = p.offsets().durable();
                while at < end {
                    let fetched = if subscribed {
                        stream.next().await.unwrap()
                    } else {
                        p.read(at, SMALL, Visibility::Durable).await
                    };
                    for record in fetched.unwrap().records() {
                        let record = record.unwrap();
                        assert_eq!(record.offset, at);
                        let expected = if at < cut {
                            value(at)
                        } else {
                            format!("new {at}").into_bytes()
                        };
                        assert_eq!(record.value[..], expected[..], "at {at}, cut at {cut}");
                        at += 1;
                    }
                }
                close(&store).await;
            });
        }
    }
}

/// Who catches up must not fill the disk's queue in front of the appends.
#[test]
fn beside_appends_few_units_are_read_at_a_time() {
    for (appending, expected) in [(false, 4..=usize::MAX), (true, 1..=2)] {
        let sim = machine(6);
        sim.block_on(async {
            let large = |c: &mut StoreConfig| {
                from_disk(c);
                c.segment_bytes = 1 << 20;
                c.read_ahead_chunks = 8;
                c.read_ahead_bytes_max = 1 << 20;
            };
            let (store, _) = try_open(&sim, large).await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 3000, 10).await;
            let mut stream = p.subscribe_with(0, SMALL);
            next(&mut stream).await;
            // What may be read ahead is there, and is taken only when the disk has stopped.
            sim.sleep(Duration::from_millis(200)).await;
            sim.set_stalled(true);
            let append = if appending {
                Some(p.try_append(batch(3000, 1), Ack::Durable.into()).unwrap())
            } else {
                None
            };
            sim.sleep(Duration::from_millis(1)).await;
            while polled(stream.next(), 1).await.is_some() {}
            sim.sleep(Duration::from_millis(1)).await;
            let in_flight = sim.in_flight();
            assert!(expected.contains(&in_flight), "{appending}: {in_flight}");
            sim.set_stalled(false);
            if let Some(append) = append {
                append.await.unwrap();
            }
            while stream.next_offset() < 3000 {
                next(&mut stream).await;
            }
            close(&store).await;
        });
    }
}

#[test]
fn reads_that_nobody_waits_for_are_not_carried_out() {
    let sim = machine(7);
    sim.block_on(async {
        let (store, _) = try_open(&sim, from_disk).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 3000, 10).await;
        sim.set_stalled(true);
        let append = p.try_append(batch(3000, 1), Ack::Durable.into()).unwrap();
        sim.sleep(Duration::from_millis(1)).await;
        let mut left = Vec::new();
        for n in 0..40 {
            let mut read = p.read(n * 50, SMALL, Visibility::Durable).boxed_local();
            assert!(polled(read.as_mut(), 1).await.is_none());
            left.push(read);
        }
        // They have come to the shard, and wait for their turns.
        sim.sleep(Duration::from_millis(1)).await;
        drop(left);
        let before = sim.counters().reads;
        sim.set_stalled(false);
        append.await.unwrap();
        at_rest(&sim, &store).await;
        let carried_out = sim.counters().reads - before;
        assert!(carried_out <= 10, "{carried_out} reads for nobody");
        verify(&p, 0, 3001).await;
        close(&store).await;
    });
    assert_eq!(sim.open_descriptors(), 0);
}
