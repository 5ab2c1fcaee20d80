//! Futures dropped after every number of polls: the store stays whole and usable, nothing leaks.

use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::{Ack, Partition, ReadLimits, Store, Visibility};
use alluvium_testkit::logs::{batch, close, fill, verify};
use futures_util::StreamExt;

use crate::machine::{at_rest, machine, open, polled, store_and_partition, try_open};

/// Most polls that any request takes before it is ready.
const POLLS_MAX: usize = 200;

/// Runs `request` on one store, dropped after one poll, after two, and so on until it gets ready;
/// after each the log is checked. Returns how many were dropped.
fn dropped_after_each_poll<T>(
    seed: u64,
    request: impl AsyncFn(&Sim, &Store, &Partition, usize) -> Option<T> + Copy,
) -> usize {
    let sim = machine(seed);
    let mut dropped = 0;
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 120, 4).await;
        for polls in 1..POLLS_MAX {
            let done = request(&sim, &store, &p, polls).await.is_some();
            // What was begun still happens; everything that waits in the queue comes after it.
            p.sync().await.unwrap();
            at_rest(&sim, &store).await;
            let offsets = p.offsets();
            verify(&p, offsets.log_start(), offsets.log_end()).await;
            fill(&p, 1, 1).await;
            if done {
                break;
            }
            dropped += 1;
        }
        let (start, end) = (p.offsets().log_start(), p.offsets().log_end());
        close(&store).await;
        drop((store, p));
        let store = open(&sim).await;
        verify(&store.partition(1).await.unwrap(), start, end).await;
        close(&store).await;
    });
    assert_eq!(sim.open_descriptors(), 0);
    assert!(dropped < POLLS_MAX - 1, "it was never ready");
    dropped
}

#[test]
fn appends() {
    for seed in 0..5 {
        for level in [Ack::Accepted, Ack::Written, Ack::Durable] {
            let dropped = dropped_after_each_poll(seed, async |_, _, p, polls| {
                let next = batch(p.offsets().log_end(), 3);
                polled(p.append_with(next, level), polls).await
            });
            assert!(dropped > 0);
            dropped_after_each_poll(seed, async |_, _, p, polls| {
                let next = batch(p.offsets().log_end(), 2);
                let both = async {
                    let pending = p.begin_append(next, level).await.unwrap();
                    pending.acknowledged().await.unwrap();
                };
                polled(both, polls).await
            });
        }
    }
}

/// With room in the mailbox it is handed over in the first poll, and nobody has to wait for it.
#[test]
fn an_append_that_nobody_waits_for_takes_effect() {
    for level in [Ack::Accepted, Ack::Written, Ack::Durable] {
        let sim = machine(1);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            for polls in 1..8 {
                let at = p.offsets().log_end();
                drop(polled(p.append_with(batch(at, 3), level), polls).await);
                p.sync().await.unwrap();
                assert_eq!(p.offsets().log_end(), at + 3, "{level:?}, {polls} polls");
            }
            verify(&p, 0, 21).await;
            close(&store).await;
        });
    }
}

#[test]
fn appends_that_wait_for_room() {
    for seed in 0..5 {
        let sim = machine(seed);
        sim.block_on(async {
            let opened = try_open(&sim, |c| {
                c.mailbox_requests_max = 2;
                c.mailbox_bytes_max = 20 << 10;
            });
            let (store, _) = opened.await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            for polls in 1..20 {
                let at = p.offsets().log_end();
                sim.set_stalled(true);
                let (a, b) = (p.append(batch(at, 1)), p.append(batch(at + 1, 1)));
                let third = p.append(batch(at + 2, 1));
                let waited = async {
                    assert!(polled(third, polls).await.is_none(), "there is no room");
                    sim.set_stalled(false);
                };
                let (a, b, ()) = futures_util::join!(a, b, async {
                    // Polled after the others; wakes of its own come only with room.
                    let timeout = sim.sleep(Duration::from_millis(20));
                    futures_util::pin_mut!(waited, timeout);
                    futures_util::future::select(waited, timeout).await;
                    sim.set_stalled(false);
                });
                assert_eq!(
                    (a.unwrap().base_offset, b.unwrap().base_offset),
                    (at, at + 1)
                );
                at_rest(&sim, &store).await;
                verify(&p, 0, at + 2).await;
            }
            close(&store).await;
        });
    }
}

