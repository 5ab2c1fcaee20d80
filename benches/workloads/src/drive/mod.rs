//! The driver: takes any log through the workloads, the same way each.

mod append;
mod open_loop;
mod read;
mod reopen;

pub(crate) use append::{bridge, closed_loop};
pub(crate) use open_loop::open_loop;
pub(crate) use read::{read_cold, read_warm};
pub(crate) use reopen::reopen;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use tokio::task::JoinHandle;

use crate::engine::{Level, Log, Payload, RECORD_LEN};
use crate::error::{Error, Result};
use crate::measure::{Run, histogram, merge};

/// Records per batch of data that is there to be read.
const FILL_RECORDS: usize = 256;
/// Batches in flight while filling.
const FILL_DEPTH: usize = 8;

/// Whole batches of [`FILL_RECORDS`] in so many bytes, at least one.
fn fill_batches(bytes: u64) -> u64 {
    bytes.div_ceil((FILL_RECORDS * RECORD_LEN) as u64).max(1)
}

/// Appends so many batches of [`FILL_RECORDS`] to the first partition and makes them durable.
async fn fill<L: Log>(log: &L, batches: u64, run: &Run) -> Result<()> {
    let left = Arc::new(AtomicU64::new(batches));
    let mut tasks = Vec::new();
    for _ in 0..FILL_DEPTH {
        let (log, left, stop) = (log.clone(), Arc::clone(&left), run.stop.clone());
        let payload = Payload::new(FILL_RECORDS);
        tasks.push(tokio::spawn(async move {
            let take = |n: u64| n.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                stop.check()?;
                log.append(0, &payload, Level::Written).await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    log.sync().await
}

/// Waits for the producers and puts their latencies together.
async fn join(tasks: Vec<JoinHandle<Result<Histogram<u64>>>>) -> Result<Histogram<u64>> {
    let mut all = histogram();
    for task in tasks {
        merge(&mut all, &task.await??);
    }
    Ok(all)
}

/// Takes the files below the directory out of the page cache, as far as they are clean.
fn forget_pages(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    for entry in entries {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if path.is_dir() {
            forget_pages(&path)?;
            continue;
        }
        let Ok(file) = std::fs::File::open(&path) else {
            // It was removed since: a log may tidy up at any time.
            continue;
        };
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|e| Error::io("drop from the page cache", &path)(e.into()))?;
    }
    Ok(())
}
