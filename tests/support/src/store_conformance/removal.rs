//! Removal: trim, truncation, retention.

use std::time::Duration;

use alluvium_core::format::Batch;
use alluvium_core::{Ack, Error, ErrorClass, Partition, ReadLimits, Visibility};

use super::{Ctx, Host, SEGMENT_BYTES, Suite, batch, checks, close, fill, stamped, verify};

pub(super) fn all<H: Host + Clone + 'static>(suite: &mut Suite<'_, H>) {
    checks!(suite;
        trim_is_exact_and_lasts,
        trim_across_segments_gives_space_back,
        trim_beyond_the_end_is_refused,
        truncation_in_the_middle_of_a_batch,
        truncation_at_segment_boundaries,
        truncation_to_the_log_start,
        truncation_inside_an_opaque_batch_is_refused,
        truncation_outside_of_the_log_is_refused,
        truncation_many_times,
        retention_by_size_spares_the_active_segment,
        retention_by_age_spares_the_active_segment,
    );
}

async fn trim_is_exact_and_lasts<H: Host>(ctx: Ctx<H>) {
    let (mut store, mut p) = ctx.store_and_partition().await;
    fill(&p, 60, 7).await;
    for to in [0, 1, 7, 10, 10, 5, 33, 59, 60] {
        let start = p.offsets().log_start().max(to);
        p.trim_before(to).await.unwrap();
        assert_eq!(p.offsets().log_start(), start);
        verify(&p, start, 60).await;
        (store, p) = ctx.reopen(store).await;
        assert_eq!(
            p.offsets().log_start(),
            start,
            "trimmed to {to}, then reopened"
        );
        verify(&p, start, 60).await;
    }
    fill(&p, 5, 2).await;
    verify(&p, 60, 65).await;
    close(&store).await;
}

async fn trim_across_segments_gives_space_back<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 1000, 4).await;
    let before = ctx.files_like(".seg");
    assert!(before > 10, "{before} segment files");
    p.trim_before(503).await.unwrap();
    verify(&p, 503, 1000).await;
    let segments = p.describe().await.unwrap().segments;
    assert!(segments < before * 2 / 3, "{segments} of {before} segments");
    // The spare of before, and one for the next roll.
    let half = async || ctx.files_like(".seg") <= segments + 2;
    ctx.eventually("the files of the others go", half).await;
    p.trim_before(1000).await.unwrap();
    // The active one, and spares.
    let few = async || ctx.files_like(".seg") <= 3 && ctx.files_like(".idx") <= 3;
    ctx.eventually("all but the active segment go", few).await;
    assert_eq!(p.describe().await.unwrap().segments, 1);
    // A log that is trimmed as it grows takes no more space.
    for _ in 0..20 {
        fill(&p, 50, 5).await;
        p.trim_before(p.offsets().log_end() - 10).await.unwrap();
    }
    let end = p.offsets().log_end();
    verify(&p, end - 10, end).await;
    let few = async || ctx.files_like(".seg") <= 5;
    ctx.eventually("files are used again", few).await;
    let (store, p) = ctx.reopen(store).await;
    verify(&p, end - 10, end).await;
    close(&store).await;
}

async fn trim_beyond_the_end_is_refused<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 5).await;
    for requested in [11, u64::MAX] {
        let e = p.trim_before(requested).await.unwrap_err();
        assert_eq!(
            e,
            Error::OutOfRange {
                requested,
                start: 0,
                end: 10
            }
        );
        assert_eq!(e.class(), ErrorClass::Misuse);
    }
    // What is not durable yet becomes so first.
    p.append_with(batch(10, 5), Ack::Accepted).await.unwrap();
    p.trim_before(15).await.unwrap();
    assert_eq!((p.offsets().log_start(), p.offsets().durable()), (15, 15));
    verify(&p, 15, 15).await;
    close(&store).await;
}

