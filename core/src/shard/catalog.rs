//! Which partitions the shard has: adopting those that an opening found, creating, deleting.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::boot::remove_tree;
use super::command::Adopted;
use super::layout::FoundPartition;
use super::turn::Shard;
use crate::error::{Error, Result};
use crate::io::IoBackend;
use crate::partition::{Change, Partition, Request, create_partition};
use crate::recovery::{RecoveryContext, recover_partition};

impl<B: IoBackend> Shard<B> {
    fn context(&self, found: &FoundPartition) -> RecoveryContext {
        RecoveryContext {
            partition: found.id,
            incarnation: found.incarnation,
            dir: found.dir(&self.path),
            config: Rc::clone(&self.config),
            pool: self.pool.clone(),
            direct: self.state.borrow().direct,
            read_only: self.read_only,
            known: None,
        }
    }

    pub(super) async fn adopt(
        &self,
        partitions: Vec<FoundPartition>,
    ) -> Result<(Vec<Adopted>, Duration)> {
        let _by_name = self.shared.start_name_work()?;
        let started = self.shared.backend.now();
        let mut logs = Vec::with_capacity(partitions.len());
        for found in partitions {
            let context = self.context(&found);
            let log = recover_partition(self.shared.backend.as_ref(), &context).await?;
            logs.push((context, log));
        }
        // Nothing is served before every partition of the shard has been judged.
        let mut ready = Vec::with_capacity(logs.len());
        for (context, log) in logs {
            let partition = Partition::start(&self.shared, context, log);
            ready.push(adopted(&partition));
            self.state
                .borrow_mut()
                .partitions
                .insert(partition.id(), partition);
        }
        Ok((ready, self.shared.backend.now().saturating_sub(started)))
    }

    pub(super) async fn create(&self, id: u64) -> Result<Adopted> {
        if self.read_only {
            return Err(Error::ReadOnly { id });
        }
        let _by_name = self.shared.start_name_work()?;
        let busy = self.reserve(id)?;
        if self.state.borrow().partitions.contains_key(&id) {
            return Err(Error::PartitionExists { id });
        }
        let backend = self.shared.backend.as_ref();
        let found = FoundPartition {
            id,
            incarnation: u32::try_from(backend.random_u64() >> 32).unwrap_or(1),
        };
        let context = self.context(&found);
        let temporary = found.dir_creating(&self.path);
        let log = match create_partition(backend, &context, &self.path, &temporary).await {
            Ok(log) => log,
            Err(e) => {
                // It may have failed after the directory had got its name. Two directories of one
                // partition must never be: the id stays busy if this one cannot be withdrawn.
                let (dir, deleted) = (found.dir(&self.path), found.dir_deleted(&self.path));
                let withdrawn = match backend.rename(&dir, &deleted).await {
                    // Its files may go when a crash cannot bring the name back any more.
                    Ok(()) if backend.sync_dir(&self.path).await.is_ok() => {
                        remove_tree(backend, &deleted).await.is_ok()
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        remove_tree(backend, &temporary).await.is_ok()
                    }
                    _ => {
                        std::mem::forget(busy);
                        false
                    }
                };
                if !withdrawn {
                    self.shared.stats.housekeeping_failed();
                }
                return Err(e);
            }
        };
        let partition = Partition::start(&self.shared, context, log);
        let ready = adopted(&partition);
        self.state.borrow_mut().partitions.insert(id, partition);
        Ok(ready)
    }

    pub(super) async fn delete(&self, id: u64, incarnation: u32) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly { id });
        }
        let _busy = self.reserve(id)?;
        let partition = self.find(id, incarnation)?;
        let backend = self.shared.backend.as_ref();
        let found = FoundPartition { id, incarnation };
        let (dir, deleted) = (found.dir(&self.path), found.dir_deleted(&self.path));
        // Appends end first: none may be acknowledged into a directory that is going.
        let (reply, done) = oneshot::channel();
        partition.submit(Request::Change(Change::Abandon(reply.into())));
        match done.await {
            Ok(Ok(()) | Err(Error::Closed)) => {}
            Ok(Err(e)) => return Err(e),
            Err(_) => return Err(Error::ClosedInFlight),
        }
        let _by_name = self.shared.start_name_work()?;
        // A failure leaves the partition closed; deleting can be tried again. Its id is free when no
        // crash can bring the name back: two directories of one partition must never be.
        let renamed = match backend.rename(&dir, &deleted).await {
            // An attempt before this one came so far.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        };
        let synced = match renamed {
            Ok(()) => backend.sync_dir(&self.path).await,
            Err(e) => Err(e),
        };
        synced.map_err(|e| Error::DeletionUnknown {
            id,
            cause: e.into(),
        })?;
        self.state.borrow_mut().partitions.remove(&id);
        // From here on the partition is gone; what stays is removed by the next opening.
        if remove_tree(backend, &deleted).await.is_err() {
            self.shared.stats.housekeeping_failed();
        }
        Ok(())
    }

    /// Marks an id as being created or deleted until the value is dropped.
    fn reserve(&self, id: u64) -> Result<Busy<'_, B>> {
        if self.state.borrow_mut().busy.insert(id) {
            Ok(Busy { shard: self, id })
        } else {
            Err(Error::PartitionBusy { id })
        }
    }
}

struct Busy<'a, B: IoBackend> {
    shard: &'a Shard<B>,
    id: u64,
}

impl<B: IoBackend> Drop for Busy<'_, B> {
    fn drop(&mut self) {
        self.shard.state.borrow_mut().busy.remove(&self.id);
    }
}

/// What a handle to the partition is made of.
pub(super) fn adopted<B: IoBackend>(partition: &Rc<Partition<B>>) -> Adopted {
    Adopted {
        id: partition.id(),
        incarnation: partition.incarnation(),
        offsets: partition.subscribe(),
        tail: partition.tail(),
        batch_bytes_max: partition.batch_bytes_max(),
        report: partition.describe().recovery,
    }
}
