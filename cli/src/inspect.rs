//! `inspect`: partitions, segments and batches as they are on the disk.

use alluvium::format::{BatchKind, ControlReason};
use alluvium::{Corruption, InspectDetail, InspectedBatch, InspectedSegment};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, counted, size, table};
use crate::survey::{Survey, survey};
use crate::target::{NamedStore, close};
use crate::verify::place;

/// Batches shown at each end of a segment, unless all are asked for.
const SHOWN: usize = 10;

/// Prints tables or JSON.
pub(crate) async fn run(target: &NamedStore, args: InspectArgs) -> Result<Outcome, Failure> {
    let (store, _) = target.open_read_only().await?;
    let detail = if args.segments_only {
        InspectDetail::Damage
    } else {
        InspectDetail::Batches
    };
    let surveys = survey(&store, args.partition, detail).await?;
    let store_id = store.info().store_id;
    close(&store).await?;
    let damaged = surveys.iter().any(|s| !s.damage.is_empty());
    let mut out = Output::new();
    if args.json {
        out.json(&JsonStore {
            path: target.dir.display().to_string(),
            store_id: format!("{store_id:016x}"),
            partitions: surveys.iter().map(JsonPartition::from).collect(),
        })?;
    } else {
        out.line(format_args!(
            "store {} ({store_id:016x})",
            target.dir.display()
        ))?;
        for survey in &surveys {
            tell(&mut out, survey, &args)?;
        }
    }
    out.flush()?;
    Ok(if damaged {
        Outcome::Damaged
    } else {
        Outcome::Done
    })
}

fn tell(out: &mut Output, survey: &Survey, args: &InspectArgs) -> Result<(), Failure> {
    let info = &survey.info;
    out.line(format_args!(
        "\npartition {} (incarnation {:08x}): offsets [{}, {}), tail {}, {}, {} in use",
        info.id,
        info.incarnation,
        info.offsets.log_start(),
        info.offsets.log_end(),
        info.recovery.case,
        counted(info.segments as u64, "segment"),
        size(info.used_bytes),
    ))?;
    if let Some(note) = survey.tail_note() {
        out.line(format_args!("note: {note}"))?;
    }
    out.line(segment_table(&survey.segments))?;
    for damage in &survey.damage {
        out.line(format_args!("DAMAGED {}", place(damage)))?;
    }
    if args.segments_only {
        return Ok(());
    }
    for segment in &survey.segments {
        let batches = &segment.batches;
        out.line(format_args!("\n{}", segment.path.display()))?;
        if args.all || batches.len() + segment.damage.len() <= 2 * SHOWN + 1 {
            out.line(batch_table(batches, &segment.damage))?;
            continue;
        }
        let (first, rest) = batches.split_at(SHOWN.min(batches.len()));
        let (hidden, last) = rest.split_at(rest.len().saturating_sub(SHOWN));
        out.line(batch_table(first, &[]))?;
        let hidden = counted(hidden.len() as u64, "batch");
        out.line(format_args!(
            "... {hidden} not shown (--all shows them) ..."
        ))?;
        out.line(batch_table(last, &segment.damage))?;
    }
    Ok(())
}

fn new_table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = table(header);
    for &column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn segment_table(segments: &[InspectedSegment]) -> Table {
    let header = [
        "segment", "seq", "gen", "base", "end", "batches", "records", "in use", "of", "align",
        "state",
    ];
    let mut table = new_table(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for segment in segments {
        let name = segment
            .path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned());
        let state = match segment.damage.len() as u64 {
            0 => "valid".to_owned(),
            n => counted(n, "damaged place"),
        };
        table.add_row([
            name.unwrap_or_default(),
            segment.header.sequence.to_string(),
            segment.header.generation.to_string(),
            segment.header.base_offset.to_string(),
            segment.end_offset.to_string(),
            segment.batch_count.to_string(),
            segment.record_count.to_string(),
            size(segment.end_position),
            size(segment.header.capacity_bytes),
            segment.header.alignment.to_string(),
            state,
        ]);
    }
    table
}

/// Batches and damaged places in order of position.
fn batch_table(batches: &[InspectedBatch], damage: &[Corruption]) -> Table {
    let header = [
        "position",
        "size",
        "base",
        "end",
        "records",
        "kind",
        "gen",
        "timestamp",
        "state",
    ];
    let mut table = new_table(&header, &[0, 1, 2, 3, 4, 6, 7]);
    let mut rows: Vec<(u64, [String; 9])> = Vec::with_capacity(batches.len() + damage.len());
    for batch in batches {
        let fault = damage.iter().find(|d| d.position == batch.position);
        let row = [
            batch.position.to_string(),
            batch.size_bytes.to_string(),
            batch.header.base_offset.to_string(),
            batch.end_offset.to_string(),
            (batch.end_offset - batch.header.base_offset).to_string(),
            kind_text(batch),
            batch.header.generation.to_string(),
            batch.header.base_timestamp.to_string(),
            fault.map_or_else(|| "valid".to_owned(), |d| d.found.to_string()),
        ];
        rows.push((batch.position, row));
    }
    for fault in damage {
        if batches.iter().any(|b| b.position == fault.position) {
            continue;
        }
        let end = fault
            .offset_end
            .map(|end| end.to_string())
            .unwrap_or_default();
        let lost = fault
            .offset_end
            .map(|end| end.saturating_sub(fault.offset_start).to_string());
        let row = [
            fault.position.to_string(),
            String::new(),
            fault.offset_start.to_string(),
            end,
            lost.unwrap_or_default(),
            "DAMAGED".to_owned(),
            String::new(),
            String::new(),
            fault.found.to_string(),
        ];
        rows.push((fault.position, row));
    }
    rows.sort_by_key(|(position, _)| *position);
    for (_, row) in rows {
        table.add_row(row);
    }
    table
}

