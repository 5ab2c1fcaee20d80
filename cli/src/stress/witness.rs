//! Who was slow: the disk, the machine, or the store.
//!
//! An append waits for three writes in a row at most: the one under way when it comes, the header of
//! the next segment if there is none, and its own. So a pause without a write of a third of its length is
//! not the disk's.
//!
//! A slow write of the store is the disk's only while the shard's thread was there to see it end:
//! a thread that was held up itself sees its writes late. So the shard is asked something all the
//! time, and what it answers late makes that moment the machine's or its own.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alluvium::Store;
use alluvium::backends::layer::Layer;
use alluvium::io::{AlignedBuf, IoFile};
use async_trait::async_trait;
use bytes::Bytes;

use super::PAUSE;
use crate::failure::Failure;

/// What a witness calls slow: half of a pause, as it sees only a part of it.
const SLOW: Duration = Duration::from_millis(5);
const _: () = assert!(2 * SLOW.as_nanos() == PAUSE.as_nanos());
/// What a slow write of the store is.
const SLOW_WRITE: Duration = Duration::from_micros(3_300);
const _: () = assert!(3 * SLOW_WRITE.as_micros() <= PAUSE.as_micros());
/// How often the witnesses look.
const INTERVAL: Duration = Duration::from_millis(2);
/// Memory for what was slow is bounded; what comes later is not told.
const SPANS_MAX: usize = 1 << 20;

/// When something was slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

impl Span {
    pub(super) fn len(&self) -> Duration {
        self.to - self.from
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// Appends that took long.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    spans: Mutex<Vec<Span>>,
    longest_ns: AtomicU64,
}

/// When which witness was slow; the spans of one follow each other.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The witness file's writes.
    disk: Vec<Span>,
    machine: Vec<Span>,
    /// The shard's answers.
    shard: Vec<Span>,
}

/// Whose the pauses were.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) disk: u64,
    pub(super) machine: u64,
    pub(super) own: Vec<Span>,
}

impl Judged {
    pub(super) fn all(&self) -> u64 {
        self.disk + self.machine + self.own.len() as u64
    }

    /// Our own pauses, those that overlap as one: many appends wait at the same time.
    pub(super) fn moments(&self) -> Vec<Span> {
        merged(&self.own)
    }
}

/// The same moments as spans that follow each other.
fn merged(spans: &[Span]) -> Vec<Span> {
    let mut spans = spans.to_vec();
    spans.sort_unstable_by_key(|span| span.from);
    spans.dedup_by(|next, last| {
        let joins = next.overlaps(last);
        if joins {
            last.to = last.to.max(next.to);
        }
        joins
    });
    spans
}

impl Pauses {
    /// Takes note of an append.
    pub(super) fn note(&self, from: Instant, to: Instant) {
        let took = to - from;
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.longest_ns.fetch_max(nanos, Ordering::Relaxed);
        if took > PAUSE {
            let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            if spans.len() < SPANS_MAX {
                spans.push(Span { from, to });
            }
        }
    }

    /// The longest append since the last look.
    pub(super) fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::Relaxed))
    }

    /// Holds each pause against what the witnesses saw meanwhile, and against the store's slow
    /// `writes`.
    pub(super) fn judge(&self, seen: &Seen, writes: &[Span]) -> Judged {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut judged = Judged::default();
        for pause in &*spans {
            let shard_was_there = !overlaps(&seen.shard, pause);
            if overlaps(&seen.disk, pause) || shard_was_there && overlaps(writes, pause) {
                judged.disk += 1;
            } else if overlaps(&seen.machine, pause) {
                judged.machine += 1;
            } else {
                judged.own.push(*pause);
            }
        }
        judged
    }
}

/// Whether one of the spans, which follow each other, overlaps `with`.
fn overlaps(spans: &[Span], with: &Span) -> bool {
    let first = spans.partition_point(|span| span.to < with.from);
    spans.get(first).is_some_and(|span| span.overlaps(with))
}

/// Times the store's durable writes, from their hand-over to the backend to the moment that the
/// engine sees their end; the slow ones are kept.
#[derive(Debug, Clone, Default)]
pub(super) struct WriteTimes(Arc<Mutex<Vec<Span>>>);

