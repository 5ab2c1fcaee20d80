//! After errors and a full disk: failed partitions are reopened, and appends go on.

use alluvium::{Ack, Error};
use alluvium_testkit::promises::{BatchShape, Survival};

use crate::world::{Presence, Shared};

/// Reopens partitions that have failed and checks what they hold.
pub(crate) async fn heal(shared: &Shared) {
    let slots = shared.with(|w| w.slots.len());
    for n in 0..slots {
        let handle = shared.slot(n, |s| {
            s.handle.clone().filter(|_| s.presence == Presence::Present)
        });
        let Some(handle) = handle else { continue };
        let Ok(info) = handle.describe().await else {
            continue;
        };
        if info.failure.is_none() {
            if shared.slot(n, |s| s.failed) {
                shared.violate(
                    "P8",
                    "a failure was answered, but the partition is well".into(),
                );
            }
            continue;
        }
        let mut reopened = handle.reopen().await;
        shared.note(|| format!("reopen {}: {reopened:?}", handle.id()));
        for _ in 0..3 {
            if reopened.is_ok() {
                break;
            }
            // Another failure may have been waiting for the recovery.
            reopened = handle.reopen().await;
        }
        if let Err(e) = reopened {
            return shared.violate("P8", format!("reopen: {e}"));
        }
        shared.count(|c| c.reopened_after_failure += 1);
        shared.slot(n, |s| s.failed = false);
        shared.verify(n, &handle, Survival::Durable).await;
    }
}

/// There is room again: every partition that has not failed takes appends.
pub(crate) async fn appends_go_on(shared: &Shared) {
    let slots = shared.with(|w| w.slots.len());
    for n in 0..slots {
        let Some(handle) = shared.handle(n) else {
            continue;
        };
        let shape = BatchShape {
            count: 1,
            record_bytes: 16,
            opaque: false,
        };
        let Some(id) = shared.life(n, &handle, |l| l.submit(HEALER, shape)) else {
            continue;
        };
        let result = handle.append(shape.encode(id)).await;
        if let Err(e @ Error::NoSpace { .. }) = &result {
            shared.violate("P9", format!("there is room again: {e}"));
        }
        shared.answered(n, &handle, id, Ack::Durable, result);
    }
}

/// The client that looks whether appends go on.
const HEALER: u32 = u32::MAX;