/// Truncates, checks, appends, reopens, checks.
async fn truncate_and_go_on<H: Host>(
    ctx: &Ctx<H>,
    store: alluvium_core::Store,
    p: &Partition,
    to: u64,
) -> (alluvium_core::Store, Partition) {
    let start = p.offsets().log_start();
    p.truncate_to(to).await.unwrap();
    assert_eq!((p.offsets().log_end(), p.offsets().durable()), (to, to));
    verify(p, start, to).await;
    let (store, p) = ctx.reopen(store).await;
    assert_eq!(
        p.offsets().log_end(),
        to,
        "truncated to {to}, then reopened"
    );
    verify(&p, start, to).await;
    fill(&p, 7, 3).await;
    verify(&p, start, to + 7).await;
    let (store, p) = ctx.reopen(store).await;
    verify(&p, start, to + 7).await;
    (store, p)
}

async fn truncation_in_the_middle_of_a_batch<H: Host>(ctx: Ctx<H>) {
    let (mut store, mut p) = ctx.store_and_partition().await;
    fill(&p, 50, 10).await;
    for to in [45, 41, 40, 13, 1] {
        let end = p.offsets().log_end();
        fill(&p, 50_u64.saturating_sub(end), 10).await;
        (store, p) = truncate_and_go_on(&ctx, store, &p, to).await;
    }
    close(&store).await;
}

async fn truncation_at_segment_boundaries<H: Host>(ctx: Ctx<H>) {
    let (mut store, mut p) = ctx.store_and_partition().await;
    fill(&p, 300, 1).await;
    // With one record per batch, a segment ends where the number of segments grows.
    let mut boundaries = vec![];
    let mut segments = p.describe().await.unwrap().segments;
    while boundaries.len() < 3 {
        let end = p.offsets().log_end();
        fill(&p, 1, 1).await;
        let now = p.describe().await.unwrap().segments;
        if now != segments {
            boundaries.push(end);
            segments = now;
        }
    }
    for boundary in boundaries.into_iter().rev() {
        for to in [boundary + 1, boundary, boundary - 1] {
            let end = p.offsets().log_end();
            fill(&p, (to + 20).saturating_sub(end), 1).await;
            (store, p) = truncate_and_go_on(&ctx, store, &p, to).await;
        }
    }
    close(&store).await;
}

async fn truncation_to_the_log_start<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 200, 4).await;
    let (store, p) = truncate_and_go_on(&ctx, store, &p, 0).await;
    fill(&p, 200, 4).await;
    p.trim_before(101).await.unwrap();
    let (store, p) = truncate_and_go_on(&ctx, store, &p, 101).await;
    p.trim_before(105).await.unwrap();
    p.truncate_to(105).await.unwrap();
    let (store, p) = ctx.reopen(store).await;
    assert_eq!((p.offsets().log_start(), p.offsets().log_end()), (105, 105));
    fill(&p, 3, 1).await;
    verify(&p, 105, 108).await;
    close(&store).await;
}

async fn truncation_inside_an_opaque_batch_is_refused<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 5, 5).await;
    p.append(Batch::opaque(b"one unit", 10, Some(1)).unwrap())
        .await
        .unwrap();
    p.append(batch(15, 3)).await.unwrap();
    let check = async |p: &Partition| {
        for requested in [6, 10, 14] {
            let e = p.truncate_to(requested).await.unwrap_err();
            assert_eq!(
                e,
                Error::InsideOpaqueBatch {
                    requested,
                    base: 5,
                    end: 15
                }
            );
            assert_eq!(e.class(), ErrorClass::Misuse);
            assert_eq!(p.offsets().log_end(), 18);
        }
    };
    check(&p).await;
    let (store, p) = ctx.reopen(store).await;
    check(&p).await;
    p.truncate_to(16).await.unwrap();
    p.truncate_to(15).await.unwrap();
    let read = p
        .read(5, ReadLimits::default(), Visibility::Durable)
        .await
        .unwrap();
    assert_eq!(read.batches[0].body()[..], b"one unit"[..]);
    p.truncate_to(5).await.unwrap();
    verify(&p, 0, 5).await;
    close(&store).await;
}

