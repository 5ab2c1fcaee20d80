//! Forming groups: which appends go into the next write, and what is placed for them.

use std::rc::Rc;

use super::request::{Waiter, WaiterKind};
use super::{
    Ack, AppendRequest, Appended, Mode, Partition, Permit, Replies, Request, Settled, State, answer,
};
use crate::commit::GroupId;
use crate::error::Error;
use crate::format::{BATCH_HEADER_LEN, Batch, Control, ControlReason};
use crate::io::{BufPool, Durability, IoBackend, IoFile};
use crate::segment::{ActiveSegment, GroupContext, PlacedGroup, Segment};

/// How many offsets one durable reservation covers. Appends acknowledged below `Durable` may lose
/// their records in a crash, but their offsets must not be given again: so a reservation is on the
/// disk before the first of them is acknowledged, and is renewed when half of it is used.
pub(super) const RESERVATION: u64 = 1 << 16;

/// Where a log ends for good: below it, neither an append nor its reservation overflows. No log gets
/// there by appending; a forged header can begin there.
const OFFSETS_END: u64 = u64::MAX - RESERVATION;

/// Encoded length of a control batch.
pub(super) const CONTROL_BATCH_LEN: usize = BATCH_HEADER_LEN + Control::LEN;

/// Most memory of a batch, in bytes, that goes back to its caller with the answer. More is freed when it
/// has been copied: it would be held twice until the disk has the batch. So is what holds less than
/// half of its size: nobody has counted the rest.
const SPENT_BYTES_MAX: usize = 4096;

/// Appends that are kept room for from one group to the next.
const FORMING_ROOM: usize = 256;

/// The appends of a group that is being formed: batches, and who waits for them. A shard forms one
/// group at a time and keeps the room, so that no group allocates it again.
#[derive(Debug, Default)]
pub(super) struct Forming {
    batches: Vec<Batch>,
    waiting: Vec<(Ack, Replies, Permit)>,
}

impl Forming {
    fn push(&mut self, append: AppendRequest) {
        self.batches.push(append.batch);
        let waiting = (append.level, append.replies, append.permit);
        self.waiting.push(waiting);
    }

    fn levels(&self) -> impl Iterator<Item = Ack> {
        self.waiting.iter().map(|(level, ..)| *level)
    }

    /// The same, empty, with room for the next group.
    fn emptied(mut self) -> Self {
        self.batches.clear();
        self.batches.shrink_to(FORMING_ROOM);
        self.waiting.clear();
        self.waiting.shrink_to(FORMING_ROOM);
        self
    }
}

/// What is left of a batch that has been copied, if it is to go back to its caller.
fn spent_memory(batch: Batch) -> Option<Vec<u8>> {
    let size_max = SPENT_BYTES_MAX.min(2 * batch.encoded_len());
    Some(batch.into_heap()).filter(|memory| memory.capacity() <= size_max)
}

/// A group that has its place and is to be written now.
#[derive(Debug)]
pub(super) struct Write<F> {
    pub(super) id: GroupId,
    pub(super) segment: Rc<Segment<F>>,
    pub(super) group: PlacedGroup,
    pub(super) durability: Durability,
}

/// What came of trying to form a group from the front of the queue.
#[derive(Debug)]
pub(super) enum Formed<F> {
    Write(Write<F>),
    /// Everything at the front was answered without a write.
    Nothing,
    /// The first append does not fit into the active segment.
    NeedsRoll,
}

