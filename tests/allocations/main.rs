//! Which thread gives back the memory of a batch: the one that took it.
//!
//! Allocators keep what one thread allocates and another frees behind a lock, and a shard that
//! waits for such a lock keeps everybody waiting when whoever holds it has lost its core.

#![cfg(any(feature = "tokio", feature = "uring"))]
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use alluvium::format::{Batch, BatchBuilder};
use alluvium::io::BackendFactory;
use alluvium::{Ack, Shards, Store};
use alluvium_testkit::logs::{close, small};

/// Length of the values here: nothing else allocates about as much.
const VALUE_LEN: usize = 2789;
/// Memory of a batch of one such value.
const BATCHES: Range<usize> = VALUE_LEN..VALUE_LEN + 200;
const ROUNDS: usize = 100;

thread_local! {
    /// Whether this is the thread of the test.
    static CALLER: Cell<bool> = const { Cell::new(false) };
}

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static GROWN: AtomicUsize = AtomicUsize::new(0);
static FREED_BY_CALLER: AtomicUsize = AtomicUsize::new(0);
static FREED_BY_OTHERS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator; counts what happens to memory of the size of [`BATCHES`].
struct Counting;

// SAFETY: every call goes to the system's allocator as it comes; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if BATCHES.contains(&layout.size()) {
            TAKEN.fetch_add(1, Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if BATCHES.contains(&layout.size()) {
            let caller = CALLER.try_with(Cell::get).unwrap_or(false);
            let freed = if caller {
                &FREED_BY_CALLER
            } else {
                &FREED_BY_OTHERS
            };
            freed.fetch_add(1, Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if BATCHES.contains(&size) {
            GROWN.fetch_add(1, Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn one_record(round: usize) -> Batch {
    let value = [7; VALUE_LEN];
    if round.is_multiple_of(2) {
        return Batch::from_values([value]).unwrap();
    }
    let mut builder = BatchBuilder::new();
    builder.push_value(&value).unwrap();
    builder.finish().unwrap()
}

/// A small record in memory for a large one: kept with the answer, it would be memory that no
/// limit on the bytes under way has counted.
fn roomy(_round: usize) -> Batch {
    let mut builder = BatchBuilder::with_capacity(VALUE_LEN);
    builder.push_value(b"small").unwrap();
    builder.finish().unwrap()
}

/// Appends these, and returns how many the caller's thread gave back and how many others did.
fn appended<F: BackendFactory>(factory: F, batch: fn(usize) -> Batch) -> (usize, usize) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let builder = Store::builder(dir.path()).configure(small);
        let builder = builder.configure(|c| c.shards = Shards::Count(1));
        let (store, _) = builder.backend(factory).open().await.unwrap();
        let p = store.partition_or_create(1).await.unwrap();
        let counters = [&TAKEN, &GROWN, &FREED_BY_CALLER, &FREED_BY_OTHERS];
        for counter in counters {
            counter.store(0, Relaxed);
        }
        for round in 0..ROUNDS {
            let level = [Ack::Accepted, Ack::Written, Ack::Durable][round % 3];
            let batch = batch(round);
            if round % 4 < 2 {
                p.append_with(batch, level).await.unwrap();
            } else {
                let pending = p.begin_append(batch, level).await.unwrap();
                // An append that is not awaited to its end keeps nothing.
                let freed = [&FREED_BY_CALLER, &FREED_BY_OTHERS].map(|c| c.load(Relaxed));
                assert_eq!(
                    freed.iter().sum::<usize>(),
                    round + 1,
                    "before it is acknowledged"
                );
                pending.acknowledged().await.unwrap();
            }
        }
        let [taken, grown, by_caller, by_others] = counters.map(|c| c.load(Relaxed));
        assert_eq!(taken, ROUNDS, "one allocation for each batch");
        assert_eq!(grown, 0, "none grows while it is encoded");
        close(&store).await;
        (by_caller, by_others)
    })
}

fn batches_go_back<F: BackendFactory + Clone>(factory: &F) {
    assert_eq!(appended(factory.clone(), one_record), (ROUNDS, 0));
    assert_eq!(appended(factory.clone(), roomy), (0, ROUNDS));
}

#[test]
fn memory_of_batches_goes_back_to_their_callers() {
    CALLER.set(true);
    #[cfg(feature = "tokio")]
    batches_go_back(&alluvium::backends::tokio::TokioFactory::new());
    #[cfg(feature = "uring")]
    batches_go_back(&alluvium::backends::uring::UringFactory::new());
}
