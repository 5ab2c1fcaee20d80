//! Reads: limits, ranges, many segments, timestamps.

use alluvium_core::format::Batch;
use alluvium_core::{
    Error, ErrorClass, Fetched, Partition, ReadLimits, SealedReads, StoreConfig, Visibility,
};

use super::{Ctx, Host, Suite, batch, checks, close, fill, stamped, value, verify};

pub(super) fn all<H: Host + Clone + 'static>(suite: &mut Suite<'_, H>) {
    checks!(suite;
        limits_bound_a_read_but_one_record_comes_always,
        a_read_may_start_inside_a_batch,
        out_of_range_names_the_range,
        reads_cross_many_segments_warm_and_cold,
        readers_at_many_places_at_once,
        timestamps_are_found,
        timestamps_that_go_back_are_found,
        the_logs_clock_is_not_the_producers,
        mapped_segments_are_read_and_not_reused_under_a_reader,
        large_batches_and_pieces_are_read,
    );
}

fn limits(bytes_max: usize, records_max: u64) -> ReadLimits {
    ReadLimits {
        bytes_max,
        records_max,
    }
}

async fn limits_bound_a_read_but_one_record_comes_always<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 200, 4).await;
    ctx.warm_and_cold(store, p, async |p| {
        for from in [0, 1, 3, 4, 50, 150, 196, 199] {
            for records in [0, 1, 2, 5, 1000] {
                let read = p
                    .read(from, limits(1 << 20, records), Visibility::Durable)
                    .await
                    .unwrap();
                let count = read.next_offset - from;
                assert!(
                    count >= 1 && count <= records.max(1),
                    "{from} {records} {count}"
                );
                assert_eq!(read.records().count() as u64, count);
                assert_eq!(read.records().next().unwrap().unwrap().offset, from);
            }
            for bytes in [0, 1, 2000, 5000, 20_000] {
                let read = p
                    .read(from, limits(bytes, u64::MAX), Visibility::Durable)
                    .await
                    .unwrap();
                assert!(!read.is_empty());
                let total: usize = read.batches.iter().map(|b| b.header().total_len()).sum();
                assert!(
                    total <= bytes || read.batches.len() == 1,
                    "{from} {bytes} {total}"
                );
                for record in read.records() {
                    let record = record.unwrap();
                    assert_eq!(record.value[..], value(record.offset)[..]);
                }
            }
        }
    })
    .await;
}

async fn a_read_may_start_inside_a_batch<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 90, 9).await;
    for from in 0..90 {
        let read = p
            .read(from, limits(1, 3), Visibility::Durable)
            .await
            .unwrap();
        let offsets: Vec<_> = read.records().map(|r| r.unwrap().offset).collect();
        let in_batch = 9 - from % 9;
        let expected: Vec<_> = (from..from + in_batch.min(3)).collect();
        assert_eq!(offsets, expected);
        assert_eq!(
            read.batches[0].base_offset(),
            from - from % 9,
            "as it is on disk"
        );
    }
    let (store, p) = ctx.reopen(store).await;
    for from in 0..90 {
        verify(&p, from, 90).await;
    }
    close(&store).await;
}

async fn out_of_range_names_the_range<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 20, 4).await;
    p.trim_before(6).await.unwrap();
    for requested in [0, 5, 21, 1 << 40, u64::MAX] {
        for visibility in [Visibility::Durable, Visibility::Visible] {
            let e = p
                .read(requested, ReadLimits::default(), visibility)
                .await
                .unwrap_err();
            assert_eq!(
                e,
                Error::OutOfRange {
                    requested,
                    start: 6,
                    end: 20
                }
            );
            assert_eq!(e.class(), ErrorClass::Misuse);
            assert!(e.is_not_applied() && !e.is_retriable());
        }
    }
    let end = p
        .read(20, ReadLimits::default(), Visibility::Durable)
        .await
        .unwrap();
    assert!(end.is_empty());
    assert_eq!(
        (end.next_offset, end.log_start, end.durable, end.log_end),
        (20, 6, 20, 20)
    );
    close(&store).await;
}

