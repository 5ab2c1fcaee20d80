//! Changes of a log's shape: creation, roll, truncation, reopening, close.
//!
//! The driver calls these when nothing is in flight and everything placed is durable (a failed
//! partition: when nothing is in flight). Each becomes final by one durable write of a segment
//! header or control batch; files are reused or removed only after that.

use std::path::Path;
use std::rc::Rc;

use super::cache::TailCache;
use super::driver::carry_out;
use super::request::Change;
use super::roll::Continuation;
use super::{Mode, Partition, State};
use crate::commit::{Mark, Pipeline};
use crate::error::{Error, Result};
use crate::format::{Batch, Control, ControlReason, SEGMENT_HEADER_LEN};
use crate::io::{IoBackend, IoFile};
use crate::offset::Offsets;
use crate::recovery::{
    Known, NextHeader, PartitionReport, RecoveredLog, RecoveryContext, TailCase, recover_partition,
};
use crate::segment::{ActiveSegment, Segment, SpareFile, prepare_spare};

impl<B: IoBackend> Partition<B> {
    /// Carries out a change that needed the partition to be at rest.
    pub(super) async fn change(self: &Rc<Self>, change: Change) {
        match change {
            Change::Truncate(to, asked) => asked.answer(self.truncate(to).await),
            Change::Trim(to, asked) => asked.answer(self.roll_for_trim(to).await),
            Change::Retain => {
                let target = self.retention_target(&self.state.borrow());
                if let Some(to) = target
                    && self.roll_for_trim(to).await.is_err()
                {
                    self.shard.stats.housekeeping_failed();
                }
            }
            Change::Reopen(asked) => asked.answer(self.reopen().await),
            Change::Close(asked) => {
                // A partition that has failed closes, but not in order, and the caller hears of it.
                let failure = match &self.state.borrow().mode {
                    Mode::Failed(cause) => Err(self.failed(cause)),
                    _ => Ok(()),
                };
                let result = self.seal_at_rest().await.and(failure);
                self.shard.name_work_done().await;
                self.end();
                asked.answer(result);
            }
            Change::Abandon(asked) => {
                self.end();
                asked.answer(Ok(()));
            }
            Change::Sync(asked) => asked.answer(Ok(self.state.borrow().offsets.durable())),
        }
    }

    /// Writes a seal behind everything; the caller knows that all of it is durable.
    async fn seal_at_rest(&self) -> Result<()> {
        let write = {
            let mut borrowed = self.state.borrow_mut();
            let state = &mut *borrowed;
            let end = state.offsets.log_end();
            // A tail that is sealed already needs no second seal, unless offsets are reserved that
            // nobody was shown.
            let is_sealed = state.tail_sealed && state.reserved_placed <= end;
            if !state.is_open() || is_sealed {
                return Ok(());
            }
            let batch = Batch::control(&Control {
                reason: ControlReason::Seal,
                segment_end: false,
                end_offset: end,
                log_start: state.offsets.log_start(),
                reserved_end: end,
            });
            let room = state
                .active
                .as_ref()
                .is_some_and(|a| a.has_control_room(batch.encoded_len()));
            if !room {
                return Ok(());
            }
            let write = self.place_control(state, batch);
            state.tail_sealed = true;
            write
        };
        let (id, result) = carry_out(write).await;
        match (result, id) {
            (Ok(()), Some(id)) => {
                let mut state = self.state.borrow_mut();
                state.pipeline.complete(id);
                self.settle_waiters(&mut state);
                Ok(())
            }
            (Ok(()), None) => Ok(()),
            (Err(e), id) => {
                let cause = crate::error::IoError::from(e);
                self.state.borrow_mut().pipeline.fail(id);
                self.fail_with(&cause);
                Err(Error::PartitionFailed {
                    id: self.id(),
                    cause,
                })
            }
        }
    }

