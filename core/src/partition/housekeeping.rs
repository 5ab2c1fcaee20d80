//! What happens beside the data path: spares made ahead of need, files put back to use, retention,
//! idle seals.

use std::rc::Rc;
use std::time::Duration;

use super::request::{Waiter, WaiterKind};
use super::{Change, Mode, Partition, Request, State};
use crate::error::Result;
use crate::format::{Batch, Control, ControlReason};
use crate::io::{IoBackend, IoFile};
use crate::segment::{INDEX_SUFFIX, Segment, SpareFile, ZERO_CHUNK_BYTES, prepare_spare, zero};

impl<B: IoBackend> Partition<B> {
    /// Starts making a spare in the background once the active segment is half full.
    pub(super) fn prepare_ahead(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let due = state.is_open()
            && self.context.config.spare_segments_max > 0
            && state.spares.is_empty()
            && !state.preparing
            && !state.spare_failed
            && state
                .active
                .as_ref()
                .is_some_and(|a| a.data_room() < self.context.config.segment_bytes / 2);
        if !due {
            return;
        }
        state.preparing = true;
        drop(state);
        let this = Rc::clone(self);
        let guard = PreparingGuard(Rc::clone(self));
        self.shard.backend.spawn(Box::pin(async move {
            let result = this
                .make_spare(this.context.config.initialise_first_bytes())
                .await;
            let mut state = this.state.borrow_mut();
            match result {
                Ok(spare) => state.spares.push(spare),
                // The roll tries again, and reports.
                Err(_) => state.spare_failed = true,
            }
            drop(state);
            drop(guard);
        }));
    }

