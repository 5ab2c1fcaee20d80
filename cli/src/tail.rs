//! `tail`: prints the last records, and with `--follow` those that come.
//!
//! A store belongs to one process at a time. So following does not keep the store open: it looks at
//! the partition's files, opens the store for reading when they have changed and nobody writes,
//! prints what is new, and lets go of it again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use alluvium::Error;

use crate::args::TailArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, complain};
use crate::read::Printer;
use crate::target::{NamedStore, close, partition, tell_damage};

/// How often a followed partition is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Prints, and follows until interrupted.
pub(crate) async fn run(target: &NamedStore, args: TailArgs) -> Result<Outcome, Failure> {
    let mut tail = Tail {
        printer: Printer {
            out: Output::new(),
            format: args.format,
            left: u64::MAX,
            skip_damaged: false,
            damaged: false,
        },
        next: None,
        told_busy: false,
        seen: None,
    };
    if !args.follow {
        tail.look(target, &args).await?;
        return Ok(tail.printer.outcome());
    }
    let follow = async {
        loop {
            tail.follow_once(target, &args).await?;
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        failed = follow => failed,
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => Ok(tail.printer.outcome()),
            Err(e) => Err(Failure::Other(format!("wait for an interruption: {e}"))),
        },
    }
}

struct Tail {
    printer: Printer,
    /// Offset of the next record to print; `None` before the first look.
    next: Option<u64>,
    told_busy: bool,
    /// The files when the store was last looked at.
    seen: Option<Vec<FileState>>,
}

type FileState = (PathBuf, u64, Option<SystemTime>);

impl Tail {
    async fn follow_once(&mut self, target: &NamedStore, args: &TailArgs) -> Result<(), Failure> {
        let now = partition_files(&target.dir, args.partition);
        if self.seen.is_some() && self.seen == now {
            return Ok(());
        }
        match self.look(target, args).await {
            Ok(()) => {
                self.seen = now;
                self.told_busy = false;
                Ok(())
            }
            Err(Failure::Store(Error::AlreadyOpen { path })) => {
                if !self.told_busy {
                    let path = path.display();
                    complain(&format!(
                        "{path}: open in another process; waiting until it closes"
                    ));
                    self.told_busy = true;
                }
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Prints what there is from where the last look ended.
    async fn look(&mut self, target: &NamedStore, args: &TailArgs) -> Result<(), Failure> {
        let (store, report) = target.open_read_only().await?;
        let partition = partition(&store, args.partition).await?;
        if !self.printer.damaged {
            self.printer.damaged = tell_damage(&report, args.partition);
        }
        let offsets = partition.offsets();
        let (start, end) = (offsets.log_start(), offsets.durable());
        let from = match self.next {
            None => end.saturating_sub(args.records).max(start),
            Some(next) if next > end => {
                complain(&format!(
                    "the log was truncated to offset {end}; going on there"
                ));
                end
            }
            Some(next) if next < start => {
                complain(&format!(
                    "the log now starts at offset {start}; going on there"
                ));
                start
            }
            Some(next) => next,
        };
        let printed = self.printer.print(&partition, from).await;
        self.printer.out.flush()?;
        self.next = Some(printed?);
        close(&store).await
    }
}

/// The state of a partition's files; `None` when they cannot be listed.
fn partition_files(store: &Path, id: u64) -> Option<Vec<FileState>> {
    let prefix = format!("{id:020}.");
    let mut states = Vec::new();
    for entry in std::fs::read_dir(store).ok()?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        for file in std::fs::read_dir(entry.path()).ok()?.flatten() {
            let metadata = file.metadata().ok()?;
            states.push((file.path(), metadata.len(), metadata.modified().ok()));
        }
    }
    states.sort_unstable();
    Some(states)
}
