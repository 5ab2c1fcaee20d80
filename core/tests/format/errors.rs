//! Every error of the format is reached through its public functions.

use std::collections::BTreeSet;
use std::fmt::Debug;

use alluvium_core::format::{
    Batch, BatchBuilder, BatchHeader, BatchKind, Control, ControlReason, EncodeError, FormatError,
    Header, Placement, Record, SegmentHeader, StoreHeader, WalkFault, decode_batch, walk_segment,
};
use bytes::Bytes;

use crate::inputs::{BASE_OFFSET, control, forge, golden_groups, lay_out, segment_header};

/// Names of all errors of decoding; a new one needs a line here, as `cargo test --test tidy` says,
/// and a way to reach it below.
const FORMAT: [&str; 17] = [
    "BadAlignment",
    "BadFlags",
    "BadKind",
    "BadMagic",
    "BadRecord",
    "BodyChecksum",
    "HeaderChecksum",
    "HeaderCopies",
    "LengthOutOfBounds",
    "NonZeroPadding",
    "OffsetOverflow",
    "RecordCount",
    "TrailingBytes",
    "Truncated",
    "UnsupportedChecksum",
    "UnsupportedVersion",
    "WrongKind",
];

/// The same for records.
const RECORD: [&str; 5] = ["Flags", "HeaderCount", "Timestamp", "Truncated", "Varint"];

/// And for encoding.
const ENCODE: [&str; 6] = [
    "BatchTooLarge",
    "Empty",
    "MixedTimestamps",
    "RecordTooLarge",
    "TimestampSpan",
    "TooManyHeaders",
];

/// And for the strict walk.
const WALK: [&str; 9] = [
    "Capacity",
    "Chain",
    "Control",
    "Foreign",
    "Format",
    "Generation",
    "NotSealed",
    "Offset",
    "Sequence",
];

/// Names of the variants that were seen.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    fn note<E: Debug + std::error::Error>(&mut self, error: &E) {
        assert!(!error.to_string().is_empty());
        let debug = format!("{error:?}");
        let end = debug.find([' ', '(', '{']).unwrap_or(debug.len());
        self.0.insert(debug[..end].to_owned());
    }

    fn are_all<const N: usize>(&self, all: [&str; N]) {
        assert_eq!(self.0, all.map(str::to_owned).into());
    }
}

#[test]
fn every_error_is_reached() {
    let (mut seen, mut records) = (Seen::default(), Seen::default());
    for error in of_headers().into_iter().chain(of_batches()) {
        if let FormatError::BadRecord { fault, .. } = &error {
            records.note(fault);
        }
        seen.note(&error);
    }
    seen.are_all(FORMAT);
    records.are_all(RECORD);
    let mut seen = Seen::default();
    for error in of_encoding() {
        seen.note(&error);
    }
    seen.are_all(ENCODE);
    let mut seen = Seen::default();
    for fault in of_walking() {
        seen.note(&fault);
    }
    seen.are_all(WALK);
}

/// The error of what must not work.
fn refused<T, E>(result: Result<T, E>) -> E {
    result.err().expect("an error")
}

fn of_headers() -> Vec<FormatError> {
    let block = segment_header().encode();
    // The same in both copies, under a checksum that fits.
    let forged = |at: usize, byte: u8| {
        let mut block = block.clone();
        block[at] = byte;
        let crc = crc32fast::hash(&block[..508]).to_le_bytes();
        block[508..512].copy_from_slice(&crc);
        block.copy_within(..512, 2048);
        refused(SegmentHeader::decode(&block))
    };
    let mut torn = block.clone();
    let newer = SegmentHeader {
        sequence: 18,
        ..segment_header()
    };
    torn[..512].copy_from_slice(&newer.encode()[..512]);
    let mut damaged = block.clone();
    (damaged[100], damaged[2148]) = (0xFF, 0xFF);
    let store = StoreHeader {
        store_id: 1,
        created_ms: 2,
    };
    vec![
        forged(0, b'X'),
        forged(8, 2),
        forged(10, 9),
        forged(11, 9),
        forged(12, 20),
        forged(13, 1),
        refused(SegmentHeader::check_block(&torn)),
        refused(SegmentHeader::decode(&damaged)),
        refused(SegmentHeader::decode(&block[..4095])),
        refused(StoreHeader::decode(&store.encode()[..511])),
    ]
}

