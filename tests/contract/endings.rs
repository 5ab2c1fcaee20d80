//! Partitions that have ended, or have let go of their files, while their shard goes on: who waits
//! for their offsets hears of it, and nobody takes them for empty.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium::io::BackendFactory;
use alluvium::{BlockingPool, Error, InspectRequest, Partition, PoolError, Store};
use alluvium_testkit::logs::{batch, close, fill, small};
use futures_util::StreamExt;

use crate::failure::quiet_panics;
use crate::faulty::hooked;
use crate::machine::{EIO, check_answers, machine, polled, store_and_partition};

/// What a job leaves behind may panic too: nobody has taken its result, or what its panic carried.
#[test]
fn a_pool_outlives_destructors_that_panic() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "planted panic of a destructor");
        }
    }
    quiet_panics();
    let spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name).spawn(body).map(drop)
    };
    let pool = BlockingPool::start("bombs", 1, 4, &spawn).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let body = async {
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let left = polled(
            pool.run(move || {
                told.recv().unwrap_or(());
                Bomb
            }),
            1,
        );
        assert!(left.await.is_none());
        drop(go_on);
        assert_eq!(pool.run(|| 1).await, Ok(1), "behind a result");
        let panicked = pool.run(|| std::panic::panic_any(Bomb)).await;
        assert_eq!(panicked, Err(PoolError::Panicked));
        assert_eq!(pool.run(|| 2).await, Ok(2), "behind a panic");
    };
    runtime.unwrap().block_on(async {
        let ended = tokio::time::timeout(Duration::from_secs(20), body).await;
        assert!(ended.is_ok(), "the pool has no thread left");
    });
}

/// Far beyond the end: nobody ever appends so much.
const NEVER: u64 = 100_000_000;

/// Waits in every way until `end` has happened, and on its behalf for those who come too late.
async fn everybody_hears_of_the_end(p: &Partition, end: impl Future<Output = ()>) {
    let at = p.offsets().log_end();
    let mut wait = Box::pin(p.wait_for(NEVER));
    let mut stream = p.subscribe(at);
    assert!(polled(wait.as_mut(), 1).await.is_none());
    assert!(polled(stream.next(), 1).await.is_none());
    end.await;
    for e in [
        wait.await.unwrap_err(),
        p.wait_for(NEVER).await.unwrap_err(),
    ] {
        check_answers(&e);
        assert_eq!(e, Error::PartitionNotFound { id: p.id() });
    }
    for mut stream in [stream, p.subscribe(at)] {
        assert!(stream.next().await.is_none(), "it ends");
    }
}

/// A panic in the task of one partition ends that partition alone.
fn a_panic_of_one_partition(factory: impl BackendFactory) {
    quiet_panics();
    let armed = Arc::new(AtomicBool::new(false));
    let is_armed = Arc::clone(&armed);
    let hook = move |name: &'static str, _: &Path| {
        let strikes = name == "write_durable" && is_armed.swap(false, Ordering::SeqCst);
        assert!(!strikes, "planted panic at {name}");
    };
    let factory = hooked(factory, hook);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let body = async {
        // No seal meets the panic in place of the append.
        let config = |c: &mut _| {
            small(c);
            c.seal_after = Duration::from_secs(3600);
        };
        let builder = Store::builder(dir.path()).configure(config);
        let (store, _) = builder.backend(factory).open().await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        let other = store.create_partition(2).await.unwrap();
        fill(&p, 10, 1).await;
        everybody_hears_of_the_end(&p, async {
            armed.store(true, Ordering::SeqCst);
            let e = p.append(batch(10, 1)).await.unwrap_err();
            assert_eq!(e, Error::ShardDead { shard: 0 });
        })
        .await;
        fill(&other, 10, 1).await;
        close(&store).await;
    };
    runtime.block_on(async {
        let ended = tokio::time::timeout(Duration::from_secs(30), body).await;
        assert!(ended.is_ok(), "somebody is left waiting");
    });
}

#[cfg(feature = "tokio")]
#[test]
fn a_panic_of_one_partition_on_tokio() {
    a_panic_of_one_partition(alluvium::backends::tokio::TokioFactory::new());
}

#[cfg(feature = "compio")]
#[test]
fn a_panic_of_one_partition_on_compio() {
    a_panic_of_one_partition(alluvium::backends::compio::CompioFactory::new());
}

#[cfg(feature = "uring")]
#[test]
fn a_panic_of_one_partition_on_uring() {
    a_panic_of_one_partition(alluvium::backends::uring::UringFactory::new());
}

/// A deletion that fails half-way leaves a partition that takes no requests any more.
#[test]
fn a_deletion_that_fails_half_way() {
    let mut failed = 0;
    for step in 1..12 {
        let sim = machine(step);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 10, 1).await;
            sim.sleep(Duration::from_millis(200)).await;
            sim.fail_op(sim.op_count() + step, EIO);
            everybody_hears_of_the_end(&p, async {
                if let Err(e) = store.delete_partition(&p).await {
                    assert!(matches!(e, Error::DeletionUnknown { id: 1, .. }), "{e}");
                    failed += 1;
                }
            })
            .await;
            sim.cancel_failures();
            close(&store).await;
        });
    }
    assert!(failed >= 2, "the renaming, and the syncing of it");
}

/// A partition that failed, and whose reopening failed, knows nothing of its records.
#[test]
fn a_reopening_that_fails_leaves_no_empty_log() {
    let mut failed = 0;
    for step in 1..6 {
        let sim = machine(step);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 10, 1).await;
            sim.sleep(Duration::from_millis(200)).await;
            sim.fail_op(sim.op_count() + 1, EIO);
            p.append(batch(10, 1)).await.unwrap_err();
            assert_eq!(p.offset_for_timestamp(0).await, Ok(Some(0)));
            sim.fail_op(sim.op_count() + step, EIO);
            if p.reopen().await.is_err() {
                failed += 1;
                let times = p.offset_for_timestamp(0).await.map(drop);
                let looks = p.inspect(InspectRequest::default()).await.map(drop);
                for e in [times.unwrap_err(), looks.unwrap_err()] {
                    check_answers(&e);
                    assert!(matches!(e, Error::PartitionFailed { id: 1, .. }), "{e}");
                }
            }
            sim.cancel_failures();
            p.reopen().await.unwrap();
            assert_eq!(p.offset_for_timestamp(0).await, Ok(Some(0)));
            close(&store).await;
        });
    }
    assert!(failed >= 2, "{failed}: it writes a header, and syncs");
}
