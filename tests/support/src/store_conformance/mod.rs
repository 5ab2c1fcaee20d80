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
use std::time::Duration;

use alluvium_core::io::{BackendFactory, LocalFuture};
use alluvium_core::{Partition, RecoveryReport, Result, Store, StoreConfig};

use crate::logs::{SEGMENT_BYTES, batch, close, fill, small, stamped, value, verify, verify_seen};

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
    let _guard = crate::alone();
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
    let _guard = crate::alone();
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
