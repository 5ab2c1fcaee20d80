//! The contract of the whole store, check by check, on any backend.
//!
//! A [`Host`] is a machine with a backend: it starts processes, runs a check to its end and looks
//! at files from outside. [`run`] gives every check a directory of its own; all run, then the
//! failed ones are named together. What only a crash can show is not here.

mod appends;
mod hosts;
mod lifecycle;
mod partitions;
mod reads;
mod removal;
mod waiting;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use alluvium_core::format::{Batch, BatchBuilder, Record};
use alluvium_core::io::{BackendFactory, LocalFuture};
use alluvium_core::{
    Partition, ReadLimits, RecoveryReport, Result, Shards, Store, StoreConfig, Visibility,
};

pub use hosts::{RealHost, SimHost};

/// A machine with one backend.
pub trait Host {
    /// What stores are opened with.
    type Factory: BackendFactory;

    /// A process on this machine.
    fn factory(&self) -> Self::Factory;

    /// Name of the backend, for messages.
    fn name(&self) -> &'static str;

    /// Makes a directory.
    fn create_dir(&self, path: &Path);

    /// Runs a check to its end; panics when it does not end in time.
    fn run(&self, check: LocalFuture<()>);

    /// Lets time pass for the check that awaits it.
    fn pause(&self, time: Duration) -> LocalFuture<()>;

    /// All files below a directory, with their content.
    fn files(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>>;

    /// Writes a file from outside.
    fn write_file(&self, path: &Path, content: &[u8]);
}

/// Runs every check below `dir`, which must exist and be empty.
///
/// # Panics
/// When a check fails; the message names all that failed.
pub fn run<H: Host + Clone + 'static>(host: &H, dir: &Path) {
    let _guard = crate::ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut suite = Suite {
        host,
        dir,
        failed: vec![],
    };
    appends::all(&mut suite);
    reads::all(&mut suite);
    waiting::all(&mut suite);
    removal::all(&mut suite);
    partitions::all(&mut suite);
    lifecycle::all(&mut suite);
    assert!(
        suite.failed.is_empty(),
        "store on {} at {}: {}",
        host.name(),
        dir.display(),
        suite.failed.join("; ")
    );
}

/// Writes stores with `a` and reads them with `b`, on the file system that both share.
///
/// # Panics
/// When what `b` finds is not what `a` acknowledged.
pub fn run_across<A, B>(a: &A, b: &B, dir: &Path)
where
    A: Host + Clone + 'static,
    B: Host + Clone + 'static,
{
    let _guard = crate::ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let names = format!("{} to {}", a.name(), b.name());
    let dir = dir.join(names.replace(' ', "-"));
    a.create_dir(&dir);
    let writer = Ctx {
        host: a.clone(),
        dir: dir.clone(),
    };
    a.run(Box::pin(lifecycle::write_for_another_backend(writer)));
    let reader = Ctx {
        host: b.clone(),
        dir,
    };
    b.run(Box::pin(lifecycle::read_from_another_backend(reader)));
}

/// Collects the outcome of the checks.
struct Suite<'a, H> {
    host: &'a H,
    dir: &'a Path,
    failed: Vec<String>,
}

impl<H: Host + Clone + 'static> Suite<'_, H> {
    fn check(&mut self, name: &str, body: impl FnOnce(Ctx<H>) -> LocalFuture<()>) {
        let dir = self.dir.join(name);
        self.host.create_dir(&dir);
        let ctx = Ctx {
            host: self.host.clone(),
            dir,
        };
        let check = body(ctx);
        if catch_unwind(AssertUnwindSafe(|| self.host.run(check))).is_err() {
            self.failed.push(name.to_owned());
        }
    }
}

/// Runs each named async function as a check.
macro_rules! checks {
    ($suite:expr; $($name:ident),+ $(,)?) => {
        $($suite.check(stringify!($name), |ctx| Box::pin($name(ctx)));)+
    };
}
use checks;

/// What a check gets.
#[derive(Clone)]
struct Ctx<H> {
    host: H,
    dir: PathBuf,
}

impl<H: Host> Ctx<H> {
    /// Opens the check's store with small segments and these changes.
    async fn try_open(
        &self,
        change: impl FnOnce(&mut StoreConfig),
    ) -> Result<(Store, RecoveryReport)> {
        Store::builder(&self.dir)
            .configure(small)
            .configure(change)
            .backend(self.host.factory())
            .open()
            .await
    }

