//! Single batches: limits of the builder, malformed content, clipping.

use alluvium_core::format::{
    BATCH_HEADER_LEN, Batch, BatchBuilder, BatchHeader, BatchKind, Control, ControlReason,
    EncodeError, FormatError, Placement, Record, RecordFault, decode_batch,
};
use bytes::Bytes;

use crate::inputs::{build, control, forge, placed};

fn first_error(bytes: &Bytes) -> FormatError {
    match decode_batch(bytes, 0) {
        Err(error) => error,
        Ok(batch) => {
            let results: Vec<_> = batch.records().collect();
            let errors = results.iter().filter(|result| result.is_err()).count();
            assert!(errors <= 1 && results.iter().rev().skip(1).all(Result::is_ok));
            results.into_iter().find_map(Result::err).expect("an error")
        }
    }
}

#[test]
fn contradictions_under_valid_checksums_are_typed_errors() {
    let bad = |fault| FormatError::BadRecord { index: 0, fault };
    let one = [3, 0, 0, b'x'];
    assert!(
        decode_batch(&forge(&one, |_| {}), 0)
            .expect("valid")
            .records()
            .all(|r| r.is_ok())
    );

    let fields: [(&[u8], RecordFault); 11] = [
        (&[4, 0, 0, b'x'], RecordFault::Truncated),
        (&[0, 0, 0], RecordFault::Truncated),
        (&[1, 0, 0], RecordFault::Truncated),
        (
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            RecordFault::Truncated,
        ),
        (&[0x83, 0, 0, 0, b'x'], RecordFault::Varint),
        (&[3, 4, 0, b'x'], RecordFault::Flags(4)),
        (&[3, 1, 0, 1], RecordFault::Truncated),
        (&[3, 2, 0, 0], RecordFault::HeaderCount),
        (&[3, 2, 0, 1], RecordFault::HeaderCount),
        (
            &[7, 2, 0, 0xff, 0xff, 0xff, 0xff, 0x0f],
            RecordFault::HeaderCount,
        ),
        (&[3, 0, 2, b'x'], RecordFault::Timestamp),
    ];
    for (body, fault) in fields {
        assert_eq!(first_error(&forge(body, |_| {})), bad(fault), "{body:?}");
    }
    // Without APPEND_TIME a delta is allowed, but not above the declared maximum.
    let own_time = |h: &mut BatchHeader| h.flags = 0;
    assert_eq!(
        first_error(&forge(&[3, 0, 2, b'x'], own_time)),
        bad(RecordFault::Timestamp)
    );
    let overflow = |h: &mut BatchHeader| {
        (h.flags, h.base_timestamp) = (0, i64::MIN);
    };
    assert_eq!(
        first_error(&forge(&[3, 0, 1, b'x'], overflow)),
        bad(RecordFault::Timestamp)
    );

    assert_eq!(
        first_error(&forge(&[3, 0, 0, b'x', 3, 0, 0, b'y'], |_| {})),
        FormatError::TrailingBytes { count: 4 }
    );
    assert_eq!(
        first_error(&forge(&[5, 0, 0, 1, 2, 3], |h| h.record_count = 2)),
        FormatError::RecordCount {
            stored: 2,
            found: 1
        }
    );
    let many = |h: &mut BatchHeader| h.record_count = u32::MAX;
    let found = FormatError::RecordCount {
        stored: u32::MAX,
        found: 1,
    };
    assert_eq!(first_error(&forge(&one, many)), found);
    assert_eq!(
        first_error(&forge(&one, |h| h.base_offset = u64::MAX)),
        FormatError::OffsetOverflow {
            base_offset: u64::MAX,
            record_count: 1
        }
    );
    assert_eq!(
        first_error(&forge(&one, |h| h.flags = 0x80)),
        FormatError::BadFlags(0x80)
    );
    assert!(matches!(
        first_error(&forge(&one, |h| h.body_len = u32::MAX)),
        FormatError::LengthOutOfBounds { .. }
    ));
    assert!(matches!(
        first_error(&forge(&one, |h| h.body_len = 5)),
        FormatError::Truncated {
            need: 101,
            have: 100
        }
    ));
    assert!(matches!(
        first_error(&forge(&one, |h| h.body_crc ^= 1)),
        FormatError::BodyChecksum { .. }
    ));
}

#[test]
fn other_kinds_have_no_records_and_control_is_control() {
    let place = |mut batch: Batch| {
        batch.place(&Placement::default());
        decode_batch(&batch.into_buf().freeze(), 0).expect("valid")
    };
    let opaque = place(Batch::opaque(b"", 3, None).expect("fits"));
    let wrong = FormatError::WrongKind {
        kind: BatchKind::Opaque,
    };
    assert_eq!(
        opaque.records().collect::<Vec<_>>(),
        vec![Err(wrong.clone())]
    );
    assert_eq!(opaque.control(), Err(wrong));
    let message = control(ControlReason::Trim, 0);
    let stored = place(Batch::control(&message));
    assert_eq!(stored.control(), Ok(message));
    assert_eq!(stored.end_offset(), stored.base_offset());
    for (at, error) in [
        (0, FormatError::UnsupportedVersion { found: 9 }),
        (1, FormatError::BadKind(9)),
        (2, FormatError::BadFlags(9)),
        (7, FormatError::NonZeroPadding),
    ] {
        let mut body = message.encode();
        body[at] = 9;
        assert_eq!(Control::decode(&body), Err(error));
    }
}

