//! A simulated machine with one store directory, and what the checks do with it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use alluvium::backends::sim::{Sim, SimConfig, SimFactory};
use alluvium::{Error, ErrorClass, Partition, RecoveryReport, Result, Store, StoreConfig};
use alluvium_testkit::logs::{close, small};

pub(crate) const DIR: &str = "/data/store";

pub(crate) const EIO: i32 = 5;
pub(crate) const EROFS: i32 = 30;
pub(crate) const ENOSPC: i32 = 28;

/// A machine whose store directory can be made.
pub(crate) fn machine(seed: u64) -> Sim {
    machine_with(seed, |_| {})
}

pub(crate) fn machine_with(seed: u64, change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut config = SimConfig::new(seed);
    config.run_time_max = Duration::from_secs(900);
    change(&mut config);
    let sim = Sim::new(config);
    sim.create_dir_all("/data").unwrap();
    sim
}

/// Opens the store in a process of its own.
pub(crate) async fn try_open(
    sim: &Sim,
    change: impl FnOnce(&mut StoreConfig),
) -> Result<(Store, RecoveryReport)> {
    Store::builder(DIR)
        .configure(small)
        // Fewer operations beside those that a check counts.
        .configure(|c| c.preinitialise = false)
        .configure(change)
        .backend(sim.new_process())
        .open()
        .await
}

/// Opens the store in a given process, with partition 1.
pub(crate) async fn open_in(factory: SimFactory) -> (Store, Partition) {
    let opened = Store::builder(DIR).configure(small).backend(factory).open();
    let (store, _) = opened.await.unwrap();
    let partition = store.partition_or_create(1).await.unwrap();
    (store, partition)
}

pub(crate) async fn open(sim: &Sim) -> Store {
    try_open(sim, |_| {}).await.unwrap().0
}

pub(crate) async fn store_and_partition(sim: &Sim) -> (Store, Partition) {
    let store = open(sim).await;
    let partition = store.partition_or_create(1).await.unwrap();
    (store, partition)
}

/// Closes the store and opens it in another process, with partition 1.
pub(crate) async fn reopened(sim: &Sim, store: Store) -> (Store, Partition) {
    close(&store).await;
    drop(store);
    let store = open(sim).await;
    let partition = store.partition(1).await.unwrap();
    (store, partition)
}

/// All files of the machine with their content.
pub(crate) fn snapshot(sim: &Sim) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = sim.list_files().into_iter();
    files
        .map(|path| (path.clone(), sim.read_file(&path).unwrap()))
        .collect()
}

/// A machine with these files.
pub(crate) fn machine_from(files: &BTreeMap<PathBuf, Vec<u8>>) -> Sim {
    let sim = machine(1);
    for (path, content) in files {
        sim.write_file(path, content).unwrap();
    }
    sim
}

/// Polls a future at most `polls` times; `None` when it is dropped before it was ready.
pub(crate) async fn polled<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| match (future.as_mut().poll(cx), left) {
        (Poll::Ready(value), _) => Poll::Ready(Some(value)),
        (Poll::Pending, 0 | 1) => Poll::Ready(None),
        (Poll::Pending, _) => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Waits in virtual time until the store has nothing under way.
pub(crate) async fn at_rest(sim: &Sim, store: &Store) {
    for _ in 0..10_000 {
        let stats = store.stats().await.unwrap();
        if stats
            .iter()
            .all(|s| s.requests_under_way == 0 && s.bytes_under_way == 0)
        {
            return;
        }
        sim.sleep(Duration::from_millis(1)).await;
    }
    panic!("something stays under way: {:?}", store.stats().await);
}

/// Checks an error's answers against a table that is not the engine's.
#[track_caller]
pub(crate) fn check_answers(e: &Error) {
    use ErrorClass::{Corrupt, Misuse, NotApplied, OutcomeUnknown, PartitionFailed};
    let (class, retriable) = match e {
        Error::NoSpace { .. }
        | Error::Full { .. }
        | Error::PartitionBusy { .. }
        | Error::AlreadyOpen { .. }
        | Error::Fenced { .. } => (NotApplied, true),
        Error::Closed | Error::WrongOffset { .. } => (NotApplied, false),
        Error::Io { source, .. } => (NotApplied, matches!(source.code, Some(ENOSPC | 23 | 24))),
        Error::OutcomeUnknown { .. }
        | Error::DeletionUnknown { .. }
        | Error::ShardDead { .. }
        | Error::ClosedInFlight
        | Error::CloseTimeout { .. } => (OutcomeUnknown, false),
        Error::PartitionFailed { .. } => (PartitionFailed, false),
        Error::Corrupt(_) => (Corrupt, false),
        _ => (Misuse, false),
    };
    assert_eq!(e.class(), class, "{e:?}");
    assert_eq!(e.is_retriable(), retriable, "{e:?}");
    assert_eq!(e.is_not_applied(), class != OutcomeUnknown, "{e:?}");
    assert!(!e.to_string().is_empty());
}

/// Path that an error names.
pub(crate) fn path_of(e: &Error) -> Option<&Path> {
    match e {
        Error::Corrupt(c) => Some(&c.path),
        Error::NotAStore { path, .. }
        | Error::AlreadyOpen { path }
        | Error::Fenced { path, .. }
        | Error::UnsupportedVersion { path, .. }
        | Error::NoSpace { path }
        | Error::Io { path, .. } => Some(path),
        _ => None,
    }
}
