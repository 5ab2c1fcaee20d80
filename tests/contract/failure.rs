//! Nobody hangs: panics, dropped stores, stalled disks, failed writes; every waiter gets an answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::io::BackendFactory;
use alluvium::{Ack, Error, ReadLimits, Store, Visibility};
use alluvium_testkit::logs::{batch, close, fill, small, verify};
use futures_util::StreamExt;
use futures_util::future::join_all;

use crate::faulty::hooked;
use crate::machine::{
    DIR, EIO, at_rest, check_answers, machine, machine_with, open, polled, store_and_partition,
    try_open,
};

/// Every kind of waiter at once, on a shard that panics at an operation; all must come back.
async fn everybody_is_answered<F: BackendFactory>(factory: F, dir: &Path, op: &'static str) {
    let armed = Arc::new(AtomicBool::new(false));
    let is_armed = Arc::clone(&armed);
    let hook = move |name: &'static str, _: &Path| {
        assert!(
            name != op || !is_armed.load(Ordering::SeqCst),
            "planted panic at {op}"
        );
    };
    let factory = hooked(factory, hook);
    let opened = Store::builder(dir).configure(small).backend(factory).open();
    let (store, _) = opened.await.unwrap();
    let p = store.create_partition(1).await.unwrap();
    let other = store.create_partition(2).await.unwrap();
    fill(&p, 200, 4).await;
    fill(&other, 10, 1).await;
    armed.store(true, Ordering::SeqCst);
    let appends = join_all((0..50).map(|_| p.append(batch(200, 1))));
    let weak = join_all((0..50).map(|_| p.append_with(batch(200, 1), Ack::Accepted)));
    let limits = ReadLimits::default();
    let reads = join_all((0..50).map(|i| p.read(i, limits, Visibility::Durable)));
    let changes = async {
        let trim = p.trim_before(1).await;
        let truncate = p.truncate_to(150).await;
        let create = store.create_partition(9).await.map(|_| ());
        [trim, truncate, create]
    };
    let mut stream = other.subscribe(10);
    // Far beyond the end: in vain while the shard lives.
    let mut wait = Box::pin(p.wait_for(100_000_000));
    assert!(polled(wait.as_mut(), 1).await.is_none());
    assert!(polled(stream.next(), 1).await.is_none());
    let (appends, weak, reads, changes, sync) =
        futures_util::join!(appends, weak, reads, changes, p.sync());
    let errors = appends
        .into_iter()
        .chain(weak)
        .map(|r| r.map(|_| ()))
        .chain(reads.into_iter().map(|r| r.map(|_| ())))
        .chain(changes)
        .chain([sync.map(|_| ())])
        .filter_map(Result::err);
    for e in errors {
        check_answers(&e);
        assert!(
            matches!(
                e,
                Error::ShardDead { shard: 0 }
                    | Error::Closed
                    | Error::OutOfRange { .. }
                    | Error::PartitionFailed { .. }
            ),
            "{op}: {e}"
        );
    }
    armed.store(false, Ordering::SeqCst);
    // Close answers as well, and with it whoever waits.
    let closing = store.close(Duration::from_secs(5));
    let (closed, wait, next) = futures_util::join!(closing, wait, stream.next());
    if let Err(e) = closed {
        check_answers(&e);
    }
    let e = wait.unwrap_err();
    check_answers(&e);
    assert!(!matches!(next, Some(Ok(_))), "nothing was appended there");
    let again = stream.next().await;
    assert!(again.is_none(), "it tells of the end once: {again:?}");
}

const PANICS: [&str; 9] = [
    "write_durable",
    "write_at",
    "read_at",
    "sync_data",
    "open",
    "rename",
    "create_dir",
    "allocate",
    "yield_now",
];

