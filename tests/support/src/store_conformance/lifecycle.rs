//! A store's life: open, close, drop, read only, one owner.

use std::time::Duration;

use alluvium_core::format::ControlReason;
use alluvium_core::{
    Ack, Error, ErrorClass, InspectDetail, InspectRequest, Partition, ReadLimits, Shards, Store,
    TailCase, Visibility,
};
use futures_util::StreamExt;

use super::{Ctx, Host, Suite, batch, checks, close, fill, small, value, verify};

pub(super) fn all<H: Host + Clone + 'static>(suite: &mut Suite<'_, H>) {
    checks!(suite;
        a_closed_store_says_so_everywhere,
        closing_is_clean_and_may_be_repeated,
        a_close_that_is_dropped_goes_on,
        a_dropped_store_opens_again,
        a_read_only_store_changes_nothing,
        a_second_owner_is_refused,
        info_and_stats_tell_what_is,
        an_idle_partition_is_sealed,
        foreign_files_are_left_alone,
    );
}

async fn a_closed_store_says_so_everywhere<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 2).await;
    let mut stream = p.subscribe(10);
    close(&store).await;
    let closed = Error::Closed;
    assert_eq!(closed.class(), ErrorClass::NotApplied);
    assert!(!closed.is_retriable());
    assert_eq!(p.append(batch(10, 1)).await.unwrap_err(), closed);
    assert_eq!(
        p.begin_append(batch(10, 1), Ack::Written)
            .await
            .unwrap_err(),
        closed
    );
    let refused = p.try_append(batch(10, 1), Ack::Written.into());
    assert_eq!(refused.err().unwrap().error, closed);
    let read = p.read(0, ReadLimits::default(), Visibility::Durable).await;
    assert_eq!(read.unwrap_err(), closed);
    assert_eq!(p.sync().await.unwrap_err(), closed);
    assert_eq!(p.trim_before(1).await.unwrap_err(), closed);
    assert_eq!(p.truncate_to(1).await.unwrap_err(), closed);
    assert_eq!(p.reopen().await.unwrap_err(), closed);
    assert_eq!(p.describe().await.unwrap_err(), closed);
    assert_eq!(p.offset_for_timestamp(0).await.unwrap_err(), closed);
    assert_eq!(p.ping().await.unwrap_err(), closed);
    assert_eq!(p.wait_for(11).await.unwrap_err(), closed);
    assert_eq!(
        p.wait_for(10).await.unwrap().durable(),
        10,
        "that is so for ever"
    );
    assert_eq!(store.create_partition(2).await.unwrap_err(), closed);
    assert_eq!(store.partition(1).await.unwrap_err(), closed);
    assert_eq!(store.partition_or_create(1).await.unwrap_err(), closed);
    assert_eq!(store.delete_partition(&p).await.unwrap_err(), closed);
    assert_eq!(store.list_partitions().await.unwrap_err(), closed);
    assert_eq!(store.stats().await.unwrap_err(), closed);
    assert_eq!(store.sync_many(&[p]).await.unwrap_err(), closed);
    assert!(stream.next().await.is_none());
    close(&store).await;
}

async fn closing_is_clean_and_may_be_repeated<H: Host>(ctx: Ctx<H>) {
    let store = ctx.open_with(|c| c.shards = Shards::Count(2)).await;
    for id in 0..6 {
        let p = store.create_partition(id).await.unwrap();
        fill(&p, 20 * id, 3).await;
        p.append_with(batch(20 * id, 1), Ack::Accepted)
            .await
            .unwrap();
    }
    let both = futures_util::join!(
        store.close(Duration::MAX),
        store.close(Duration::from_secs(60))
    );
    assert_eq!(both, (Ok(()), Ok(())));
    close(&store).await;
    // Handles are still there; the directory is free all the same.
    let (again, report) = ctx.try_open(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{report}");
    for id in 0..6 {
        verify(&again.partition(id).await.unwrap(), 0, 20 * id + 1).await;
    }
    close(&again).await;
}

async fn a_close_that_is_dropped_goes_on<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 50, 5).await;
    {
        let mut closing = Box::pin(store.close(Duration::from_secs(30)));
        // Submitted by the first poll, even if a fast shard has answered by then.
        let _polled = futures_util::poll!(closing.as_mut());
    }
    assert_eq!(p.append(batch(50, 1)).await.unwrap_err(), Error::Closed);
    close(&store).await;
    let (store, report) = ctx.try_open(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{report}");
    verify(&store.partition(1).await.unwrap(), 0, 50).await;
    close(&store).await;
}

