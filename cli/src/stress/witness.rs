//! Those who watch while a store is loaded: the disk, the machine, the store's own operations, and
//! whether its shard answers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alluvium::Store;
use alluvium::backends::layer::Layer;
use alluvium::io::AlignedBuf;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use super::PAUSE;
use super::spans::{Seen, Span};
use crate::failure::Failure;

/// What takes longer is noted: a third of the shortest pause.
pub(super) const SLOW: Duration = Duration::from_micros(3_300);
const _: () = assert!(3 * SLOW.as_micros() <= PAUSE.as_micros());
/// How long a core has to be gone to be noted: short absences add up.
pub(super) const GONE: Duration = Duration::from_millis(1);
/// How often the witnesses look.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long the witness of a core sleeps at a time. What stops the core within that time is seen
/// as shorter by up to as much.
const CORE_INTERVAL: Duration = Duration::from_micros(500);
/// Memory for what was slow is bounded; what comes later is counted at most.
const SPANS_MAX: usize = 1 << 20;

/// How much memory what was noted takes, in bytes.
static NOTED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Memory of this process that belongs to its measurements rather than to the store, in bytes: it grows
/// with every moment in which something was slow.
pub(super) fn noted_bytes() -> u64 {
    NOTED_BYTES.load(Ordering::Relaxed)
}

/// Notes something, unless there is too much already.
fn keep<T>(notes: &mut Vec<T>, what: T) {
    if notes.len() < SPANS_MAX {
        notes.push(what);
        NOTED_BYTES.fetch_add(size_of::<T>() as u64, Ordering::Relaxed);
    }
}

/// Appends that took long.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    spans: Mutex<Vec<Span>>,
    count: AtomicU64,
    longest_ns: AtomicU64,
}

impl Pauses {
    /// Takes note of an append.
    pub(super) fn note(&self, from: Instant, to: Instant) {
        let took = to - from;
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.longest_ns.fetch_max(nanos, Ordering::Relaxed);
        if took > PAUSE {
            self.count.fetch_add(1, Ordering::Relaxed);
            push(&self.spans, Span { from, to });
        }
    }

    /// The longest append since the last look.
    pub(super) fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::Relaxed))
    }

    /// How many there were, and those of them that were kept.
    pub(super) fn take(&self) -> (u64, Vec<Span>) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        (
            self.count.load(Ordering::Relaxed),
            std::mem::take(&mut *spans),
        )
    }
}

fn push(spans: &Mutex<Vec<Span>>, span: Span) {
    keep(
        &mut spans.lock().unwrap_or_else(PoisonError::into_inner),
        span,
    );
}

/// Times the store's durable writes, which are what its appends wait for, and notes what it does
/// besides.
#[derive(Debug, Clone, Default)]
pub(super) struct StoreTimes {
    slow: Arc<Mutex<Vec<Span>>>,
    others: Arc<Mutex<Vec<(Instant, &'static str)>>>,
}

impl StoreTimes {
    /// What was begun in a pause besides reads and durable writes, in its order.
    pub(super) fn others_during(&self, pause: &Span) -> Vec<&'static str> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let in_pause = |(at, _): &&(Instant, _)| (pause.from..=pause.to).contains(at);
        others
            .iter()
            .filter(in_pause)
            .map(|(_, name)| *name)
            .collect()
    }
}

impl Layer for StoreTimes {
    fn before(&self, operation: &'static str, _path: &Path) {
        if !matches!(
            operation,
            "write_durable" | "read_at" | "spawn" | "yield_now"
        ) {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            keep(&mut others, (Instant::now(), operation));
        }
    }

    fn after(&self, operation: &'static str, _path: &Path, took: Duration) {
        // The load's appends are durable ones. They wait for no read, and for no preparation of a
        // file (zeros and syncs are that alone here): if they do, that is our own.
        if operation == "write_durable" && took > SLOW {
            let to = Instant::now();
            let from = to.checked_sub(took).unwrap_or(to);
            push(&self.slow, Span { from, to });
        }
    }
}

/// The threads and the task that watch; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Witnesses {
    stop: Stop,
    disk: JoinHandle<io::Result<Vec<Span>>>,
    cores: Vec<JoinHandle<Vec<Span>>>,
    threads: JoinHandle<ShardThreads>,
    shard: tokio::task::JoinHandle<Result<Vec<Span>, alluvium::Error>>,
    store: StoreTimes,
}