#[test]
fn a_panic_of_a_shard_on_sim() {
    quiet_panics();
    for op in PANICS {
        let sim = machine_with(1, |c| c.catch_panics = true);
        sim.block_on(async {
            let factory = sim.new_process();
            everybody_is_answered(factory, Path::new(DIR), op).await;
        });
        // What was acknowledged is there in the next life.
        sim.block_on(async {
            sim.sleep(Duration::from_secs(1)).await;
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            let offsets = p.offsets();
            assert!(offsets.log_end() >= 150);
            close(&store).await;
        });
    }
}

fn a_panic_of_a_real_shard(factory: &(impl BackendFactory + Clone)) {
    quiet_panics();
    for op in PANICS {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let body = everybody_is_answered(factory.clone(), dir.path(), op);
        runtime.block_on(async {
            let ended = tokio::time::timeout(Duration::from_secs(30), body).await;
            assert!(ended.is_ok(), "a panic at {op} leaves somebody waiting");
        });
    }
}

#[cfg(feature = "tokio")]
#[test]
fn a_panic_of_a_shard_on_tokio() {
    a_panic_of_a_real_shard(&alluvium::backends::tokio::TokioFactory::new());
}

#[cfg(feature = "compio")]
#[test]
fn a_panic_of_a_shard_on_compio() {
    a_panic_of_a_real_shard(&alluvium::backends::compio::CompioFactory::new());
}

#[cfg(feature = "uring")]
#[test]
fn a_panic_of_a_shard_on_uring() {
    a_panic_of_a_real_shard(&alluvium::backends::uring::UringFactory::new());
}

/// Keeps planted panics out of the output of the tests.
pub(crate) fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.to_string().contains("planted panic") {
                before(info);
            }
        }));
    });
}

/// Makes the next durable write of the partition fail.
async fn poison(sim: &Sim, p: &alluvium::Partition) -> Error {
    sim.fail_op(sim.op_count() + 1, EIO);
    p.append(batch(p.offsets().log_end(), 1)).await.unwrap_err()
}

#[test]
fn a_failed_write_ends_the_life_of_its_partition_alone() {
    for seed in 0..30 {
        let sim = machine(seed);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            let other = store.create_partition(2).await.unwrap();
            fill(&p, 30, 3).await;
            // Sealed and quiet: the next operation is the append's.
            sim.sleep(Duration::from_millis(200)).await;
            let acks =
                (0..20).map(|i| p.try_append(batch(30 + i, 1), Ack::Durable.into()).unwrap());
            let acks: Vec<_> = acks.collect();
            sim.fail_op(sim.op_count() + 1, EIO);
            let mut acknowledged = 30;
            let mut unknown = 0;
            for ack in acks {
                match ack.await {
                    Ok(appended) => {
                        assert_eq!(
                            (appended.base_offset, unknown),
                            (acknowledged, 0),
                            "in order"
                        );
                        acknowledged += 1;
                    }
                    Err(e) => {
                        check_answers(&e);
                        let known = matches!(
                            e,
                            Error::OutcomeUnknown { id: 1, .. }
                                | Error::PartitionFailed { id: 1, .. }
                        );
                        assert!(known, "{e}");
                        unknown += 1;
                    }
                }
            }
            assert!(unknown > 0);
            // Later requests are refused for certain.
            let cause = p.describe().await.unwrap().failure.unwrap();
            let Error::PartitionFailed { id: 1, cause } = cause else {
                panic!("{cause}")
            };
            assert_eq!(cause.code, Some(EIO));
            let failed = Error::PartitionFailed { id: 1, cause };
            assert_eq!(p.append(batch(30, 1)).await.unwrap_err(), failed);
            assert_eq!(p.sync().await.unwrap_err(), failed);
            assert_eq!(p.trim_before(1).await.unwrap_err(), failed);
            assert_eq!(p.truncate_to(1).await.unwrap_err(), failed);
            check_answers(&failed);
            // Reads and the other partition go on, for as long as it takes.
            verify(&p, 0, acknowledged).await;
            fill(&other, 20, 2).await;
            sim.sleep(Duration::from_secs(5)).await;
            assert_eq!(p.append(batch(30, 1)).await.unwrap_err(), failed);
            at_rest(&sim, &store).await;
            let report = p.reopen().await.unwrap();
            assert!(report.log_end >= acknowledged);
            let end = p.offsets().log_end();
            assert!(end <= 50, "nothing is invented");
            verify(&p, 0, end).await;
            fill(&p, 10, 2).await;
            verify(&p, 0, end + 10).await;
            verify(&other, 0, 20).await;
            assert_eq!(
                p.reopen().await.unwrap(),
                report,
                "healthy: only the report"
            );
            close(&store).await;
            let store = open(&sim).await;
            verify(&store.partition(1).await.unwrap(), 0, end + 10).await;
            close(&store).await;
        });
    }
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    for seed in 0..20 {
        let sim = machine(seed);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 10, 1).await;
            // The first carries a reservation, so that the second is a plain write.
            p.append_with(batch(10, 1), Ack::Written).await.unwrap();
            p.append_with(batch(11, 1), Ack::Written).await.unwrap();
            sim.fail_op(sim.op_count() + 1, EIO);
            let syncs = sim.counters().syncs;
            let e = p.sync().await.unwrap_err();
            check_answers(&e);
            assert!(matches!(e, Error::OutcomeUnknown { id: 1, .. }), "{e}");
            for _ in 0..5 {
                let e = p.sync().await.unwrap_err();
                assert!(matches!(e, Error::PartitionFailed { .. }), "{e}");
                sim.sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(sim.counters().syncs, syncs + 1, "one attempt");
            assert_eq!(p.offsets().durable(), 11);
            p.reopen().await.unwrap();
            let end = p.offsets().log_end();
            assert!(end >= 12, "it was shown");
            let records = p
                .read(0, ReadLimits::default(), Visibility::Durable)
                .await
                .unwrap();
            assert!(records.records().count() >= 11);
            close(&store).await;
        });
    }
}

