//! The strict walk over a whole segment.

use alluvium_core::format::{self, BatchHeader, WalkFault};
use bytes::Bytes;

use super::input::Input;
use super::mend::burst;
use super::script::Script;

/// A segment after a script, or any bytes: a typed error with a position inside of the input, or a
/// summary. A sound segment gets the summary that belongs to it, and no damage goes unnoticed.
pub fn walk_segment(data: &[u8]) {
    let mut input = Input(data);
    let shape = input.byte();
    if shape % 8 == 7 {
        drop(walk(input.0.to_vec()));
        return;
    }
    let lies = shape & 1 != 0;
    let damage = (input.u16(), input.u32());
    let script = Script::read(&mut input, 0, lies);
    let end = script.end.position;
    let sound = walk(script.bytes[..end].to_vec());
    if lies {
        drop(walk(script.bytes));
        return;
    }
    if script.end.sealed {
        let summary = sound.as_ref().expect("a sound and sealed segment");
        let seal = summary.seal;
        assert_eq!(summary.header, script.header);
        assert_eq!(summary.batch_count, script.end.sequence);
        assert_eq!(summary.batch_count as usize, script.batches.len());
        assert_eq!(summary.end_offset, script.end.offset);
        assert_eq!(summary.end_position, end);
        assert_eq!(summary.last_header_crc, script.end.chain);
        assert_eq!(seal.log_start, script.end.log_start);
        assert_eq!(seal.reserved_end, script.end.reserved);
        // What lies behind the end of a file is looked at only if the seal does not say so.
        let mut longer = script.bytes[..end].to_vec();
        longer.extend_from_slice(&[0; 512]);
        let behind = walk(longer);
        assert_eq!(behind.is_ok(), seal.segment_end, "{behind:?}");
    } else {
        let flaw = sound.expect_err("no seal at the end");
        assert_eq!((flaw.position, flaw.fault), (end, WalkFault::NotSealed));
    }
    // Some bits in a row, anywhere.
    let mut damaged = script.bytes[..end].to_vec();
    let at = usize::from(damage.0) % end;
    burst(&mut damaged, at, damage.1 | 1);
    let flaw = walk(damaged).expect_err("damage inside of what counts");
    let place = script.batches.iter().find(|b| at < b.end);
    let place = if at < format::SEGMENT_HEADER_LEN {
        0
    } else {
        place.map_or(end, |b| b.position)
    };
    assert_eq!(flaw.position, place, "damage at {at}: {flaw}");
    // A batch less, and everything behind it moved up.
    if let Some(gone) = script.batches.get(at % script.batches.len().max(1))
        && gone.end < end
    {
        let mut shorter = script.bytes[..end].to_vec();
        shorter.drain(gone.position..gone.end);
        assert!(BatchHeader::decode(&shorter[gone.position..]).is_ok());
        walk(shorter).expect_err("a batch is missing");
    }
}

fn walk(bytes: Vec<u8>) -> Result<format::WalkSummary, format::WalkError> {
    let len = bytes.len();
    let found = format::walk_segment(&Bytes::from(bytes));
    match &found {
        Ok(summary) => assert!(summary.end_position <= len),
        Err(flaw) => assert!(flaw.position <= len, "{flaw} in {len} bytes"),
    }
    found
}