async fn reads_cross_many_segments_warm_and_cold<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 1000, 3).await;
    let segments = p.describe().await.unwrap().segments;
    assert!(segments > 10, "{segments} segments");
    verify(&p, 0, 1000).await;
    let (store, p) = ctx.reopen(store).await;
    assert_eq!(p.describe().await.unwrap().segments, segments);
    for from in [999, 500, 0, 333, 998] {
        verify(&p, from, 1000).await;
    }
    let stats = store.stats().await.unwrap();
    assert!(stats[0].reads_from_disk > 0);
    // Index files are derived: without them, and with foreign bytes in them, nothing changes.
    close(&store).await;
    let indexes: Vec<_> = ctx
        .host
        .files(&ctx.dir)
        .into_keys()
        .filter(|path| path.extension().is_some_and(|e| e == "idx"))
        .collect();
    assert!(indexes.len() > 5, "{} index files", indexes.len());
    for (n, path) in indexes.iter().enumerate() {
        let junk = vec![0xA5; n * 31];
        ctx.host.write_file(path, &junk);
    }
    let store = ctx.open().await;
    let p = store.partition(1).await.unwrap();
    verify(&p, 123, 1000).await;
    verify(&p, 0, 1000).await;
    close(&store).await;
}

async fn readers_at_many_places_at_once<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 300, 5).await;
    let (store, p) = ctx.reopen(store).await;
    let readers = (0..300).step_by(7).map(|from| verify(&p, from, 300));
    futures_util::future::join_all(readers).await;
    let stats = store.stats().await.unwrap();
    assert_eq!(
        (stats[0].requests_under_way, stats[0].bytes_under_way),
        (0, 0)
    );
    close(&store).await;
}

async fn timestamps_are_found<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    assert_eq!(
        p.offset_for_timestamp(0).await.unwrap(),
        None,
        "an empty log has none"
    );
    for i in 0..600 {
        p.append(stamped(i * 10)).await.unwrap();
    }
    ctx.warm_and_cold(store, p, async |p| {
        for (asked, found) in [
            (i64::MIN, Some(0)),
            (0, Some(0)),
            (1, Some(1)),
            (10, Some(1)),
            (2_995, Some(300)),
            (5_990, Some(599)),
            (5_991, None),
            (i64::MAX, None),
        ] {
            assert_eq!(
                p.offset_for_timestamp(asked).await.unwrap(),
                found,
                "{asked}"
            );
        }
    })
    .await;
    let store = ctx.open().await;
    let p = store.partition(1).await.unwrap();
    p.trim_before(100).await.unwrap();
    assert_eq!(p.offset_for_timestamp(0).await.unwrap(), Some(100));
    p.truncate_to(200).await.unwrap();
    assert_eq!(p.offset_for_timestamp(2_000).await.unwrap(), None);
    assert_eq!(p.offset_for_timestamp(1_990).await.unwrap(), Some(199));
    // Stamped by the log: not before the last, whatever the clock says.
    let appended = p.append(batch(200, 1)).await.unwrap();
    assert_eq!(
        p.offset_for_timestamp(1_991).await.unwrap(),
        Some(appended.base_offset)
    );
    close(&store).await;
}

async fn timestamps_that_go_back_are_found<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let stamps: Vec<i64> = (0..400).map(|i| (i * 7919) % 1000).collect();
    for stamp in &stamps {
        p.append(stamped(*stamp)).await.unwrap();
    }
    ctx.warm_and_cold(store, p, async |p| {
        for asked in (0..=1000).step_by(37).chain([999, 1001]) {
            let expected = stamps.iter().position(|s| *s >= asked).map(|i| i as u64);
            assert_eq!(
                p.offset_for_timestamp(asked).await.unwrap(),
                expected,
                "{asked}"
            );
        }
    })
    .await;
}

async fn the_logs_clock_is_not_the_producers<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let future = i64::MAX / 2;
    p.append(stamped(future)).await.unwrap();
    p.append(batch(1, 1)).await.unwrap();
    let (store, p) = ctx.reopen(store).await;
    p.append(batch(2, 1)).await.unwrap();
    let fetched = p
        .read(1, ReadLimits::default(), Visibility::Durable)
        .await
        .unwrap();
    let stamps: Vec<_> = fetched.records().map(|r| r.unwrap().timestamp).collect();
    assert!(stamps[0] <= stamps[1], "the log's time does not go back");
    assert!(
        stamps[1] < future,
        "one wrong clock out there does not stop the log's"
    );
    close(&store).await;
}

