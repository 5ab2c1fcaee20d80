//! Opening and closing a store, and its partitions.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};

use crate::bridge::{Mailbox, Partition, sync_all};
use crate::config::{OnCorruption, Shards, StoreConfig};
use crate::error::{Error, Result};
use crate::io::{BackendFactory, Capabilities, ShardSpec};
use crate::metrics::ShardStats;
use crate::partition::PartitionInfo;
use crate::recovery::RecoveryReport;
use crate::shard::{Command, FoundPartition, ShardSetup, placement, shard_main};

/// An open store. Cheap to clone, usable from any thread.
///
/// Dropping the last handle (partitions and subscriptions included) ends the shards without any
/// further durable work; what was acknowledged is safe, and the next opening recovers the rest.
/// [`close`](Self::close) seals everything first.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    shards: Vec<Mailbox>,
    info: StoreInfo,
    /// Resolve when the shards have ended; waited for by `close`.
    ended: Mutex<Vec<oneshot::Receiver<()>>>,
}

/// What a store runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreInfo {
    /// Random id given at creation.
    pub store_id: u64,
    /// The backend and how it writes durably.
    pub capabilities: Capabilities,
    /// Why this backend was chosen, in a sentence; empty when it was given by type.
    pub backend_reason: String,
    /// Whether segments bypass the page cache.
    pub direct_io: bool,
    /// Number of shard threads.
    pub shards: usize,
    /// Cores that the shards are pinned to; empty when they are not.
    pub cores: Vec<usize>,
}

/// Settings on the way to an open store; see [`Store::builder`].
#[derive(Debug, Clone)]
pub struct StoreBuilder {
    request: OpenRequest,
}

/// Everything that opening needs but the backend.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    path: PathBuf,
    config: StoreConfig,
    create: bool,
    read_only: bool,
    reason: String,
}

impl OpenRequest {
    /// Notes why the backend was chosen, for [`StoreInfo::backend_reason`].
    #[must_use]
    pub fn because(mut self, reason: String) -> Self {
        self.reason = reason;
        self
    }
}

/// Something that can open a store: every [`BackendFactory`], and types that choose one when they
/// are asked.
pub trait OpenStore: Send {
    /// Opens the store on the backend of choice.
    fn open(
        self,
        request: OpenRequest,
    ) -> impl Future<Output = Result<(Store, RecoveryReport)>> + Send;
}

impl<F: BackendFactory> OpenStore for F {
    async fn open(self, request: OpenRequest) -> Result<(Store, RecoveryReport)> {
        open(&self, request).await
    }
}

/// A [`StoreBuilder`] that knows its backend.
#[derive(Debug, Clone)]
pub struct ConfiguredBuilder<O> {
    request: OpenRequest,
    backend: O,
}

impl StoreBuilder {
    /// Replaces all settings.
    #[must_use]
    pub fn config(mut self, config: StoreConfig) -> Self {
        self.request.config = config;
        self
    }

    /// Changes settings in place.
    ///
    /// ```
    /// use alluvium_core::{Shards, Store};
    /// let builder = Store::builder("/var/lib/queue").configure(|config| {
    ///     config.shards = Shards::Count(2);
    ///     config.segment_bytes = 256 << 20;
    /// });
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut StoreConfig)) -> Self {
        change(&mut self.request.config);
        self
    }

    /// Whether to create the store when the directory is missing or empty. Default: yes.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.request.create = create;
        self
    }

    /// Opens for reading only: nothing on the disk is changed, and several processes may do so at
    /// once. Damage inside of partitions does not refuse the opening.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.request.read_only = true;
        self.request.create = false;
        self.request.config.on_corruption = OnCorruption::Salvage;
        self
    }

    /// Chooses what the store runs on.
    pub fn backend<O: OpenStore>(self, backend: O) -> ConfiguredBuilder<O> {
        ConfiguredBuilder {
            request: self.request,
            backend,
        }
    }
}

impl<O: OpenStore> ConfiguredBuilder<O> {
    /// As [`StoreBuilder::config`].
    #[must_use]
    pub fn config(self, config: StoreConfig) -> Self {
        self.change(|builder| builder.config(config))
    }

    /// As [`StoreBuilder::configure`].
    #[must_use]
    pub fn configure(self, change: impl FnOnce(&mut StoreConfig)) -> Self {
        self.change(|builder| builder.configure(change))
    }

    /// As [`StoreBuilder::create`].
    #[must_use]
    pub fn create(self, create: bool) -> Self {
        self.change(|builder| builder.create(create))
    }

    /// As [`StoreBuilder::read_only`].
    #[must_use]
    pub fn read_only(self) -> Self {
        self.change(StoreBuilder::read_only)
    }

    fn change(self, change: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let Self { request, backend } = self;
        change(StoreBuilder { request }).backend(backend)
    }

