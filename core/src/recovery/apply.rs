//! Carries out what the plan decided, in an order that a crash at any point cannot harm.
//!
//! 1. Make the directory, the newest header and the tail window durable again: what a dead process
//!    left may be only in a cache, and its failed syncs are not reported to anyone.
//! 2. Remove files that do not count by that header, or keep them as spares.
//! 3. Where the tail demands it, put a new segment behind it, in such a spare or in a new file: from then on
//!    the cut is final.

use std::path::PathBuf;
use std::rc::Rc;

use super::damage::{Damage, Known, refuse_below_durable, scan_newest};
use super::header::NextHeader;
use super::inventory::{Access, Found, corruption_of, take_inventory};
use super::opening::{NewestSegment, Opening};
use super::plan::{TailCase, TailFacts, doubles, newest, predecessors};
use super::report::PartitionReport;
use crate::config::{OnCorruption, StoreConfig};
use crate::error::{Corruption, CorruptionKind, Error, Result};
use crate::format::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{AlignedBuf, BUFFER_ALIGNMENT, BufPool, Durability, IoBackend, IoFile};
use crate::offset::Offsets;
use crate::segment::{
    ActiveSegment, SEGMENT_SUFFIX, Scan, Segment, SpareFile, SpareRequest, prepare_spare,
};

/// What recovery needs to know about the partition.
#[derive(Debug, Clone)]
pub(crate) struct RecoveryContext {
    pub(crate) partition: u64,
    pub(crate) incarnation: u32,
    pub(crate) dir: PathBuf,
    pub(crate) config: Rc<StoreConfig>,
    pub(crate) pool: BufPool,
    pub(crate) direct: bool,
    pub(crate) read_only: bool,
    /// What this process knows of the log; `None` when the store is opened.
    pub(crate) known: Option<Known>,
}

/// A log that is ready to be read and, unless it is read only, to be appended to.
#[derive(Debug)]
pub(crate) struct RecoveredLog<F> {
    /// Segments before the active one, oldest first.
    pub(crate) sealed: Vec<Rc<Segment<F>>>,
    /// `None` when the log is read only, or when there is no space for a segment yet.
    pub(crate) active: Option<ActiveSegment<F>>,
    pub(crate) spares: Vec<SpareFile<F>>,
    pub(crate) offsets: Offsets,
    pub(crate) generation: u32,
    pub(crate) reserved_end: u64,
    pub(crate) next_number: u64,
    /// Sequence of the next segment.
    pub(crate) next_sequence: u64,
    pub(crate) last_timestamp: i64,
    /// Link that the first batch of the next segment carries, when there is no active one.
    pub(crate) link: u32,
    pub(crate) read_only: bool,
    pub(crate) report: PartitionReport,
    /// All damage that was noted.
    pub(crate) damage: Vec<Corruption>,
}

pub(super) const SCAN_CHUNK_BYTES: usize = 1 << 20;

/// Opens the log of one partition.
///
/// Where damage does not refuse a partition, what the disk does not give of it does not either. When that
/// decides where the log ends, nothing of the partition can be read, but the others can.
pub(crate) async fn recover_partition<B: IoBackend>(
    backend: &B,
    context: &RecoveryContext,
) -> Result<RecoveredLog<B::File>> {
    match recover(backend, context).await {
        Err(Error::Io {
            action: "list" | "open" | "stat" | "read",
            path,
            source,
        }) if context.reads_around() && source.is_of_the_medium() => {
            let mut damage = Damage::default();
            let corruption = Corruption {
                path,
                partition: context.partition,
                position: 0,
                offset_start: 0,
                offset_end: None,
                found: CorruptionKind::Unreadable(source),
            };
            damage.note(corruption, |facts| facts.newest = NewestSegment::Missing);
            Ok(unreadable(context, damage))
        }
        recovered => recovered,
    }
}