#[test]
fn waiters_of_a_dropped_store_are_answered() {
    let sim = machine(1);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 10, 1).await;
        sim.set_stalled(true);
        let ack = p.try_append(batch(10, 1), Ack::Durable.into()).unwrap();
        let pending = p.begin_append(batch(11, 1), Ack::Durable).await;
        sim.sleep(Duration::from_millis(1)).await;
        drop((store, p));
        // A pending append holds its mailbox; without it the store ends.
        drop(pending);
        let answered = futures_util::future::select(
            Box::pin(ack),
            Box::pin(sim.sleep(Duration::from_secs(60))),
        );
        let answer = match answered.await {
            futures_util::future::Either::Left((answer, _)) => answer,
            futures_util::future::Either::Right(((), ack)) => {
                // The disk has the write, nobody else; the machine says so if that is for ever.
                sim.set_stalled(false);
                ack.await
            }
        };
        if let Err(e) = answer {
            check_answers(&e);
        }
        sim.set_stalled(false);
    });
    sim.block_on(async {
        let store = open(&sim).await;
        let p = store.partition(1).await.unwrap();
        assert!(p.offsets().log_end() >= 10);
        close(&store).await;
    });
}

#[test]
fn closing_with_a_stalled_disk_has_a_deadline() {
    let sim = machine(1);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 10, 1).await;
        sim.set_stalled(true);
        let ack = p.try_append(batch(10, 1), Ack::Durable.into()).unwrap();
        for _ in 0..2 {
            let before = sim.now();
            let e = store.close(Duration::from_millis(250)).await.unwrap_err();
            check_answers(&e);
            assert_eq!(e, Error::CloseTimeout { waited_ms: 250 });
            assert!(sim.now() < before + Duration::from_millis(300));
        }
        assert_eq!(p.append(batch(11, 1)).await.unwrap_err(), Error::Closed);
        sim.set_stalled(false);
        // The shards go on to close.
        assert_eq!(ack.await.unwrap().base_offset, 10);
        close(&store).await;
        let store = open(&sim).await;
        verify(&store.partition(1).await.unwrap(), 0, 11).await;
        close(&store).await;
    });
}