#[test]
fn the_durable_offset_is_kept_as_a_lag() {
    let at = |base_offset, durable_offset| {
        let placement = Placement {
            base_offset,
            durable_offset,
            ..Placement::default()
        };
        Batch::from_values(["x"])
            .expect("fits")
            .header_at(&placement)
            .durable_offset()
    };
    assert_eq!(at(10, 10), Some(10));
    assert_eq!(at(10, 3), Some(3));
    assert_eq!(at(10, 11), Some(10));
    assert_eq!(at(u64::from(u32::MAX) - 1, 0), Some(0));
    assert_eq!(at(u64::from(u32::MAX), 0), None);
    assert_eq!(at(u64::MAX - 1, 0), None);
}

#[test]
fn the_builder_refuses_and_stays_as_it_was() {
    let mut builder = BatchBuilder::new();
    assert_eq!(BatchBuilder::new().finish().err(), Some(EncodeError::Empty));
    assert_eq!(Batch::opaque(b"x", 0, None).err(), Some(EncodeError::Empty));
    builder.push(&Record::new("a").timestamp(0)).expect("fits");
    let before = builder.len_bytes();
    assert_eq!(builder.push_value(b"b"), Err(EncodeError::MixedTimestamps));
    let far = i64::from(u32::MAX) + 1;
    for timestamp in [far, -far, i64::MAX, i64::MIN] {
        assert_eq!(
            builder.push(&Record::new("b").timestamp(timestamp)),
            Err(EncodeError::TimestampSpan { base: 0, timestamp })
        );
    }
    let name = Bytes::from_static(b"n");
    let mut headed = Record::new("c").timestamp(1);
    headed.headers = vec![
        alluvium_core::format::Header {
            name: name.clone(),
            value: name
        };
        65_536
    ];
    assert!(matches!(
        builder.push(&headed),
        Err(EncodeError::TooManyHeaders { .. })
    ));
    headed.headers.pop();
    assert_eq!((builder.len_bytes(), builder.record_count()), (before, 1));
    builder.push(&headed).expect("fits");
    builder
        .push(&Record::new("d").timestamp(far - 1))
        .expect("fits");
    builder
        .push(&Record::new("e").timestamp(1 - far))
        .expect("fits");
    let mut batch = builder.finish().expect("has records");
    batch.place(&Placement::default());
    let stored = decode_batch(&batch.into_buf().freeze(), 0).expect("valid");
    let stamps: Vec<_> = stored
        .records()
        .map(|r| r.expect("valid").timestamp)
        .collect();
    assert_eq!(stamps, [0, 1, far - 1, 1 - far]);

    let big = vec![0; 64 << 20];
    let mut builder = BatchBuilder::new();
    assert!(matches!(
        builder.push_value(&big),
        Err(EncodeError::RecordTooLarge { .. })
    ));
    builder.push_value(&big[..40 << 20]).expect("fits");
    assert!(matches!(
        builder.push_value(&big[..30 << 20]),
        Err(EncodeError::BatchTooLarge { .. })
    ));
    assert!(matches!(
        Batch::opaque(&big, 1, None),
        Err(EncodeError::BatchTooLarge { .. })
    ));
    assert_eq!(builder.record_count(), 1);
}

#[test]
fn a_clipped_batch_shows_only_its_range() {
    let mut batch = Batch::from_values(["a", "b", "c", "d"]).expect("fits");
    batch.place(&Placement {
        base_offset: 10,
        ..Placement::default()
    });
    let whole = decode_batch(&batch.into_buf().freeze(), 0).expect("valid");
    let offsets = |start, end| {
        let clipped = whole.clone().clip(start, end);
        let offsets: Vec<_> = clipped
            .records()
            .map(|r| r.expect("valid").offset)
            .collect();
        assert_eq!(
            offsets,
            (clipped.first_offset()..clipped.end_offset()).collect::<Vec<_>>()
        );
        assert_eq!(clipped.base_offset(), 10);
        offsets
    };
    assert_eq!(offsets(0, u64::MAX), [10, 11, 12, 13]);
    assert_eq!(offsets(11, 13), [11, 12]);
    assert!(offsets(0, 10).is_empty());
    assert!(offsets(14, 20).is_empty());
    assert!(offsets(13, 11).is_empty());
    assert_eq!(whole.clone().clip(12, 14).clip(0, 13).records().count(), 1);
}

#[test]
fn every_single_flip_and_truncation_of_one_batch() {
    let records = [
        Record::new("v1").key("k").timestamp(10).header("a", "b"),
        Record::new(vec![1; 150]).timestamp(8),
    ];
    let bytes = placed(
        build(&records),
        &Placement {
            identity: 5,
            ..Placement::default()
        },
    );
    assert!(bytes.len() > BATCH_HEADER_LEN);
    for len in 0..bytes.len() {
        assert!(
            decode_batch(&bytes.slice(..len), 0).is_err(),
            "length {len}"
        );
    }
    for bit in 0..bytes.len() * 8 {
        let mut copy = bytes.to_vec();
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_batch(&copy.into(), 0).is_err(), "bit {bit}");
    }
}
