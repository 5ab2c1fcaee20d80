//! The sequence lock of the published offsets, under loom.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use crate::explore::explore;
use crate::offset::{Offsets, SharedOffsets};

struct Published {
    offsets: SharedOffsets,
    /// What the writer has done before it published, told by nothing but the publication.
    done: AtomicU64,
}

impl Published {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            offsets: SharedOffsets::new(0, Offsets::new(0, 0)),
            done: AtomicU64::new(0),
        })
    }

    fn publish(&self, n: u64) {
        self.done.store(n, Ordering::Relaxed);
        self.offsets.store(n, Offsets::new(n, n));
    }

    /// What a reader sees, if it is not overtaken; never torn, never without what came before it.
    fn look(&self) -> Option<u64> {
        let (epoch, offsets) = self.offsets.load()?;
        assert_eq!(offsets, Offsets::new(epoch, epoch), "torn");
        assert!(self.done.load(Ordering::Relaxed) >= epoch, "too early");
        Some(epoch)
    }
}

#[test]
fn offsets_are_never_torn_and_bring_what_came_before_them() {
    explore(3, || {
        let published = Published::new();
        let writer = Arc::clone(&published);
        let writer = thread::spawn(move || {
            writer.publish(1);
            writer.publish(2);
        });
        published.look();
        writer.join().unwrap();
        assert_eq!(published.look(), Some(2), "nobody is at it any more");
    });
}

#[test]
fn offsets_that_were_seen_are_not_taken_back() {
    explore(3, || {
        let published = Published::new();
        let writer = Arc::clone(&published);
        let writer = thread::spawn(move || writer.publish(1));
        let first = published.look();
        let second = published.look();
        if let (Some(first), Some(second)) = (first, second) {
            assert!(second >= first);
        }
        writer.join().unwrap();
    });
}
