//! Group commit: the pure state machine that decides what is written and what is durable.
//!
//! A partition has several group writes in flight. They complete in any order; acknowledgements
//! leave in order. [`Pipeline`] holds the groups of the window and two marks:
//!
//! * **written**: every group at or below has completed;
//! * **durable**: every group at or below is on stable media.
//!
//! Rules (each has a test that enumerates the transitions):
//!
//! 1. The window is bounded: a group is submitted only when fewer than `window` groups separate it
//!    from the oldest unfinished one. A straggler therefore holds back its successors' number, and
//!    recovery never has to explain more than `window` groups after a hole.
//! 2. A durable write makes only its own bytes durable. The durable mark passes it only when every
//!    group before it is durable too.
//! 3. A sync makes durable what was contiguously written when it *started*.
//! 4. The first failure is final: no mark moves again, whatever completes later.

use std::collections::VecDeque;

use crate::io::Durability;

/// A place in a partition's stream of batches, control batches included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    /// Number of batches placed so far by this opening of the partition.
    pub(crate) count: u64,
    /// End offset of the records placed so far.
    pub(crate) offset: u64,
}

/// Names a group in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupId(u64);

#[derive(Debug)]
struct Group {
    end: Mark,
    durability: Durability,
    done: bool,
}

/// The groups in flight of one partition, and how far it is written and durable.
#[derive(Debug)]
pub(crate) struct Pipeline {
    window: usize,
    /// Groups beyond the written mark, oldest first. The front is unfinished, or the deque empty.
    groups: VecDeque<Group>,
    front_id: u64,
    in_flight: usize,
    written: Mark,
    durable: Mark,
    /// End of the last group below `written` that was not a durable write.
    plain: Mark,
    /// What the sync in flight will make durable.
    syncing: Option<Mark>,
    failed: bool,
}

impl Pipeline {
    /// A pipeline with everything up to `start` durable and nothing in flight.
    pub(crate) fn new(window: u16, start: Mark) -> Self {
        Self {
            window: usize::from(window),
            groups: VecDeque::new(),
            front_id: 0,
            in_flight: 0,
            written: start,
            durable: start,
            plain: start,
            syncing: None,
            failed: false,
        }
    }

    /// Whether another group may be submitted now (rule 1).
    pub(crate) fn has_room(&self) -> bool {
        !self.failed && self.groups.len() < self.window
    }

    /// Writes submitted and not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The written mark.
    pub(crate) fn written(&self) -> Mark {
        self.written
    }

    /// The durable mark.
    pub(crate) fn durable(&self) -> Mark {
        self.durable
    }

    /// Registers a group that ends at `end` and is handed to the disk now.
    pub(crate) fn submit(&mut self, end: Mark, durability: Durability) -> GroupId {
        debug_assert!(self.has_room(), "the window is full");
        let id = GroupId(self.front_id + self.groups.len() as u64);
        self.groups.push_back(Group {
            end,
            durability,
            done: false,
        });
        self.in_flight += 1;
        id
    }

    /// A group's write has completed.
    pub(crate) fn complete(&mut self, id: GroupId) {
        self.in_flight -= 1;
        if self.failed {
            return;
        }
        let index = usize::try_from(id.0 - self.front_id).unwrap_or(usize::MAX);
        if let Some(group) = self.groups.get_mut(index) {
            group.done = true;
        }
        while self.groups.front().is_some_and(|g| g.done) {
            let Some(group) = self.groups.pop_front() else {
                break;
            };
            self.front_id += 1;
            let all_before_durable = self.durable == self.written;
            self.written = group.end;
            match group.durability {
                Durability::Durable if all_before_durable => self.durable = group.end,
                Durability::Durable => {}
                Durability::Written => self.plain = group.end,
            }
        }
    }

    /// Whether a sync must start now so that `wanted` (a count of batches) becomes durable.
    pub(crate) fn needs_sync(&self, wanted: u64) -> bool {
        !self.failed
            && self.syncing.is_none()
            && wanted > self.durable.count
            && self.written.count > self.durable.count
    }

    /// A sync is handed to the disk now (rule 3).
    pub(crate) fn sync_started(&mut self) {
        debug_assert!(self.syncing.is_none(), "one sync at a time");
        self.syncing = Some(self.written);
    }

