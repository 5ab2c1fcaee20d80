//! Those who wait: subscriptions, `wait_for`, `sync`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use alluvium_core::{Ack, Error, Fetched, Partition, ReadLimits, Subscription};
use futures_util::{Stream, StreamExt};

use super::{Ctx, Host, Suite, batch, checks, close, fill, value, verify};

pub(super) fn all<H: Host + Clone + 'static>(suite: &mut Suite<'_, H>) {
    checks!(suite;
        a_subscription_delivers_everything_once_from_the_start,
        a_subscription_at_the_tail_is_woken_not_polled,
        a_subscription_goes_on_after_an_error_and_can_seek,
        many_subscriptions_of_one_partition,
        wait_for_returns_when_the_offset_is_durable,
        sync_makes_all_before_it_durable,
        sync_many_covers_many_partitions,
    );
}

/// Counts wakes.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll(stream: &mut Subscription, wakes: &Arc<Wakes>) -> Poll<Option<Result<Fetched, Error>>> {
    let waker = Waker::from(Arc::clone(wakes));
    Pin::new(stream).poll_next(&mut Context::from_waker(&waker))
}

/// Takes records until `to`, checking each.
async fn take_until(stream: &mut Subscription, to: u64) {
    while stream.next_offset() < to {
        let at = stream.next_offset();
        let fetched = stream.next().await.unwrap().unwrap();
        assert!(!fetched.is_empty());
        for (offset, record) in (at..).zip(fetched.records()) {
            let record = record.unwrap();
            assert_eq!(record.offset, offset);
            assert_eq!(record.value[..], value(offset)[..]);
        }
        assert_eq!(stream.next_offset(), fetched.next_offset);
    }
}

async fn a_subscription_delivers_everything_once_from_the_start<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 150, 4).await;
    let limits = ReadLimits {
        bytes_max: 5_000,
        records_max: 6,
    };
    let mut first = p.subscribe_with(0, limits);
    let mut second = p.subscribe(75);
    let appends = fill(&p, 150, 7);
    futures_util::join!(
        appends,
        take_until(&mut first, 300),
        take_until(&mut second, 300)
    );
    close(&store).await;
    assert!(
        first.next().await.is_none(),
        "a closed store ends the stream"
    );
    assert!(second.next().await.is_none());
}

async fn a_subscription_at_the_tail_is_woken_not_polled<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 2).await;
    let mut stream = p.subscribe(10);
    for round in 0..3 {
        let wakes = Arc::new(Wakes::default());
        assert!(poll(&mut stream, &wakes).is_pending());
        // Longer than the store takes to seal an idle partition.
        ctx.host.pause(Duration::from_millis(60)).await;
        assert_eq!(
            wakes.0.load(Ordering::SeqCst),
            0,
            "nothing happened, nobody is woken"
        );
        let at = 10 + round;
        p.append(batch(at, 1)).await.unwrap();
        let woken = async || wakes.0.load(Ordering::SeqCst) > 0;
        ctx.eventually("the append wakes the subscriber", woken)
            .await;
        take_until(&mut stream, at + 1).await;
    }
    close(&store).await;
}

async fn a_subscription_goes_on_after_an_error_and_can_seek<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 40, 4).await;
    let mut stream = p.subscribe(5);
    p.trim_before(20).await.unwrap();
    for _ in 0..2 {
        let e = stream.next().await.unwrap().unwrap_err();
        assert_eq!(
            e,
            Error::OutOfRange {
                requested: 5,
                start: 20,
                end: 40
            }
        );
    }
    stream.seek(20);
    take_until(&mut stream, 40).await;
    p.truncate_to(30).await.unwrap();
    let e = stream.next().await.unwrap().unwrap_err();
    assert_eq!(
        e,
        Error::OutOfRange {
            requested: 40,
            start: 20,
            end: 30
        }
    );
    stream.seek(30);
    fill(&p, 10, 1).await;
    take_until(&mut stream, 40).await;
    // A deleted partition ends the stream too.
    store.delete_partition(&p).await.unwrap();
    assert!(stream.next().await.is_none());
    close(&store).await;
}

async fn many_subscriptions_of_one_partition<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let mut streams: Vec<_> = (0..32).map(|_| p.subscribe(0)).collect();
    let readers = streams.iter_mut().map(|s| take_until(s, 60));
    futures_util::join!(fill(&p, 60, 3), futures_util::future::join_all(readers));
    close(&store).await;
}

async fn wait_for_returns_when_the_offset_is_durable<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 5, 1).await;
    assert_eq!(p.wait_for(0).await.unwrap(), p.offsets());
    assert!(p.wait_for(5).await.unwrap().durable() >= 5);
    let append = async {
        p.append_with(batch(5, 3), Ack::Accepted).await.unwrap();
        p.sync().await.unwrap();
    };
    // Polled in this order: it waits before the append is begun.
    let (offsets, ()) = futures_util::join!(p.wait_for(8), append);
    assert!(offsets.unwrap().durable() >= 8);
    // In vain: the store ends first.
    let (closed, ()) = futures_util::join!(p.wait_for(1000), close(&store));
    assert_eq!(closed.unwrap_err(), Error::Closed);
}

async fn sync_makes_all_before_it_durable<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    assert_eq!(p.sync().await.unwrap(), 0, "nothing to do");
    for round in 1..=20_u64 {
        for i in 0..5 {
            let level = if i % 2 == 0 {
                Ack::Accepted
            } else {
                Ack::Written
            };
            let at = p
                .append_with(batch((round - 1) * 5 + i, 1), level)
                .await
                .unwrap();
            assert_eq!(at.base_offset, (round - 1) * 5 + i);
        }
        assert_eq!(p.sync().await.unwrap(), round * 5);
        assert!(p.offsets().durable() >= round * 5);
        verify(&p, 0, round * 5).await;
    }
    close(&store).await;
}

async fn sync_many_covers_many_partitions<H: Host>(ctx: Ctx<H>) {
    let store = ctx
        .open_with(|c| c.shards = alluvium_core::Shards::Count(2))
        .await;
    let mut all: Vec<Partition> = Vec::new();
    for id in 0..8 {
        all.push(store.create_partition(id).await.unwrap());
    }
    for p in &all {
        p.append_with(batch(0, 2), Ack::Accepted).await.unwrap();
    }
    store.sync_many(&all).await.unwrap();
    for p in &all {
        assert_eq!(p.offsets().durable(), 2);
    }
    store.sync_many(&[]).await.unwrap();
    // One that is gone is reported; the others are done all the same.
    store.delete_partition(&all[3]).await.unwrap();
    for p in all.iter().filter(|p| p.id() != 3) {
        p.append_with(batch(2, 1), Ack::Accepted).await.unwrap();
    }
    let e = store.sync_many(&all).await.unwrap_err();
    assert_eq!(e, Error::PartitionNotFound { id: 3 });
    for p in all.iter().filter(|p| p.id() != 3) {
        assert_eq!(p.offsets().durable(), 3);
    }
    close(&store).await;
}
