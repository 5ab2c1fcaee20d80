//! What a partition publishes of its tail, under loom: offsets, chunks and the places in them, while
//! the shard appends, evicts, truncates and ends.

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

use super::cache::TailCache;
use super::cache::tests::group_of;
use super::{ReadLimits, Tail, TailRead, Visibility};
use crate::explore::explore;
use crate::offset::Offsets;

/// A budget that closes no chunk before it is full, and one that closes each at once.
const BUDGETS: [usize; 2] = [1 << 20, 0];

/// A log with one durable group of two records, by generation 1.
fn log(budget: usize) -> (TailCache, Arc<Tail>) {
    let tail = Arc::new(Tail::new(Offsets::new(0, 0)));
    let mut cache = TailCache::new(Arc::clone(&tail), budget);
    cache.push(group_of(1, 0, &[2]));
    tail.publish(Offsets::new(0, 2));
    (cache, tail)
}

/// Reads everything; the durable end, and the generation that wrote each record. `None` where the
/// shard would be asked.
fn read(tail: &Tail, from: u64) -> Option<(u64, Vec<u32>)> {
    let limits = ReadLimits::default();
    let Ok(TailRead::Found(fetched)) = tail.read(from, limits, Visibility::Durable) else {
        return None;
    };
    let mut at = from;
    let mut writers = vec![];
    for batch in &fetched.batches {
        assert_eq!(batch.first_offset(), at, "a record is missing");
        at = batch.end_offset();
        let count = usize::try_from(at - batch.first_offset()).unwrap();
        writers.extend(std::iter::repeat_n(batch.header().generation, count));
    }
    assert_eq!(at, fetched.durable, "a record is missing at the end");
    Some((fetched.durable, writers))
}

#[test]
fn a_reader_beside_appends_and_evictions_misses_nothing_below_the_end_that_it_sees() {
    for budget in BUDGETS {
        explore(2, move || {
            let (mut cache, tail) = log(budget);
            let reader = Arc::clone(&tail);
            let reader = thread::spawn(move || {
                let Some((end, writers)) = read(&reader, 0) else {
                    return;
                };
                assert_eq!(writers, vec![1; usize::try_from(end).unwrap()]);
            });
            cache.push(group_of(1, 2, &[2]));
            tail.publish(Offsets::new(0, 4));
            cache.evict(0, 2);
            reader.join().unwrap();
            assert_eq!(read(&tail, 3), Some((4, vec![1])));
        });
    }
}

#[test]
fn a_reader_beside_a_truncation_sees_the_log_before_it_or_after_it() {
    for budget in BUDGETS {
        explore(2, move || {
            let (mut cache, tail) = log(budget);
            let answered = loom::sync::Arc::new(AtomicU64::new(0));
            let (reader, is_answered) = (Arc::clone(&tail), answered.clone());
            let reader = thread::spawn(move || {
                let answered = is_answered.load(Ordering::Acquire) == 1;
                match read(&reader, 0) {
                    None => {}
                    Some((2, writers)) => {
                        assert!(!answered, "the truncation was answered before this read");
                        assert_eq!(writers, [1, 1]);
                    }
                    Some((1, writers)) => assert_eq!(writers, [1]),
                    Some((3, writers)) => assert_eq!(writers, [1, 2, 2]),
                    Some(other) => panic!("{other:?} was never there"),
                }
            });
            cache.truncate(1);
            tail.publish(Offsets::new(0, 1));
            answered.store(1, Ordering::Release);
            cache.push(group_of(2, 1, &[2]));
            tail.publish(Offsets::new(0, 3));
            reader.join().unwrap();
            assert_eq!(read(&tail, 0), Some((3, vec![1, 2, 2])));
        });
    }
}

#[test]
fn after_the_end_of_a_partition_was_answered_nobody_reads_its_memory() {
    explore(3, || {
        let (_cache, tail) = log(0);
        let answered = loom::sync::Arc::new(AtomicU64::new(0));
        let (reader, is_answered) = (Arc::clone(&tail), answered.clone());
        let reader = thread::spawn(move || {
            let answered = is_answered.load(Ordering::Acquire) == 1;
            // At the end, where no memory is needed for an answer.
            let found = read(&reader, 2);
            assert!(!answered || found.is_none(), "the end was answered before");
        });
        tail.close();
        answered.store(1, Ordering::Release);
        reader.join().unwrap();
    });
}