    /// Removes all records at and above `to`.
    async fn truncate(self: &Rc<Self>, to: u64) -> Result<()> {
        let offsets = self.state.borrow().offsets;
        if to == offsets.log_end() {
            return Ok(());
        }
        if to < offsets.log_start() || to > offsets.log_end() {
            let (start, end) = (offsets.log_start(), offsets.log_end());
            return Err(Error::OutOfRange {
                requested: to,
                start,
                end,
            });
        }
        let (target, link) = {
            let state = self.state.borrow();
            let segments: Vec<_> = state.segments().cloned().collect();
            let n = segments.partition_point(|s| s.base_offset() < to);
            let link = match segments.get(n) {
                Some(after) => after.header.prev_header_crc,
                None => state
                    .active
                    .as_ref()
                    .map_or(state.link, ActiveSegment::link),
            };
            (
                n.checked_sub(1).and_then(|i| segments.get(i).cloned()),
                link,
            )
        };
        if let Some(target) = &target {
            self.refuse_inside_opaque(target, to).await?;
        }
        let generation = self.state.borrow().generation.saturating_add(1);
        let end = target.as_ref().map_or(to, |t| t.end_offset.get().min(to));
        let end_position = match &target {
            Some(target) => target.cut_position(&self.context.pool, end).await?,
            None => 0,
        };
        let spare = self.take_spare().await?;
        let next = Continuation {
            previous: target.clone(),
            link,
            end,
            end_position,
            base: to,
            log_start: offsets.log_start(),
            reserved_end: to,
            generation,
        };
        self.install_after_cut(spare, next, target).await
    }

    async fn install_after_cut(
        self: &Rc<Self>,
        spare: SpareFile<B::File>,
        next: Continuation<B::File>,
        target: Option<Rc<Segment<B::File>>>,
    ) -> Result<()> {
        let (to, end, generation) = (next.base, next.end, next.generation);
        let end_position = next.end_position;
        self.state.borrow_mut().truncating = Some(to);
        // Readers see the target whole until then.
        self.install(spare, next).await?;
        // From here on the cut is final; the rest is memory and housekeeping.
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let keep = match &target {
            Some(target) => state
                .sealed
                .iter()
                .position(|s| Rc::ptr_eq(s, target))
                .map(|i| i + 1),
            None => Some(0),
        };
        let dead = state.sealed.split_off(keep.unwrap_or(state.sealed.len()));
        state.retired.extend(dead);
        if let Some(target) = target {
            target.end_offset.set(end);
            target.end_position.set(end_position);
        }
        state.truncating = None;
        state.generation = generation;
        state.cache.truncate(to);
        state.offsets.truncate(to);
        state.reserved_durable = to;
        state.reserved_placed = to;
        state.restart_pipeline(self.context.config.writes_in_flight_max);
        self.publish(state.offsets);
        Ok(())
    }