    /// The sync has completed.
    pub(crate) fn sync_completed(&mut self) {
        let Some(covered) = self.syncing.take() else {
            return;
        };
        if self.failed {
            return;
        }
        // Durable writes after the last plain one that the sync covers need no sync of their own.
        let reached = if covered.count >= self.plain.count {
            self.written
        } else {
            covered
        };
        if reached.count > self.durable.count {
            self.durable = reached;
        }
    }

    /// A write (`Some`) or the sync (`None`) has failed (rule 4).
    pub(crate) fn fail(&mut self, id: Option<GroupId>) {
        self.failed = true;
        match id {
            Some(_) => self.in_flight -= 1,
            None => self.syncing = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Durability::{Durable, Written};

    fn mark(n: u64) -> Mark {
        Mark {
            count: n,
            offset: n * 10,
        }
    }

    #[test]
    fn acknowledgements_leave_in_order_whatever_the_order_of_completions() {
        // Every permutation of four durable groups.
        for permutation in permutations(&[0, 1, 2, 3]) {
            let mut p = Pipeline::new(4, mark(0));
            let ids: Vec<_> = (1..=4).map(|n| p.submit(mark(n), Durable)).collect();
            assert!(!p.has_room());
            let mut done = [false; 4];
            for &i in &permutation {
                p.complete(ids[i]);
                done[i] = true;
                let prefix = done.iter().take_while(|d| **d).count() as u64;
                assert_eq!(p.durable(), mark(prefix), "{permutation:?}");
                assert_eq!(p.written(), mark(prefix));
            }
            assert_eq!(p.in_flight(), 0);
        }
    }

    #[test]
    fn a_straggler_bounds_the_window() {
        let mut p = Pipeline::new(2, mark(0));
        let _straggler = p.submit(mark(1), Durable);
        let second = p.submit(mark(2), Durable);
        p.complete(second);
        assert_eq!(p.in_flight(), 1);
        assert!(
            !p.has_room(),
            "a finished successor of a straggler still counts"
        );
    }

    #[test]
    fn a_durable_write_does_not_cover_a_plain_one_before_it() {
        let mut p = Pipeline::new(4, mark(0));
        let plain = p.submit(mark(1), Written);
        let durable = p.submit(mark(2), Durable);
        p.complete(plain);
        p.complete(durable);
        assert_eq!((p.written(), p.durable()), (mark(2), mark(0)));
        assert!(p.needs_sync(1) && p.needs_sync(2) && !p.needs_sync(0));
        p.sync_started();
        assert!(!p.needs_sync(2));
        p.sync_completed();
        assert_eq!(p.durable(), mark(2));
    }

    #[test]
    fn a_sync_covers_what_was_written_when_it_started() {
        let mut p = Pipeline::new(4, mark(0));
        let a = p.submit(mark(1), Written);
        p.complete(a);
        p.sync_started();
        let b = p.submit(mark(2), Written);
        p.complete(b);
        p.sync_completed();
        assert_eq!((p.written(), p.durable()), (mark(2), mark(1)));
        // A durable write that completed during a sync of everything plain before it needs no more.
        p.sync_started();
        let c = p.submit(mark(3), Durable);
        p.complete(c);
        p.sync_completed();
        assert_eq!(p.durable(), mark(3));
    }

    #[test]
    fn the_first_failure_is_final() {
        let mut p = Pipeline::new(4, mark(0));
        let a = p.submit(mark(1), Durable);
        let b = p.submit(mark(2), Durable);
        p.fail(Some(b));
        p.complete(a);
        assert_eq!((p.written(), p.durable()), (mark(0), mark(0)));
        assert!(!p.has_room() && !p.needs_sync(2) && p.in_flight() == 0);
        let mut p = Pipeline::new(4, mark(0));
        let a = p.submit(mark(1), Written);
        p.complete(a);
        p.sync_started();
        p.fail(None);
        assert!(!p.has_room() && !p.needs_sync(1));
        assert_eq!(p.durable(), mark(0));
    }

    fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
        if items.len() <= 1 {
            return vec![items.to_vec()];
        }
        let mut all = Vec::new();
        for (i, &head) in items.iter().enumerate() {
            let mut rest = items.to_vec();
            rest.remove(i);
            all.extend(permutations(&rest).into_iter().map(|mut tail| {
                tail.insert(0, head);
                tail
            }));
        }
        all
    }
}