/// Every record of what was fetched has the value of its offset.
fn unchanged(held: &[Fetched]) {
    for fetched in held {
        for record in fetched.records() {
            let record = record.unwrap();
            assert_eq!(record.value[..], value(record.offset)[..]);
        }
    }
}

/// Removes all of the log, and writes so much that its files would be used again.
async fn replace_all<H: Host>(ctx: &Ctx<H>, p: &Partition) {
    for _ in 0..3 {
        p.trim_before(p.offsets().log_end()).await.unwrap();
        fill(p, 300, 5).await;
    }
    let segments = p.describe().await.unwrap().segments;
    assert!(segments > 3, "{segments} segments");
    let end = p.offsets().log_end();
    verify(p, end - 300, end).await;
    ctx.host.pause(std::time::Duration::from_millis(1)).await;
}

async fn mapped_segments_are_read_and_not_reused_under_a_reader<H: Host>(ctx: Ctx<H>) {
    let mapped = |config: &mut alluvium_core::StoreConfig| {
        config.sealed_reads = SealedReads::Mmap;
        config.spare_segments_max = 4;
    };
    let store = ctx.open_with(mapped).await;
    let p = store.create_partition(1).await.unwrap();
    fill(&p, 500, 3).await;
    for from in [0, 499, 123] {
        verify(&p, from, 500).await;
    }
    let mut held = Vec::new();
    for from in [0, 100, 200] {
        let fetched = p.read(from, limits(8 << 10, u64::MAX), Visibility::Durable);
        held.push(fetched.await.unwrap());
    }
    assert!(store.stats().await.unwrap()[0].reads_from_disk > 0);
    replace_all(&ctx, &p).await;
    unchanged(&held);

    // A reader may keep what it has longer than the store stays open.
    let (log_start, log_end) = (p.offsets().log_start(), p.offsets().log_end());
    for from in [log_start, log_start + 100] {
        let fetched = p.read(from, limits(8 << 10, u64::MAX), Visibility::Durable);
        held.push(fetched.await.unwrap());
    }
    let (store, p) = ctx.reopen(store).await;
    verify(&p, log_start, log_end).await;
    replace_all(&ctx, &p).await;
    let (store, p) = ctx.reopen(store).await;
    replace_all(&ctx, &p).await;
    unchanged(&held);
    drop(held);
    p.trim_before(p.offsets().log_end()).await.unwrap();
    let few = async || {
        // Files that were read are let go with the next roll.
        fill(&p, 100, 5).await;
        p.trim_before(p.offsets().log_end()).await.unwrap();
        ctx.files_like(".seg") <= 4
    };
    ctx.eventually("files that nobody reads any more go", few)
        .await;
    close(&store).await;
}

/// Batches, and pieces of a segment, that are larger than what some backends move in one operation.
async fn large_batches_and_pieces_are_read<H: Host>(ctx: Ctx<H>) {
    const LARGE: usize = 9 << 20;
    let large = |c: &mut StoreConfig| {
        c.segment_bytes = 32 << 20;
        c.group_bytes_max = 10 << 20;
        c.mailbox_bytes_max = 12 << 20;
        c.read_chunk_bytes = 16 << 20;
        c.tail_cache_bytes_max = 0;
    };
    let payload: Vec<u8> = (0..LARGE).map(|i| (i / 5 % 251).to_le_bytes()[0]).collect();
    let check = async |p: &Partition| {
        let read = p.read(0, ReadLimits::default(), Visibility::Durable).await;
        let read = read.unwrap();
        assert!(read.batches[0].body()[..] == payload[..], "the large batch");
        verify(p, 1, 13).await;
    };
    let store = ctx.open_with(large).await;
    let p = store.create_partition(1).await.unwrap();
    let batch = Batch::opaque(&payload, 1, None).unwrap();
    p.append(batch).await.unwrap();
    fill(&p, 12, 3).await;
    check(&p).await;
    close(&store).await;
    let store = ctx.open_with(large).await;
    check(&store.partition(1).await.unwrap()).await;
    close(&store).await;
}
