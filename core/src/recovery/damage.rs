//! What is damaged of a partition: found, noted with its place, and read around.

use std::rc::Rc;

use super::apply::{RecoveryContext, SCAN_CHUNK_BYTES};
use super::inventory::{Found, corruption_of};
use super::opening::{DamageFacts, NewestSegment, Opening};
use super::plan::{TailCase, TailFacts};
use crate::config::OnCorruption;
use crate::error::{Corruption, CorruptionKind, Error, Result};
use crate::format::{BatchKind, Control, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{BufPool, IoFile};
use crate::segment::{Cursor, ReadError, Scan, Segment, SparseIndex, Stop, scan_segment};

/// What is damaged, and where.
#[derive(Debug, Default)]
pub(super) struct Damage {
    pub(super) facts: DamageFacts,
    /// In the order in which it was found.
    pub(super) noted: Vec<Corruption>,
}

impl Damage {
    /// Notes a damage and the fact that it is.
    pub(super) fn note(&mut self, corruption: Corruption, set: impl FnOnce(&mut DamageFacts)) {
        set(&mut self.facts);
        self.noted.push(corruption);
    }

    /// What becomes of the partition; an error with the first damage when it is refused.
    pub(super) fn opening(&mut self, context: &RecoveryContext) -> Result<Opening> {
        // A store that writes nothing cannot cut, and a cut is meant for what was found when the store was
        // opened.
        let never_cut = context.read_only || (context.known.is_some() && self.facts.of_newest());
        let policy = match context.config.on_corruption {
            OnCorruption::CutTail { .. } if never_cut => OnCorruption::Salvage,
            policy => policy,
        };
        let opening = self.facts.opening(policy, context.partition);
        match self.noted.first() {
            Some(first) if opening == Opening::Refused => Err(Error::corrupt(first.clone())),
            _ => Ok(opening),
        }
    }
}

/// Refuses a log that ends at `end` and lacks what this process knows to be durable: whatever is written
/// then would make the loss final, and the offsets that a process shows do not go back.
pub(super) fn refuse_below_durable(context: &RecoveryContext, end: u64) -> Result<()> {
    let Some(known) = context.known.filter(|known| !known.allows_end(end)) else {
        return Ok(());
    };
    Err(Error::corrupt(Corruption {
        path: context.dir.clone(),
        partition: context.partition,
        position: 0,
        offset_start: end,
        offset_end: Some(known.durable),
        found: CorruptionKind::Misplaced("the log ends below its durable offset"),
    }))
}

/// What a process knows of a log that it opens again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// All records below are durable.
    pub(crate) durable: u64,
    /// A truncation to this offset failed half-way, so that it may have happened.
    pub(crate) truncating: Option<u64>,
    /// All records below were removed.
    pub(crate) log_start: u64,
}

impl Known {
    fn allows_end(&self, end: u64) -> bool {
        end >= self.durable || self.truncating == Some(end)
    }
}

/// The newest segment, read as far as its chain goes.
pub(super) struct Newest<F> {
    pub(super) segment: Rc<Segment<F>>,
    pub(super) scan: Scan,
    /// What lies behind a hole that proves a loss.
    behind: Option<Result<Behind>>,
}

