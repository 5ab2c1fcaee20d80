//! Appends: offsets, levels, kinds of batches, conditions, bounds.

use alluvium_core::format::{Batch, BatchBuilder, Record};
use alluvium_core::{Ack, AppendOptions, Error, ErrorClass, ReadLimits, StoreConfig, Visibility};

use super::{Ctx, Host, Suite, batch, checks, close, fill, verify, verify_seen};

pub(super) fn all<H: Host + Clone + 'static>(suite: &mut Suite<'_, H>) {
    checks!(suite;
        offsets_are_given_in_order_at_every_level,
        concurrent_appends_keep_their_order_of_arrival,
        records_come_back_with_key_headers_and_timestamp,
        opaque_batches_pass_through_byte_for_byte,
        producer_and_leader_fields_pass_through,
        what_is_visible_is_not_durable_yet,
        append_at_checks_the_log_end,
        a_full_mailbox_hands_the_batch_back,
        batches_up_to_the_limit_fit_and_no_larger_ones,
        control_batches_are_the_logs_own,
        absurd_settings_are_refused,
    );
}

async fn offsets_are_given_in_order_at_every_level<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let mut at = 0;
    for round in 0..10 {
        for level in [Ack::Accepted, Ack::Written, Ack::Durable] {
            let n = 1 + round % 3;
            let appended = p.append_with(batch(at, n), level).await.unwrap();
            assert_eq!((appended.base_offset, u64::from(appended.count)), (at, n));
            assert_eq!(appended.level, level);
            at = appended.end_offset();
            let offsets = p.offsets();
            assert!(offsets.log_end() >= at || level == Ack::Accepted);
            assert!(level < Ack::Written || offsets.written() >= at);
            assert!(level < Ack::Durable || offsets.durable() >= at);
        }
    }
    assert_eq!(p.sync().await.unwrap(), at);
    verify(&p, 0, at).await;
    let (store, p) = ctx.reopen(store).await;
    verify(&p, 0, at).await;
    close(&store).await;
}

async fn concurrent_appends_keep_their_order_of_arrival<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    for round in 0..4 {
        let start = round * 100;
        let appends = (start..start + 100).map(|at| {
            let level =
                [Ack::Durable, Ack::Written, Ack::Accepted][usize::try_from(at % 3).unwrap()];
            // Submitted when it is made, not when it is polled.
            p.try_append(batch(at, 1), level.into()).unwrap()
        });
        let appends: Vec<_> = appends.collect();
        for (at, appended) in (start..).zip(appends) {
            assert_eq!(appended.await.unwrap().base_offset, at);
        }
    }
    p.sync().await.unwrap();
    verify(&p, 0, 400).await;
    let stats = store.stats().await.unwrap();
    let acknowledged: u64 = stats.iter().map(|s| s.records_acknowledged).sum();
    assert_eq!(acknowledged, 400, "records acknowledged at any level");
    close(&store).await;
}

async fn records_come_back_with_key_headers_and_timestamp<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let written = [
        Record::new("v").timestamp(-5),
        Record::new("").timestamp(i64::from(u32::MAX) - 5),
        Record::new("v").timestamp(1_700).key("").header("", ""),
        Record::new(vec![7; 3000])
            .timestamp(0)
            .key("k")
            .header("a", "1")
            .header("a", "2"),
    ];
    let mut builder = BatchBuilder::new();
    for record in &written {
        builder.push(record).unwrap();
    }
    p.append(builder.finish().unwrap()).await.unwrap();
    ctx.warm_and_cold(store, p, async |p| {
        let fetched = p.read(0, ReadLimits::default(), Visibility::Durable).await;
        let fetched = fetched.unwrap();
        let read: Vec<_> = fetched.records().map(|r| r.unwrap()).collect();
        assert_eq!(read.len(), written.len());
        for (read, written) in read.iter().zip(&written) {
            assert_eq!(Some(read.timestamp), written.timestamp);
            assert_eq!(read.key, written.key);
            assert_eq!(read.value, written.value);
            assert_eq!(read.headers, written.headers);
        }
    })
    .await;
}