async fn recover<B: IoBackend>(
    backend: &B,
    context: &RecoveryContext,
) -> Result<RecoveredLog<B::File>> {
    let access = Access {
        read_only: context.read_only,
        direct: context.direct,
        fence_timeout: context.config.fence_timeout,
        reads_around: context.reads_around(),
    };
    let (partition, incarnation) = (context.partition, context.incarnation);
    let inventory = take_inventory(backend, &context.dir, partition, incarnation, access).await?;
    let mut damage = Damage::default();
    for found in &inventory.found {
        if let Err(kind) = &found.header {
            damage.note(corruption_of(found, partition, kind.clone()), |facts| {
                facts.header_unreadable = true;
            });
        }
    }
    // Indexes of segments that are gone, and what was being made when the process died.
    let mut leftovers = inventory.temporaries;
    leftovers.extend(inventory.indexes.into_iter().filter(|index| {
        let segment = index.with_extension(SEGMENT_SUFFIX);
        !inventory.found.iter().any(|f| f.path == segment)
    }));
    let headers: Vec<Option<SegmentHeader>> = inventory
        .found
        .iter()
        .map(|f| f.header.as_ref().ok().copied())
        .collect();
    let mut files: Vec<Option<Found<B::File>>> = inventory.found.into_iter().map(Some).collect();
    let tail = match newest(&headers) {
        Some(index) => files[index].take().zip(headers[index]).zip(Some(index)),
        None => None,
    };
    let Some(((found, header), newest)) = tail else {
        let nothing = Corruption {
            path: context.dir.clone(),
            partition,
            position: 0,
            offset_start: 0,
            offset_end: None,
            found: CorruptionKind::MissingSegment { identity: 0 },
        };
        damage.note(nothing, |facts| facts.newest = NewestSegment::Missing);
        damage.opening(context)?;
        refuse_below_durable(context, 0)?;
        return Ok(unreadable(context, damage));
    };
    let tail = scan_newest(context, found, header, &mut damage).await?;
    let tail_facts = TailFacts::of(&tail.scan);
    // A trim that the disk has lost lets go of no file before the disk knows of it again; what is not there
    // any more is not missing.
    let on_disk = tail.scan.log_start;
    let trimmed_to = on_disk.max(context.known.map_or(0, |known| known.log_start));
    let (links, missing) = predecessors(&headers, newest, on_disk);
    let missing = missing.filter(|_| predecessors(&headers, newest, trimmed_to).1.is_some());
    if let Some(identity) = missing {
        let oldest = links.first().and_then(|l| headers[l.index].as_ref());
        let gap = Corruption {
            path: context.dir.clone(),
            partition,
            position: 0,
            offset_start: trimmed_to,
            offset_end: Some(oldest.unwrap_or(&tail.segment.header).base_offset),
            found: CorruptionKind::MissingSegment { identity },
        };
        damage.note(gap, |facts| facts.segment_missing = true);
    }
    for double in doubles(&headers, newest, &links) {
        if let Some(found) = &files[double] {
            let kind = CorruptionKind::Misplaced(
                "a second file with the header of this segment: move the older one away",
            );
            damage.note(corruption_of(found, partition, kind), |facts| {
                facts.header_unreadable = true;
            });
        }
    }
    let mut sealed = Vec::with_capacity(links.len());
    for link in &links {
        let Some((found, header)) = files[link.index].take().zip(headers[link.index]) else {
            continue;
        };
        let needed = link.end_offset > trimmed_to;
        if needed && found.len < link.end_position {
            let kind = CorruptionKind::Shortened {
                len: found.len,
                needed: link.end_position,
            };
            damage.note(corruption_of(&found, partition, kind), |facts| {
                facts.older_shortened = true;
            });
        }
        let (end, position) = (link.end_offset, link.end_position);
        sealed.push(Rc::new(Segment::new(
            found.file, found.path, header, end, position, None,
        )));
    }
    let opening = damage.opening(context)?;
    let (segment, scan, case) = tail.end(context, damage.facts, opening)?;
    refuse_below_durable(context, scan.end_offset)?;
    let oldest_readable = sealed
        .first()
        .map_or(segment.header.base_offset, |s| s.base_offset());
    let log_start = if missing.is_some() {
        oldest_readable
    } else {
        trimmed_to
    };
    // What was trimmed behind a cut is not given again.
    let log_end = match opening {
        Opening::Cut => scan.end_offset.max(log_start),
        _ => scan.end_offset,
    };
    let report = PartitionReport {
        partition,
        case,
        tail: Some(tail_facts),
        damage: damage.facts,
        log_start,
        log_end,
        skipped_offsets: 0,
        segments: sealed.len() + 1,
        rewritten_bytes: 0,
        cut: (case == TailCase::Torn || opening == Opening::Cut && damage.facts.of_newest())
            .then(|| (segment.path.clone(), scan.end_position)),
        temporaries_removed: 0,
        foreign: inventory.foreign,
        corruption: match opening {
            Opening::ReadOnly => damage.noted.first().cloned(),
            Opening::Writable | Opening::Cut | Opening::Refused => None,
        },
    };
    let generations = headers
        .iter()
        .flatten()
        .map(|h| h.generation)
        .max()
        .unwrap_or(0);
    let writable = matches!(opening, Opening::Writable | Opening::Cut);
    let read_only = context.read_only || !writable;
    let log = RecoveredLog {
        sealed,
        active: None,
        spares: Vec::new(),
        offsets: Offsets::new(log_start.min(log_end), log_end),
        generation: generations.max(scan.generation).saturating_add(1),
        reserved_end: scan.reserved_end.max(log_end),
        next_number: inventory.next_number,
        next_sequence: segment.header.sequence.saturating_add(1),
        last_timestamp: scan.append_time_ms,
        link: scan.link,
        read_only,
        report,
        damage: if opening == Opening::ReadOnly {
            damage.noted
        } else {
            Vec::new()
        },
    };
    if read_only {
        let mut log = log;
        log.sealed.push(segment);
        return Ok(log);
    }
    let tail = Tail {
        segment,
        scan,
        case,
    };
    let unused = files.into_iter().flatten().collect();
    make_writable(backend, context, log, tail, unused, leftovers).await
}

