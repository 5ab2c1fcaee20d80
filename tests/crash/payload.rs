//! Records whose bytes follow from their names, so that altered ones are seen.

use std::collections::{BTreeMap, BTreeSet};

use alluvium::format::{Batch, BatchBuilder, StoredBatch};

use crate::model::{Name, Verdict, ensure};
use crate::rng::Rng;

/// The bytes of a record follow from its name.
pub(crate) fn value(name: Name) -> Vec<u8> {
    let mut rng = Rng(name.batch * 1_000 + u64::from(name.index));
    let len = [0, 3, 40, 300, 900][usize::try_from(rng.below(5)).unwrap()];
    let mut bytes = Vec::with_capacity(12 + 8 + len);
    bytes.extend_from_slice(&name.batch.to_le_bytes());
    bytes.extend_from_slice(&name.index.to_le_bytes());
    while bytes.len() < 12 + len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(12 + len);
    bytes
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Name> {
    let batch = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let index = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    Some(Name { batch, index })
}

pub(crate) fn batch_of(id: u64, count: u32, opaque: bool) -> Batch {
    if opaque {
        return Batch::opaque(
            &value(Name {
                batch: id,
                index: 0,
            }),
            count,
            None,
        )
        .unwrap();
    }
    let mut builder = BatchBuilder::new();
    for index in 0..count {
        builder
            .push_value(&value(Name { batch: id, index }))
            .unwrap();
    }
    builder.finish().unwrap()
}

/// Notes the records of a batch by offset, after checking every byte.
pub(crate) fn take_batch(
    batch: &StoredBatch,
    found: &mut BTreeMap<u64, Name>,
    opaque: &mut BTreeSet<u64>,
) -> Verdict {
    if batch.is_opaque() {
        let name = parse(batch.body()).ok_or("P1 an opaque body is not ours")?;
        ensure!(
            batch.body()[..] == value(name)[..],
            "P1 opaque batch {name:?} altered"
        );
        opaque.insert(name.batch);
        for offset in batch.first_offset()..batch.end_offset() {
            let index = u32::try_from(offset - batch.base_offset()).unwrap();
            found.insert(
                offset,
                Name {
                    batch: name.batch,
                    index,
                },
            );
        }
        return Ok(());
    }
    for record in batch.records() {
        let record = record.map_err(|e| format!("P1 a record does not decode: {e}"))?;
        let name = parse(&record.value).ok_or("P1 a value is not ours")?;
        ensure!(
            record.value[..] == value(name)[..],
            "P1 record {name:?} altered"
        );
        found.insert(record.offset, name);
    }
    Ok(())
}
