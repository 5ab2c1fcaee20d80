//! Segments whose checksums are right and whose structure is not.

use alluvium_core::format::{Batch, Control, ControlReason, Placement, WalkFault, walk_segment};

use crate::inputs::{BASE_OFFSET, PREV_CRC, control, golden_groups, golden_segment, lay_out};

fn walk_fault(tweak: impl Fn(u32, &mut Placement)) -> WalkFault {
    walk_segment(&lay_out(golden_groups(), tweak))
        .expect_err("a flaw")
        .fault
}

#[test]
fn batches_in_the_wrong_place_are_found_under_valid_checksums() {
    type Tweak = fn(&mut Placement);
    let foreign: [Tweak; 3] = [
        |p| p.identity ^= 1,
        |p| p.partition ^= 1,
        |p| p.incarnation ^= 1,
    ];
    for (number, tweak) in (0..7).flat_map(|number| foreign.map(|tweak| (number, tweak))) {
        let fault = walk_fault(|n, p| {
            if n == number {
                tweak(p);
            }
        });
        assert_eq!(fault, WalkFault::Foreign);
    }
    assert_eq!(
        walk_fault(|n, p| p.sequence += u32::from(n == 2)),
        WalkFault::Sequence {
            expected: 2,
            found: 3
        }
    );
    assert_eq!(
        walk_fault(|n, p| p.base_offset += u64::from(n == 1)),
        WalkFault::Offset {
            expected: BASE_OFFSET + 3,
            found: BASE_OFFSET + 4
        }
    );
    assert_eq!(
        walk_fault(|n, p| p.generation += u32::from(n == 4)),
        WalkFault::Generation {
            before: 4,
            found: 3
        }
    );
    assert_eq!(
        walk_fault(|n, p| p.prev_header_crc ^= u32::from(n == 0)),
        WalkFault::Chain {
            expected: PREV_CRC,
            found: PREV_CRC ^ 1
        }
    );
}

#[test]
fn a_segment_must_end_with_a_seal_on_a_group_boundary() {
    let fault = |groups| {
        walk_segment(&lay_out(groups, |_, _| {}))
            .expect_err("a flaw")
            .fault
    };
    let mut groups = golden_groups();
    groups.pop();
    assert_eq!(fault(groups), WalkFault::NotSealed);
    assert_eq!(fault(Vec::new()), WalkFault::NotSealed);
    // A seal that is not the last of its group, with nothing after it.
    let last = walk_fault(|n, p| p.last_in_group &= n != 6);
    assert!(
        matches!(last, WalkFault::Format(_) | WalkFault::NotSealed),
        "{last}"
    );
    // What a recycled file still holds after the segment's end is not looked at.
    let mut bytes = golden_segment().to_vec();
    bytes.extend_from_slice(&[0xee; 700]);
    assert!(walk_segment(&bytes.into()).is_ok());
}

#[test]
fn control_batches_that_go_back_are_found() {
    let fault = |control: Control| {
        let groups = vec![
            vec![Batch::from_values(["a"]).expect("has records")],
            vec![Batch::control(&control)],
        ];
        walk_segment(&lay_out(groups, |_, _| {}))
            .err()
            .map(|error| error.fault)
    };
    let good = control(ControlReason::Seal, BASE_OFFSET + 1);
    assert_eq!(fault(good), None);
    assert_eq!(
        fault(Control {
            end_offset: BASE_OFFSET,
            ..good
        }),
        Some(WalkFault::Offset {
            expected: BASE_OFFSET + 1,
            found: BASE_OFFSET
        })
    );
    assert_eq!(
        fault(Control {
            log_start: 249,
            ..good
        }),
        Some(WalkFault::Control)
    );
    assert_eq!(
        fault(Control {
            log_start: BASE_OFFSET + 2,
            ..good
        }),
        Some(WalkFault::Control)
    );
    assert_eq!(
        fault(Control {
            reserved_end: 999,
            ..good
        }),
        None,
        "a seal gives reservations back"
    );
}

/// A write of the header block that was cut short leaves one header or the other.
#[test]
fn a_header_block_that_was_written_in_part_reads_as_the_old_or_the_new() {
    use alluvium_core::format::SegmentHeader;
    let old = crate::inputs::segment_header();
    let new = SegmentHeader {
        sequence: old.sequence + 1,
        identity: 99,
        ..old
    };
    let (before, after) = (old.encode(), new.encode());
    for cut in 0..=4096 {
        let mut block = before.clone();
        block[..cut].copy_from_slice(&after[..cut]);
        let found = SegmentHeader::decode(&block).unwrap();
        assert!(found == old || found == new, "cut at {cut}");
        let mut block = after.clone();
        block[..cut].copy_from_slice(&before[..cut]);
        let found = SegmentHeader::decode(&block).unwrap();
        assert!(found == old || found == new, "only the end from {cut} on");
    }
}