async fn opaque_batches_pass_through_byte_for_byte<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let body: Vec<u8> = (0..5000_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let counts = [1, 7, 1_000_000];
    let mut base = 0;
    for count in counts {
        let appended = p
            .append(Batch::opaque(&body, count, Some(42)).unwrap())
            .await
            .unwrap();
        assert_eq!((appended.base_offset, appended.count), (base, count));
        base = appended.end_offset();
    }
    let (store, p) = ctx.reopen(store).await;
    let fetched = p.read(0, ReadLimits::default(), Visibility::Durable).await;
    let fetched = fetched.unwrap();
    assert_eq!(fetched.batches.len(), 3);
    for (read, count) in fetched.batches.iter().zip(counts) {
        assert!(read.is_opaque());
        assert_eq!(read.body()[..], body[..]);
        assert_eq!(read.header().record_count, count);
        assert_eq!(read.header().base_timestamp, 42);
    }
    // From inside: the whole batch, once.
    let inside = ReadLimits {
        records_max: 1,
        ..ReadLimits::default()
    };
    let fetched = p.read(500_000, inside, Visibility::Durable).await.unwrap();
    assert_eq!(fetched.batches.len(), 1);
    assert_eq!(fetched.batches[0].base_offset(), 8);
    assert_eq!(fetched.batches[0].body()[..], body[..]);
    assert_eq!(fetched.next_offset, base);
    close(&store).await;
}

async fn producer_and_leader_fields_pass_through<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let sent = batch(0, 2)
        .with_producer(0xFEED, 3, 77)
        .with_leader_epoch(9);
    p.append(sent).await.unwrap();
    let (store, p) = ctx.reopen(store).await;
    let fetched = p.read(0, ReadLimits::default(), Visibility::Durable).await;
    let fetched = fetched.unwrap();
    let header = fetched.batches[0].header();
    assert_eq!(
        (
            header.producer_id,
            header.producer_epoch,
            header.producer_sequence,
            header.leader_epoch
        ),
        (0xFEED, 3, 77, 9)
    );
    close(&store).await;
}

async fn what_is_visible_is_not_durable_yet<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 10, 5).await;
    for level in [Ack::Accepted, Ack::Written, Ack::Durable] {
        let at = p.offsets().durable();
        let pending = p.begin_append(batch(at, 3), level).await.unwrap();
        assert_eq!((pending.base_offset(), pending.end_offset()), (at, at + 3));
        verify_seen(&p, 0, at + 3, Visibility::Visible).await;
        let appended = pending.acknowledged().await.unwrap();
        assert_eq!((appended.base_offset, appended.level), (at, level));
        p.sync().await.unwrap();
        verify(&p, 0, at + 3).await;
    }
    // Dropped before the acknowledgement: it is appended all the same.
    let at = p.offsets().log_end();
    drop(p.begin_append(batch(at, 1), Ack::Durable).await.unwrap());
    p.wait_for(at + 1).await.unwrap();
    verify(&p, 0, at + 1).await;
    close(&store).await;
}

async fn append_at_checks_the_log_end<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    assert_eq!(p.append_at(0, batch(0, 3)).await.unwrap().base_offset, 0);
    for wrong in [0, 2, 4, u64::MAX] {
        let e = p.append_at(wrong, batch(3, 1)).await.unwrap_err();
        let expected = Error::WrongOffset {
            expected: wrong,
            actual: 3,
        };
        assert_eq!(e, expected);
        assert!(e.is_not_applied() && !e.is_retriable());
    }
    // Those under way count: only the first of these is right.
    let options = AppendOptions::from(Ack::Durable).expected_end(3);
    let both = futures_util::join!(
        p.append_with(batch(3, 2), options),
        p.append_with(batch(3, 2), options)
    );
    assert_eq!(both.0.unwrap().base_offset, 3);
    let expected = Error::WrongOffset {
        expected: 3,
        actual: 5,
    };
    assert_eq!(both.1.unwrap_err(), expected);
    verify(&p, 0, 5).await;
    close(&store).await;
}