/// The log of a partition of which no segment can be read: empty, read only, and said so.
fn unreadable<F: IoFile>(context: &RecoveryContext, damage: Damage) -> RecoveredLog<F> {
    RecoveredLog {
        sealed: Vec::new(),
        active: None,
        spares: Vec::new(),
        offsets: Offsets::new(0, 0),
        generation: 0,
        reserved_end: 0,
        next_number: 0,
        next_sequence: 0,
        last_timestamp: i64::MIN,
        link: 0,
        read_only: true,
        report: PartitionReport {
            corruption: damage.noted.first().cloned(),
            damage: damage.facts,
            ..PartitionReport::empty(context.partition, TailCase::Corrupt)
        },
        damage: damage.noted,
    }
}

struct Tail<F> {
    segment: Rc<Segment<F>>,
    scan: Scan,
    case: TailCase,
}

/// Steps 1 to 3 of the [module](self).
async fn make_writable<B: IoBackend>(
    backend: &B,
    context: &RecoveryContext,
    mut log: RecoveredLog<B::File>,
    tail: Tail<B::File>,
    unused: Vec<Found<B::File>>,
    leftovers: Vec<PathBuf>,
) -> Result<RecoveredLog<B::File>> {
    let Tail {
        segment,
        scan,
        case,
    } = tail;
    let config = &context.config;
    backend
        .sync_dir(&context.dir)
        .await
        .map_err(|e| Error::io("sync the directory", &context.dir, e))?;
    let mut block = AlignedBuf::with_capacity(SEGMENT_HEADER_LEN);
    block.extend_from_slice(&segment.header.encode());
    let written = segment
        .file
        .write_all_at(block.freeze(), 0, Durability::Durable)
        .await;
    written.map_err(|e| Error::io("write", &segment.path, e))?;
    log.report.rewritten_bytes = rewrite(
        &segment,
        &context.pool,
        scan.rewrite_from,
        scan.end_position,
    )
    .await?;

    for path in leftovers {
        match backend.remove_file(&path).await {
            Ok(()) => log.report.temporaries_removed += 1,
            // An operation of the last process, done only now.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("remove", &path, e)),
        }
    }
    for found in unused {
        // A reader of before may hold bytes of it still.
        let free = !backend.is_mapped(&found.path);
        let fits = free && found.len == config.segment_bytes && found.header.is_ok();
        if fits && log.spares.len() < config.spare_segments_max.max(1) {
            log.spares.push(SpareFile {
                file: found.file,
                path: found.path,
                initialised_to: found.len,
            });
        } else if let Err(e) = backend.remove_file(&found.path).await {
            return Err(Error::io("remove", &found.path, e));
        }
    }

    let same_alignment = segment.file.alignment() <= segment.header.alignment;
    // Offsets may have been shown beyond the end: the log goes on behind them.
    let nothing_skipped = scan.reserved_end <= scan.end_offset;
    // Else a new header says how far the log was trimmed.
    let trims_on_disk = log.offsets.log_start() <= scan.log_start;
    let in_place = same_alignment && nothing_skipped && trims_on_disk;
    if case == TailCase::Clean && in_place {
        let headroom = config.control_headroom_bytes(segment.header.alignment);
        let (position, sequence) = (scan.end_position, scan.next_sequence);
        log.active = Some(ActiveSegment::new(
            segment, position, sequence, scan.link, headroom,
        ));
    } else {
        log.sealed.push(Rc::clone(&segment));
        match next_segment(backend, context, &mut log).await {
            Ok(active) => log.active = Some(active),
            // The log opens all the same: it can be read and trimmed, and the first append tries
            // again. Nothing is appended behind the cut before the new segment stands.
            Err(Error::NoSpace { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    log.report.skipped_offsets = log.reserved_end.saturating_sub(scan.end_offset);
    log.report.log_start = log.offsets.log_start();
    log.report.log_end = log.offsets.log_end();
    Ok(log)
}

/// Puts a new segment behind the recovered tail.
async fn next_segment<B: IoBackend>(
    backend: &B,
    context: &RecoveryContext,
    log: &mut RecoveredLog<B::File>,
) -> Result<ActiveSegment<B::File>> {
    let config = &context.config;
    let spare = if let Some(spare) = log.spares.pop() {
        spare
    } else {
        let number = log.next_number;
        log.next_number = number.saturating_add(1);
        prepare_spare(backend, &context.spare_request(number, 0)).await?
    };
    let path = spare.path.clone();
    let initialised_to = spare.initialised_to;
    let end = log.offsets.log_end();
    let header_base = log.reserved_end.max(end);
    let header = NextHeader {
        sequence: log.next_sequence,
        previous: log.sealed.last().map(AsRef::as_ref),
        link: log.link,
        base_offset: header_base,
        prev_end_offset: end,
        prev_end_position: log.sealed.last().map_or(0, |s| s.end_position.get()),
        generation: log.generation,
        log_start: log.offsets.log_start(),
        reserved_end: log.reserved_end,
        last_timestamp: log.last_timestamp,
    }
    .build(backend, context, spare.file.alignment());
    let segment = spare
        .activate(header, config.index_interval_bytes)
        .await
        .map_err(|e| Error::io("write the header of", &path, e))?;
    let headroom = config.control_headroom_bytes(segment.header.alignment);
    log.report.segments += 1;
    log.next_sequence = log.next_sequence.saturating_add(1);
    log.offsets = Offsets::new(log.offsets.log_start(), header_base);
    let link = log.link;
    let mut active = ActiveSegment::new(
        Rc::new(segment),
        SEGMENT_HEADER_LEN as u64,
        0,
        link,
        headroom,
    );
    active.initialised_to = initialised_to;
    Ok(active)
}

impl RecoveryContext {
    /// Whether what the disk does not give counts as damage that is read around, not as an error of the
    /// disk. A cut that cannot see what it cuts is not made, and a partition that is reopened can be
    /// reopened again.
    fn reads_around(&self) -> bool {
        let by_policy = match self.config.on_corruption {
            OnCorruption::Refuse => false,
            OnCorruption::Salvage => true,
            OnCorruption::CutTail { partition } => self.read_only || partition != self.partition,
        };
        by_policy && self.known.is_none()
    }

    /// A request for the spare with the given number.
    pub(crate) fn spare_request(&self, number: u64, initialise_bytes: u64) -> SpareRequest {
        SpareRequest {
            dir: self.dir.clone(),
            number,
            capacity_bytes: self.config.segment_bytes,
            direct: self.direct,
            initialise_bytes,
            partition: self.partition,
            incarnation: self.incarnation,
        }
    }
}

/// Writes `[from, end)` of the segment again, byte for byte, with durable writes.
async fn rewrite<F: IoFile>(
    segment: &Segment<F>,
    pool: &BufPool,
    from: u64,
    end: u64,
) -> Result<u64> {
    let io_error = |action, e| Error::io(action, &segment.path, e);
    let alignment = u64::from(segment.file.alignment().max(segment.header.alignment));
    let block = usize::try_from(alignment).unwrap_or(BUFFER_ALIGNMENT);
    let mut at = from - from % alignment;
    // A capacity that is forged may end inside of a block; a batch that counts does not reach behind the file.
    let end = end.next_multiple_of(alignment);
    let start = at;
    while at < end {
        // Reads start at multiples of any device's alignment.
        let read_from = at - at % BUFFER_ALIGNMENT as u64;
        let wanted = usize::try_from(end - read_from)
            .unwrap_or(usize::MAX)
            .min(SCAN_CHUNK_BYTES);
        let wanted = wanted.next_multiple_of(BUFFER_ALIGNMENT);
        let mut bytes = segment
            .file
            .read_at(pool.take(wanted), read_from, wanted)
            .await
            .map_err(|e| io_error("read", e))?;
        // A file that was shortened inside of a block: what it lacks of that is no part of the log.
        bytes.resize(bytes.len().next_multiple_of(block));
        let bytes = bytes.freeze();
        let skip = usize::try_from(at - read_from).unwrap_or(usize::MAX);
        let take = usize::try_from(end - read_from)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        if take <= skip {
            break;
        }
        segment
            .file
            .write_all_at(bytes.slice(skip..take), at, Durability::Durable)
            .await
            .map_err(|e| io_error("write", e))?;
        at = read_from + take as u64;
    }
    Ok(at - start)
}
