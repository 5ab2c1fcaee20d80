//! Hops under stress: many tasks of a runtime with several threads ask a shard through the store's
//! own mailbox and wait for its reply. No wake may be lost in either direction, whether it finds the
//! other side at work, about to sleep or asleep.
//!
//! Hops come in rounds of changing size, some with pauses that end about when the shard falls
//! asleep. After a round nobody asks until the kernel says that the shard sleeps. How often
//! the shard slept is counted by the kernel, too, so that no hook in a backend is needed.
//!
//! `HOPS` sets the number: `HOPS=100000000 cargo test --release --test conformance hops --
//! --nocapture --test-threads=1`. A hop that is never answered is named, after half a minute of this
//! process: what stops all of it (a signal, a debugger) counts as one look.

#![allow(clippy::print_stderr, reason = "a long run tells how it went")]

use std::fs;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use alluvium_core::io::{BackendFactory, ShardMain, ShardSpec};
use alluvium_core::{Ack, Partition, Store};
use alluvium_testkit::logs::{batch, close, small};
use rustix::thread::Pid;

const HOPS_DEFAULT: u64 = 200_000;
const TASKS: usize = 64;
/// Threads of the callers' runtime.
const THREADS: usize = 2;
/// Between two appends, so that completions of the disk come among the wakes.
const ROUNDS_PER_APPEND: u64 = 64;
/// Of rounds with one task and pauses.
const ROUNDS_PER_EDGE: u64 = 4;
const LOOK: Duration = Duration::from_millis(500);
/// After so many looks in a row without any progress something is lost.
const LOOKS_STUCK: u32 = 60;

/// Tells which thread the shard runs on.
#[derive(Debug, Clone)]
struct Marked<F> {
    factory: F,
    thread: Arc<OnceLock<Pid>>,
}

impl<F: BackendFactory> BackendFactory for Marked<F> {
    type Backend = F::Backend;

    fn name(&self) -> &'static str {
        self.factory.name()
    }

    fn allowed_cores(&self) -> Vec<usize> {
        self.factory.allowed_cores()
    }

    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<F::Backend>) -> io::Result<()> {
        let thread = Arc::clone(&self.thread);
        let marked = move |backend| {
            thread.set(rustix::thread::gettid()).unwrap();
            main(backend)
        };
        self.factory.spawn_shard(spec, Box::new(marked))
    }
}

/// A thread as the kernel sees it.
#[derive(Debug, Clone, Copy)]
struct Thread(Pid);

impl Thread {
    fn read(self, file: &str) -> String {
        let id = self.0.as_raw_nonzero();
        fs::read_to_string(format!("/proc/self/task/{id}/{file}")).unwrap()
    }

    fn sleeps(self) -> bool {
        let stat = self.read("stat");
        // Behind the name, which may hold anything.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.trim_start().starts_with('S')
    }

    /// What it has done so far, for the report of a hang: state, processor time, where it waits.
    fn account(self) -> String {
        let status = self.read("status");
        let told = status
            .lines()
            .filter(|line| line.starts_with("State:") || line.contains("ctxt_switches:"));
        let told: Vec<_> = told.map(|line| line.replace('\t', " ")).collect();
        format!(
            "{}, on a core, waiting for one (ns), turns: {}; in {}",
            told.join(", "),
            self.read("schedstat").trim(),
            self.read("wchan")
        )
    }

    /// How often it has gone to sleep.
    fn sleeps_so_far(self) -> u64 {
        let status = self.read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }
}

/// Where every task stands: hops begun and hops answered.
struct Board {
    begun: Vec<AtomicU64>,
    answered: Vec<AtomicU64>,
    /// Rounds after which the shard was seen asleep.
    gaps: AtomicU64,
}

impl Board {
    fn new() -> Self {
        let zeros = || (0..TASKS).map(|_| AtomicU64::new(0)).collect();
        Self {
            begun: zeros(),
            answered: zeros(),
            gaps: AtomicU64::new(0),
        }
    }

    fn progress(&self) -> u64 {
        let gaps = self.gaps.load(Ordering::Relaxed);
        self.answered
            .iter()
            .fold(gaps, |sum, n| sum + n.load(Ordering::Relaxed))
    }

    /// What hangs.
    fn report(&self, shard: Thread) -> String {
        let hops = self.begun.iter().zip(&self.answered).enumerate();
        let lost: Vec<_> = hops
            .map(|(task, (b, a))| (task, b.load(Ordering::Relaxed), a.load(Ordering::Relaxed)))
            .filter(|(_, begun, answered)| begun > answered)
            .map(|(task, begun, _)| format!("hop {begun} of task {task}"))
            .collect();
        let gaps = self.gaps.load(Ordering::Relaxed);
        let asleep = if shard.sleeps() { "sleeps" } else { "is awake" };
        if lost.is_empty() {
            format!("after round {gaps} every hop is answered, and the shard {asleep}")
        } else {
            let lost = lost.join(", ");
            format!("in round {gaps}, while the shard {asleep}: no answer to {lost}")
        }
    }
}

/// Numbers that look drawn, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