impl<B: IoBackend> Partition<B> {
    /// Takes appends from the front of the queue and places them as one group.
    pub(super) fn form_group(&self, state: &mut State<B::File>) -> Formed<B::File> {
        let Some(active) = state.active.as_ref() else {
            return Formed::NeedsRoll;
        };
        let config = &self.context.config;
        let room = usize::try_from(active.data_room()).unwrap_or(usize::MAX);
        let limit = room.min(config.group_bytes_max as usize);
        let padded = |len| active.padded(len);
        let mut forming = self.shard.forming.take();
        let mut len = CONTROL_BATCH_LEN;
        let mut next_offset = state.offsets.log_end();
        let mut full = false;
        while let Some(Request::Append(front)) = state.queue.front() {
            let with_front = len + front.batch.encoded_len();
            if padded(with_front) > limit {
                full = true;
                break;
            }
            let Some(Request::Append(append)) = state.queue.pop_front() else {
                break;
            };
            state.queued_bytes -= append.batch.encoded_len();
            if let Some(expected) = append.expected.filter(|e| *e != next_offset) {
                let error = Error::WrongOffset {
                    expected,
                    actual: next_offset,
                };
                Request::Append(append).refuse(error);
                continue;
            }
            let end = next_offset.checked_add(u64::from(append.batch.record_count()));
            let Some(end) = end.filter(|end| *end <= OFFSETS_END) else {
                let error = Error::OutOfRange {
                    requested: next_offset,
                    start: state.offsets.log_start(),
                    end: OFFSETS_END,
                };
                Request::Append(append).refuse(error);
                continue;
            };
            next_offset = end;
            len = with_front;
            forming.push(append);
        }
        let formed = if !forming.batches.is_empty() {
            Formed::Write(self.place(state, &mut forming, next_offset))
        } else if full {
            Formed::NeedsRoll
        } else {
            Formed::Nothing
        };
        self.shard.forming.replace(forming.emptied());
        formed
    }

    fn place(&self, state: &mut State<B::File>, forming: &mut Forming, end: u64) -> Write<B::File> {
        let weak = forming.levels().any(|level| level < Ack::Durable);
        let reserve =
            (weak && end + RESERVATION / 2 > state.reserved_placed).then(|| end + RESERVATION);
        // Weak acknowledgements wait for the reservation that covers them.
        let covered = end <= state.reserved_durable;
        let durable = reserve.is_some() || forming.levels().any(|level| level == Ack::Durable);
        let durability = if durable || (weak && !covered) {
            Durability::Durable
        } else {
            Durability::Written
        };
        let Forming { batches, waiting } = forming;
        if let Some(reserved_end) = reserve {
            state.reserved_placed = reserved_end;
            batches.insert(0, state.control(ControlReason::Reserve, reserved_end));
        }
        let controls = usize::from(reserve.is_some());
        let write = self.place_batches(state, batches, durability);
        let placed = write.group.batches.get(controls..).unwrap_or_default();
        let mut spent = batches.drain(..).skip(controls);
        // Each has a place of its own: one completion answers all of a group, in the order of the log.
        let places = state.placed.count - placed.len() as u64 + 1..;
        for (at, ((level, replies, permit), placed)) in places.zip(waiting.drain(..).zip(placed)) {
            let count = u32::try_from(placed.end_offset - placed.base_offset).unwrap_or(u32::MAX);
            let appended = Appended {
                base_offset: placed.base_offset,
                count,
                level,
            };
            let mut spent = spent.next().and_then(spent_memory).unwrap_or_default();
            if let Some(reply) = replies.placed {
                let placed = Settled {
                    appended: Appended {
                        level: Ack::Accepted,
                        ..appended
                    },
                    _spent: std::mem::take(&mut spent),
                };
                answer(reply, Ok(placed));
            }
            let settled = Settled {
                appended,
                _spent: spent,
            };
            let wait = |durable: bool, kind| {
                let waiter = Waiter {
                    count: at,
                    kind,
                    permit,
                };
                let queue = if durable {
                    &mut state.waiting_durable
                } else {
                    &mut state.waiting_written
                };
                queue.push_back(waiter);
            };
            match level {
                Ack::Accepted if covered => {
                    self.shard.stats.acknowledged(appended.count);
                    answer(replies.done, Ok(settled));
                    wait(false, WaiterKind::Nobody);
                }
                Ack::Written if covered => wait(false, WaiterKind::Append(settled, replies.done)),
                _ => wait(true, WaiterKind::Append(settled, replies.done)),
            }
        }
        if let Some(reserved_end) = reserve {
            let kind = WaiterKind::Reserve(reserved_end);
            // Behind the appends of its group, and reached by the same completion.
            let waiter = Waiter {
                count: state.placed.count,
                kind,
                permit: Permit::default(),
            };
            state.waiting_durable.push_back(waiter);
        }
        if durability == Durability::Durable {
            state.durable_wanted = state.placed.count;
        }
        write
    }

