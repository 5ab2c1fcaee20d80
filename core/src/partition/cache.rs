//! The writer's side of the tail: which recent groups are kept in memory.
//!
//! Groups that are not written yet are always here, so that readers at the tail can be served from
//! memory; older ones stay while the budget allows. Nothing is copied: the cache, the write in
//! flight and readers share one buffer. How readers on other threads look at it, and why they may,
//! stands in [`tail`](super::tail).

use std::collections::VecDeque;
use std::sync::Arc;

use super::tail::{Chunk, Tail};
use crate::segment::{PlacedBatch, PlacedGroup};

/// A chunk is closed at this part of the budget, so that eviction has something to choose from.
const CHUNKS_PER_BUDGET: usize = 8;

/// Recent groups of one partition, oldest first.
#[derive(Debug)]
pub(super) struct TailCache {
    tail: Arc<Tail>,
    chunks: VecDeque<Held>,
    /// Bytes of memory that the chunks and their groups take.
    bytes: usize,
    budget: usize,
}

/// A chunk, and what the writer knows about it.
#[derive(Debug)]
struct Held {
    chunk: Arc<Chunk>,
    groups: usize,
    bytes: usize,
    end_offset: u64,
    /// Whether groups may still be added.
    open: bool,
}

/// Memory that a group keeps.
fn held_bytes(group: &PlacedGroup) -> usize {
    group.held_bytes + group.batches.len() * size_of::<PlacedBatch>()
}

impl TailCache {
    /// An empty cache that shows what it holds through `tail`.
    pub(super) fn new(tail: Arc<Tail>, budget: usize) -> Self {
        Self {
            tail,
            chunks: VecDeque::new(),
            bytes: 0,
            budget,
        }
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a group that was placed. Readers find it once a log end is published that covers it.
    pub(super) fn push(&mut self, group: PlacedGroup) {
        if !self.add(group) {
            return;
        }
        self.tail.show(self.shown());
    }

    /// Adds a group; whether that took a new chunk.
    fn add(&mut self, group: PlacedGroup) -> bool {
        let (Some(first), Some(last)) = (group.batches.first(), group.batches.last()) else {
            return false;
        };
        let (base_offset, end_offset) = (first.base_offset, last.end_offset);
        let bytes = held_bytes(&group);
        let full = self.budget / CHUNKS_PER_BUDGET;
        let mut group = group;
        if let Some(held) = self.chunks.back_mut()
            && held.open
            && held.bytes < full
        {
            match held.chunk.set(held.groups, group) {
                Ok(()) => {
                    held.groups += 1;
                    held.bytes += bytes;
                    held.end_offset = end_offset;
                    self.bytes += bytes;
                    return false;
                }
                Err(back) => group = back,
            }
        }
        let bytes = bytes + Chunk::BYTES;
        let chunk = Chunk::new(base_offset);
        let placed = chunk.set(0, group);
        debug_assert!(placed.is_ok(), "a new chunk has a free place");
        self.chunks.push_back(Held {
            chunk: Arc::new(chunk),
            groups: 1,
            bytes,
            end_offset,
            open: true,
        });
        self.bytes += bytes;
        true
    }

    fn shown(&self) -> Vec<Arc<Chunk>> {
        self.chunks.iter().map(|h| Arc::clone(&h.chunk)).collect()
    }

    /// Forgets the oldest chunks while more than `bytes_max` are held, but none that ends above
    /// `written`.
    pub(super) fn evict(&mut self, bytes_max: usize, written: u64) {
        self.budget = bytes_max;
        let mut evicted = false;
        while self.bytes > bytes_max
            && let Some(oldest) = self.chunks.front()
            && oldest.end_offset <= written
        {
            self.bytes -= oldest.bytes;
            self.chunks.pop_front();
            evicted = true;
        }
        if evicted {
            self.tail.show(self.shown());
        }
    }

    /// Forgets everything: what comes next is another epoch of the log.
    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
        self.tail.begin_epoch(Vec::new());
    }