    /// Keeps zeros ahead of the appends in a file that is new.
    ///
    /// One stretch at a time is written, beyond everything placed; a group that would reach into
    /// it waits (see [`State::zeros_in_the_way`]). When appends have overtaken the zeros, the
    /// stretch starts again ahead of them, and what lies between is written as it is. No more
    /// partitions of a shard do so at a time than the backend
    /// [has room for](crate::io::IoBackend::background_writes_max); the rest tries again with its next
    /// group.
    pub(super) fn initialise_ahead(self: &Rc<Self>) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let config = &self.context.config;
        let Some(active) = state.active.as_mut() else {
            return;
        };
        if !config.preinitialise || state.zeroing.is_some() || !matches!(state.mode, Mode::Open) {
            return;
        }
        let under_way = self.shard.zeroing.get();
        if under_way >= self.shard.backend.background_writes_max() {
            return;
        }
        let capacity = active.segment.header.capacity_bytes;
        let ahead = u64::from(config.initialise_ahead_bytes).next_multiple_of(4096);
        let at = active.next_position().next_multiple_of(4096);
        if active.initialised_to >= capacity || active.initialised_to >= at + ahead {
            return;
        }
        let overtaken = active.initialised_to < at;
        let start = if overtaken {
            at + ahead / 2
        } else {
            active.initialised_to
        };
        let start = start.next_multiple_of(4096).min(capacity);
        let end = (start + ZERO_CHUNK_BYTES as u64).min(capacity);
        active.initialised_to = end;
        if start == end {
            return;
        }
        state.zeroing = Some((start, end));
        self.shard.zeroing.set(under_way + 1);
        let segment = Rc::clone(&active.segment);
        drop(borrowed);
        let this = Rc::clone(self);
        let guard = ZeroingGuard(Rc::clone(self));
        self.shard.backend.spawn(Box::pin(async move {
            let backend = this.shard.backend.as_ref();
            // Nothing of the log lies there: the file goes on without zeros. What keeps its blocks
            // from being written the appends will meet themselves.
            if zero(backend, &segment.file, start..end).await.is_err() {
                this.shard.stats.housekeeping_failed();
                let mut state = this.state.borrow_mut();
                let active = state.active.as_mut();
                if let Some(active) = active.filter(|a| Rc::ptr_eq(&a.segment, &segment)) {
                    active.initialised_to = segment.header.capacity_bytes;
                }
            }
            drop(segment);
            drop(guard);
        }));
    }

    async fn make_spare(&self, initialise_bytes: u64) -> Result<SpareFile<B::File>> {
        let _by_name = self.start_name_work()?;
        let number = {
            let mut state = self.state.borrow_mut();
            let number = state.next_number;
            state.next_number = number.saturating_add(1);
            number
        };
        let request = self.context.spare_request(number, initialise_bytes);
        prepare_spare(self.shard.backend.as_ref(), &request).await
    }

    /// A spare for the roll: one that lies ready, the one being made, or one made now.
    pub(super) async fn take_spare(self: &Rc<Self>) -> Result<SpareFile<B::File>> {
        loop {
            self.reuse_retired();
            let preparing = {
                let mut state = self.state.borrow_mut();
                state.spare_failed = false;
                if let Some(spare) = state.spares.pop() {
                    return Ok(spare);
                }
                state.preparing
            };
            if !preparing {
                // Somebody waits: reserve the blocks, leave the zeros out.
                return self.make_spare(0).await;
            }
            self.spare_ready.notified().await;
        }
    }

    /// Puts files of retired segments that nobody reads any more into the pool, or removes them.
    pub(super) fn reuse_retired(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if state.retired.is_empty() {
            return;
        }
        let config = &self.context.config;
        let mut removed = Vec::new();
        for segment in std::mem::take(&mut state.retired) {
            let fits = segment.header.capacity_bytes == config.segment_bytes;
            match Segment::try_into_file(segment, self.shard.backend.as_ref()) {
                Err(read) => state.retired.push(read),
                Ok((file, path)) => {
                    if fits && !file.has_failed() && state.spares.len() < config.spare_segments_max
                    {
                        let initialised_to = config.segment_bytes;
                        state.spares.push(SpareFile {
                            file,
                            path,
                            initialised_to,
                        });
                    } else {
                        removed.push(path);
                    }
                }
            }
        }
        if state.retired.is_empty() {
            state.held_rounds = 0;
        }
        drop(state);
        if removed.is_empty() {
            return;
        }
        let shard = Rc::clone(&self.shard);
        let Ok(removal) = self.start_name_work() else {
            // They are dead by the chain of headers; the next recovery finds them.
            return;
        };
        self.shard.backend.spawn(Box::pin(async move {
            for path in removed {
                let backend = &shard.backend;
                // A file that stays is dead by the chain of headers; the next recovery finds it.
                if backend.remove_file(&path).await.is_err() {
                    shard.stats.housekeeping_failed();
                }
                if backend
                    .remove_file(&path.with_extension(INDEX_SUFFIX))
                    .await
                    .is_err()
                {
                    // There was none.
                }
            }
            drop(removal);
        }));
    }

    /// Called by the shard's ticker: whether the partition still needs watching.
    pub(crate) fn tick(self: &Rc<Self>) -> bool {
        // Whoever lets go of a segment last wakes nobody. A recovery has the files to itself.
        if self.state.borrow_mut().looks_at_retired() {
            self.reuse_retired();
        }
        let mut state = self.state.borrow_mut();
        let idle = state.activity == state.activity_seen;
        state.activity_seen = state.activity;
        let unsealed = state.lacks_seal();
        let seals = unsealed && idle && state.queue.is_empty();
        let held = state.is_open() && !state.retired.is_empty();
        state.watched = held || (unsealed && !seals);
        let watched = state.watched;
        if seals {
            state.seal_wanted = true;
            drop(state);
            self.wake.notify();
        }
        watched
    }

    /// Loads what the retention decision needs and puts the request into the queue.
    pub(crate) async fn consider_retention(&self) {
        let config = &self.context.config;
        if config.retention_age.is_none() && config.retention_bytes.is_none() {
            return;
        }
        if let Some(age) = config.retention_age {
            let backend = self.shard.backend.as_ref();
            let limit = oldest_kept(age, backend.wall_clock_ms());
            let sealed = self.state.borrow().sealed.clone();
            // One trim for all that are too old: look until the first that is not.
            for segment in sealed {
                let interval = config.index_interval_bytes;
                let loaded = segment.load_index(backend, &self.context.pool, interval);
                if loaded.await.is_err() {
                    // The age is not known. What it takes up is.
                    self.shard.stats.housekeeping_failed();
                    break;
                }
                if segment.with_index(|index| index.max_timestamp()) >= Some(limit) {
                    break;
                }
            }
        }
        let due = {
            let state = self.state.borrow();
            let target = self.retention_target(&state);
            state.is_open() && target.is_some() && !state.retention_under_way()
        };
        if due {
            self.submit(Request::Change(Change::Retain));
        }
    }

    /// The log start that retention asks for, if it is beyond the present one.
    pub(super) fn retention_target(&self, state: &State<B::File>) -> Option<u64> {
        let config = &self.context.config;
        let now = self.shard.backend.wall_clock_ms();
        let facts = state.sealed.iter().map(|s| SealedFacts {
            end_offset: s.end_offset.get(),
            file_bytes: s.header.capacity_bytes,
            max_timestamp: s.with_index(|index| index.max_timestamp()),
        });
        let oldest_kept_ms = config.retention_age.map(|age| oldest_kept(age, now));
        retention(facts.collect(), config.retention_bytes, oldest_kept_ms)
            .filter(|target| *target > state.offsets.log_start())
    }
}

impl<F: IoFile> State<F> {
    /// Whether retention waits in the queue, or for its control batch to become durable: on a disk that
    /// stands still for many intervals each would take of the room for control batches otherwise.
    fn retention_under_way(&self) -> bool {
        let queued = |r: &Request| matches!(r, Request::Change(Change::Retain));
        let placed = |w: &Waiter| matches!(w.kind, WaiterKind::Trim(_, None));
        self.queue.iter().any(queued) || self.waiting_durable.iter().any(placed)
    }

    /// Whether this round of the ticker looks for segments that readers have let go of: ever less often,
    /// for a look asks the file system and readers may hold them for hours.
    fn looks_at_retired(&mut self) -> bool {
        if self.retired.is_empty() {
            return false;
        }
        self.held_rounds = self.held_rounds.wrapping_add(1);
        let due =
            self.held_rounds.is_power_of_two() || self.held_rounds.is_multiple_of(HELD_ROUNDS);
        due && self.is_open()
    }
}