fn of_batches() -> Vec<FormatError> {
    let one = [3, 0, 0, b'x'];
    let header = |change: fn(&mut BatchHeader)| refused(decode_batch(&forge(&one, change), 0));
    let body = |bytes: &[u8]| {
        let batch = decode_batch(&forge(bytes, |_| {}), 0).expect("valid checksums");
        let first = batch.records().find_map(Result::err);
        first.expect("a malformed record")
    };
    let mut note = control(ControlReason::Trim, 0).encode();
    note[2] = 9;
    let mut opaque = Batch::opaque(b"unit", 1, None).expect("fits");
    opaque.place(&Placement::default());
    let opaque = decode_batch(&opaque.into_buf().freeze(), 0).expect("valid");
    assert_eq!(
        opaque.control(),
        Err(FormatError::WrongKind {
            kind: BatchKind::Opaque
        })
    );
    vec![
        refused(opaque.control()),
        header(|h| h.body_len = u32::MAX),
        header(|h| h.base_offset = u64::MAX),
        header(|h| h.record_count = u32::MAX),
        header(|h| h.body_crc ^= 1),
        refused(Control::decode(&note)),
        body(&[3, 0, 0, b'x', 3, 0, 0, b'y']),
        body(&[3, 4, 0, b'x']),
        body(&[3, 2, 0, 0]),
        body(&[3, 0, 2, b'x']),
        body(&[4, 0, 0, b'x']),
        body(&[0x83, 0, 0, 0, b'x']),
    ]
}

fn of_encoding() -> Vec<EncodeError> {
    let mut builder = BatchBuilder::new();
    builder.push(&Record::new("a").timestamp(0)).expect("fits");
    let name = Bytes::from_static(b"n");
    let header = Header {
        name: name.clone(),
        value: name,
    };
    let mut headed = Record::new("c").timestamp(1);
    headed.headers = vec![header; 65_536];
    let large = vec![0; 64 << 20];
    vec![
        refused(BatchBuilder::new().finish()),
        refused(builder.push_value(b"b")),
        refused(builder.push(&Record::new("b").timestamp(i64::MAX))),
        refused(builder.push(&headed)),
        refused(BatchBuilder::new().push_value(&large)),
        refused(Batch::opaque(&large, 1, None)),
    ]
}

fn of_walking() -> Vec<WalkFault> {
    let tweaked = |tweak: fn(u32, &mut Placement)| {
        let flaw = refused(walk_segment(&lay_out(golden_groups(), tweak)));
        assert!(flaw.to_string().contains(&flaw.fault.to_string()));
        flaw.fault
    };
    let laid_out = |groups| refused(walk_segment(&lay_out(groups, |_, _| {}))).fault;
    let goes_back = Control {
        log_start: 249,
        ..control(ControlReason::Seal, BASE_OFFSET)
    };
    // More than a write group of this segment may have.
    let large = Batch::opaque(&vec![0; 1 << 17], 1, None).expect("fits");
    vec![
        tweaked(|n, p| p.identity ^= u64::from(n == 1)),
        tweaked(|n, p| p.generation += u32::from(n == 4)),
        tweaked(|n, p| p.sequence += u32::from(n == 2)),
        tweaked(|n, p| p.prev_header_crc ^= u32::from(n == 0)),
        tweaked(|n, p| p.base_offset += u64::from(n == 1)),
        laid_out(vec![vec![Batch::control(&goes_back)]]),
        laid_out(vec![vec![large]]),
        laid_out(Vec::new()),
        refused(walk_segment(&vec![0; 4096].into())).fault,
    ]
}
