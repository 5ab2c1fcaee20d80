//! Moving on to the next segment: a roll, and the same for a truncation or a trim. The driver calls
//! these, under the conditions of [`change`](super::change).

use std::rc::Rc;

use futures_util::future::join;

use super::driver::carry_out;
use super::group::Write;
use super::{Mode, Partition, Request};
use crate::error::{Error, Result};
use crate::format::{Batch, Control, ControlReason, SEGMENT_HEADER_LEN};
use crate::io::IoBackend;
use crate::recovery::NextHeader;
use crate::segment::{ActiveSegment, Segment, SpareFile};

/// Where the next segment takes up.
pub(super) struct Continuation<F> {
    pub(super) previous: Option<Rc<Segment<F>>>,
    pub(super) link: u32,
    /// End offset of the predecessor.
    pub(super) end: u64,
    /// Byte position up to which the predecessor's bytes count.
    pub(super) end_position: u64,
    /// First offset of the new segment; beyond `end` when offsets are skipped.
    pub(super) base: u64,
    pub(super) log_start: u64,
    pub(super) reserved_end: u64,
    pub(super) generation: u32,
}

/// A segment whose header is durable.
struct StartedSegment<F> {
    segment: Rc<Segment<F>>,
    initialised_to: u64,
}

impl<B: IoBackend> Partition<B> {
    /// Moves appends to a new segment; without space, answers those that wait for one.
    pub(super) async fn roll(self: &Rc<Self>) {
        // Those that come while this one is tried may find that there is space again.
        let waiting = self.state.borrow().queue.len();
        let result = match self.take_spare().await {
            Ok(spare) => self.move_on(spare).await,
            Err(e) => Err(e),
        };
        let Err(error) = result else { return };
        let mut state = self.state.borrow_mut();
        let queue = std::mem::take(&mut state.queue);
        let mut refused = Vec::with_capacity(waiting);
        for (n, request) in queue.into_iter().enumerate() {
            match request {
                Request::Append(append) if n < waiting => {
                    state.queued_bytes -= append.batch.encoded_len();
                    refused.push(append);
                }
                request => state.queue.push_back(request),
            }
        }
        drop(state);
        for append in refused {
            Request::Append(append).refuse(error.clone());
        }
    }

    /// Ends the active segment with a seal and puts `spare` to use, both at the same time: appends
    /// wait for one turn of the disk, not for two. Which of them a crash leaves does not matter. The
    /// header tells where the segment before it ends, and does not count the seal; a seal without
    /// the header is one in the middle of the newest segment.
    async fn move_on(self: &Rc<Self>, spare: SpareFile<B::File>) -> Result<()> {
        let next = self.continuation();
        let seal = self.place_segment_end();
        let seal = async {
            if let Some(write) = seal {
                let (id, result) = carry_out(write).await;
                self.completed(id, result);
            }
        };
        let (segment, ()) = join(self.write_header(spare, &next), seal).await;
        // Only now: what is no longer the newest may be mapped, and is written to by nobody.
        self.take_up(segment?, &next)
    }

    /// The seal that says that no batch follows in this segment, if there is room for it.
    fn place_segment_end(&self) -> Option<Write<B::File>> {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let end = state.offsets.log_end();
        let seal = Batch::control(&Control {
            reason: ControlReason::Seal,
            segment_end: true,
            end_offset: end,
            log_start: state.offsets.log_start(),
            reserved_end: state.reserved_placed.max(end),
        });
        let active = state.active.as_ref();
        let has_room = active.is_some_and(|a| a.has_control_room(seal.encoded_len()));
        (state.is_open() && has_room).then(|| self.place_end(state, seal))
    }

    /// A roll whose segment header makes a trim durable.
    pub(super) async fn roll_for_trim(self: &Rc<Self>, to: u64) -> Result<()> {
        let spare = match self.take_spare().await {
            // On a full disk, a segment that the trim frees can be the next one.
            Err(Error::NoSpace { path }) => {
                let mut state = self.state.borrow_mut();
                let free = state.sealed.first().is_some_and(|s| {
                    s.end_offset.get() <= to
                        && s.header.capacity_bytes == self.context.config.segment_bytes
                        && Rc::strong_count(s) == 1
                });
                if !free {
                    return Err(Error::NoSpace { path });
                }
                let oldest = state.sealed.remove(0);
                let end_offset = oldest.end_offset.get();
                match Segment::try_into_file(oldest, self.shard.backend.as_ref()) {
                    Ok((file, path)) => {
                        state.log_start_placed = to;
                        state.reused_below = end_offset;
                        SpareFile {
                            file,
                            path,
                            initialised_to: self.context.config.segment_bytes,
                        }
                    }
                    Err(read) => {
                        state.sealed.insert(0, read);
                        return Err(Error::NoSpace { path });
                    }
                }
            }
            other => other?,
        };
        let mut next = self.continuation();
        next.log_start = to;
        self.install(spare, next).await?;
        let mut state = self.state.borrow_mut();
        state.log_start_placed = state.log_start_placed.max(to);
        state.offsets.set_log_start(to);
        self.publish(state.offsets);
        state.retire_below(to);
        Ok(())
    }

