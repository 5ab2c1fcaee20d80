//! What the tests encode: fixed inputs of the golden files, and small helpers.

use alluvium_core::format::{
    Batch, BatchBuilder, BatchHeader, BatchKind, Control, ControlReason, Placement, Record,
    SegmentHeader, SegmentKind,
};
use alluvium_core::io::AlignedBuf;
use bytes::Bytes;

pub(crate) const ALIGNMENT: usize = 512;
pub(crate) const BASE_OFFSET: u64 = 1_000;
pub(crate) const CLOCK_MS: i64 = 1_700_000_000_000;
pub(crate) const PREV_CRC: u32 = 0x0bad_cafe;

pub(crate) fn segment_header() -> SegmentHeader {
    SegmentHeader {
        kind: SegmentKind::Log,
        identity: 0x0123_4567_89ab_cdef,
        partition: 42,
        incarnation: 1,
        generation: 3,
        sequence: 17,
        base_offset: BASE_OFFSET,
        prev_identity: 0xfedc_ba98_7654_3210,
        prev_end_offset: 998,
        prev_end_position: 81_920,
        prev_header_crc: PREV_CRC,
        log_start: 250,
        reserved_end: 1_000,
        capacity_bytes: 1 << 20,
        alignment: 512,
        writes_in_flight_max: 4,
        group_bytes_max: 1 << 16,
        created_ms: CLOCK_MS,
    }
}

pub(crate) fn control(reason: ControlReason, end_offset: u64) -> Control {
    Control {
        reason,
        segment_end: reason == ControlReason::Seal,
        end_offset,
        log_start: if reason == ControlReason::Reserve {
            250
        } else {
            600
        },
        reserved_end: 2_000,
    }
}

/// The batches of the golden segment, in groups.
pub(crate) fn golden_groups() -> Vec<Vec<Batch>> {
    let mut events = BatchBuilder::new();
    events.producer(9, 2, 77).leader_epoch(5);
    for record in [
        Record::new("21.5")
            .key("sensor-7")
            .timestamp(CLOCK_MS)
            .header("unit", "C"),
        Record::new("").key("").timestamp(CLOCK_MS - 40),
        Record::new(vec![0xa5; 300])
            .timestamp(CLOCK_MS + 90_000)
            .header("", "")
            .header("n", "2"),
    ] {
        events.push(&record).expect("fits");
    }
    vec![
        vec![
            events.finish().expect("has records"),
            Batch::from_values(["alpha", "beta", ""]).expect("has records"),
        ],
        vec![Batch::opaque(&[0x5a; 700], 5, Some(CLOCK_MS + 1)).expect("fits")],
        vec![
            Batch::control(&control(ControlReason::Reserve, BASE_OFFSET + 11)),
            Batch::from_values([[7_u8; 64]; 4])
                .expect("has records")
                .with_leader_epoch(6),
        ],
        vec![Batch::control(&control(
            ControlReason::Trim,
            BASE_OFFSET + 15,
        ))],
        vec![Batch::control(&control(
            ControlReason::Seal,
            BASE_OFFSET + 15,
        ))],
    ]
}

/// Lays groups out behind a header; `tweak` may falsify the placement of the batch of a number.
pub(crate) fn lay_out(groups: Vec<Vec<Batch>>, tweak: impl Fn(u32, &mut Placement)) -> Bytes {
    let header = segment_header();
    let mut out = AlignedBuf::with_capacity(1 << 16);
    out.extend_from_slice(&header.encode());
    let mut placement = Placement {
        identity: header.identity,
        partition: header.partition,
        incarnation: header.incarnation,
        generation: header.generation,
        sequence: 0,
        prev_header_crc: header.prev_header_crc,
        base_offset: header.base_offset,
        durable_offset: 998,
        append_time_ms: CLOCK_MS + 5,
        last_in_group: false,
    };
    for group in groups {
        let last = group.len() - 1;
        for (index, mut batch) in group.into_iter().enumerate() {
            placement.last_in_group = index == last;
            let mut used = placement;
            tweak(placement.sequence, &mut used);
            placement.prev_header_crc = batch.place(&used);
            placement.sequence += 1;
            placement.base_offset += u64::from(batch.record_count());
            placement.append_time_ms += 1;
            out.extend_from_slice(batch.bytes());
        }
        out.pad_to(ALIGNMENT);
        placement.durable_offset = placement.base_offset;
    }
    out.freeze()
}

pub(crate) fn golden_segment() -> Bytes {
    lay_out(golden_groups(), |_, _| {})
}

/// A batch whose checksums are right and whose content is whatever the test says.
pub(crate) fn forge(body: &[u8], change: impl FnOnce(&mut BatchHeader)) -> Bytes {
    let batch = Batch::opaque(body, 1, None).expect("fits");
    let mut header = batch.header_at(&Placement::default());
    header.kind = BatchKind::Records;
    change(&mut header);
    let mut buf = batch.into_buf();
    header.encode_into(&mut buf);
    buf.freeze()
}

pub(crate) fn build(records: &[Record]) -> Batch {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder.push(record).expect("fits");
    }
    builder.finish().expect("has records")
}

pub(crate) fn placed(mut batch: Batch, placement: &Placement) -> Bytes {
    batch.place(placement);
    batch.into_buf().freeze()
}