/// Tells the witnesses to end.
#[derive(Debug)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Witnesses {
    /// Starts them: the disk's writes to a file at `path`, the shards' asks `store`, whose times
    /// are taken in `times`.
    pub(super) fn start(path: &Path, store: &Store, times: StoreTimes) -> Result<Self, Failure> {
        let file = create(path).map_err(Failure::io("create", path))?;
        let stop = Stop(Arc::default());
        let stopped = || Arc::clone(&stop.0);
        let (disk, threads, shard) = (stopped(), stopped(), stopped());
        let core = |core| {
            let stop = stopped();
            thread::spawn(move || watch_core(core, &stop))
        };
        Ok(Self {
            disk: thread::spawn(move || watch_disk(&file, &disk)),
            cores: allowed_cores().map(core).collect(),
            threads: thread::spawn(move || watch_threads(&threads)),
            shard: tokio::spawn(watch_shard(store.clone(), shard)),
            store: times,
            stop,
        })
    }

    /// What they saw. The store has to be open still.
    pub(super) async fn stop(self) -> Result<Seen, Failure> {
        drop(self.stop);
        let died = || Failure::Other("a witness of the pauses died".to_owned());
        let shard = self.shard.await.map_err(|_| died())??;
        // They look whether they are to end after at most one write or one sleep.
        let disk = self.disk.join().map_err(|_| died())?;
        let disk = disk.map_err(|e| Failure::Other(format!("the disk's witness: {e}")))?;
        let threads = self.threads.join().map_err(|_| died())?;
        let mut machine = threads.queued;
        for core in self.cores {
            machine.extend(core.join().map_err(|_| died())?);
        }
        let slow = &self.store.slow;
        let mut store = slow.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Seen {
            disk: disk.into(),
            store: std::mem::take(&mut *store).into(),
            blocked: threads.blocked.into(),
            machine: machine.into(),
            shard: shard.into(),
        })
    }
}

/// A file whose writes wait for the disk; past the page cache where that is possible.
fn create(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    let open = |flags: OFlags| {
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).custom_flags(flags);
        options.open(path)
    };
    open(OFlags::DSYNC | OFlags::DIRECT).or_else(|_| open(OFlags::DSYNC))
}

fn watch_disk(file: &File, stop: &AtomicBool) -> io::Result<Vec<Span>> {
    let mut block = AlignedBuf::with_capacity(4096);
    block.resize(4096);
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        file.write_all_at(&block, 0)?;
        note(&mut slow, SLOW, from, from.elapsed());
        thread::sleep(INTERVAL);
    }
    Ok(slow)
}

async fn watch_shard(store: Store, stop: Arc<AtomicBool>) -> Result<Vec<Span>, alluvium::Error> {
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        store.stats().await?;
        note(&mut slow, SLOW, from, from.elapsed());
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(slow)
}

/// The cores that this process may use.
fn allowed_cores() -> impl Iterator<Item = usize> {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(move |core| allowed.is_set(*core))
}

/// Sleeps on one core, and sees by how much too long: a core that stands still is one that the
/// machine below, if this is a virtual one, has given to somebody else. Goes in front of all other
/// threads on it where it may, so that it is not they who keep it.
fn watch_core(core: usize, stop: &AtomicBool) -> Vec<Span> {
    let mut only = CpuSet::new();
    only.set(core);
    // Elsewhere, or in the order of all threads, it is still a witness of the machine.
    sched_setaffinity(None, &only).ok();
    setpriority_process(Some(gettid()), -20).ok();
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        thread::sleep(CORE_INTERVAL);
        let late = from.elapsed().saturating_sub(CORE_INTERVAL);
        note(&mut slow, GONE, from + CORE_INTERVAL, late);
    }
    slow
}

/// When the shards' threads could not go on.
#[derive(Debug, Default)]
struct ShardThreads {
    /// For want of a core.
    queued: Vec<Span>,
    /// Held by the disk while it was given something to do.
    blocked: Vec<Span>,
}

fn watch_threads(stop: &AtomicBool) -> ShardThreads {
    let threads = shard_threads();
    let mut waited = queued_for(&threads);
    let mut seen = ShardThreads::default();
    let mut blocked = Looks::default();
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        thread::sleep(INTERVAL);
        let now = queued_for(&threads);
        let to = Instant::now();
        let longer = now.saturating_sub(waited);
        let since = to.checked_sub(longer).unwrap_or(to);
        note(&mut seen.queued, GONE, since, longer);
        waited = now;
        if threads.iter().any(|thread| is_blocked(thread)) {
            blocked.seen(from, to);
        } else {
            blocked.end(&mut seen.blocked);
        }
    }
    blocked.end(&mut seen.blocked);
    seen
}

/// Something that is looked for again and again, and is taken to go on from one look to the next.
#[derive(Debug, Default)]
struct Looks(Option<Span>);

impl Looks {
    /// It was seen at `to`; the look before that was at `from`. So each look counts for the time
    /// since the one before it, and a single one for no more.
    fn seen(&mut self, from: Instant, to: Instant) {
        self.0.get_or_insert(Span { from, to }).to = to;
    }

