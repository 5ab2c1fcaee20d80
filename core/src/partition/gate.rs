//! How many reads the disk has at a time.
//!
//! A reader who catches up asks for as much as it may read ahead. All of it at once would fill the
//! device's queue, and an append wait behind it. So a shard's reads take turns: while the disk has
//! an append of the shard (or what appends wait for: a sync, a roll, a change of a log's shape), it
//! gets one unit of reading beside it, which reaches most of the bandwidth; when it has had none for
//! a while, it gets eight. A gap between two appends is no rest: what is let in there, the next one
//! waits for. A unit is [`read_chunk_bytes`](crate::StoreConfig::read_chunk_bytes) in one piece, or
//! up to eight reads that are small.
//!
//! Turns are taken in the order of arrival. Who is dropped while it waits has no turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Parts of a unit; the smallest read takes one.
const PARTS: usize = 8;
/// Units that the disk gets when it has had no append for [`REST`].
const UNITS_AT_REST: usize = 8;
/// How long appends have to stay away until their store counts as at rest.
const REST: Duration = Duration::from_millis(5);

/// Lets the reads of a shard to the disk.
pub(super) struct ReadGate {
    unit_bytes: usize,
    clock: Box<dyn Fn() -> Duration>,
    /// Appends, and what they wait for, that the disk has at this moment.
    appends: Cell<usize>,
    /// When there was the last one.
    last_append: Cell<Option<Duration>>,
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
    /// A gate for reads of mostly `unit_bytes`, on a clock that does not go back.
    pub(super) fn new(unit_bytes: usize, clock: impl Fn() -> Duration + 'static) -> Self {
        Self {
            unit_bytes: unit_bytes.max(1),
            clock: Box::new(clock),
            appends: Cell::new(0),
            last_append: Cell::new(None),
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
        let taken = self.taken.get();
        taken + parts <= PARTS || (taken + parts <= UNITS_AT_REST * PARTS && self.is_at_rest())
    }

    fn is_at_rest(&self) -> bool {
        let recent = |last| (self.clock)().saturating_sub(last) < REST;
        self.appends.get() == 0 && !self.last_append.get().is_some_and(recent)
    }

    /// Lets in who may, from the front of the queue. Whoever waits, waits for a turn that ends: so
    /// the end of each is moment enough to look whether appends are at rest.
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
        self.0.last_append.set(Some((self.0.clock)()));
    }
}

impl fmt::Debug for ReadGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadGate")
            .field("appends", &self.appends)
            .field("taken", &self.taken)
            .field("waiting", &self.waiting.borrow().len())
            .finish_non_exhaustive()
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

    /// A gate, and its clock.
    fn gate() -> (ReadGate, Rc<Cell<Duration>>) {
        let now = Rc::new(Cell::new(Duration::from_secs(1)));
        let clock = Rc::clone(&now);
        (ReadGate::new(UNIT, move || clock.get()), now)
    }

    #[test]
    fn one_unit_beside_appends_and_eight_at_rest() {
        let (gate, now) = gate();
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
        // A gap is no rest.
        reads(UNIT, 1);
        now.set(now.get() + REST);
        reads(UNIT, 8);
        assert_eq!((gate.taken.get(), gate.appends.get()), (0, 0));
    }

    #[test]
    fn in_order_of_arrival_and_on_when_appends_stay_away() {
        let (gate, now) = gate();
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
        let mut last = Box::pin(gate.turn(UNIT));
        assert!(last.as_mut().now_or_never().is_none());
        drop(append);
        now.set(now.get() + REST);
        assert!(small.as_mut().now_or_never().is_none(), "nothing has ended");
        drop(second);
        // Both at once: there is room for eight units again.
        let (small, last) = (small.now_or_never(), last.now_or_never());
        assert!(small.is_some() && last.is_some());
        drop((large, small, last));
        assert_eq!(gate.taken.get(), 0);
    }

    #[test]
    fn who_is_dropped_takes_no_turn() {
        let (gate, _) = gate();
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
