//! The tail cache: the bytes of recent groups, exactly as they were written.
//!
//! Groups that are not written yet are always here, so that readers at the tail can be served from
//! memory; older ones stay while the budget allows. Nothing is copied: the cache, the write in
//! flight and readers share one buffer.

use std::collections::VecDeque;

use crate::format::{BatchKind, FormatError, StoredBatch, decode_batch};
use crate::segment::{PlacedBatch, PlacedGroup};

/// Recent groups of one partition, oldest first.
#[derive(Debug, Default)]
pub(super) struct TailCache {
    groups: VecDeque<PlacedGroup>,
    bytes: usize,
}

impl TailCache {
    /// Adds a group that was placed.
    pub(super) fn push(&mut self, group: PlacedGroup) {
        self.bytes += group.bytes.len();
        self.groups.push_back(group);
    }

    /// Forgets the oldest groups while more than `bytes_max` are held, but none that ends above
    /// `written`.
    pub(super) fn evict(&mut self, bytes_max: usize, written: u64) {
        while self.bytes > bytes_max {
            let evictable = self
                .groups
                .front()
                .is_some_and(|g| g.batches.last().is_none_or(|b| b.end_offset <= written));
            if !evictable {
                return;
            }
            if let Some(group) = self.groups.pop_front() {
                self.bytes -= group.bytes.len();
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets records at and above `end`.
    pub(super) fn truncate(&mut self, end: u64) {
        while let Some(mut group) = self.groups.pop_back() {
            self.bytes -= group.bytes.len();
            group.batches.retain(|b| b.base_offset < end);
            let Some(last) = group.batches.last_mut() else {
                continue;
            };
            last.end_offset = last.end_offset.min(end);
            self.push(group);
            return;
        }
    }

    /// Batches from the one that holds `from` up to `end`; `None` when the cache does not reach
    /// back so far. At least one batch is returned, whatever its size.
    pub(super) fn read(
        &self,
        from: u64,
        end: u64,
        bytes_max: usize,
    ) -> Option<Result<Vec<StoredBatch>, FormatError>> {
        let first = self.groups.iter().find_map(|g| g.batches.first())?;
        if from < first.base_offset {
            return None;
        }
        let at = self
            .groups
            .partition_point(|g| g.batches.first().is_none_or(|b| b.base_offset <= from));
        let mut found = Vec::new();
        let mut bytes = 0;
        for group in self.groups.iter().skip(at.saturating_sub(1)) {
            for placed in &group.batches {
                if placed.end_offset <= from || placed.end_offset == placed.base_offset {
                    continue;
                }
                if placed.base_offset >= end {
                    return Some(Ok(found));
                }
                let batch = match decode(group, *placed) {
                    Ok(batch) => batch,
                    Err(e) => return Some(Err(e)),
                };
                bytes += batch.header().total_len();
                if !found.is_empty() && bytes > bytes_max {
                    return Some(Ok(found));
                }
                debug_assert_ne!(batch.kind(), BatchKind::Control);
                found.push(batch.clip(from, end.min(placed.end_offset)));
            }
        }
        Some(Ok(found))
    }
}

fn decode(group: &PlacedGroup, placed: PlacedBatch) -> Result<StoredBatch, FormatError> {
    decode_batch(&group.bytes, placed.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Batch, Placement};

    fn group(base: u64, sizes: &[u32]) -> PlacedGroup {
        let mut bytes = Vec::new();
        let mut batches = Vec::new();
        let mut offset = base;
        for &n in sizes {
            let mut batch = Batch::from_values((0..n).map(u32::to_le_bytes)).unwrap();
            batch.place(&Placement {
                base_offset: offset,
                ..Placement::default()
            });
            let end_offset = offset + u64::from(n);
            batches.push(PlacedBatch {
                base_offset: offset,
                end_offset,
                start: bytes.len(),
            });
            bytes.extend_from_slice(batch.bytes());
            offset = end_offset;
        }
        PlacedGroup {
            bytes: bytes.into(),
            position: 0,
            batches,
        }
    }

    fn ranges(cache: &TailCache, from: u64, end: u64, bytes: usize) -> Vec<(u64, u64)> {
        let batches = cache.read(from, end, bytes).unwrap().unwrap();
        batches
            .iter()
            .map(|b| (b.first_offset(), b.end_offset()))
            .collect()
    }

    #[test]
    fn reads_start_in_the_batch_that_holds_the_offset_and_stop_at_the_limits() {
        let mut cache = TailCache::default();
        cache.push(group(10, &[2, 3]));
        cache.push(group(15, &[5]));
        assert!(cache.read(9, 20, 1 << 20).is_none());
        assert_eq!(
            ranges(&cache, 11, 20, 1 << 20),
            [(11, 12), (12, 15), (15, 20)]
        );
        assert_eq!(ranges(&cache, 13, 17, 1 << 20), [(13, 15), (15, 17)]);
        assert_eq!(
            ranges(&cache, 10, 20, 1),
            [(10, 12)],
            "one batch in any case"
        );
        assert_eq!(ranges(&cache, 20, 20, 1), []);
    }

    #[test]
    fn what_is_not_written_is_not_evicted() {
        let mut cache = TailCache::default();
        cache.push(group(0, &[2]));
        cache.push(group(2, &[2]));
        cache.evict(0, 2);
        assert!(cache.read(1, 4, 1).is_none());
        assert_eq!(ranges(&cache, 2, 4, 1), [(2, 4)]);
    }

    #[test]
    fn a_truncation_hides_the_rest_of_a_batch_and_new_data_follows() {
        let mut cache = TailCache::default();
        cache.push(group(0, &[4]));
        cache.push(group(4, &[4]));
        cache.truncate(2);
        cache.push(group(2, &[1]));
        assert_eq!(ranges(&cache, 0, 3, 1 << 20), [(0, 2), (2, 3)]);
        assert_eq!(ranges(&cache, 2, 3, 1 << 20), [(2, 3)]);
    }
}