impl WriteTimes {
    /// When writes were slow, as spans that follow each other.
    pub(super) fn slow(&self) -> Vec<Span> {
        merged(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait(?Send)]
impl Layer for WriteTimes {
    async fn write_durable<F: IoFile>(
        &self,
        file: &F,
        buf: Bytes,
        offset: u64,
    ) -> (io::Result<usize>, Bytes) {
        let from = Instant::now();
        let ended = file.write_durable(buf, offset).await;
        if from.elapsed() > SLOW_WRITE {
            let mut slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            note(&mut slow, from, SLOW_WRITE);
        }
        ended
    }
}

/// The threads and the task that watch.
#[derive(Debug)]
pub(super) struct Witnesses {
    stop: Arc<AtomicBool>,
    disk: JoinHandle<io::Result<Vec<Span>>>,
    machine: JoinHandle<Vec<Span>>,
    shard: tokio::task::JoinHandle<Result<Vec<Span>, alluvium::Error>>,
}

impl Witnesses {
    /// Starts them: the disk's writes to a file at `path`, the shards' asks `store`.
    pub(super) fn start(path: &Path, store: &Store) -> Result<Self, Failure> {
        let file = create(path).map_err(Failure::io("create", path))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = || Arc::clone(&stop);
        let (disk, machine, shard) = (stopped(), stopped(), stopped());
        Ok(Self {
            disk: thread::spawn(move || watch_disk(&file, &disk)),
            machine: thread::spawn(move || watch_machine(&machine)),
            shard: tokio::spawn(watch_shard(store.clone(), shard)),
            stop,
        })
    }

    /// What they saw. The store has to be open still.
    pub(super) async fn stop(self) -> Result<Seen, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let died = || Failure::Other("a witness of the pauses died".to_owned());
        let shard = self.shard.await.map_err(|_| died())??;
        // Both look at `stop` after at most one write or one sleep.
        let disk = self.disk.join().map_err(|_| died())?;
        let disk = disk.map_err(|e| Failure::Other(format!("the disk's witness: {e}")))?;
        let machine = self.machine.join().map_err(|_| died())?;
        Ok(Seen {
            disk,
            machine,
            shard,
        })
    }
}

/// A file whose writes wait for the disk; past the page cache where that is possible.
fn create(path: &Path) -> std::io::Result<File> {
    use rustix::fs::OFlags;
    let open = |flags: OFlags| {
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).custom_flags(flags);
        options.open(path)
    };
    open(OFlags::DSYNC | OFlags::DIRECT).or_else(|_| open(OFlags::DSYNC))
}

fn watch_disk(file: &File, stop: &AtomicBool) -> std::io::Result<Vec<Span>> {
    let mut block = AlignedBuf::with_capacity(4096);
    block.resize(4096);
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        file.write_all_at(&block, 0)?;
        note(&mut slow, from, SLOW);
        thread::sleep(INTERVAL);
    }
    Ok(slow)
}

async fn watch_shard(store: Store, stop: Arc<AtomicBool>) -> Result<Vec<Span>, alluvium::Error> {
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        store.stats().await?;
        note(&mut slow, from, SLOW);
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(slow)
}

fn watch_machine(stop: &AtomicBool) -> Vec<Span> {
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        thread::sleep(INTERVAL);
        note(&mut slow, from, INTERVAL + SLOW);
    }
    slow
}

/// Takes note of what has just ended, if it took longer than `limit`.
fn note(slow: &mut Vec<Span>, from: Instant, limit: Duration) {
    let span = Span {
        from,
        to: Instant::now(),
    };
    if span.len() > limit && slow.len() < SPANS_MAX {
        slow.push(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_whose_witness_saw_it_and_else_our_own() {
        let start = Instant::now();
        let span = |from: u64, to: u64| Span {
            from: start + Duration::from_millis(from),
            to: start + Duration::from_millis(to),
        };
        let pauses = Pauses::default();
        for (from, to) in [(0, 20), (100, 130), (200, 215), (300, 305)] {
            let Span { from, to } = span(from, to);
            pauses.note(from, to);
        }
        assert_eq!(pauses.take_longest(), Duration::from_millis(30));
        assert_eq!(pauses.take_longest(), Duration::ZERO);
        let seen = |disk: &[Span], machine: &[Span], shard: &[Span]| Seen {
            disk: disk.to_vec(),
            machine: machine.to_vec(),
            shard: shard.to_vec(),
        };
        let disk = [span(5, 15), span(120, 160)];
        let machine = [span(10, 16), span(206, 212)];
        let judged = pauses.judge(&seen(&disk, &machine, &[]), &[]);
        assert_eq!((judged.disk, judged.machine, judged.all()), (2, 1, 3));
        let judged = pauses.judge(&seen(&disk[..1], &[], &[]), &[]);
        assert_eq!(judged.own, [span(100, 130), span(200, 215)]);
        // A slow write of the store is the disk's, unless the shard was late itself.
        let writes = merged(&[span(101, 108), span(90, 140), span(210, 216)]);
        assert_eq!(writes, [span(90, 140), span(210, 216)]);
        let judged = pauses.judge(&seen(&[], &[], &[span(211, 219)]), &writes);
        assert_eq!(judged.disk, 1);
        assert_eq!(judged.own, [span(0, 20), span(200, 215)]);
        let judged = pauses.judge(&seen(&[], &machine, &[span(211, 219)]), &writes);
        assert_eq!((judged.disk, judged.machine), (1, 2));
    }

    #[test]
    fn pauses_at_the_same_time_are_one_moment() {
        let start = Instant::now();
        let span = |from: u64, to: u64| Span {
            from: start + Duration::from_millis(from),
            to: start + Duration::from_millis(to),
        };
        let judged = Judged {
            own: vec![span(30, 45), span(0, 20), span(1, 12), span(20, 33)],
            ..Judged::default()
        };
        assert_eq!(judged.moments(), [span(0, 45)]);
        let judged = Judged {
            own: vec![span(30, 45), span(0, 20), span(1, 12)],
            ..Judged::default()
        };
        assert_eq!(judged.moments(), [span(0, 20), span(30, 45)]);
    }
}