async fn a_dropped_store_opens_again<H: Host>(ctx: Ctx<H>) {
    let mut end = 0;
    for round in 0..6 {
        let (store, report) = ctx.try_open(|_| {}).await.unwrap();
        let p = store.partition_or_create(1).await.unwrap();
        if round > 0 {
            let found = &report.partitions[0];
            assert!(
                matches!(
                    found.case,
                    TailCase::Clean | TailCase::Unsealed | TailCase::Torn
                ),
                "{report}"
            );
            assert!(found.log_end >= end, "{report}");
        }
        // What was not acknowledged may be there.
        let found = p.offsets().log_end();
        read_all(&p, found).await;
        p.truncate_to(end).await.unwrap();
        fill(&p, 40, 3).await;
        end += 40;
        if round % 2 == 0 {
            drop(p.begin_append(batch(end, 2), Ack::Durable).await.unwrap());
        }
        drop(p);
        drop(store);
    }
    let store = ctx.open().await;
    let p = store.partition(1).await.unwrap();
    let found = p.offsets().log_end();
    assert!(
        found == end || found == end + 2,
        "a batch is whole or absent"
    );
    verify(&p, 0, found).await;
    close(&store).await;
}

async fn read_all(p: &Partition, end: u64) {
    let mut at = p.offsets().log_start();
    while at < end {
        let fetched = p
            .read(at, ReadLimits::default(), Visibility::Durable)
            .await
            .unwrap();
        for record in fetched.records() {
            let record = record.unwrap();
            assert_eq!(record.value[..], value(record.offset)[..]);
        }
        at = fetched.next_offset;
    }
}

async fn a_read_only_store_changes_nothing<H: Host>(ctx: Ctx<H>) {
    // Twice: after a clean end, and after a drop in mid-flight.
    for clean in [true, false] {
        let store = ctx.open().await;
        let p = store.partition_or_create(1).await.unwrap();
        fill(&p, 150, 4).await;
        let end = p.offsets().log_end();
        if clean {
            close(&store).await;
        }
        drop((store, p));
        let open = || async {
            let builder = Store::builder(&ctx.dir).configure(small).read_only();
            builder.backend(ctx.host.factory()).open().await
        };
        let (first, _) = open().await.unwrap();
        let before = ctx.host.files(&ctx.dir);
        let (second, report) = open().await.unwrap();
        assert_eq!(report.partitions[0].log_end, end);
        for store in [&first, &second] {
            let p = store.partition(1).await.unwrap();
            verify(&p, 0, end).await;
            let refused = Error::ReadOnly { id: 1 };
            assert_eq!(refused.class(), ErrorClass::Misuse);
            assert_eq!(p.append(batch(end, 1)).await.unwrap_err(), refused);
            assert_eq!(p.sync().await.unwrap_err(), refused);
            assert_eq!(p.trim_before(1).await.unwrap_err(), refused);
            assert_eq!(p.truncate_to(1).await.unwrap_err(), refused);
            assert_eq!(store.delete_partition(&p).await.unwrap_err(), refused);
            let e = store.create_partition(2).await.unwrap_err();
            assert_eq!(e, Error::ReadOnly { id: 2 });
            assert!(p.describe().await.unwrap().read_only);
            p.offset_for_timestamp(0).await.unwrap();
        }
        // A writer waits for readers to go.
        let e = ctx.try_open(|_| {}).await.unwrap_err();
        assert_eq!(
            e,
            Error::AlreadyOpen {
                path: ctx.dir.clone()
            }
        );
        close(&first).await;
        close(&second).await;
        assert!(ctx.host.files(&ctx.dir) == before, "not a byte differs");
        let store = ctx.open().await;
        verify(&store.partition(1).await.unwrap(), 0, end).await;
        close(&store).await;
    }
}