/// Reads the newest segment as far as its chain goes, and notes what is damaged.
pub(super) async fn scan_newest<F: IoFile>(
    context: &RecoveryContext,
    found: Found<F>,
    header: SegmentHeader,
    damage: &mut Damage,
) -> Result<Newest<F>> {
    if found.len < header.capacity_bytes {
        let kind = CorruptionKind::Shortened {
            len: found.len,
            needed: header.capacity_bytes,
        };
        damage.note(corruption_of(&found, context.partition, kind), |facts| {
            facts.newest = NewestSegment::Shortened;
        });
    }
    let (base, start) = (header.base_offset, SEGMENT_HEADER_LEN as u64);
    let segment = Segment::new(found.file, found.path, header, base, start, None);
    let interval = context.config.index_interval_bytes;
    let mut scan = scan_segment(&segment, &context.pool, SCAN_CHUNK_BYTES, interval).await?;
    let mut behind = None;
    if TailFacts::of(&scan).case() == TailCase::Corrupt {
        let after = scan
            .survivor
            .as_ref()
            .map(|s| s.offset)
            .filter(|o| *o > scan.end_offset);
        let hole = Corruption {
            path: segment.path.clone(),
            partition: context.partition,
            position: scan.end_position,
            offset_start: scan.end_offset,
            offset_end: after,
            found: match &scan.stop {
                Stop::Nothing(kind) | Stop::TornBatch(kind) => kind.clone(),
                Stop::BrokenChain(why) => CorruptionKind::Misplaced(why),
                Stop::Full => CorruptionKind::Misplaced("a batch behind a full segment"),
            },
        };
        damage.note(hole, |facts| facts.tail_corrupt = true);
        let found = walk_behind(&segment, &scan, &context.pool).await;
        // A trim behind the hole has let go of files: they are not missing.
        if let Ok(behind) = &found {
            scan.log_start = scan.log_start.max(behind.log_start);
        }
        // What cannot be read is an error only when the damage does not refuse the partition.
        behind = Some(found);
    }
    Ok(Newest {
        segment: Rc::new(segment),
        scan,
        behind,
    })
}

impl<F: IoFile> Newest<F> {
    /// Where the log ends: at the end of the chain, or behind damage that is to be read around.
    pub(super) fn end(
        self,
        context: &RecoveryContext,
        damage: DamageFacts,
        opening: Opening,
    ) -> Result<(Rc<Segment<F>>, Scan, TailCase)> {
        let Self {
            segment,
            mut scan,
            behind,
        } = self;
        let mut case = TailFacts::of(&scan).case();
        let cut = opening == Opening::Cut && damage.of_newest();
        if cut {
            // Whatever the file holds behind the chain, nothing goes on in place.
            case = TailCase::Corrupt;
        }
        // Also for a cut: a trim that was not seen would be undone by it.
        let behind = behind.transpose()?;
        if let Some(behind) = behind.filter(|_| !cut) {
            // The last whole batch, not the first hole. There is no index of what is in between.
            scan.end_offset = behind.end_offset;
            scan.end_position = behind.end_position;
        } else {
            let interval = context.config.index_interval_bytes;
            segment.set_index(std::mem::replace(
                &mut scan.index,
                SparseIndex::new(interval),
            ));
        }
        segment.end_offset.set(scan.end_offset);
        segment.end_position.set(scan.end_position);
        Ok((segment, scan, case))
    }
}

/// What the whole batches behind a hole say.
struct Behind {
    end_offset: u64,
    end_position: u64,
    log_start: u64,
}

/// Reads the whole batches of the segment that lie behind the end of the chain.
async fn walk_behind<F: IoFile>(
    segment: &Segment<F>,
    scan: &Scan,
    pool: &BufPool,
) -> Result<Behind> {
    let capacity = segment.header.capacity_bytes;
    let mut cursor = Cursor::new(segment, pool, SCAN_CHUNK_BYTES);
    let mut behind = Behind {
        end_offset: scan.end_offset,
        end_position: scan.end_position,
        log_start: scan.log_start,
    };
    let mut position = scan.end_position;
    while position < capacity {
        match cursor.batch_at(position).await {
            Ok(batch) => {
                behind.end_offset = behind.end_offset.max(batch.end_offset());
                if batch.header().kind == BatchKind::Control
                    && let Ok(control) = Control::decode(batch.body())
                {
                    behind.log_start = behind.log_start.max(control.log_start);
                }
                position = cursor.position_after(batch.header(), position);
                behind.end_position = position;
            }
            Err(ReadError::Io(e)) => return Err(Error::io("read", &segment.path, e)),
            Err(ReadError::Format(_)) => match cursor.resynchronise(position, capacity).await? {
                Some((next, _)) => position = next,
                None => break,
            },
        }
    }
    Ok(behind)
}