    async fn open_with(&self, change: impl FnOnce(&mut StoreConfig)) -> Store {
        self.try_open(change).await.unwrap().0
    }

    async fn open(&self) -> Store {
        self.open_with(|_| {}).await
    }

    /// A store with partition 1.
    async fn store_and_partition(&self) -> (Store, Partition) {
        let store = self.open().await;
        let partition = store.create_partition(1).await.unwrap();
        (store, partition)
    }

    /// Closes the store and opens it again.
    async fn reopen(&self, store: Store) -> (Store, Partition) {
        close(&store).await;
        let store = self.open().await;
        let partition = store.partition(1).await.unwrap();
        (store, partition)
    }

    /// Runs a check on the log as it is in memory, and again after it was closed and opened.
    async fn warm_and_cold(&self, store: Store, p: Partition, check: impl AsyncFn(&Partition)) {
        check(&p).await;
        let (store, p) = self.reopen(store).await;
        check(&p).await;
        close(&store).await;
    }

    /// Waits until `done` says yes; in vain for no more than ten seconds.
    async fn eventually(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        for _ in 0..2000 {
            if done().await {
                return;
            }
            self.host.pause(Duration::from_millis(5)).await;
        }
        panic!("in vain: {what}");
    }

    /// Names in the check's directory and below that end like this.
    fn files_like(&self, suffix: &str) -> usize {
        let files = self.host.files(&self.dir);
        let like = |path: &&PathBuf| path.to_string_lossy().ends_with(suffix);
        files.keys().filter(like).count()
    }
}

/// Small segments, so that a check crosses many of them.
fn small(config: &mut StoreConfig) {
    config.shards = Shards::Count(1);
    config.segment_bytes = SEGMENT_BYTES;
    config.group_bytes_max = 16 << 10;
    config.group_bytes_min = 4 << 10;
    config.mailbox_bytes_max = 1 << 20;
    config.tail_cache_bytes_max = 64 << 10;
    config.index_interval_bytes = 4 << 10;
    config.read_chunk_bytes = 16 << 10;
}

const SEGMENT_BYTES: u64 = 64 << 10;

async fn close(store: &Store) {
    store.close(Duration::from_secs(30)).await.unwrap();
}

/// The value that every check writes at this offset.
fn value(offset: u64) -> Vec<u8> {
    let mut value = format!("value {offset} ").into_bytes();
    let padding = usize::try_from(offset * 37 % 1500).unwrap();
    value.resize(value.len() + padding, b'.');
    value
}

/// A batch of the values of `[from, from + count)`.
fn batch(from: u64, count: u64) -> Batch {
    Batch::from_values((from..from + count).map(value)).unwrap()
}

/// A batch of one record with this timestamp.
fn stamped(timestamp: i64) -> Batch {
    let mut builder = BatchBuilder::new();
    let record = Record::new(timestamp.to_string()).timestamp(timestamp);
    builder.push(&record).unwrap();
    builder.finish().unwrap()
}

/// Appends the values of `[log end, log end + count)` in batches of `per_batch`.
async fn fill(partition: &Partition, count: u64, per_batch: u64) {
    let start = partition.offsets().log_end();
    let mut at = start;
    while at < start + count {
        let n = per_batch.min(start + count - at);
        let appended = partition.append(batch(at, n)).await.unwrap();
        assert_eq!(
            (appended.base_offset, u64::from(appended.count)),
            (at, n),
            "offsets follow each other"
        );
        at += n;
    }
}

/// Reads `[from, to)` and compares every value; nothing may follow.
async fn verify(partition: &Partition, from: u64, to: u64) {
    verify_seen(partition, from, to, Visibility::Durable).await;
}

async fn verify_seen(partition: &Partition, from: u64, to: u64, visibility: Visibility) {
    let mut at = from;
    loop {
        let fetched = partition
            .read(at, ReadLimits::default(), visibility)
            .await
            .unwrap();
        for record in fetched.records() {
            let record = record.unwrap();
            assert_eq!(record.offset, at);
            assert_eq!(record.value[..], value(at)[..], "value at {at}");
            at += 1;
        }
        assert_eq!(fetched.next_offset, at);
        if fetched.is_empty() {
            break;
        }
    }
    assert_eq!(at, to, "the log ends where it should");
}