async fn a_second_owner_is_refused<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 1).await;
    p.sync().await.unwrap();
    let e = ctx.try_open(|_| {}).await.unwrap_err();
    assert_eq!(
        e,
        Error::AlreadyOpen {
            path: ctx.dir.clone()
        }
    );
    assert_eq!(e.class(), ErrorClass::NotApplied);
    assert!(e.is_retriable() && e.is_not_applied());
    let builder = Store::builder(&ctx.dir).configure(small).read_only();
    let e = builder
        .backend(ctx.host.factory())
        .open()
        .await
        .unwrap_err();
    assert_eq!(
        e,
        Error::AlreadyOpen {
            path: ctx.dir.clone()
        }
    );
    // The owner does not notice.
    fill(&p, 10, 1).await;
    verify(&p, 0, 20).await;
    let (store, p) = ctx.reopen(store).await;
    verify(&p, 0, 20).await;
    close(&store).await;
}

async fn info_and_stats_tell_what_is<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let info = store.info().clone();
    assert_eq!(info.capabilities.backend, ctx.host.name());
    assert!(!info.capabilities.durable_write.is_empty());
    assert_eq!((info.shards, info.cores.len()), (1, 0));
    assert_eq!(store.path(), ctx.dir);
    fill(&p, 25, 5).await;
    p.ping().await.unwrap();
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.len(), 1);
    assert_eq!(
        (stats[0].partitions, stats[0].records_acknowledged),
        (1, 25)
    );
    assert_eq!(
        (stats[0].requests_under_way, stats[0].bytes_under_way),
        (0, 0)
    );
    assert_eq!(stats[0].housekeeping_failures, 0);
    let (store, _) = ctx.reopen(store).await;
    assert_eq!(store.info().store_id, info.store_id, "given once");
    close(&store).await;
}

async fn an_idle_partition_is_sealed<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 1).await;
    p.append_with(batch(10, 1), Ack::Accepted).await.unwrap();
    // Becomes durable by itself.
    p.wait_for(11).await.unwrap();
    let sealed = async || {
        let request = InspectRequest {
            detail: InspectDetail::Batches,
            ..InspectRequest::default()
        };
        let found = p.inspect(request).await.unwrap();
        let last = found.segments.last().and_then(|s| s.batches.last());
        last.and_then(|batch| batch.control)
            .is_some_and(|control| control.reason == ControlReason::Seal)
    };
    ctx.eventually("a seal follows", sealed).await;
    drop((store, p));
    let (store, report) = ctx.try_open(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{report}");
    let p = store.partition(1).await.unwrap();
    verify(&p, 0, 11).await;
    close(&store).await;
}

async fn foreign_files_are_left_alone<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 1).await;
    close(&store).await;
    let segment = ctx
        .host
        .files(&ctx.dir)
        .into_keys()
        .find(|p| p.extension().is_some_and(|e| e == "seg"));
    let inside = segment.unwrap().with_file_name("notes.txt");
    let outside = ctx.dir.join("README");
    ctx.host.write_file(&inside, b"mine");
    ctx.host.write_file(&outside, b"mine");
    let (store, report) = ctx.try_open(|_| {}).await.unwrap();
    assert_eq!(report.partitions[0].foreign, std::slice::from_ref(&inside));
    fill(&store.partition(1).await.unwrap(), 200, 2).await;
    close(&store).await;
    let files = ctx.host.files(&ctx.dir);
    assert_eq!(
        (&files[&inside][..], &files[&outside][..]),
        (&b"mine"[..], &b"mine"[..])
    );
}

/// One half of a change of backend.
pub(super) async fn write_for_another_backend<H: Host>(ctx: Ctx<H>) {
    let store = ctx.open_with(|c| c.shards = Shards::Count(2)).await;
    for id in 1..=4 {
        let p = store.create_partition(id).await.unwrap();
        fill(&p, 200, 3).await;
        p.trim_before(id).await.unwrap();
        p.truncate_to(200 - id).await.unwrap();
        fill(&p, 10, 2).await;
    }
    close(&store).await;
}

/// The other half.
pub(super) async fn read_from_another_backend<H: Host>(ctx: Ctx<H>) {
    let (store, report) = ctx.try_open(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{report}");
    for id in 1..=4 {
        let p = store.partition(id).await.unwrap();
        verify(&p, id, 210 - id).await;
        fill(&p, 100, 4).await;
        verify(&p, id, 310 - id).await;
    }
    close(&store).await;
}