    async fn refuse_inside_opaque(&self, target: &Segment<B::File>, to: u64) -> Result<()> {
        let interval = self.context.config.index_interval_bytes;
        let pool = &self.context.pool;
        target
            .load_index(self.shard.backend.as_ref(), pool, interval)
            .await?;
        let batches = match target.read(pool, to, u64::MAX, 1, 64 << 10).await {
            // What is damaged at the cut goes with it: that is how a repair cuts.
            Err(Error::Corrupt(_)) => return Ok(()),
            read => read?,
        };
        match batches.first() {
            Some(batch) if batch.is_opaque() && batch.base_offset() < to => {
                Err(Error::InsideOpaqueBatch {
                    requested: to,
                    base: batch.base_offset(),
                    end: batch.end_offset(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Recovers a failed partition in place.
    async fn reopen(self: &Rc<Self>) -> Result<PartitionReport> {
        let known = {
            let mut state = self.state.borrow_mut();
            if !matches!(state.mode, Mode::Failed(_)) {
                return Ok(state.recovery.clone());
            }
            // Our own descriptors hold the locks that the fence waits for.
            state.sealed.clear();
            state.active = None;
            state.spares.clear();
            state.retired.clear();
            Known {
                durable: state.offsets.durable(),
                truncating: state.truncating,
                log_start: state.offsets.log_start(),
            }
        };
        while self.state.borrow().preparing {
            self.spare_ready.notified().await;
        }
        self.state.borrow_mut().spares.clear();
        self.name_work.none(self.shard.backend.as_ref()).await;
        let _by_name = self.start_name_work()?;
        let context = RecoveryContext {
            known: Some(known),
            ..self.context.clone()
        };
        let log = recover_partition(self.shard.backend.as_ref(), &context).await?;
        let mut state = self.state.borrow_mut();
        let queue = std::mem::take(&mut state.queue);
        let queued_bytes = state.queued_bytes;
        let watched = state.watched;
        // A recovery may bring back less than was visible.
        let mut cache = std::mem::replace(&mut state.cache, TailCache::new(self.tail(), 0));
        cache.clear();
        *state = State::from_log(log, self.context.config.writes_in_flight_max, cache);
        state.queue = queue;
        state.queued_bytes = queued_bytes;
        state.watched = watched;
        self.publish(state.offsets);
        Ok(state.recovery.clone())
    }

    /// Ends the partition: whatever still waits is answered, the files are let go.
    fn end(&self) {
        let mut state = self.state.borrow_mut();
        state.mode = Mode::Closed;
        let queue = std::mem::take(&mut state.queue);
        state.sealed.clear();
        state.active = None;
        state.spares.clear();
        state.retired.clear();
        // Before anybody hears of the end.
        self.tail.close();
        state.cache.clear();
        drop(state);
        self.publish_the_end();
        for request in queue {
            request.refuse(Error::Closed);
        }
        self.shard
            .partitions
            .set(self.shard.partitions.get().saturating_sub(1));
    }
}

impl<F: IoFile> State<F> {
    /// Everything placed is durable, by other means than the pipeline's own groups.
    fn restart_pipeline(&mut self, window: u16) {
        self.placed = Mark {
            count: self.placed.count,
            offset: self.offsets.log_end(),
        };
        self.pipeline = Pipeline::new(window, self.placed);
    }

    /// Skips offsets that may have been shown and were lost.
    pub(super) fn skip_to(&mut self, base: u64, window: u16) {
        self.offsets = Offsets::new(self.offsets.log_start(), base);
        self.restart_pipeline(window);
    }
}

/// Creates the directory and first segment of a partition. Durable when it returns.
///
/// Everything is made under a temporary name (`temporary`), so that a crash leaves either the whole
/// partition or something that the next opening removes.
pub(crate) async fn create_partition<B: IoBackend>(
    backend: &B,
    context: &RecoveryContext,
    store: &Path,
    temporary: &Path,
) -> Result<RecoveredLog<B::File>> {
    let failed = |e: std::io::Error| {
        if Error::is_no_space(&e) {
            Error::NoSpace {
                path: context.dir.clone(),
            }
        } else {
            Error::io("create", &context.dir, e)
        }
    };
    backend.create_dir(temporary).await.map_err(failed)?;
    let mut request = context.spare_request(0, context.config.initialise_first_bytes());
    request.dir = temporary.to_path_buf();
    let mut spare = prepare_spare(backend, &request).await?;
    if let Some(name) = spare.path.file_name() {
        spare.path = context.dir.join(name);
    }
    let header = NextHeader {
        sequence: 1,
        previous: None,
        link: 0,
        base_offset: 0,
        prev_end_offset: 0,
        prev_end_position: 0,
        generation: 1,
        log_start: 0,
        reserved_end: 0,
        last_timestamp: i64::MIN,
    }
    .build(backend, context, spare.file.alignment());
    let headroom = context.config.control_headroom_bytes(header.alignment);
    let initialised_to = spare.initialised_to;
    let segment = spare
        .activate(header, context.config.index_interval_bytes)
        .await
        .map_err(failed)?;
    backend.sync_dir(temporary).await.map_err(failed)?;
    backend
        .rename(temporary, &context.dir)
        .await
        .map_err(failed)?;
    backend.sync_dir(store).await.map_err(failed)?;
    let start = SEGMENT_HEADER_LEN as u64;
    let mut active = ActiveSegment::new(Rc::new(segment), start, 0, 0, headroom);
    active.initialised_to = initialised_to;
    Ok(RecoveredLog {
        sealed: Vec::new(),
        active: Some(active),
        spares: Vec::new(),
        offsets: Offsets::new(0, 0),
        generation: 1,
        reserved_end: 0,
        next_number: 1,
        next_sequence: 2,
        last_timestamp: i64::MIN,
        link: 0,
        read_only: false,
        report: PartitionReport {
            segments: 1,
            ..PartitionReport::empty(context.partition, TailCase::Clean)
        },
        damage: Vec::new(),
    })
}
