//! The driver: the one task that changes a partition.
//!
//! It decides the next step from the state, carries it out, and otherwise waits for a completion or
//! a wake-up. Writes in flight belong to it; nothing else touches the active segment.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::stream::FuturesUnordered;

use super::group::{CONTROL_BATCH_LEN, Formed, Write};
use super::request::{Asked, Change, Waiter, WaiterKind};
use super::{Mode, Partition, Request, State, answer};
use crate::commit::GroupId;
use crate::error::Error;
use crate::format::ControlReason;
use crate::io::{IoBackend, LocalFuture};
use crate::segment::Segment;

/// What the driver does next.
enum Step<F> {
    Write(Write<F>),
    Sync(Rc<Segment<F>>),
    /// Nothing is in flight and everything placed is durable: change the log's shape.
    Change(Change),
    Roll,
    Wait,
    End,
}

/// A completion: the group written (`None`: the sync), and how it went.
type Completion = (Option<GroupId>, std::io::Result<()>);

/// Runs a partition until it is closed.
pub(super) async fn drive<B: IoBackend>(partition: Rc<Partition<B>>) {
    let guard = AbandonOnDrop(Rc::clone(&partition));
    let mut in_flight: FuturesUnordered<LocalFuture<Completion>> = FuturesUnordered::new();
    loop {
        let step = partition.next_step(in_flight.is_empty());
        match step {
            Step::Write(write) => {
                let shard = Rc::clone(&partition.shard);
                in_flight.push(Box::pin(async move {
                    let _appending = shard.gate.appending();
                    carry_out(write).await
                }));
            }
            Step::Sync(segment) => {
                let shard = Rc::clone(&partition.shard);
                in_flight.push(Box::pin(async move {
                    let _appending = shard.gate.appending();
                    (None, segment.file.sync_data().await)
                }));
            }
            Step::Change(change) => {
                let _appends_wait = partition.shard.gate.appending();
                partition.change(change).await;
            }
            Step::Roll => {
                let _appends_wait = partition.shard.gate.appending();
                partition.roll().await;
            }
            Step::End => break,
            Step::Wait => poll_fn(|cx| partition.poll_event(&mut in_flight, cx)).await,
        }
        partition.after_step();
    }
    drop(guard);
}

pub(super) async fn carry_out<F: crate::io::IoFile>(write: Write<F>) -> Completion {
    let Write {
        id,
        segment,
        group,
        durability,
    } = write;
    let result = segment
        .file
        .write_all_at(group.bytes, group.position, durability)
        .await;
    (Some(id), result)
}

/// Whatever ends the driver (the shard's end, a panic), nobody is left waiting.
struct AbandonOnDrop<B: IoBackend>(Rc<Partition<B>>);

impl<B: IoBackend> Drop for AbandonOnDrop<B> {
    fn drop(&mut self) {
        self.0.tail.close();
        // The state may be borrowed when a panic unwinds through it; then the waiters go with it.
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.mode = Mode::Closed;
            state.cache.clear();
            // Dropping a reply tells its waiter that the shard is gone.
            state.queue.clear();
            state.waiting_written.clear();
            state.waiting_durable.clear();
        }
        self.0.publish_the_end();
    }
}

