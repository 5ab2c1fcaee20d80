//! Properties of generated records, placements, headers and bytes.

use alluvium_core::format::{
    BatchHeader, Control, Placement, Record, SegmentHeader, SegmentKind, StoreHeader, decode_batch,
    flags, walk_segment,
};
use bytes::Bytes;
use proptest::prelude::*;

use crate::inputs::{CLOCK_MS, build, forge, placed};

fn small_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn any_record() -> impl Strategy<Value = Record> {
    let headers = prop::collection::vec((small_bytes(), small_bytes()), 0..4);
    (prop::option::of(small_bytes()), small_bytes(), headers).prop_map(|(key, value, headers)| {
        let record = Record {
            key,
            ..Record::new(value)
        };
        headers
            .into_iter()
            .fold(record, |record, (name, value)| record.header(name, value))
    })
}

/// Records that either all carry timestamps within the span or all do not.
fn any_records() -> impl Strategy<Value = Vec<Record>> {
    let base = prop::option::of(-1_i64 << 62..1 << 62);
    let record = (any_record(), -0x7fff_ffff_i64..0x7fff_ffff);
    (base, prop::collection::vec(record, 1..12)).prop_map(|(base, records)| {
        let stamp = |(record, delta): (Record, i64)| match base {
            Some(base) => record.timestamp(base + delta),
            None => record,
        };
        records.into_iter().map(stamp).collect()
    })
}

proptest! {
    #[test]
    fn records_come_back_as_they_went(records in any_records(), base_offset in 0..u64::MAX - 12) {
        let placement =
            Placement { base_offset, append_time_ms: CLOCK_MS, ..Placement::default() };
        let stored = decode_batch(&placed(build(&records), &placement), 0).expect("valid");
        let back: Vec<_> = stored.records().collect::<Result<_, _>>().expect("valid");
        prop_assert_eq!(back.len(), records.len());
        let own_max = records.iter().filter_map(|r| r.timestamp).max();
        prop_assert_eq!(stored.header().max_timestamp(), own_max.unwrap_or(CLOCK_MS));
        for (offset, (back, record)) in (base_offset..).zip(back.into_iter().zip(records)) {
            prop_assert_eq!(back.offset, offset);
            prop_assert_eq!(back.timestamp, record.timestamp.unwrap_or(CLOCK_MS));
            prop_assert_eq!(back.key, record.key);
            prop_assert_eq!(back.value, record.value);
            prop_assert_eq!(back.headers, record.headers);
        }
    }

    #[test]
    fn placements_come_back_as_they_went(
        numbers in any::<(u64, u64, u32, u32, u32, u32, u32)>(),
        base_offset in 0..u64::MAX,
        last_in_group in any::<bool>(),
    ) {
        let (identity, partition, incarnation, generation, sequence, prev_header_crc, lag) = numbers;
        let durable_offset = base_offset.saturating_sub(u64::from(lag));
        let placement = Placement {
            identity, partition, incarnation, generation, sequence, prev_header_crc, base_offset,
            durable_offset, append_time_ms: -5, last_in_group,
        };
        let batch = build(&[Record::new("x")]);
        let header = batch.header_at(&placement);
        let bytes = placed(batch, &placement);
        prop_assert_eq!(BatchHeader::decode(&bytes), Ok(header));
        prop_assert_eq!(header.is_last_in_group(), last_in_group);
        prop_assert_eq!(header.flags & flags::APPEND_TIME, flags::APPEND_TIME);
        if base_offset - durable_offset < u64::from(u32::MAX) {
            prop_assert_eq!(header.durable_offset(), Some(durable_offset));
        }
    }

    #[test]
    fn segment_headers_come_back_as_they_went(
        words in any::<[u64; 9]>(),
        halves in any::<(u32, u32, u32, u32, u16)>(),
        log2 in 9..=12_u32,
        created_ms in any::<i64>(),
    ) {
        let header = SegmentHeader {
            kind: SegmentKind::Log,
            identity: words[0],
            partition: words[1],
            sequence: words[2],
            base_offset: words[3],
            prev_identity: words[4],
            prev_end_offset: words[5],
            prev_end_position: words[6],
            log_start: words[7],
            reserved_end: words[8],
            capacity_bytes: words[0] ^ words[8],
            incarnation: halves.0,
            generation: halves.1,
            prev_header_crc: halves.2,
            group_bytes_max: halves.3,
            writes_in_flight_max: halves.4,
            alignment: 1 << log2,
            created_ms,
        };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn every_truncation_and_flip_of_a_batch_is_an_error(records in any_records()) {
        let bytes = placed(build(&records), &Placement::default());
        for len in 0..bytes.len() {
            prop_assert!(decode_batch(&bytes.slice(..len), 0).is_err());
        }
        let mut copy = bytes.to_vec();
        for bit in (0..bytes.len() * 8).step_by(1 + bytes.len() / 256) {
            copy[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_batch(&Bytes::copy_from_slice(&copy), 0).is_err());
            copy[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5_000)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(BatchHeader::decode(&bytes).is_err());
        prop_assert!(SegmentHeader::decode(&bytes).is_err());
        prop_assert!(StoreHeader::decode(&bytes).is_err());
        prop_assert!(walk_segment(&bytes).is_err());
        prop_assert!(decode_batch(&bytes, bytes.len() + 1).is_err());
        Control::decode(&bytes).ok();
    }

    #[test]
    fn random_bodies_under_valid_checksums_never_panic(
        body in prop::collection::vec(prop_oneof![0..6_u8, any::<u8>()], 3..200),
        record_count in 1..80_u32,
        bits in 0..4_u8,
        clip in any::<(u8, u8)>(),
    ) {
        let bytes = forge(&body, |header| {
            header.record_count = record_count;
            header.flags = bits;
            header.max_timestamp_delta = 100;
        });
        if let Ok(batch) = decode_batch(&bytes, 0) {
            prop_assert!(batch.records().count() <= body.len());
            let clipped = batch.clip(u64::from(clip.0), u64::from(clip.1));
            prop_assert!(clipped.records().count() <= body.len());
        }
    }
}
