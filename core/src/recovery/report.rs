//! What recovery found and did, for the embedding program's log.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::opening::DamageFacts;
use super::plan::{TailCase, TailFacts};
use crate::error::Corruption;

/// The result of recovering one partition.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartitionReport {
    /// The partition.
    pub partition: u64,
    /// What its tail looked like, and so what was done.
    pub case: TailCase,
    /// The facts behind the case; `None` when there was no segment to look at. A tail that is cut by
    /// order ([`OnCorruption::CutTail`](crate::OnCorruption::CutTail)) is `Corrupt` whatever they are.
    pub tail: Option<TailFacts>,
    /// What was found damaged; nothing, as a rule.
    pub damage: DamageFacts,
    /// First readable offset.
    pub log_start: u64,
    /// Offset that the next record gets.
    pub log_end: u64,
    /// Offsets below `log_end` that may have been shown before the crash without being durable;
    /// they are skipped, not given again.
    pub skipped_offsets: u64,
    /// Segments that hold the log.
    pub segments: usize,
    /// Bytes of the tail that were written again to make them durable.
    pub rewritten_bytes: u64,
    /// File and byte position at which a torn tail was cut.
    pub cut: Option<(PathBuf, u64)>,
    /// Half-made files and indexes of segments that are gone, which were removed.
    pub temporaries_removed: usize,
    /// Names in the directory that are not ours; left alone.
    pub foreign: Vec<PathBuf>,
    /// Damage, when the partition was opened in spite of it.
    pub corruption: Option<Corruption>,
}

impl PartitionReport {
    /// The report of an empty log.
    pub(crate) fn empty(partition: u64, case: TailCase) -> Self {
        Self {
            partition,
            case,
            tail: None,
            damage: DamageFacts::default(),
            log_start: 0,
            log_end: 0,
            skipped_offsets: 0,
            segments: 0,
            rewritten_bytes: 0,
            cut: None,
            temporaries_removed: 0,
            foreign: Vec::new(),
            corruption: None,
        }
    }
}

impl fmt::Display for PartitionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "partition {}: {}, offsets [{}, {}), {} segment{}",
            self.partition,
            self.case,
            self.log_start,
            self.log_end,
            self.segments,
            plural(self.segments),
        )?;
        if self.skipped_offsets > 0 {
            write!(f, ", {} offsets skipped", self.skipped_offsets)?;
        }
        if let Some((path, position)) = &self.cut {
            write!(f, ", cut at byte {position} of {}", path.display())?;
        }
        if let Some(corruption) = &self.corruption {
            write!(f, ", read only: {corruption}")?;
        }
        Ok(())
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The result of opening a store.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// One entry per partition, ascending by id.
    pub partitions: Vec<PartitionReport>,
    /// Time from the first look at the directory until every partition was ready.
    pub duration: Duration,
}

impl RecoveryReport {
    /// Whether every partition had been closed or sealed, so that nothing had to be decided.
    pub fn is_clean(&self) -> bool {
        self.partitions.iter().all(|p| p.case == TailCase::Clean)
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} partition{} in {:.1?}",
            self.partitions.len(),
            plural(self.partitions.len()),
            self.duration
        )?;
        for partition in &self.partitions {
            writeln!(f, "  {partition}")?;
        }
        Ok(())
    }
}