    /// Takes up where the log ends now.
    fn continuation(&self) -> Continuation<B::File> {
        let state = self.state.borrow();
        let end = state.offsets.log_end();
        let previous = state.segments().next_back().cloned();
        Continuation {
            link: state
                .active
                .as_ref()
                .map_or(state.link, ActiveSegment::link),
            // Without an active segment, a cut or a crash came before: skip what may be shown.
            base: if state.active.is_some() {
                end
            } else {
                end.max(state.reserved_placed)
            },
            end: previous.as_ref().map_or(end, |s| s.end_offset.get()),
            end_position: previous.as_ref().map_or(0, |s| s.end_position.get()),
            previous,
            log_start: state.offsets.log_start(),
            reserved_end: state.reserved_placed.max(end),
            generation: state.generation,
        }
    }

    /// Puts `spare` to use as the next segment. Final once its header is durable.
    pub(super) async fn install(
        self: &Rc<Self>,
        spare: SpareFile<B::File>,
        next: Continuation<B::File>,
    ) -> Result<()> {
        let started = self.write_header(spare, &next).await?;
        self.take_up(started, &next)
    }

    /// Makes `spare` the next segment on the disk.
    async fn write_header(
        &self,
        spare: SpareFile<B::File>,
        next: &Continuation<B::File>,
    ) -> Result<StartedSegment<B::File>> {
        let backend = self.shard.backend.as_ref();
        let (sequence, last_timestamp) = {
            let state = self.state.borrow();
            (state.next_sequence, state.last_timestamp)
        };
        let header = NextHeader {
            sequence,
            previous: next.previous.as_deref(),
            link: next.link,
            base_offset: next.base,
            prev_end_offset: next.end,
            prev_end_position: next.end_position,
            generation: next.generation,
            log_start: next.log_start,
            reserved_end: next.reserved_end,
            last_timestamp,
        }
        .build(backend, &self.context, spare.file.alignment());
        let interval = self.context.config.index_interval_bytes;
        let initialised_to = spare.initialised_to;
        match spare.activate(header, interval).await {
            Ok(segment) => Ok(StartedSegment {
                segment: Rc::new(segment),
                initialised_to,
            }),
            Err(e) => {
                let cause = crate::error::IoError::from(e);
                self.fail_with(&cause);
                Err(Error::OutcomeUnknown {
                    id: self.id(),
                    cause,
                })
            }
        }
    }

    /// Appends go to `started` from now on.
    fn take_up(
        self: &Rc<Self>,
        started: StartedSegment<B::File>,
        next: &Continuation<B::File>,
    ) -> Result<()> {
        let StartedSegment {
            segment,
            initialised_to,
        } = started;
        let header = &segment.header;
        let headroom = self.context.config.control_headroom_bytes(header.alignment);
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        if let Mode::Failed(cause) = &state.mode {
            return Err(self.failed(cause));
        }
        state.next_sequence = header.sequence.saturating_add(1);
        let start = SEGMENT_HEADER_LEN as u64;
        let mut active = ActiveSegment::new(segment, start, 0, next.link, headroom);
        active.initialised_to = initialised_to;
        let finished = state.active.replace(active);
        if let Some(finished) = finished {
            let segment = finished.segment;
            state.sealed.push(Rc::clone(&segment));
            let this = Rc::clone(self);
            self.shard.backend.spawn(Box::pin(async move {
                let Ok(_by_name) = this.start_name_work() else {
                    return;
                };
                segment.save_index(this.shard.backend.as_ref()).await;
            }));
        }
        if next.base > state.offsets.log_end() {
            state.skip_to(next.base, self.context.config.writes_in_flight_max);
            self.publish(state.offsets);
        }
        state.tail_sealed = true;
        Ok(())
    }
}