async fn hops(partition: Partition, board: Arc<Board>, task: usize, count: u64, edge: bool) {
    let mut dice = Dice(count);
    for _ in 0..count {
        board.begun[task].fetch_add(1, Ordering::Relaxed);
        partition.ping().await.unwrap();
        board.answered[task].fetch_add(1, Ordering::Relaxed);
        // Up to longer than a shard spins before it sleeps.
        for _ in 0..if edge { dice.below(8000) } else { 0 } {
            std::hint::spin_loop();
        }
    }
}

/// Waits until nobody has anything to do for the shard and it sleeps.
async fn gap(shard: Thread) {
    while !shard.sleeps() {
        tokio::task::yield_now().await;
    }
}

/// All rounds; returns how many hops there were.
async fn rounds(partition: Partition, board: Arc<Board>, shard: Thread, wanted: u64) -> u64 {
    let mut dice = Dice(wanted);
    let (mut done, mut round) = (0, 0_u64);
    while done < wanted {
        round += 1;
        let edge = round.is_multiple_of(ROUNDS_PER_EDGE);
        let tasks = if edge { 1 } else { 1 << dice.below(7) };
        let each = 4 + dice.below(60);
        let append = round.is_multiple_of(ROUNDS_PER_APPEND).then(|| {
            let next = batch(partition.offsets().log_end(), 1);
            let appended = partition.clone();
            tokio::spawn(async move { appended.append_with(next, Ack::Written).await })
        });
        let all: Vec<_> = (0..tasks)
            .map(|task| hops(partition.clone(), Arc::clone(&board), task, each, edge))
            .map(tokio::spawn)
            .collect();
        for task in all {
            task.await.unwrap();
        }
        if let Some(append) = append {
            append.await.unwrap().unwrap();
        }
        done += each * tasks as u64;
        gap(shard).await;
        board.gaps.store(round, Ordering::Relaxed);
    }
    done
}

/// Runs `work` on the runtime, and reports what hangs if nothing moves any more.
fn watched<T: Send + 'static>(
    runtime: &tokio::runtime::Runtime,
    board: &Board,
    shard: Thread,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let (ended, has_ended) = mpsc::channel();
    let task = runtime.spawn(async move {
        let result = work.await;
        ended.send(()).unwrap();
        result
    });
    let (mut last, mut looks, mut then) = (board.progress(), 0, String::new());
    loop {
        match has_ended.recv_timeout(LOOK) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return runtime.block_on(task).unwrap(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let progress = board.progress();
        if progress != last {
            (last, looks) = (progress, 0);
            continue;
        }
        looks += 1;
        if looks == 1 {
            then = shard.account();
        }
        if looks == LOOKS_STUCK {
            let (report, now) = (board.report(shard), shard.account());
            panic!("{report}\nthe shard at the first look: {then}\nand now: {now}");
        }
    }
}

fn stress(factory: impl BackendFactory, dir: &Path) {
    let wanted = std::env::var("HOPS").map_or(HOPS_DEFAULT, |n| n.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_time()
        .build()
        .unwrap();
    let name = factory.name();
    let thread = Arc::default();
    let marked = Marked {
        factory,
        thread: Arc::clone(&thread),
    };
    let (store, partition) = runtime.block_on(async {
        let builder = Store::builder(dir.join("store")).configure(small);
        let (store, _) = builder.backend(marked).open().await.unwrap();
        let partition = store.create_partition(1).await.unwrap();
        (store, partition)
    });
    let shard = Thread(*thread.get().unwrap());
    let board = Arc::new(Board::new());
    let (slept, began) = (shard.sleeps_so_far(), Instant::now());
    let work = rounds(partition, Arc::clone(&board), shard, wanted);
    let done = watched(&runtime, &board, shard, work);
    let (slept, took) = (shard.sleeps_so_far() - slept, began.elapsed());
    let gaps = board.gaps.load(Ordering::Relaxed);
    let per_second = u128::from(done) * 1_000_000 / took.as_micros().max(1);
    eprintln!(
        "{name}: {done} hops in {took:.1?}, {per_second} per second; \
         the shard slept {slept} times, after each of {gaps} rounds for certain"
    );
    assert!(
        gaps > 0 && slept >= gaps,
        "every gap ends a sleep: {slept} of {gaps}"
    );
    assert!(slept < done, "some hops find the shard awake");
    runtime.block_on(close(&store));
}

fn on_disk(factory: impl BackendFactory) {
    let _alone = alluvium_testkit::alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    stress(factory, dir.path());
}

#[cfg(feature = "tokio")]
#[test]
fn on_tokio() {
    on_disk(alluvium_backends::tokio::TokioFactory::new());
}

#[cfg(feature = "compio")]
#[test]
fn on_compio() {
    on_disk(alluvium_backends::compio::CompioFactory::new());
}

#[cfg(feature = "uring")]
#[test]
fn on_uring() {
    on_disk(alluvium_backends::uring::UringFactory::new());
}

#[cfg(feature = "uring")]
#[test]
fn on_uring_without_spinning() {
    let factory = alluvium_backends::uring::UringFactory::new();
    on_disk(factory.spin(Duration::ZERO));
}

#[cfg(feature = "glommio")]
#[test]
fn on_glommio() {
    on_disk(alluvium_backends::glommio::GlommioFactory::new());
}