/// At the latest after so many rounds the ticker looks again.
const HELD_ROUNDS: u32 = 64;

/// Lets the next roll make a spare itself if the task that makes one is dropped.
struct PreparingGuard<B: IoBackend>(Rc<Partition<B>>);

impl<B: IoBackend> Drop for PreparingGuard<B> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.preparing = false;
        }
        self.0.spare_ready.notify();
    }
}

/// Lets groups into the stretch again, whatever ended the task that zeroed it.
struct ZeroingGuard<B: IoBackend>(Rc<Partition<B>>);

impl<B: IoBackend> Drop for ZeroingGuard<B> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.zeroing = None;
        }
        let zeroing = &self.0.shard.zeroing;
        zeroing.set(zeroing.get().saturating_sub(1));
        self.0.wake.notify();
    }
}

/// What retention looks at, oldest segment first.
#[derive(Debug, Clone, Copy)]
struct SealedFacts {
    end_offset: u64,
    file_bytes: u64,
    /// `None` while the segment's index is not loaded.
    max_timestamp: Option<i64>,
}

/// Records older than this, in milliseconds, may go.
fn oldest_kept(age: Duration, now_ms: i64) -> i64 {
    now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// The offset below which whole segments may go: pure.
fn retention(
    sealed: Vec<SealedFacts>,
    bytes_max: Option<u64>,
    oldest_kept_ms: Option<i64>,
) -> Option<u64> {
    // A forged header may claim any capacity.
    let sizes = sealed.iter().map(|s| s.file_bytes);
    let mut total = sizes.fold(0, u64::saturating_add);
    let mut target = None;
    for segment in sealed {
        let too_much = bytes_max.is_some_and(|max| total > max);
        // A segment without a record is as old as can be.
        let too_old = oldest_kept_ms
            .zip(segment.max_timestamp)
            .is_some_and(|(oldest, newest)| newest < oldest);
        if !too_much && !too_old {
            break;
        }
        total = total.saturating_sub(segment.file_bytes);
        target = Some(segment.end_offset);
    }
    target
}

impl<F: IoFile> State<F> {
    /// Whether a group of `len` bytes would reach into the stretch that is being zeroed.
    pub(super) fn zeros_in_the_way(&self, len: usize) -> bool {
        match (&self.active, self.zeroing) {
            (Some(active), Some((start, end))) => {
                let at = active.next_position();
                at < end && at + active.padded(len) as u64 > start
            }
            _ => false,
        }
    }

    /// Retires sealed segments that end at or below `start`.
    pub(super) fn retire_below(&mut self, start: u64) {
        let n = self.sealed.partition_point(|s| s.end_offset.get() <= start);
        self.retired.extend(self.sealed.drain(..n));
    }

    /// The control batch that makes a trim durable. Nothing else may tell of the trim before this is
    /// placed: it may still be refused.
    pub(super) fn control_for_trim(&self, to: u64, reserved_end: u64, at_rest: bool) -> Batch {
        let reason = if at_rest {
            ControlReason::Seal
        } else {
            ControlReason::Trim
        };
        Batch::control(&Control {
            reason,
            segment_end: false,
            end_offset: self.offsets.log_end(),
            log_start: self.log_start_placed.max(to),
            reserved_end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(ends: &[u64], file_bytes: u64, newest: Option<i64>) -> Vec<SealedFacts> {
        let one = |(i, end): (usize, &u64)| SealedFacts {
            end_offset: *end,
            file_bytes,
            max_timestamp: newest.map(|n| n + i64::try_from(i).unwrap() * 100),
        };
        ends.iter().enumerate().map(one).collect()
    }

    #[test]
    fn by_size_the_oldest_go_until_the_rest_fits() {
        let sealed = || facts(&[10, 20, 30], 100, None);
        assert_eq!(retention(sealed(), Some(300), None), None);
        assert_eq!(retention(sealed(), Some(299), None), Some(10));
        assert_eq!(retention(sealed(), Some(100), None), Some(20));
        assert_eq!(retention(sealed(), Some(0), None), Some(30));
    }

    #[test]
    fn sizes_that_a_forged_header_claims_do_not_overflow() {
        let sealed = || facts(&[10, 20, 30], u64::MAX, None);
        assert_eq!(retention(sealed(), Some(u64::MAX), None), None);
        assert_eq!(retention(sealed(), Some(u64::MAX - 1), None), Some(10));
    }

    #[test]
    fn by_age_a_segment_goes_when_its_newest_record_is_too_old() {
        let sealed = || facts(&[10, 20, 30], 100, Some(1000));
        assert_eq!(retention(sealed(), None, Some(1000)), None);
        assert_eq!(retention(sealed(), None, Some(1001)), Some(10));
        assert_eq!(retention(sealed(), None, Some(9499)), Some(30));
        assert_eq!(
            retention(facts(&[10], 1, None), None, Some(9998)),
            None,
            "not known yet"
        );
    }
}
