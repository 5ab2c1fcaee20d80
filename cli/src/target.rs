//! Which store, on which backend, opened how.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium::{BackendKind, Error, Partition, RecoveryReport, Shards, Store, StoreBuilder};

use crate::failure::Failure;
use crate::output::complain;

/// How long a store may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);

/// What the global arguments say.
#[derive(Debug)]
pub(crate) struct Target {
    dir: Option<PathBuf>,
    backend: BackendKind,
}

/// A store's directory, and what to open it on.
#[derive(Debug)]
pub(crate) struct NamedStore {
    pub(crate) dir: PathBuf,
    backend: BackendKind,
}

impl Target {
    pub(crate) fn new(dir: Option<PathBuf>, backend: BackendKind) -> Self {
        Self { dir, backend }
    }

    pub(crate) fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    pub(crate) fn backend(&self) -> BackendKind {
        self.backend
    }

    /// The store, which most commands need.
    pub(crate) fn named(&self) -> Result<NamedStore, Failure> {
        match &self.dir {
            Some(dir) => Ok(NamedStore {
                dir: dir.clone(),
                backend: self.backend,
            }),
            None => Err(Failure::Other(
                "no store named: give its directory with --dir or ALLUVIUM_DIR".to_owned(),
            )),
        }
    }
}

impl NamedStore {
    /// Opens for reading; nothing on the disk is changed, damage does not refuse it.
    pub(crate) async fn open_read_only(&self) -> Result<(Store, RecoveryReport), Failure> {
        self.open(StoreBuilder::read_only).await
    }

    /// Opens as `settings` say.
    pub(crate) async fn open(
        &self,
        settings: impl FnOnce(StoreBuilder) -> StoreBuilder,
    ) -> Result<(Store, RecoveryReport), Failure> {
        // A tool does one thing at a time: one shard will do.
        let builder = Store::builder(&self.dir).configure(|c| c.shards = Shards::Count(1));
        Ok(settings(builder).backend(self.backend).open().await?)
    }
}

/// The partition with this number; who named one that is not there hears which are.
pub(crate) async fn partition(store: &Store, id: u64) -> Result<Partition, Failure> {
    match store.partition(id).await {
        Err(Error::PartitionNotFound { .. }) => {
            let there = store.list_partitions().await?;
            let there: Vec<_> = there.iter().map(|info| info.id.to_string()).collect();
            let there = if there.is_empty() {
                "this store has none; `append` creates them".to_owned()
            } else {
                format!(
                    "this store has {}: choose with --partition",
                    there.join(", ")
                )
            };
            Err(Failure::Other(format!(
                "partition {id} does not exist; {there}"
            )))
        }
        found => Ok(found?),
    }
}

/// Seals and closes.
pub(crate) async fn close(store: &Store) -> Result<(), Failure> {
    Ok(store.close(CLOSE_PATIENCE).await?)
}

/// Tells what an opening found damaged of a partition: its end may lie before what was acknowledged.
/// Returns whether there was anything.
pub(crate) fn tell_damage(report: &RecoveryReport, id: u64) -> bool {
    let of_it = report.partitions.iter().find(|p| p.partition == id);
    let damage = of_it.and_then(|p| p.corruption.as_ref());
    if let Some(damage) = damage {
        complain(&format!(
            "alluvium: damaged, what can be read is read: {damage}"
        ));
    }
    damage.is_some()
}
