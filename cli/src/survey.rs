//! Looking through whole partitions: what `inspect`, `verify` and `repair` have in common.

use alluvium::{
    Corruption, CorruptionKind, InspectDetail, InspectRequest, InspectedSegment, PartitionInfo,
    Store, TailCase,
};
use indicatif::ProgressBar;

use crate::failure::Failure;
use crate::output::progress;
use crate::target::partition;

/// All that there is of one partition.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) info: PartitionInfo,
    pub(crate) segments: Vec<InspectedSegment>,
    /// Every damaged place, by segment and position.
    pub(crate) damage: Vec<Corruption>,
}

impl Survey {
    /// What there is to know about a tail that was not closed in order, for people.
    pub(crate) fn tail_note(&self) -> Option<String> {
        let unsealed = self.info.recovery.case == TailCase::Unsealed;
        let note = "the tail is not sealed: an earlier process died, or the seal is damaged. All \
                    that is here is whole; whether the very last batches vanished without a trace \
                    cannot be told";
        let recovery = &self.info.recovery;
        if recovery.case == TailCase::Torn && recovery.corruption.is_some() {
            return Some(format!(
                "the log ends at offset {} here: what lay behind it may have been acknowledged, and is \
                 lost. It is not opened for writing",
                self.info.offsets.log_end()
            ));
        }
        self.torn_tail()
            .or_else(|| unsealed.then(|| note.to_owned()))
    }

    /// The tail, taken for an unacknowledged one, that the next opening for writing cuts, for people.
    /// Where the opening met damage, what is torn may have been acknowledged, and nothing is cut.
    pub(crate) fn torn_tail(&self) -> Option<String> {
        let recovery = &self.info.recovery;
        let (path, position) = recovery
            .cut
            .as_ref()
            .filter(|_| recovery.case == TailCase::Torn && recovery.corruption.is_none())?;
        Some(format!(
            "torn tail at byte {position} of {}: taken for unacknowledged writes of a process that \
             died; the next opening for writing cuts them",
            path.display()
        ))
    }

    pub(crate) fn record_count(&self) -> u64 {
        self.segments.iter().map(|s| s.record_count).sum()
    }

    pub(crate) fn batch_count(&self) -> u64 {
        self.segments.iter().map(|s| s.batch_count).sum()
    }
}

/// The partitions of the store, or the one named.
pub(crate) async fn partitions(
    store: &Store,
    only: Option<u64>,
) -> Result<Vec<PartitionInfo>, Failure> {
    match only {
        Some(id) => Ok(vec![partition(store, id).await?.describe().await?]),
        None => Ok(store.list_partitions().await?),
    }
}

/// The sum of numbers that a forged header may have made as large as they get.
pub(crate) fn total(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// Looks through the partitions of a store one after the other.
pub(crate) async fn survey(
    store: &Store,
    only: Option<u64>,
    detail: InspectDetail,
) -> Result<Vec<Survey>, Failure> {
    let infos = partitions(store, only).await?;
    let bar = progress(Some(total(infos.iter().map(|p| p.used_bytes))));
    let mut surveys = Vec::with_capacity(infos.len());
    for info in infos {
        surveys.push(survey_partition(store, info, detail, &bar).await?);
    }
    bar.finish_and_clear();
    Ok(surveys)
}

async fn survey_partition(
    store: &Store,
    info: PartitionInfo,
    detail: InspectDetail,
    bar: &ProgressBar,
) -> Result<Survey, Failure> {
    let partition = store.partition(info.id).await?;
    let mut segments: Vec<InspectedSegment> = Vec::with_capacity(info.segments);
    let mut from = Some(0);
    let mut noted = Vec::new();
    while let Some(from_sequence) = from {
        let request = InspectRequest {
            from_sequence,
            segments_max: 1,
            detail,
        };
        let found = partition.inspect(request).await?;
        bar.inc(found.segments.iter().map(|s| s.end_position).sum());
        segments.extend(found.segments);
        noted = found.noted;
        from = found.next_sequence;
    }
    let walked: Vec<Corruption> = segments
        .iter()
        .flat_map(|s| s.damage.iter().cloned())
        .collect();
    // The walk tells more about a place than the opening did.
    // Of a file that is too short the walk tells what is missing, not that it is.
    let too_short = |n: &Corruption| matches!(n.found, CorruptionKind::Shortened { .. });
    let known = |n: &Corruption| {
        walked
            .iter()
            .any(|w| w.path == n.path && w.position == n.position && !too_short(n))
    };
    let mut damage: Vec<_> = noted.into_iter().filter(|n| !known(n)).collect();
    damage.extend(walked);
    Ok(Survey {
        info,
        segments,
        damage,
    })
}
