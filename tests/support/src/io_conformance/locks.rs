//! Advisory locks on descriptors.

use alluvium_core::io::{BackendFactory, IoBackend, IoFile, LockKind, OpenOptions};

use super::{Ctx, Suite, checks, pattern, write};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        exclusive_excludes,
        shared_shares,
        locks_end_with_the_descriptor,
        a_lock_can_change_its_kind,
    );
}

async fn pair<B: IoBackend>(ctx: &Ctx<B>) -> (B::File, B::File) {
    let first = ctx.create("LOCK", false).await;
    (
        first,
        ctx.backend
            .open(&ctx.path("LOCK"), OpenOptions::READ_WRITE)
            .await
            .unwrap(),
    )
}

async fn exclusive_excludes<B: IoBackend>(ctx: Ctx<B>) {
    let (first, second) = pair(&ctx).await;
    assert!(first.try_lock(LockKind::Exclusive).unwrap());
    assert!(!second.try_lock(LockKind::Exclusive).unwrap());
    assert!(!second.try_lock(LockKind::Shared).unwrap());
    // Taking it again on the same descriptor is no conflict.
    assert!(first.try_lock(LockKind::Exclusive).unwrap());
}

async fn shared_shares<B: IoBackend>(ctx: Ctx<B>) {
    let (first, second) = pair(&ctx).await;
    assert!(first.try_lock(LockKind::Shared).unwrap());
    assert!(second.try_lock(LockKind::Shared).unwrap());
    assert!(!first.try_lock(LockKind::Exclusive).unwrap());
}

async fn locks_end_with_the_descriptor<B: IoBackend>(ctx: Ctx<B>) {
    let (first, second) = pair(&ctx).await;
    assert!(first.try_lock(LockKind::Exclusive).unwrap());
    assert!(!second.try_lock(LockKind::Exclusive).unwrap());
    // Operations that have completed hold nothing.
    write(&first, &pattern(1, 4096), 0).await;
    first.write_durable(pattern(1, 4096), 0).await.0.unwrap();
    first.sync_data().await.unwrap();
    drop(first);
    assert!(second.try_lock(LockKind::Exclusive).unwrap());
}

async fn a_lock_can_change_its_kind<B: IoBackend>(ctx: Ctx<B>) {
    let (first, second) = pair(&ctx).await;
    assert!(first.try_lock(LockKind::Exclusive).unwrap());
    assert!(first.try_lock(LockKind::Shared).unwrap());
    assert!(second.try_lock(LockKind::Shared).unwrap());
    drop(second);
    assert!(first.try_lock(LockKind::Exclusive).unwrap());
}