    /// Forgets records at and above `end`: what comes next is another epoch of the log.
    pub(super) fn truncate(&mut self, end: u64) {
        let mut cut = None;
        while self.chunks.back().is_some_and(|h| h.end_offset > end)
            && let Some(held) = self.chunks.pop_back()
        {
            self.bytes -= held.bytes;
            cut = Some(held);
        }
        // Readers of the old epoch know these chunks: nothing new may come into them.
        if let Some(held) = self.chunks.back_mut() {
            held.open = false;
        }
        // Only the oldest of those that are gone can reach below the cut.
        if let Some(held) = cut.filter(|h| h.chunk.base_offset() < end) {
            for group in held.chunk.groups() {
                let mut group = group.clone();
                let kept = group.batches.iter().filter(|b| b.base_offset < end);
                let clipped = kept.map(|b| PlacedBatch {
                    end_offset: b.end_offset.min(end),
                    ..*b
                });
                group.batches = clipped.collect();
                self.add(group);
            }
        }
        self.tail.begin_epoch(self.shown());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::format::{Batch, Control, ControlReason, Placement};
    use crate::offset::Offsets;
    use crate::partition::{ReadLimits, TailRead, Visibility};

    fn group(base: u64, sizes: &[u32]) -> PlacedGroup {
        group_of(1, base, sizes)
    }

    /// A note of the log to itself, without records.
    fn note(end_offset: u64) -> Batch {
        Batch::control(&Control {
            reason: ControlReason::Reserve,
            segment_end: false,
            end_offset,
            log_start: 0,
            reserved_end: end_offset,
        })
    }

    /// A group of batches of so many records, of a writer's generation.
    pub(in crate::partition) fn group_of(generation: u32, base: u64, sizes: &[u32]) -> PlacedGroup {
        let mut bytes = Vec::new();
        let mut batches = Vec::new();
        let mut offset = base;
        for &n in sizes {
            let mut batch = match n {
                0 => note(offset),
                n => Batch::from_values((0..n).map(u32::to_le_bytes)).unwrap(),
            };
            batch.place(&Placement {
                base_offset: offset,
                generation,
                ..Placement::default()
            });
            let end_offset = offset + u64::from(n);
            batches.push(PlacedBatch {
                base_offset: offset,
                end_offset,
                start: bytes.len(),
                newest: i64::MIN,
            });
            bytes.extend_from_slice(batch.bytes());
            offset = end_offset;
        }
        PlacedGroup {
            held_bytes: bytes.len(),
            bytes: bytes.into(),
            position: 0,
            batches: batches.into(),
        }
    }

    struct Log {
        cache: TailCache,
        tail: Arc<Tail>,
    }

    /// Large enough for every test that does not evict.
    const BUDGET: usize = 1 << 20;

    impl Log {
        fn new(budget: usize) -> Self {
            let tail = Arc::new(Tail::new(Offsets::new(0, 0)));
            let cache = TailCache::new(Arc::clone(&tail), budget);
            Self { cache, tail }
        }

        fn durable(&self, start: u64, end: u64) {
            self.tail.publish(Offsets::new(start, end));
        }

        fn ranges(&self, from: u64, bytes_max: usize) -> Option<Vec<(u64, u64)>> {
            let limits = ReadLimits {
                bytes_max,
                ..ReadLimits::default()
            };
            let read = self.tail.read(from, limits, Visibility::Durable);
            let TailRead::Found(fetched) = read.unwrap() else {
                return None;
            };
            let ranges = fetched.batches.iter();
            Some(ranges.map(|b| (b.first_offset(), b.end_offset())).collect())
        }
    }

    #[test]
    fn reads_start_in_the_batch_that_holds_the_offset_and_stop_at_the_limits() {
        let mut log = Log::new(BUDGET);
        log.cache.push(group(10, &[2, 3]));
        log.cache.push(group(15, &[5]));
        log.durable(0, 20);
        assert_eq!(log.ranges(9, 1 << 20), None);
        assert_eq!(
            log.ranges(11, 1 << 20).unwrap(),
            [(11, 12), (12, 15), (15, 20)]
        );
        assert_eq!(log.ranges(10, 1).unwrap(), [(10, 12)], "one in any case");
        assert_eq!(log.ranges(20, 1).unwrap(), []);
        log.durable(0, 17);
        assert_eq!(log.ranges(13, 1 << 20).unwrap(), [(13, 15), (15, 17)]);
    }

    #[test]
    fn every_offset_is_found_across_many_chunks() {
        for budget in [0, 64 << 10, BUDGET] {
            let mut log = Log::new(budget);
            let mut end = 0;
            for n in 0..1000 {
                let size = 1 + n % 3;
                // A note of the log to itself stands in front of some groups.
                let sizes: &[u32] = if n % 5 == 0 { &[0, size] } else { &[size] };
                log.cache.push(group(end, sizes));
                end += u64::from(size);
            }
            log.durable(0, end);
            for from in 0..end {
                let ranges = log.ranges(from, usize::MAX).unwrap();
                assert_eq!((ranges[0].0, ranges.last().unwrap().1), (from, end));
                assert!(ranges.windows(2).all(|w| w[0].1 == w[1].0), "{from}");
            }
        }
    }

    #[test]
    fn what_is_not_written_is_not_evicted_and_what_is_evicted_is_the_oldest() {
        let mut log = Log::new(0);
        log.cache.push(group(0, &[2]));
        log.cache.push(group(2, &[2]));
        log.durable(0, 4);
        log.cache.evict(0, 2);
        assert_eq!(log.ranges(1, 1), None);
        assert_eq!(log.ranges(2, 1).unwrap(), [(2, 4)]);
        log.cache.evict(0, 4);
        assert_eq!((log.ranges(2, 1), log.cache.bytes()), (None, 0));
    }

    #[test]
    fn the_budget_holds_whatever_the_sizes_are() {
        for (budget, records) in [(64 << 10, 1), (64 << 10, 500), (1 << 20, 40), (0, 7)] {
            let mut log = Log::new(budget);
            let mut end = 0;
            for _ in 0..2000 {
                let group = group(end, &[records]);
                end += u64::from(records);
                let largest = held_bytes(&group) + Chunk::BYTES;
                log.cache.push(group);
                assert!(log.cache.bytes() <= budget + largest);
                log.cache.evict(budget, end);
                assert!(log.cache.bytes() <= budget, "{budget} {records}");
            }
            let held: usize = log.cache.chunks.iter().map(|h| h.bytes).sum();
            assert_eq!(held, log.cache.bytes());
            assert!(budget == 0 || held > budget / 2, "{held} of {budget}");
        }
    }

    #[test]
    fn a_truncation_hides_the_rest_of_a_batch_and_new_data_follows() {
        let mut log = Log::new(BUDGET);
        log.cache.push(group(0, &[4]));
        log.cache.push(group(4, &[4]));
        log.durable(0, 8);
        log.cache.truncate(2);
        assert_eq!(log.ranges(0, 1), None, "no offsets of the new epoch yet");
        log.cache.push(group_of(2, 2, &[1]));
        log.durable(0, 3);
        assert_eq!(log.ranges(0, 1 << 20).unwrap(), [(0, 2), (2, 3)]);
        assert_eq!(log.ranges(2, 1 << 20).unwrap(), [(2, 3)]);
    }

    #[test]
    fn a_reader_of_an_old_epoch_finds_nothing_that_was_written_since() {
        // With and without free places in front of the cut.
        for (cut, budget) in (0..=8).flat_map(|cut| [(cut, 0), (cut, BUDGET)]) {
            let mut log = Log::new(budget);
            log.cache.push(group(0, &[2, 2]));
            log.cache.push(group(4, &[4]));
            log.cache.evict(BUDGET, 0);
            let old = log.tail.snapshot();
            log.cache.truncate(cut);
            log.cache.push(group_of(2, cut, &[8]));
            let batches = old.read(0, 8, usize::MAX).unwrap().unwrap();
            assert!(batches.iter().all(|b| b.header().generation == 1), "{cut}");
            assert_eq!(batches.last().unwrap().end_offset(), 8);
        }
    }

    #[test]
    fn the_end_of_a_partition_and_of_its_memory_is_seen_by_readers() {
        let mut log = Log::new(BUDGET);
        log.cache.push(group(0, &[4]));
        log.durable(0, 4);
        assert!(log.ranges(0, 1).is_some());
        log.tail.close();
        assert_eq!(log.ranges(0, 1), None);
        log.cache.clear();
        assert_eq!(log.cache.bytes(), 0);
    }

    /// Where each generation cuts the log, and who has written each offset of it then. Within a
    /// generation the log only grows, so that holds for every moment of it.
    fn history(generations: u32) -> Vec<(u64, Vec<u32>)> {
        let mut all = vec![(0, vec![])];
        for generation in 1..=generations {
            let (_, mut writers) = all.last().cloned().unwrap();
            let cut = writers.len() * (generation % 6) as usize / 5;
            let cut = cut.min(writers.len());
            writers.truncate(cut);
            writers.resize(cut + 3 * usize::try_from(PART).unwrap(), generation);
            all.push((cut as u64, writers));
        }
        all
    }

    /// Records that one step of a writer adds.
    const PART: u64 = 40;

    #[test]
    fn readers_beside_appends_and_truncations_see_each_offset_as_it_was() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
        const BUDGET: usize = 24 << 10;
        let history = history(3000);
        let mut log = Log::new(BUDGET);
        let tail = Arc::clone(&log.tail);
        // The generation whose truncation has been answered.
        let answered = AtomicU64::new(0);
        let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        // The distance from durable offset to log end tells the generation of the offsets.
        let offsets = |end, generation| {
            let mut offsets = Offsets::new(0, end);
            offsets.set_log_end(end + generation);
            offsets
        };
        let check = |salt: u64| {
            let least = answered.load(Ordering::Acquire);
            let end = tail.offsets().map_or(0, |o| o.durable());
            let from = end.saturating_sub(salt % 200);
            let read = tail.read(from, ReadLimits::default(), Visibility::Durable);
            // Truncated below, evicted, or between two epochs.
            let Ok(TailRead::Found(fetched)) = read else {
                return 0;
            };
            let generation = fetched.log_end - fetched.durable;
            assert!(generation >= least, "an answered truncation is seen");
            let (_, writers) = &history[usize::try_from(generation).unwrap()];
            let mut at = from;
            for batch in &fetched.batches {
                assert_eq!(batch.first_offset(), at);
                for offset in at..batch.end_offset() {
                    let writer = writers[usize::try_from(offset).unwrap()];
                    assert_eq!(
                        batch.header().generation,
                        writer,
                        "{offset} in {generation}"
                    );
                }
                at = batch.end_offset();
            }
            assert_eq!(at, fetched.durable);
            u64::from(at > from)
        };
        std::thread::scope(|threads| {
            for reader in 0..2_u64 {
                let (check, done, reads) = (&check, &done, &reads);
                threads.spawn(move || {
                    let mut salt = reader;
                    while !done.load(Ordering::Relaxed) {
                        salt = salt.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                        reads.fetch_add(check(salt >> 33), Ordering::Relaxed);
                    }
                });
            }
            for (generation, (cut, _)) in (0_u32..).zip(&history).skip(1) {
                let g = u64::from(generation);
                log.cache.truncate(*cut);
                tail.publish(offsets(*cut, g));
                answered.store(g, Ordering::Release);
                let mut end = *cut;
                for _ in 0..3 {
                    log.cache.push(group_of(generation, end, &[10, 30]));
                    end += PART;
                    tail.publish(offsets(end, g));
                    log.cache.evict(BUDGET, end);
                }
                // Lets readers keep up, so that most generations are looked at.
                for _ in 0..1000 {
                    if reads.load(Ordering::Relaxed) >= g {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(reads.load(Ordering::Relaxed) > 100);
    }
}
