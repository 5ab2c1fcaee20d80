//! What a read returned, as records that have been checked against what was submitted.

use alluvium_core::Fetched;
use alluvium_core::format::StoredBatch;

use super::payload::claim;
use super::{BatchId, Life, Violation, payload};

/// One record that was read: `index` of `batch` at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Where it stands.
    pub offset: u64,
    /// Of which batch it is.
    pub batch: BatchId,
    /// Which record of the batch.
    pub index: u32,
}

/// The records of `fetched`, each equal to what was submitted to `life`, in offset order.
///
/// # Errors
/// P4 when a record was never submitted, was certainly not applied or has other bytes; P3 when
/// something cannot be decoded.
pub fn observe(life: &Life, fetched: &Fetched) -> Result<Vec<Seen>, Violation> {
    let mut seen = Vec::new();
    let mut next = 0;
    for batch in &fetched.batches {
        if batch.first_offset() < next || batch.end_offset() <= batch.first_offset() {
            return Err(Violation::new(
                "P4",
                format!("a read is out of order at {next}"),
            ));
        }
        next = batch.end_offset();
        if batch.is_opaque() {
            opaque(life, batch, &mut seen)?;
        } else {
            records(life, batch, &mut seen)?;
        }
    }
    Ok(seen)
}

fn records(life: &Life, batch: &StoredBatch, seen: &mut Vec<Seen>) -> Result<(), Violation> {
    let mut offset = batch.first_offset();
    for view in batch.views() {
        let view = view.map_err(|e| Violation::new("P3", format!("record at {offset}: {e}")))?;
        let (id, index) = identify(life, offset, view.value, false)?;
        if view.offset != offset {
            let found = view.offset;
            return Err(Violation::new(
                "P4",
                format!("record {found} where {offset} belongs"),
            ));
        }
        seen.push(Seen {
            offset,
            batch: id,
            index,
        });
        offset += 1;
    }
    if offset != batch.end_offset() {
        return Err(Violation::new(
            "P3",
            format!("a batch ends at {offset}, not as announced"),
        ));
    }
    Ok(())
}

fn opaque(life: &Life, batch: &StoredBatch, seen: &mut Vec<Seen>) -> Result<(), Violation> {
    let base = batch.base_offset();
    let (id, _) = identify(life, base, batch.body(), true)?;
    let count = u64::from(batch.header().record_count);
    if count != u64::from(life.shape(id).count) {
        return Err(Violation::new(
            "P3",
            format!("an opaque batch at {base} has {count} records"),
        ));
    }
    for offset in batch.first_offset()..batch.end_offset() {
        let index = u32::try_from(offset - base).unwrap_or(u32::MAX);
        seen.push(Seen {
            offset,
            batch: id,
            index,
        });
    }
    Ok(())
}

fn identify(
    life: &Life,
    offset: u64,
    bytes: &[u8],
    opaque: bool,
) -> Result<(BatchId, u32), Violation> {
    let Some((id, index)) = claim(bytes).filter(|(id, _)| life.knows(*id)) else {
        let text = format!("the record at {offset} was never submitted to this partition");
        return Err(Violation::new("P4", text));
    };
    let shape = life.shape(id);
    if shape.opaque != opaque || bytes != payload(id, index, &shape) {
        let text = format!("the record at {offset} has not the bytes of {index} of {id}");
        return Err(Violation::new("P4", text));
    }
    Ok((id, index))
}