impl<B: IoBackend> Partition<B> {
    /// Takes completions and the wake-up; ready when there was one.
    fn poll_event(
        &self,
        in_flight: &mut FuturesUnordered<LocalFuture<Completion>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut ready = self.wake.poll_notified(cx).is_ready();
        while let Poll::Ready(Some((id, result))) = Pin::new(&mut *in_flight).poll_next(cx) {
            self.completed(id, result);
            ready = true;
        }
        if ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Decides the next step; pure but for taking what it decides on.
    fn next_step(&self, idle: bool) -> Step<B::File> {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        loop {
            match state.mode {
                Mode::Closed => return if idle { Step::End } else { Step::Wait },
                Mode::Failed(_) | Mode::ReadOnly => {
                    // Only requests that work without a writable log are here (see `submit`).
                    return match state.queue.pop_front() {
                        Some(Request::Change(change)) if idle => Step::Change(change),
                        Some(request) => {
                            state.queue.push_front(request);
                            Step::Wait
                        }
                        None => Step::Wait,
                    };
                }
                Mode::Open => {}
            }
            if state.pipeline.needs_sync(state.durable_wanted)
                && let Some(active) = &state.active
            {
                state.pipeline.sync_started();
                return Step::Sync(Rc::clone(&active.segment));
            }
            match state.queue.front() {
                None if state.seal_wanted => {
                    if !state.settle(idle) {
                        if state.pipeline.needs_sync(state.durable_wanted) {
                            continue;
                        }
                        return Step::Wait;
                    }
                    state.seal_wanted = false;
                    if let Some(write) = self.seal(state) {
                        return Step::Write(write);
                    }
                }
                None => return Step::Wait,
                Some(Request::Append(_)) => {
                    let config = &self.context.config;
                    // With a write in flight, a group that is too small waits for more.
                    let grow = state.pipeline.in_flight() > 0
                        && state.queued_bytes < config.group_bytes_min as usize;
                    let len_max = state.queued_bytes.saturating_add(CONTROL_BATCH_LEN);
                    let len_max = len_max.min(config.group_bytes_max as usize);
                    if grow || !state.pipeline.has_room() || state.zeros_in_the_way(len_max) {
                        return Step::Wait;
                    }
                    match self.form_group(state) {
                        Formed::Write(write) => return Step::Write(write),
                        Formed::Nothing => {}
                        Formed::NeedsRoll => {
                            if state.settle(idle) {
                                return Step::Roll;
                            }
                            if !state.pipeline.needs_sync(state.durable_wanted) {
                                return Step::Wait;
                            }
                        }
                    }
                }
                Some(Request::Change(_)) => {
                    let Some(Request::Change(change)) = state.queue.pop_front() else {
                        continue;
                    };
                    match self.start_change(state, change, idle) {
                        Started::Done => {}
                        Started::Step(step) => return step,
                        Started::Blocked(change) => {
                            state.queue.push_front(Request::Change(change));
                            if !state.pipeline.needs_sync(state.durable_wanted) {
                                return Step::Wait;
                            }
                        }
                    }
                }
            }
        }
    }

    /// A seal behind the last batch, if there is something to seal and room for it.
    fn seal(&self, state: &mut State<B::File>) -> Option<Write<B::File>> {
        if !state.lacks_seal() {
            return None;
        }
        let end = state.offsets.log_end();
        let batch = state.control(ControlReason::Seal, end);
        // Everything shown is durable now: no offset needs to stay reserved.
        state.reserved_durable = end;
        state.reserved_placed = end;
        let write = self.place_control(state, batch);
        state.tail_sealed = true;
        Some(write)
    }

    /// Starts a change that needs no rest, or says what it waits for.
    fn start_change(
        &self,
        state: &mut State<B::File>,
        change: Change,
        idle: bool,
    ) -> Started<B::File> {
        match change {
            Change::Sync(asked) => {
                state.durable_wanted = state.placed.count;
                let kind = WaiterKind::Sync(state.placed.offset, asked);
                state.wait_durable(kind);
                let offsets = state.offsets;
                self.settle_waiters(state);
                debug_assert!(state.offsets.durable() >= offsets.durable());
                Started::Done
            }
            Change::Trim(to, asked) => self.start_trim(state, to, Some(asked), idle),
            Change::Retain => match self.retention_target(state) {
                Some(to) => self.start_trim(state, to, None, idle),
                None => Started::Done,
            },
            change => {
                if state.settle(idle) {
                    Started::Step(Step::Change(change))
                } else {
                    Started::Blocked(change)
                }
            }
        }
    }

    fn start_trim(
        &self,
        state: &mut State<B::File>,
        to: u64,
        asked: Option<Asked<()>>,
        idle: bool,
    ) -> Started<B::File> {
        let offsets = state.offsets;
        if to > offsets.log_end() || to <= offsets.log_start() {
            let result = if to > offsets.log_end() {
                let (start, end) = (offsets.log_start(), offsets.log_end());
                Err(Error::OutOfRange {
                    requested: to,
                    start,
                    end,
                })
            } else {
                Ok(())
            };
            if let Some(asked) = asked {
                asked.answer(result);
            }
            return Started::Done;
        }
        let again = |asked| match asked {
            Some(asked) => Change::Trim(to, asked),
            None => Change::Retain,
        };
        if to > offsets.durable() {
            state.durable_wanted = state.placed.count;
            return Started::Blocked(again(asked));
        }
        // At rest the control batch is a seal as well: a log that ends with it is whole, and, as with a
        // seal, no offset needs to stay reserved. It is no proof of itself: if it rots, the trim is
        // undone. So a seal of its own follows, as behind any other batch.
        let at_rest = idle && state.pipeline.durable() == state.placed;
        let reserved = if at_rest {
            offsets.log_end()
        } else {
            state.reserved_placed
        };
        let batch = state.control_for_trim(to, reserved, at_rest);
        let has_room = state
            .active
            .as_ref()
            .is_some_and(|a| a.has_control_room(batch.encoded_len()));
        if has_room {
            if !state.pipeline.has_room() || state.zeros_in_the_way(batch.encoded_len()) {
                return Started::Blocked(again(asked));
            }
            let write = self.place_control(state, batch);
            state.log_start_placed = state.log_start_placed.max(to);
            if at_rest {
                state.reserved_durable = reserved;
                state.reserved_placed = reserved;
            }
            state.wait_durable(WaiterKind::Trim(to, asked));
            return Started::Step(Step::Write(write));
        }
        // No room for even a control batch: the header of the next segment carries the trim.
        if state.settle(idle) {
            Started::Step(Step::Change(again(asked)))
        } else {
            Started::Blocked(again(asked))
        }
    }

    /// A write or sync has come back.
    pub(super) fn completed(&self, id: Option<GroupId>, result: std::io::Result<()>) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        match (result, id) {
            (Ok(()), Some(id)) => state.pipeline.complete(id),
            (Ok(()), None) => state.pipeline.sync_completed(),
            (Err(e), id) => {
                state.pipeline.fail(id);
                drop(borrowed);
                return self.fail_with(&e.into());
            }
        }
        if !state.is_open() {
            return;
        }
        state.offsets.set_written(state.pipeline.written().offset);
        state.offsets.set_durable(state.pipeline.durable().offset);
        self.settle_waiters(state);
    }