async fn a_full_mailbox_hands_the_batch_back<H: Host>(ctx: Ctx<H>) {
    let store = ctx.open_with(|c| c.mailbox_requests_max = 1).await;
    let p = store.create_partition(1).await.unwrap();
    let first = p.try_append(batch(0, 2), Ack::Durable.into()).unwrap();
    let refused = p.try_append(batch(2, 2), Ack::Durable.into());
    let Err(refused) = refused else {
        // The shard was faster than this thread; nothing is full.
        assert_eq!(first.await.unwrap().base_offset, 0);
        close(&store).await;
        return;
    };
    assert_eq!(refused.error, Error::Full { what: "requests" });
    assert!(refused.error.is_retriable() && refused.error.is_not_applied());
    assert_eq!(refused.batch.body(), batch(2, 2).body());
    assert_eq!(first.await.unwrap().base_offset, 0);
    // The bound is free again as soon as the memory is.
    let again = p.append(refused.batch).await.unwrap();
    assert_eq!(again.base_offset, 2);
    verify(&p, 0, 4).await;
    close(&store).await;
}

async fn batches_up_to_the_limit_fit_and_no_larger_ones<H: Host>(ctx: Ctx<H>) {
    let (store, p) = ctx.store_and_partition().await;
    let limit = p.batch_bytes_max();
    assert!(limit > 8 << 10, "a limit of {limit} bytes");
    let overhead = Batch::opaque(&[], 1, None).unwrap().encoded_len();
    let sized = |len: usize| Batch::opaque(&vec![1; len - overhead], 1, None).unwrap();
    for level in [Ack::Durable, Ack::Written, Ack::Accepted] {
        for _ in 0..5 {
            p.append_with(sized(limit), level).await.unwrap();
        }
    }
    let expected = Error::TooLarge {
        size_bytes: limit + 1,
        limit_bytes: limit,
    };
    assert_eq!(p.append(sized(limit + 1)).await.unwrap_err(), expected);
    assert_eq!(expected.class(), ErrorClass::Misuse);
    let refused = p.try_append(sized(limit + 1), Ack::Durable.into());
    assert_eq!(refused.err().unwrap().error, expected);
    assert_eq!(p.sync().await.unwrap(), 15);
    close(&store).await;
}

/// A seal or trim that a caller could forge would be believed by recovery.
async fn control_batches_are_the_logs_own<H: Host>(ctx: Ctx<H>) {
    use alluvium_core::format::{Control, ControlReason};
    let (store, p) = ctx.store_and_partition().await;
    fill(&p, 5, 1).await;
    let forged = || {
        Batch::control(&Control {
            reason: ControlReason::Trim,
            segment_end: false,
            end_offset: 5,
            log_start: 5,
            reserved_end: 1 << 40,
        })
    };
    let e = p.append(forged()).await.unwrap_err();
    assert_eq!(e.class(), ErrorClass::Misuse);
    assert!(p.try_append(forged(), Ack::Written.into()).is_err());
    let (store, p) = ctx.reopen(store).await;
    verify(&p, 0, 5).await;
    close(&store).await;
}