fn kind_name(batch: &InspectedBatch) -> &'static str {
    match batch.header.kind {
        BatchKind::Records => "records",
        BatchKind::Opaque => "opaque",
        BatchKind::Control => "control",
    }
}

fn reason_name(reason: ControlReason) -> &'static str {
    match reason {
        ControlReason::Seal => "seal",
        ControlReason::Reserve => "reserve",
        ControlReason::Trim => "trim",
    }
}

fn kind_text(batch: &InspectedBatch) -> String {
    match &batch.control {
        Some(control) => format!("{} ({})", kind_name(batch), reason_name(control.reason)),
        None => kind_name(batch).to_owned(),
    }
}

#[derive(Debug, Serialize)]
struct JsonStore {
    path: String,
    store_id: String,
    partitions: Vec<JsonPartition>,
}

#[derive(Debug, Serialize)]
struct JsonPartition {
    id: u64,
    incarnation: u32,
    log_start: u64,
    log_end: u64,
    tail: String,
    torn_at: Option<u64>,
    used_bytes: u64,
    segments: Vec<JsonSegment>,
    damage: Vec<JsonDamage>,
}

#[derive(Debug, Serialize)]
struct JsonSegment {
    path: String,
    identity: String,
    sequence: u64,
    generation: u32,
    base_offset: u64,
    end_offset: u64,
    end_position: u64,
    capacity_bytes: u64,
    alignment: u32,
    created_ms: i64,
    batch_count: u64,
    record_count: u64,
    batches: Vec<JsonBatch>,
}

#[derive(Debug, Serialize)]
struct JsonBatch {
    base_offset: u64,
    /// Missing for a control batch, which has no records.
    last_offset: Option<u64>,
    end_offset: u64,
    record_count: u64,
    position: u64,
    size_bytes: usize,
    timestamp: i64,
    max_timestamp: i64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    generation: u32,
    sequence: u32,
    leader_epoch: u32,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

#[derive(Debug, Serialize)]
struct JsonDamage {
    path: String,
    position: u64,
    offset_start: u64,
    offset_end: Option<u64>,
    found: String,
}

impl From<&Survey> for JsonPartition {
    fn from(survey: &Survey) -> Self {
        let info = &survey.info;
        let torn = survey.torn_tail().and(info.recovery.cut.as_ref());
        Self {
            id: info.id,
            incarnation: info.incarnation,
            log_start: info.offsets.log_start(),
            log_end: info.offsets.log_end(),
            tail: info.recovery.case.to_string(),
            torn_at: torn.map(|(_, position)| *position),
            used_bytes: info.used_bytes,
            segments: survey.segments.iter().map(JsonSegment::from).collect(),
            damage: survey.damage.iter().map(JsonDamage::from).collect(),
        }
    }
}

impl From<&InspectedSegment> for JsonSegment {
    fn from(segment: &InspectedSegment) -> Self {
        let header = &segment.header;
        Self {
            path: segment.path.display().to_string(),
            identity: format!("{:016x}", header.identity),
            sequence: header.sequence,
            generation: header.generation,
            base_offset: header.base_offset,
            end_offset: segment.end_offset,
            end_position: segment.end_position,
            capacity_bytes: header.capacity_bytes,
            alignment: header.alignment,
            created_ms: header.created_ms,
            batch_count: segment.batch_count,
            record_count: segment.record_count,
            batches: segment
                .batches
                .iter()
                .map(|b| JsonBatch::new(b, &segment.damage))
                .collect(),
        }
    }
}

impl JsonBatch {
    fn new(batch: &InspectedBatch, damage: &[Corruption]) -> Self {
        let fault = damage.iter().find(|d| d.position == batch.position);
        let header = &batch.header;
        let record_count = batch.end_offset - header.base_offset;
        Self {
            base_offset: header.base_offset,
            last_offset: (record_count > 0).then(|| batch.end_offset - 1),
            end_offset: batch.end_offset,
            record_count,
            position: batch.position,
            size_bytes: batch.size_bytes,
            timestamp: header.base_timestamp,
            max_timestamp: header.max_timestamp(),
            kind: kind_name(batch),
            reason: batch.control.map(|c| reason_name(c.reason)),
            generation: header.generation,
            sequence: header.sequence,
            leader_epoch: header.leader_epoch,
            valid: fault.is_none(),
            fault: fault.map(|d| d.found.to_string()),
        }
    }
}

impl From<&Corruption> for JsonDamage {
    fn from(damage: &Corruption) -> Self {
        Self {
            path: damage.path.display().to_string(),
            position: damage.position,
            offset_start: damage.offset_start,
            offset_end: damage.offset_end,
            found: damage.found.to_string(),
        }
    }
}