    /// Answers everybody whose mark has been reached.
    pub(super) fn settle_waiters(&self, state: &mut State<B::File>) {
        let durable = state.pipeline.durable().count;
        let written = state.pipeline.written().count;
        // The published offsets never lag behind an acknowledgement.
        self.publish(state.offsets);
        while let Some(waiter) = state.next_settled(durable, written) {
            self.settle_waiter(state, waiter);
        }
    }

    fn settle_waiter(&self, state: &mut State<B::File>, waiter: Waiter) {
        match waiter.kind {
            WaiterKind::Append(settled, reply) => {
                self.shard.stats.acknowledged(settled.appended.count);
                answer(reply, Ok(settled));
            }
            WaiterKind::Sync(end, asked) => asked.answer(Ok(end)),
            WaiterKind::Trim(to, asked) => {
                state.offsets.set_log_start(to);
                self.publish(state.offsets);
                state.retire_below(to);
                if let Some(asked) = asked {
                    asked.answer(Ok(()));
                }
            }
            WaiterKind::Reserve(end) => state.reserved_durable = state.reserved_durable.max(end),
            WaiterKind::Nobody => {}
        }
        drop(waiter.permit);
    }

    /// Ends the partition's write life (the fail-stop rule): nobody is acknowledged any more.
    pub(super) fn fail_with(&self, cause: &crate::error::IoError) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        if !state.is_open() {
            return;
        }
        state.mode = Mode::Failed(cause.clone());
        let unknown = Error::OutcomeUnknown {
            id: self.id(),
            cause: cause.clone(),
        };
        let waiters: Vec<Waiter> = state
            .waiting_written
            .drain(..)
            .chain(state.waiting_durable.drain(..))
            .collect();
        let queue = std::mem::take(&mut state.queue);
        state.queued_bytes = 0;
        drop(borrowed);
        for waiter in waiters {
            waiter.kind.refuse(unknown.clone());
        }
        let failed = self.failed(cause);
        for request in queue {
            match request {
                Request::Change(change) if change.works_on_failed() => {
                    self.state
                        .borrow_mut()
                        .queue
                        .push_back(Request::Change(change));
                }
                request => request.refuse(failed.clone()),
            }
        }
        self.wake.notify();
    }

    /// Small things after every step: cache budget, the ticker's list, a spare in time.
    fn after_step(self: &Rc<Self>) {
        self.evict();
        self.reuse_retired();
        let mut state = self.state.borrow_mut();
        let held = state.is_open() && !state.retired.is_empty();
        if (held || state.lacks_seal()) && !state.watched {
            state.watched = true;
            self.shard.unsealed.borrow_mut().push(Rc::clone(self));
            self.shard.tick.notify();
        }
        drop(state);
        self.initialise_ahead();
        self.prepare_ahead();
    }
}

/// What came of starting a change.
enum Started<F> {
    Done,
    Step(Step<F>),
    Blocked(Change),
}

impl<F: crate::io::IoFile> State<F> {
    /// Whether nothing is in flight and everything placed is durable; asks for a sync otherwise.
    fn settle(&mut self, idle: bool) -> bool {
        self.durable_wanted = self.placed.count;
        idle && self.zeroing.is_none() && self.pipeline.durable() == self.placed
    }

    /// The next waiter whose mark has been reached, in the order of the log.
    fn next_settled(&mut self, durable: u64, written: u64) -> Option<Waiter> {
        let reached = |waiters: &VecDeque<Waiter>, mark| {
            let first = waiters.front().map(|w| w.count);
            first.filter(|count| *count <= mark)
        };
        let in_durable = reached(&self.waiting_durable, durable);
        let in_written = reached(&self.waiting_written, written);
        match (in_durable, in_written) {
            (Some(count), other) if other.is_none_or(|other| count <= other) => {
                self.waiting_durable.pop_front()
            }
            (_, Some(_)) => self.waiting_written.pop_front(),
            _ => None,
        }
    }

    fn wait_durable(&mut self, kind: WaiterKind) {
        let waiter = Waiter {
            count: self.placed.count,
            kind,
            permit: super::Permit::default(),
        };
        self.waiting_durable.push_back(waiter);
    }
}