async fn truncation_outside_of_the_log_is_refused<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 20, 5).await;
    p.trim_before(8).await.unwrap();
    for requested in [0, 7, 21, u64::MAX] {
        let e = p.truncate_to(requested).await.unwrap_err();
        assert_eq!(
            e,
            Error::OutOfRange {
                requested,
                start: 8,
                end: 20
            }
        );
    }
    p.truncate_to(20).await.unwrap();
    verify(&p, 8, 20).await;
    close(&store).await;
}

async fn truncation_many_times<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let mut end = 0;
    for round in 0..40 {
        fill(&p, 20, 1 + round % 5).await;
        end = p.offsets().log_end() - round % 23;
        p.truncate_to(end).await.unwrap();
        verify(&p, 0, end).await;
    }
    let files = async || ctx.files_like(".seg") <= p.describe().await.unwrap().segments + 3;
    ctx.eventually("cut segments go", files).await;
    let (store, p) = ctx.reopen(store).await;
    verify(&p, 0, end).await;
    close(&store).await;
}

/// The log goes on at `end`, whatever was removed before it.
async fn verify_next(p: &Partition, end: u64) {
    fill(p, 3, 1).await;
    verify(p, end, end + 3).await;
}

async fn retention_by_size_spares_the_active_segment<H: Host>(ctx: Ctx<H>) {
    let store = ctx
        .open_with(|c| {
            c.retention_bytes = Some(3 * SEGMENT_BYTES);
            c.retention_interval = Duration::from_millis(20);
        })
        .await;
    let p = store.create_partition(1).await.unwrap();
    fill(&p, 600, 4).await;
    let trimmed = async || {
        let info = p.describe().await.unwrap();
        // The active one does not count. The others count with their whole files, so that only their
        // number says that no more of them go.
        info.segments <= 4 && info.offsets.log_start() > 0
    };
    ctx.eventually("old segments go", trimmed).await;
    let start = p.offsets().log_start();
    assert!(start > 0);
    verify(&p, start, 600).await;
    let few = async || ctx.files_like(".seg") <= p.describe().await.unwrap().segments + 2;
    ctx.eventually("space comes back", few).await;
    close(&store).await;
    // Nothing may stay, yet the active segment does.
    let store = ctx
        .open_with(|c| {
            c.retention_bytes = Some(0);
            c.retention_interval = Duration::from_millis(20);
        })
        .await;
    let p = store.partition(1).await.unwrap();
    let alone = async || p.describe().await.unwrap().segments == 1;
    ctx.eventually("all sealed segments go", alone).await;
    let start = p.offsets().log_start();
    ctx.host.pause(Duration::from_millis(100)).await;
    assert_eq!(p.offsets().log_start(), start, "the active segment stays");
    verify(&p, start, 600).await;
    close(&store).await;
}

async fn retention_by_age_spares_the_active_segment<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    // Producers' times: 1970. One segment in the middle holds a record of the far future.
    let old = |n: u64| Batch::opaque(&vec![0; 9000], 1, Some(i64::try_from(n).unwrap())).unwrap();
    for n in 0..30 {
        p.append(old(n)).await.unwrap();
    }
    let future = p.append(stamped(i64::MAX / 2)).await.unwrap().base_offset;
    for n in 0..30 {
        p.append(old(n)).await.unwrap();
    }
    close(&store).await;
    let store = ctx
        .open_with(|c| {
            c.retention_age = Some(Duration::from_secs(3600));
            c.retention_interval = Duration::from_millis(10);
        })
        .await;
    let p = store.partition(1).await.unwrap();
    // No more than the segment of the young record.
    let trimmed = async || future.saturating_sub(p.offsets().log_start()) < 10;
    ctx.eventually("old segments go", trimmed).await;
    ctx.host.pause(Duration::from_millis(300)).await;
    let offsets = p.offsets();
    assert!(
        offsets.log_start() <= future,
        "a young record keeps its segment and what follows"
    );
    p.trim_before(future + 1).await.unwrap();
    let alone = async || p.describe().await.unwrap().segments == 1;
    ctx.eventually("the rest goes", alone).await;
    ctx.host.pause(Duration::from_millis(100)).await;
    let offsets = p.offsets();
    assert_eq!(offsets.log_end(), 61);
    verify_next(&p, 61).await;
    close(&store).await;
}
