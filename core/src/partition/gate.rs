//! How many reads the disk has at a time.
//!
//! A reader who catches up asks for as much as it may read ahead. All of it at once would fill the
//! device's queue, and an append wait behind it. So a shard's reads take turns: while the disk has
//! an append of the shard (or what appends wait for: a sync, a roll, a change of a log's shape), it
//! gets one unit of reading beside it, which reaches most of the bandwidth; without, it gets eight.
//! A unit is [`read_chunk_bytes`](crate::StoreConfig::read_chunk_bytes) in one piece, or up to eight
//! reads that are small.
//!
//! Turns are taken in the order of arrival. Who is dropped while it waits has no turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Parts of a unit; the smallest read takes one.
const PARTS: usize = 8;
/// Units that the disk gets when it has no append.
const UNITS_AT_REST: usize = 8;

/// Lets the reads of a shard to the disk.
#[derive(Debug)]
pub(super) struct ReadGate {
    unit_bytes: usize,
    /// Appends, and what they wait for, that the disk has at this moment.
    appends: Cell<usize>,
    /// Parts that are taken.
    taken: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Place>>>,
}

/// A place in the queue.
#[derive(Debug)]
struct Place {
    parts: usize,
    admitted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Something that appends wait for, until it is dropped.
#[derive(Debug)]
pub(super) struct Appending<'a>(&'a ReadGate);

/// The right to have one read at the disk, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    gate: &'a ReadGate,
    parts: usize,
}

impl ReadGate {
    /// A gate for reads of mostly `unit_bytes`.
    pub(super) fn new(unit_bytes: usize) -> Self {
        Self {
            unit_bytes: unit_bytes.max(1),
            appends: Cell::new(0),
            taken: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// Counts something that appends wait for.
    pub(super) fn appending(&self) -> Appending<'_> {
        self.appends.set(self.appends.get() + 1);
        Appending(self)
    }

    /// Waits for the turn of a read of `len` bytes.
    pub(super) async fn turn(&self, len: usize) -> Turn<'_> {
        let parts = len.saturating_mul(PARTS).div_ceil(self.unit_bytes);
        let parts = parts.clamp(1, PARTS);
        if self.waiting.borrow().is_empty() && self.has_room(parts) {
            self.taken.set(self.taken.get() + parts);
            return Turn { gate: self, parts };
        }
        let place = Rc::new(Place {
            parts,
            admitted: Cell::new(false),
            waker: RefCell::default(),
        });
        self.waiting.borrow_mut().push_back(Rc::clone(&place));
        let waiting = Waiting { gate: self, place };
        poll_fn(|cx| waiting.place.poll(cx)).await;
        // From here on the turn answers for the parts.
        waiting.place.admitted.set(false);
        Turn { gate: self, parts }
    }

    fn has_room(&self, parts: usize) -> bool {
        let units = if self.appends.get() > 0 {
            1
        } else {
            UNITS_AT_REST
        };
        self.taken.get() + parts <= units * PARTS
    }

    /// Lets in who may, from the front of the queue.
    fn admit(&self) {
        loop {
            let next = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.front() {
                    Some(place) if self.has_room(place.parts) => waiting.pop_front(),
                    _ => None,
                }
            };
            let Some(place) = next else { return };
            self.taken.set(self.taken.get() + place.parts);
            place.admitted.set(true);
            let waker = place.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn give_back(&self, parts: usize) {
        self.taken.set(self.taken.get().saturating_sub(parts));
        self.admit();
    }
}

impl Place {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.admitted.get() {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Who waits; dropped, it leaves the queue.
struct Waiting<'a> {
    gate: &'a ReadGate,
    place: Rc<Place>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.place.admitted.get() {
            self.gate.give_back(self.place.parts);
            return;
        }
        let mut waiting = self.gate.waiting.borrow_mut();
        waiting.retain(|place| !Rc::ptr_eq(place, &self.place));
        drop(waiting);
        // It may have stood in the way of smaller ones.
        self.gate.admit();
    }
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        self.0.appends.set(self.0.appends.get().saturating_sub(1));
        self.0.admit();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.gate.give_back(self.parts);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const UNIT: usize = 1 << 20;

    #[test]
    fn one_unit_beside_appends_and_eight_at_rest() {
        let gate = ReadGate::new(UNIT);
        let reads = |len, wanted| {
            let mut turns = Vec::new();
            while let Some(turn) = gate.turn(len).now_or_never() {
                turns.push(turn);
            }
            assert_eq!(turns.len(), wanted, "reads of {len} bytes");
        };
        reads(UNIT, 8);
        reads(4096, 64);
        let append = gate.appending();
        reads(UNIT, 1);
        // More than a unit is a unit: it must get through.
        reads(10 * UNIT, 1);
        reads(UNIT / 8, 8);
        reads(UNIT / 8 + 1, 4);
        reads(4096, 8);
        drop(append);
        reads(UNIT, 8);
        assert_eq!((gate.taken.get(), gate.appends.get()), (0, 0));
    }

    #[test]
    fn in_order_of_arrival_and_on_when_appends_end() {
        let gate = ReadGate::new(UNIT);
        let append = gate.appending();
        let first = gate.turn(UNIT).now_or_never();
        let mut large = Box::pin(gate.turn(UNIT));
        let mut small = Box::pin(gate.turn(1));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(small.as_mut().now_or_never().is_none());
        drop(first);
        assert!(small.as_mut().now_or_never().is_none(), "it came later");
        let second = large.as_mut().now_or_never();
        assert!(second.is_some());
        drop(append);
        assert!(small.as_mut().now_or_never().is_some());
        drop((second, large, small));
        assert_eq!(gate.taken.get(), 0);
    }

    #[test]
    fn who_is_dropped_takes_no_turn() {
        let gate = ReadGate::new(UNIT);
        let _append = gate.appending();
        let first = gate.turn(UNIT).now_or_never();
        let mut admitted = Box::pin(gate.turn(UNIT));
        let mut queued = Box::pin(gate.turn(UNIT));
        let mut last = Box::pin(gate.turn(UNIT));
        assert!(admitted.as_mut().now_or_never().is_none());
        assert!(queued.as_mut().now_or_never().is_none());
        assert!(last.as_mut().now_or_never().is_none());
        drop(queued);
        drop(first);
        // It has its turn, and goes before it hears of it.
        drop(admitted);
        assert!(last.as_mut().now_or_never().is_some());
        drop(last);
        assert_eq!(gate.taken.get(), 0);
    }
}