#[test]
fn everybody_who_closes_has_a_deadline() {
    let sim = machine(2);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 10, 1).await;
        sim.set_stalled(true);
        let _append = p.try_append(batch(10, 1), Ack::Durable.into()).unwrap();
        let before = sim.now();
        let closes = [100, 250, 150].map(|ms| store.close(Duration::from_millis(ms)));
        for (closed, waited_ms) in join_all(closes).await.into_iter().zip([100, 250, 150]) {
            assert_eq!(closed, Err(Error::CloseTimeout { waited_ms }));
        }
        assert!(sim.now() < before + Duration::from_millis(300));
        sim.set_stalled(false);
        close(&store).await;
    });
}

/// A creation that the disk does not answer is waited for as well, and not for ever.
#[test]
fn closing_beside_a_stalled_creation_has_a_deadline() {
    let sim = machine(3);
    sim.block_on(async {
        let (store, _) = store_and_partition(&sim).await;
        sim.sleep(Duration::from_millis(200)).await;
        sim.set_stalled(true);
        let creating = store.create_partition(2);
        futures_util::pin_mut!(creating);
        assert!(polled(creating.as_mut(), 1).await.is_none());
        sim.sleep(Duration::from_millis(10)).await;
        let e = store.close(Duration::from_millis(250)).await.unwrap_err();
        assert_eq!(e, Error::CloseTimeout { waited_ms: 250 });
        let e = try_open(&sim, |_| {}).await.unwrap_err();
        assert!(matches!(e, Error::AlreadyOpen { .. }), "{e}");
        sim.set_stalled(false);
        close(&store).await;
        close(&open(&sim).await).await;
    });
}

#[test]
fn a_deletion_that_fails_half_way_can_be_repeated() {
    let mut failed = 0;
    for step in 1..12 {
        let sim = machine(step);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 10, 1).await;
            sim.sleep(Duration::from_millis(200)).await;
            sim.fail_op(sim.op_count() + step, EIO);
            let deleted = store.delete_partition(&p).await;
            sim.cancel_failures();
            if let Err(e) = deleted {
                failed += 1;
                check_answers(&e);
                assert!(matches!(e, Error::DeletionUnknown { id: 1, .. }), "{e}");
                let e = store.create_partition(1).await.unwrap_err();
                assert!(matches!(e, Error::PartitionExists { id: 1 }), "{e}");
                if step % 2 == 0 {
                    sim.power_loss();
                    return;
                }
                store.delete_partition(&p).await.unwrap();
            }
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 3, 1).await;
            sim.power_loss();
        });
        sim.block_on(async {
            let store = open(&sim).await;
            let p = store.partition_or_create(1).await.unwrap();
            let end = p.offsets().log_end();
            assert!([0, 3, 10].contains(&end), "{end}: all of it or nothing");
            verify(&p, 0, end).await;
            close(&store).await;
        });
    }
    assert!(failed >= 2, "the renaming, and the syncing of it");
}

#[test]
fn a_poisoned_partition_can_be_deleted_and_closed() {
    for delete in [true, false] {
        let sim = machine(3);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 10, 1).await;
            sim.sleep(Duration::from_millis(200)).await;
            let e = poison(&sim, &p).await;
            assert!(matches!(e, Error::OutcomeUnknown { id: 1, .. }), "{e}");
            if delete {
                store.delete_partition(&p).await.unwrap();
                store.create_partition(1).await.unwrap();
                close(&store).await;
            } else {
                // It ends all the same.
                let e = store.close(Duration::from_secs(9)).await.unwrap_err();
                check_answers(&e);
                assert!(matches!(e, Error::PartitionFailed { id: 1, .. }), "{e}");
            }
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            assert_eq!(p.offsets().log_end() >= 10, !delete);
            close(&store).await;
        });
    }
}