async fn absurd_settings_are_refused<H: Host>(ctx: Ctx<H>) {
    use alluvium_core::Shards;
    use std::time::Duration;
    type Change = fn(&mut StoreConfig);
    let absurd: [(&str, Change); 30] = [
        ("shards", |c| c.shards = Shards::Count(0)),
        ("shards", |c| c.shards = Shards::Count(usize::MAX)),
        ("shards", |c| c.shards = Shards::Cores(vec![])),
        ("shards", |c| c.shards = Shards::Cores(vec![0, 0])),
        ("shards", |c| c.shards = Shards::Cores(vec![usize::MAX])),
        ("segment_bytes", |c| c.segment_bytes = 0),
        ("segment_bytes", |c| c.segment_bytes += 1),
        ("segment_bytes", |c| c.segment_bytes = u64::MAX),
        ("mailbox_requests_max", |c| c.mailbox_requests_max = 0),
        ("mailbox_requests_max", |c| {
            c.mailbox_requests_max = usize::MAX;
        }),
        ("mailbox_bytes_max", |c| c.mailbox_bytes_max = 0),
        ("mailbox_bytes_max", |c| c.mailbox_bytes_max = usize::MAX),
        ("tail_cache_bytes_max", |c| {
            c.tail_cache_bytes_max = usize::MAX;
        }),
        ("writes_in_flight_max", |c| c.writes_in_flight_max = 0),
        ("writes_in_flight_max", |c| {
            c.writes_in_flight_max = u16::MAX;
        }),
        ("group_bytes_max", |c| c.group_bytes_max = 0),
        ("group_bytes_max", |c| c.group_bytes_max = u32::MAX),
        ("group_bytes_min", |c| c.group_bytes_min = u32::MAX),
        ("spare_segments_max", |c| c.spare_segments_max = usize::MAX),
        ("index_interval_bytes", |c| c.index_interval_bytes = 0),
        ("index_interval_bytes", |c| {
            c.index_interval_bytes = u32::MAX;
        }),
        ("read_chunk_bytes", |c| c.read_chunk_bytes = 0),
        ("read_chunk_bytes", |c| c.read_chunk_bytes = usize::MAX),
        ("seal_after", |c| c.seal_after = Duration::ZERO),
        ("seal_after", |c| c.seal_after = Duration::MAX),
        ("retention_interval", |c| {
            c.retention_interval = Duration::ZERO;
        }),
        ("retention_interval", |c| {
            c.retention_interval = Duration::MAX;
        }),
        ("fence_timeout", |c| c.fence_timeout = Duration::ZERO),
        ("fence_timeout", |c| c.fence_timeout = Duration::MAX),
        ("group_bytes_max", |c| c.group_bytes_max = 1),
    ];
    for (setting, change) in absurd {
        let e = ctx.try_open(change).await.unwrap_err();
        let Error::InvalidConfig {
            setting: named,
            value,
            allowed,
        } = &e
        else {
            panic!("{setting}: {e}");
        };
        assert!(named.starts_with(setting), "{named} instead of {setting}");
        assert!(!value.is_empty() && !allowed.is_empty());
        assert_eq!(e.class(), ErrorClass::Misuse);
    }
    assert_eq!(ctx.host.files(&ctx.dir).len(), 0, "nothing was made");
    // The extremes of what is allowed work.
    let extremes: [Change; 4] = [
        |c| c.tail_cache_bytes_max = 0,
        |c| {
            c.writes_in_flight_max = 1;
            c.group_bytes_max = 4096;
            c.group_bytes_min = 0;
            c.mailbox_bytes_max = 4096;
            c.mailbox_requests_max = 1;
        },
        |c| {
            c.writes_in_flight_max = 64;
            c.spare_segments_max = 0;
            c.preinitialise = false;
            c.direct_io = false;
        },
        |c| {
            c.spare_segments_max = 3;
            c.index_interval_bytes = 512;
            c.read_chunk_bytes = 4096;
            c.seal_after = Duration::from_millis(1);
        },
    ];
    for change in extremes {
        let store = ctx.open_with(change).await;
        let p = store.partition_or_create(1).await.unwrap();
        fill(&p, 100, 1).await;
        verify(&p, 0, p.offsets().log_end()).await;
        close(&store).await;
    }
}
