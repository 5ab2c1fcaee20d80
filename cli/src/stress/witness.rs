//! Who was slow: the disk, the machine, or the store.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alluvium::io::AlignedBuf;

use super::PAUSE;
use crate::failure::Failure;

/// What a witness calls slow: half of a pause, as it sees only a part of it.
const SLOW: Duration = Duration::from_millis(5);
const _: () = assert!(2 * SLOW.as_nanos() == PAUSE.as_nanos());
/// How often the witnesses look.
const INTERVAL: Duration = Duration::from_millis(2);
/// Memory for pauses is bounded; more of them are counted as the first so many are.
const PAUSES_MAX: usize = 1 << 20;

/// When something was slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

impl Span {
    fn len(&self) -> Duration {
        self.to - self.from
    }
}

/// Appends that took long.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    spans: Mutex<Vec<Span>>,
    longest_ns: AtomicU64,
}

/// How many pauses were whose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) disk: u64,
    pub(super) machine: u64,
    pub(super) own: u64,
}

impl Judged {
    pub(super) fn all(&self) -> u64 {
        self.disk + self.machine + self.own
    }
}

impl Pauses {
    /// Takes note of an append.
    pub(super) fn note(&self, from: Instant, to: Instant) {
        let took = to - from;
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.longest_ns.fetch_max(nanos, Ordering::Relaxed);
        if took > PAUSE {
            let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            if spans.len() < PAUSES_MAX {
                spans.push(Span { from, to });
            }
        }
    }

    /// The longest append since the last look.
    pub(super) fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::Relaxed))
    }

    /// Holds each pause against what the witnesses saw meanwhile.
    pub(super) fn judge(&self, disk: &[Span], machine: &[Span]) -> Judged {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut judged = Judged::default();
        for pause in &*spans {
            if overlaps(disk, pause) {
                judged.disk += 1;
            } else if overlaps(machine, pause) {
                judged.machine += 1;
            } else {
                judged.own += 1;
            }
        }
        judged
    }
}

/// Whether one of the spans, which follow each other, overlaps `with`.
fn overlaps(spans: &[Span], with: &Span) -> bool {
    let first = spans.partition_point(|span| span.to < with.from);
    spans.get(first).is_some_and(|span| span.from <= with.to)
}

/// The threads that watch disk and machine.
#[derive(Debug)]
pub(super) struct Witnesses {
    stop: Arc<AtomicBool>,
    disk: JoinHandle<std::io::Result<Vec<Span>>>,
    machine: JoinHandle<Vec<Span>>,
}

impl Witnesses {
    /// Starts them; the disk's writes to a file at `path`.
    pub(super) fn start(path: &Path) -> Result<Self, Failure> {
        let file = create(path).map_err(Failure::io("create", path))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, stopped_too) = (Arc::clone(&stop), Arc::clone(&stop));
        Ok(Self {
            stop,
            disk: thread::spawn(move || watch_disk(&file, &stopped)),
            machine: thread::spawn(move || watch_machine(&stopped_too)),
        })
    }

    /// When the disk was slow, and when the machine was.
    pub(super) fn stop(self) -> Result<(Vec<Span>, Vec<Span>), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let died = |_| Failure::Other("a witness of the pauses died".to_owned());
        let disk = self.disk.join().map_err(died)?;
        let disk = disk.map_err(|e| Failure::Other(format!("the disk's witness: {e}")))?;
        Ok((disk, self.machine.join().map_err(died)?))
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
        note(&mut slow, from, Duration::ZERO);
        thread::sleep(INTERVAL);
    }
    Ok(slow)
}

fn watch_machine(stop: &AtomicBool) -> Vec<Span> {
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        thread::sleep(INTERVAL);
        note(&mut slow, from, INTERVAL);
    }
    slow
}

fn note(slow: &mut Vec<Span>, from: Instant, expected: Duration) {
    let span = Span {
        from,
        to: Instant::now(),
    };
    if span.len() > expected + SLOW {
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
        let disk = [span(5, 15), span(120, 160)];
        let machine = [span(10, 16), span(206, 212)];
        let judged = pauses.judge(&disk, &machine);
        let expected = Judged {
            disk: 2,
            machine: 1,
            own: 0,
        };
        assert_eq!(judged, expected);
        assert_eq!(pauses.judge(&disk[..1], &[]).own, 2);
    }
}