/// Those who wait for a partition that fails hear of it, or of its healing.
#[test]
fn subscribers_of_a_poisoned_partition_go_on_after_it_is_reopened() {
    let sim = machine(4);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 10, 1).await;
        sim.sleep(Duration::from_millis(200)).await;
        let mut stream = p.subscribe(10);
        let wait = p.wait_for(14);
        futures_util::pin_mut!(wait);
        assert!(polled(stream.next(), 1).await.is_none());
        assert!(polled(wait.as_mut(), 1).await.is_none());
        poison(&sim, &p).await;
        p.reopen().await.unwrap();
        let end = p.offsets().log_end();
        fill(&p, 14 - end, 1).await;
        assert!(wait.await.unwrap().durable() >= 14);
        while stream.next_offset() < 14 {
            stream.next().await.unwrap().unwrap();
        }
        close(&store).await;
    });
}

/// A reopening that fails leaves a failed partition that can be reopened again.
#[test]
fn a_reopening_may_fail_and_be_repeated() {
    for n in 1..40 {
        let sim = machine(n);
        sim.block_on(async {
            let opened = try_open(&sim, |c| c.tail_cache_bytes_max = 0);
            let (store, _) = opened.await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 150, 3).await;
            sim.sleep(Duration::from_millis(200)).await;
            poison(&sim, &p).await;
            sim.fail_op(sim.op_count() + n, EIO);
            let reads = sim.counters().reads;
            sim.fail_read(reads + n, EIO);
            let mut attempts = 0;
            while let Err(e) = p.reopen().await {
                check_answers(&e);
                assert!(
                    matches!(e, Error::Io { .. } | Error::PartitionFailed { .. }),
                    "{e:?}"
                );
                attempts += 1;
                assert!(attempts < 4, "{e}");
            }
            let end = p.offsets().log_end();
            assert!(end >= 150);
            while sim.counters().reads < reads + n {
                let read = p.read(0, ReadLimits::default(), Visibility::Durable);
                assert!(matches!(read.await, Ok(_) | Err(Error::Io { .. })));
            }
            verify(&p, 0, end).await;
            // The planted failure may still be to come.
            while p.append(batch(p.offsets().log_end(), 1)).await.is_err() {
                p.reopen().await.unwrap();
            }
            verify(&p, 0, p.offsets().log_end()).await;
            // It may even strike the last seal: then the close says so.
            match store.close(Duration::from_secs(30)).await {
                Ok(()) | Err(Error::PartitionFailed { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        });
    }
}

/// A truncation that cannot find its place has not taken the segment it wanted to go on with.
#[test]
fn a_truncation_that_fails_leaves_no_file_behind() {
    let sim = machine(11);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 150, 3).await;
        sim.sleep(Duration::from_millis(200)).await;
        at_rest(&sim, &store).await;
        let files = sim.list_files();
        let mut failed = 0;
        loop {
            sim.fail_read(sim.counters().reads + 1 + failed % 3, EIO);
            match p.truncate_to(141).await {
                Ok(()) => break,
                Err(e) => assert!(matches!(e, Error::Io { .. }), "{e:?}"),
            }
            failed += 1;
            sim.sleep(Duration::from_millis(200)).await;
            at_rest(&sim, &store).await;
            assert_eq!(sim.list_files(), files);
        }
        assert!(failed >= 1);
        sim.cancel_failures();
        verify(&p, 0, 141).await;
        close(&store).await;
    });
}

/// A segment that cannot be prepared is not left behind, whatever step of it failed.
#[test]
fn a_spare_that_cannot_be_made_leaves_no_file_behind() {
    let mut failed = 0;
    for step in 1..20 {
        let sim = machine(step);
        sim.block_on(async {
            // None lies ready: it is made when it is needed.
            let opened = try_open(&sim, |c| c.spare_segments_max = 0).await;
            let (store, _) = opened.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 10, 1).await;
            sim.sleep(Duration::from_millis(200)).await;
            let files = sim.list_files();
            sim.fail_op(sim.op_count() + step, EIO);
            if let Err(Error::Io { .. }) = p.truncate_to(5).await {
                failed += 1;
                assert_eq!(sim.list_files(), files, "step {step}");
            }
        });
    }
    assert!(failed >= 5, "{failed}: each step of making one");
}