    /// Opens the store and recovers every partition.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::NotAStore`], [`Error::AlreadyOpen`],
    /// [`Error::UnsupportedVersion`], [`Error::Corrupt`] (see [`OnCorruption`]),
    /// [`Error::Fenced`], [`Error::NoSpace`], [`Error::Io`]. After any of them nothing is open.
    ///
    /// # Cancellation
    /// Dropping the future ends the shards; the directory is as after a crash.
    pub async fn open(self) -> Result<(Store, RecoveryReport)> {
        self.backend.open(self.request).await
    }
}

impl Store {
    /// Starts to open the store in the directory `path`.
    pub fn builder(path: impl Into<PathBuf>) -> StoreBuilder {
        StoreBuilder {
            request: OpenRequest {
                path: path.into(),
                config: StoreConfig::default(),
                create: true,
                read_only: false,
                reason: String::new(),
            },
        }
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What the store runs on.
    pub fn info(&self) -> &StoreInfo {
        &self.inner.info
    }

    fn shard_of(&self, id: u64) -> Result<&Mailbox> {
        let shard = placement(id, self.inner.shards.len());
        self.inner
            .shards
            .get(shard)
            .ok_or(Error::ShardDead { shard })
    }

    /// Creates a partition; durable when it returns. Waits for room in the shard's mailbox.
    ///
    /// # Cancellation
    /// Before the request has room nothing has happened; after that the partition is created, and only the
    /// handle is lost.
    ///
    /// # Errors
    /// [`Error::PartitionExists`], [`Error::PartitionBusy`], [`Error::NoSpace`],
    /// [`Error::ReadOnly`], [`Error::Io`]: in each case nothing was created. (After [`Error::Io`] a
    /// crash may bring the partition back, empty.)
    pub async fn create_partition(&self, id: u64) -> Result<Partition> {
        let mailbox = self.shard_of(id)?;
        let create = |asked| Command::Create { id, asked };
        let adopted = mailbox.ask_with_room(create).await?;
        Ok(Partition::new(mailbox.clone(), &adopted))
    }

    /// A handle to an existing partition.
    ///
    /// # Errors
    /// [`Error::PartitionNotFound`].
    pub async fn partition(&self, id: u64) -> Result<Partition> {
        let mailbox = self.shard_of(id)?;
        let adopted = mailbox.ask(|reply| Command::Find { id, reply }).await?;
        Ok(Partition::new(mailbox.clone(), &adopted))
    }

    /// The partition, created if it does not exist.
    pub async fn partition_or_create(&self, id: u64) -> Result<Partition> {
        match self.partition(id).await {
            Err(Error::PartitionNotFound { .. }) => match self.create_partition(id).await {
                Err(Error::PartitionExists { .. }) => self.partition(id).await,
                created => created,
            },
            found => found,
        }
    }

    /// Deletes a partition with all its data. Its handles fail from then on; a new partition of
    /// the same id has nothing to do with the old one.
    ///
    /// # Errors
    /// [`Error::PartitionNotFound`] when it, in this incarnation, is not there;
    /// [`Error::DeletionUnknown`] when the system refuses: deleting can be tried again, with the
    /// same handle.
    pub async fn delete_partition(&self, partition: &Partition) -> Result<()> {
        let (id, incarnation) = (partition.id(), partition.incarnation());
        self.shard_of(id)?
            .ask(|reply| Command::Delete {
                id,
                incarnation,
                reply,
            })
            .await
    }

    /// All partitions, ascending by id.
    pub async fn list_partitions(&self) -> Result<Vec<PartitionInfo>> {
        let mut all = Vec::new();
        for shard in &self.inner.shards {
            all.extend(shard.ask(Command::List).await?);
        }
        all.sort_unstable_by_key(|p| p.id);
        Ok(all)
    }

    /// Makes everything appended to these partitions so far durable, all at once.
    ///
    /// # Errors
    /// The first one, after all were tried.
    pub async fn sync_many(&self, partitions: &[Partition]) -> Result<()> {
        sync_all(partitions).await
    }

    /// Counters of every shard, by index.
    pub async fn stats(&self) -> Result<Vec<ShardStats>> {
        let mut all = Vec::with_capacity(self.inner.shards.len());
        for shard in &self.inner.shards {
            all.push(shard.ask(Command::Stats).await?);
        }
        Ok(all)
    }

    /// Finishes what is under way, seals every partition and ends the shards. Later calls on any
    /// handle fail with [`Error::Closed`]. Closing again is fine.
    ///
    /// # Errors
    /// [`Error::CloseTimeout`] after `deadline`: what was acknowledged is durable, and the shards
    /// go on to close. The first error of a seal otherwise.
    ///
    /// # Cancellation
    /// Dropping the future does not stop the closing.
    pub async fn close(&self, deadline: Duration) -> Result<()> {
        let asked: Vec<_> = self
            .inner
            .shards
            .iter()
            .map(|shard| {
                // First: who meets the end of the shard must find that it was asked for.
                shard.close_bounds();
                let (reply, answer) = oneshot::channel();
                let sent = shard.send_close(deadline, reply);
                (sent, answer)
            })
            .collect();
        let mut result = Ok(());
        for (sent, answer) in asked {
            // A shard that is gone already has nothing left to close.
            let closed = match sent {
                Ok(()) => answer.await.unwrap_or(Ok(())),
                Err(_) => Ok(()),
            };
            result = result.and(closed);
        }
        if !matches!(result, Err(Error::CloseTimeout { .. })) {
            let mut ended = self.inner.ended.lock().await;
            // One leaves the list when it has resolved: a close that is dropped here leaves the
            // rest to the next.
            while let Some(shard) = ended.last_mut() {
                // Resolves by being dropped, when the shard has let go of its files.
                shard.await.unwrap_or(());
                ended.pop();
            }
        }
        result
    }
}

/// The cores to pin shards to, one entry per shard; `None` for a shard that is not pinned.
fn place_shards(shards: &Shards, allowed: &[usize]) -> Result<Vec<Option<usize>>> {
    match shards {
        Shards::Auto => Ok(vec![None; (allowed.len() / 2).max(1)]),
        Shards::Count(n) => Ok(vec![None; *n]),
        Shards::Cores(cores) => {
            if let Some(core) = cores.iter().find(|c| !allowed.contains(c)) {
                return Err(Error::InvalidConfig {
                    setting: "shards",
                    value: format!("core {core}"),
                    allowed: format!("the cores that this process may use: {allowed:?}"),
                });
            }
            Ok(cores.iter().copied().map(Some).collect())
        }
    }
}

async fn open<F: BackendFactory>(
    factory: &F,
    request: OpenRequest,
) -> Result<(Store, RecoveryReport)> {
    let OpenRequest {
        path,
        config,
        create,
        read_only,
        reason,
    } = request;
    config.validate()?;
    let cores = place_shards(&config.shards, &factory.allowed_cores())?;
    let mut shards = Vec::with_capacity(cores.len());
    let mut ended_receivers = Vec::with_capacity(cores.len());
    // The first shard holds the lock, for all of them.
    let (mut alive, mut others): (Vec<_>, Vec<_>) = cores
        .iter()
        .skip(1)
        .map(|_| oneshot::channel())
        .map(|(alive, other)| (Some(alive), other))
        .unzip();
    alive.insert(0, None);
    for ((index, core), alive) in cores.iter().enumerate().zip(alive) {
        let (mailbox, receiver) = Mailbox::new(index, &config);
        let (ended, ended_receiver) = oneshot::channel();
        let setup = ShardSetup {
            path: path.clone(),
            config: config.clone(),
            create,
            read_only,
            mailbox: receiver.receiver,
            requests: receiver.requests,
            read_ahead: receiver.read_ahead,
            bytes: receiver.bytes,
            ended,
            alive,
            others: std::mem::take(&mut others),
        };
        let spec = ShardSpec {
            name: format!("alluvium-{index}"),
            core: *core,
        };
        factory
            .spawn_shard(
                spec,
                Box::new(move |backend: Rc<F::Backend>| Box::pin(shard_main(backend, setup))),
            )
            .map_err(|e| Error::io("start a shard for", &path, e))?;
        shards.push(mailbox);
        ended_receivers.push(ended_receiver);
    }
    let Some(first) = shards.first() else {
        return Err(Error::ShardDead { shard: 0 });
    };
    let booted = first.ask(Command::Boot).await?;
    let adopting: Vec<_> = shards
        .iter()
        .enumerate()
        .map(|(index, shard)| {
            let mine = |p: &&FoundPartition| placement(p.id, shards.len()) == index;
            let partitions = booted.partitions.iter().filter(mine).cloned().collect();
            let direct = booted.direct;
            shard.ask(move |reply| Command::Adopt {
                partitions,
                direct,
                reply,
            })
        })
        .collect();
    let mut report = RecoveryReport::default();
    for adopted in futures_util::future::join_all(adopting).await {
        let (adopted, took) = adopted?;
        report.duration = report.duration.max(booted.took + took);
        let reports = adopted.into_iter().map(|a| a.report);
        report.partitions.extend(reports);
    }
    report.partitions.sort_unstable_by_key(|p| p.partition);
    let info = StoreInfo {
        store_id: booted.store_id,
        capabilities: booted.capabilities,
        backend_reason: reason,
        direct_io: booted.direct,
        shards: shards.len(),
        cores: cores.into_iter().flatten().collect(),
    };
    let ended = Mutex::new(ended_receivers);
    let store = Store {
        inner: Arc::new(Inner {
            path,
            shards,
            info,
            ended,
        }),
    };
    Ok((store, report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_placed_on_allowed_cores_only() {
        assert_eq!(
            place_shards(&Shards::Auto, &[0, 1, 2, 5]),
            Ok(vec![None; 2])
        );
        assert_eq!(place_shards(&Shards::Auto, &[]), Ok(vec![None; 1]));
        assert_eq!(
            place_shards(&Shards::Cores(vec![5]), &[2, 5]),
            Ok(vec![Some(5)])
        );
        let refused = place_shards(&Shards::Cores(vec![3]), &[2, 5]);
        assert!(matches!(
            refused,
            Err(Error::InvalidConfig {
                setting: "shards",
                ..
            })
        ));
    }
}