    /// Places a group of one control batch.
    pub(super) fn place_control(&self, state: &mut State<B::File>, batch: Batch) -> Write<B::File> {
        let write = self.place_batches(state, &mut vec![batch], Durability::Durable);
        state.durable_wanted = state.placed.count;
        write
    }

    /// Places the seal that ends the active segment's file.
    pub(super) fn place_end(&self, state: &mut State<B::File>, seal: Batch) -> Write<B::File> {
        let lay_out = |active: &mut ActiveSegment<B::File>, pool: &BufPool, context| {
            active.place_end(pool, seal, context)
        };
        let write = self.place_group(state, 1, Durability::Durable, lay_out);
        state.durable_wanted = state.placed.count;
        write
    }

    /// Gives batches their place in the active segment, as one group. Those that were copied for it
    /// stay in `batches`.
    fn place_batches(
        &self,
        state: &mut State<B::File>,
        batches: &mut Vec<Batch>,
        durability: Durability,
    ) -> Write<B::File> {
        let count = batches.len();
        let lay_out = |active: &mut ActiveSegment<B::File>, pool: &BufPool, context| {
            active.place(pool, batches, context)
        };
        self.place_group(state, count, durability, lay_out)
    }

    /// Lays `count` batches out as a group and registers it with the pipeline.
    ///
    /// The caller has made sure that there is an active segment with room.
    fn place_group(
        &self,
        state: &mut State<B::File>,
        count: usize,
        durability: Durability,
        lay_out: impl FnOnce(&mut ActiveSegment<B::File>, &BufPool, GroupContext) -> PlacedGroup,
    ) -> Write<B::File> {
        // Time never goes back within a partition, whatever the clock does.
        let now = self.shard.backend.wall_clock_ms().max(state.last_timestamp);
        state.last_timestamp = now;
        let context = GroupContext {
            next_offset: state.offsets.log_end(),
            durable_offset: state.offsets.durable(),
            append_time_ms: now,
            generation: state.generation,
        };
        state.placed.count += count as u64;
        let Some(active) = state.active.as_mut() else {
            unreachable!("a group is formed only when there is an active segment")
        };
        let group = lay_out(active, &self.context.pool, context);
        let segment = Rc::clone(&active.segment);
        state.placed.offset = group
            .batches
            .last()
            .map_or(context.next_offset, |b| b.end_offset);
        state.offsets.set_log_end(state.placed.offset);
        let id = state.pipeline.submit(state.placed, durability);
        self.shard.stats.group_placed(group.bytes.len());
        state.activity += 1;
        state.tail_sealed = false;
        state.cache.push(group.clone());
        // Whoever hears of its offsets can read it.
        self.publish_quietly(state.offsets);
        Write {
            id,
            segment,
            group,
            durability,
        }
    }
}

impl<F: IoFile> State<F> {
    /// A control batch that tells the present state.
    pub(super) fn control(&self, reason: ControlReason, reserved_end: u64) -> Batch {
        Batch::control(&Control {
            reason,
            segment_end: false,
            end_offset: self.offsets.log_end(),
            log_start: self.log_start_placed,
            reserved_end,
        })
    }

    /// Whether the partition takes writes.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.mode, Mode::Open)
    }

    /// Whether the tail can be sealed in its place, and is not. A segment that is full to the last block
    /// is sealed by the header of the next one.
    pub(super) fn lacks_seal(&self) -> bool {
        let active = self.active.as_ref();
        let has_room = || active.is_some_and(|a| a.has_control_room(CONTROL_BATCH_LEN));
        self.is_open() && !self.tail_sealed && has_room()
    }
}
