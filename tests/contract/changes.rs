//! Changes of a log's shape that fail half-way, and requests that stand behind one.

use std::time::Duration;

use alluvium::{Ack, Error};
use alluvium_testkit::logs::{batch, close, fill, verify};

use crate::machine::{EIO, at_rest, machine, polled, store_and_partition};

/// A truncation cuts all that it was to cut, or nothing: files behind the cut go when it is durable.
#[test]
fn a_truncation_may_fail_at_every_operation() {
    for n in 1.. {
        let sim = machine(12);
        let cut = sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            fill(&p, 600, 3).await;
            // Sealed and quiet: the next operations are those of the truncation.
            sim.sleep(Duration::from_millis(200)).await;
            at_rest(&sim, &store).await;
            assert!(p.describe().await.unwrap().segments > 4);
            sim.fail_op(sim.op_count() + n, EIO);
            let truncated = p.truncate_to(10).await;
            sim.cancel_failures();
            p.reopen().await.unwrap();
            let end = p.offsets().log_end();
            let whole = truncated.is_err() && end == 600;
            assert!(end == 10 || whole, "operation {n}: {truncated:?}, {end}");
            verify(&p, 0, end).await;
            close(&store).await;
            truncated.is_ok()
        });
        if cut {
            assert!(n > 1, "the first operation failed, and nobody said so");
            break;
        }
    }
}

/// Who comes while a partition is being deleted hears when it is gone.
#[test]
fn requests_behind_a_deletion_are_answered() {
    let sim = machine(13);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 5, 1).await;
        sim.set_stalled(true);
        let first = p.try_append(batch(5, 1), Ack::Durable.into()).unwrap();
        sim.sleep(Duration::from_millis(1)).await;
        let mut deleting = Box::pin(store.delete_partition(&p));
        assert!(polled(deleting.as_mut(), 1).await.is_none());
        sim.sleep(Duration::from_millis(1)).await;
        let append = p.try_append(batch(6, 1), Ack::Accepted.into()).unwrap();
        let (mut sync, mut trim) = (Box::pin(p.sync()), Box::pin(p.trim_before(1)));
        assert!(polled(sync.as_mut(), 1).await.is_none());
        assert!(polled(trim.as_mut(), 1).await.is_none());
        sim.sleep(Duration::from_millis(1)).await;
        sim.set_stalled(false);
        assert_eq!(first.await.unwrap().base_offset, 5);
        deleting.await.unwrap();
        assert_eq!(append.await.unwrap_err(), Error::Closed);
        assert_eq!(sync.await.unwrap_err(), Error::Closed);
        assert_eq!(trim.await.unwrap_err(), Error::Closed);
        close(&store).await;
    });
}