    /// It is not to be seen any more.
    fn end(&mut self, slow: &mut Vec<Span>) {
        if let Some(span) = self.0.take() {
            note(slow, SLOW, span.from, span.len());
        }
    }
}

/// Where the kernel tells about the shards' threads.
fn shard_threads() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let tasks = tasks.flatten().map(|task| task.path());
    let is_shard = |task: &PathBuf| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        let index = name.trim().strip_prefix("alluvium-");
        // The threads that wait in a shard's place have longer names.
        index.is_some_and(|index| index.parse::<usize>().is_ok())
    };
    tasks.filter(is_shard).collect()
}

/// How long these threads have been ready to run and had no core, in all; zero where the kernel
/// does not count it.
fn queued_for(threads: &[PathBuf]) -> Duration {
    let second = |text: String| text.split_whitespace().nth(1)?.parse::<u64>().ok();
    let nanos = threads.iter().filter_map(|thread| {
        let text = fs::read_to_string(thread.join("schedstat"));
        text.ok().and_then(second)
    });
    Duration::from_nanos(nanos.sum())
}

/// Whether the disk holds a thread that hands operations over to it.
fn is_blocked(thread: &Path) -> bool {
    let read = |name| fs::read_to_string(thread.join(name)).unwrap_or_default();
    let stat = read("stat");
    waits_for_device(&stat) && hands_over(&read("syscall"))
}

/// Whether a thread is in a sleep that no signal ends, by its `stat`.
fn waits_for_device(stat: &str) -> bool {
    // The name in front of it is in parentheses, and may hold any.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with('D'))
}

/// Whether the system call that a thread waits in, by its `syscall`, is that of a ring. A store that
/// makes others on a shard's thread (on names, lengths or memory) pauses by its own fault, whatever
/// they wait for.
fn hands_over(syscall: &str) -> bool {
    /// `io_uring_enter`, on every architecture that we build for.
    const ENTER: &str = "426";
    syscall.split_whitespace().next() == Some(ENTER)
}

/// Takes note of what took so long, if that was over `min`.
fn note(slow: &mut Vec<Span>, min: Duration, from: Instant, took: Duration) {
    if took > min {
        let to = from + took;
        keep(slow, Span { from, to });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_wait_for_durable_writes_alone() {
        let times = StoreTimes::default();
        for operation in ["write_at", "sync_data", "read_at", "allocate", "set_len"] {
            times.after(operation, Path::new(""), 3 * SLOW);
        }
        times.after("write_durable", Path::new(""), SLOW);
        let noted = || times.slow.lock().map_or(0, |slow| slow.len());
        assert_eq!(noted(), 0);
        times.after("write_durable", Path::new(""), 3 * SLOW);
        assert_eq!(noted(), 1);
    }

    #[test]
    fn a_shard_that_the_disk_holds_is_one_that_hands_over_to_it() {
        assert!(waits_for_device("77 (alluvium-0) D 1 77 77 0 -1 4194624"));
        assert!(!waits_for_device("77 (alluvium-0) S 1 77 77 0 -1 4194624"));
        assert!(!waits_for_device("77 (a) D 1) R 1 77 77 0 -1 4194624"));
        assert!(!waits_for_device(""));
        assert!(hands_over("426 0x7 0x2 0x1 0x9 0x7ffd 0x18 0x7ffd 0x7fc7"));
        // unlinkat, munmap; a page fault; not waiting; not told.
        for other in [
            "263 0xffffff9c 0x7f",
            "11 0x7f 0x1000",
            "-1 0x7f 0x7f",
            "running",
            "",
        ] {
            assert!(!hands_over(other), "{other}");
        }
    }

    #[test]
    fn the_kernel_tells_the_call_that_a_thread_waits_in() {
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = thread::spawn(move || {
            tell.send(gettid()).ok();
            gone.recv().ok();
        });
        let path = format!("/proc/self/task/{}/syscall", told.recv().expect("it lives"));
        // It is on its way there.
        let call = loop {
            let call = fs::read_to_string(&path).expect("the kernel tells");
            if !call.starts_with("running") {
                break call;
            }
            thread::yield_now();
        };
        let number = call.split_whitespace().next();
        assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()));
        assert!(!hands_over(&call));
        drop(go);
        waiting.join().expect("it ends");
    }

    #[test]
    fn a_single_look_counts_for_one_interval() {
        let start = Instant::now();
        let at = |looks: u32| start + INTERVAL * looks;
        let (mut looks, mut slow) = (Looks::default(), Vec::new());
        looks.seen(at(0), at(1));
        looks.end(&mut slow);
        assert_eq!(slow, [], "less than what is slow");
        looks.seen(at(5), at(6));
        looks.seen(at(6), at(7));
        looks.end(&mut slow);
        looks.end(&mut slow);
        let (from, to) = (at(5), at(7));
        assert_eq!(slow, [Span { from, to }]);
    }
}