#[test]
fn reads_and_subscriptions() {
    for seed in 0..5 {
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            let read = p.read(
                p.offsets().log_start(),
                ReadLimits::default(),
                Visibility::Durable,
            );
            polled(read, polls).await
        });
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            let mut stream = p.subscribe(p.offsets().log_start());
            polled(stream.next(), polls).await
        });
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            polled(p.offset_for_timestamp(i64::MAX), polls).await
        });
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            polled(p.wait_for(p.offsets().log_end()), polls).await
        });
    }
}

#[test]
fn changes() {
    for seed in 0..5 {
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            p.append_with(batch(p.offsets().log_end(), 1), Ack::Written)
                .await
                .unwrap();
            polled(p.sync(), polls).await
        });
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            polled(p.trim_before(p.offsets().log_start() + 3), polls).await
        });
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            let done = polled(p.truncate_to(p.offsets().log_end() - 3), polls).await;
            // Whether it has begun or not, it must not come after what follows.
            p.sync().await.unwrap();
            done
        });
        dropped_after_each_poll(seed, async |_, _, p, polls| polled(p.reopen(), polls).await);
        dropped_after_each_poll(seed, async |_, _, p, polls| {
            polled(p.describe(), polls).await
        });
    }
}

#[test]
fn creations_and_deletions() {
    for seed in 0..5 {
        dropped_after_each_poll(seed, async |_, store, _, polls| {
            let id = 100 + polls as u64;
            let done = polled(store.create_partition(id), polls).await;
            let created = retry_busy(async || store.partition_or_create(id).await).await;
            fill(&created, 3, 1).await;
            done
        });
        dropped_after_each_poll(seed, async |_, store, _, polls| {
            let id = 100 + polls as u64;
            let going = store.create_partition(id).await.unwrap();
            fill(&going, 3, 1).await;
            let done = polled(store.delete_partition(&going), polls).await;
            // Either it is gone or it can be deleted now.
            let again = retry_busy(async || match store.delete_partition(&going).await {
                Err(alluvium::Error::PartitionNotFound { .. }) => Ok(()),
                other => other,
            });
            again.await;
            let new = store.create_partition(id).await.unwrap();
            assert_ne!(new.incarnation(), going.incarnation());
            done
        });
    }
}

async fn retry_busy<T>(request: impl AsyncFn() -> alluvium::Result<T>) -> T {
    loop {
        match request().await {
            Err(alluvium::Error::PartitionBusy { .. }) => {}
            result => return result.unwrap(),
        }
    }
}

#[test]
fn openings_and_closings() {
    for seed in 0..5 {
        for polls in 1..POLLS_MAX {
            let sim = machine(seed);
            let mut done = false;
            sim.block_on(async {
                let (store, p) = store_and_partition(&sim).await;
                fill(&p, 50, 4).await;
                let closed = polled(store.close(Duration::from_secs(9)), polls).await;
                done = closed.is_some();
                // The closing goes on; a second one waits for it.
                close(&store).await;
                drop((store, p));
                let opened = polled(try_open(&sim, |_| {}), polls).await;
                done &= opened.is_some();
                drop(opened);
                let store = open(&sim).await;
                verify(&store.partition(1).await.unwrap(), 0, 50).await;
                close(&store).await;
                // An opening that nobody waits for any more ends by itself.
                sim.sleep(Duration::from_secs(1)).await;
            });
            assert_eq!(sim.open_descriptors(), 0);
            if done {
                break;
            }
            assert!(polls < POLLS_MAX - 1, "never ready");
        }
    }
}
