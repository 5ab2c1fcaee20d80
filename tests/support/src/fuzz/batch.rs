//! One batch: any bytes as a batch, and any records through a batch and back.

use alluvium_core::format::{
    self, BATCH_HEADER_LEN, BatchBuilder, BatchHeader, BatchKind, EncodeError, Placement, Record,
    StoredBatch, StoredRecord, flags,
};
use bytes::Bytes;

use super::input::Input;
use super::mend::{BODY_LEN_AT, mend_batch};

/// Any bytes: a typed error, or a batch whose records decode or fail with a type. What decodes is
/// encoded again, to the same bytes. Each input is tried as it is, with mended checksums, and with
/// a length that fits what is there.
pub fn decode_batch(data: &[u8]) {
    check(&Bytes::copy_from_slice(data));
    if data.len() < BATCH_HEADER_LEN {
        return;
    }
    let mut mended = data.to_vec();
    mended[..4].copy_from_slice(b"ALB1");
    mend_batch(&mut mended);
    let claimed = Bytes::from(mended.clone());
    check(&claimed);
    let Ok(len) = u32::try_from(data.len() - BATCH_HEADER_LEN) else {
        return;
    };
    mended[BODY_LEN_AT..BODY_LEN_AT + 4].copy_from_slice(&len.to_le_bytes());
    mend_batch(&mut mended);
    if claimed != mended {
        check(&Bytes::from(mended));
    }
}

fn check(bytes: &Bytes) {
    let Ok(batch) = format::decode_batch(bytes, 0) else {
        return;
    };
    let mut again = [0; BATCH_HEADER_LEN];
    batch.header().encode_into(&mut again);
    assert_eq!(
        again[..],
        bytes[..BATCH_HEADER_LEN],
        "a header that decodes encodes the same"
    );
    assert_eq!(BatchHeader::decode(&again).as_ref(), Ok(batch.header()));
    let mut views = batch.views();
    let mut records = Vec::new();
    for record in batch.records() {
        let view = views.next().expect("as many views as records");
        match (record, view) {
            (Ok(record), Ok(view)) => {
                assert_eq!(view.to_stored(), record);
                assert_eq!(record.offset, batch.base_offset() + records.len() as u64);
                records.push(record);
            }
            (Err(record), Err(view)) => {
                assert_eq!(record, view);
                // Part of a batch is as readable as the whole: up to the first flaw.
                clipped(&batch, &records, false);
                return;
            }
            other => panic!("records and views differ: {other:?}"),
        }
    }
    assert!(views.next().is_none());
    assert_eq!(records.len() as u64, u64::from(batch.header().record_count));
    clipped(&batch, &records, true);
    encode_again(&batch, &records);
}

/// Any part of a batch gives the records of that part.
fn clipped(batch: &StoredBatch, records: &[StoredRecord], whole: bool) {
    let base = batch.base_offset();
    let count = records.len() as u64;
    for (from, to) in [(0, count), (1, count), (0, count / 2), (count / 2, count)] {
        let part = batch
            .clone()
            .clip(base.saturating_add(from), base.saturating_add(to));
        let wanted = records.iter().filter(|r| {
            let at = r.offset - base;
            at >= from && at < to
        });
        let sound = part.records().map_while(Result::ok);
        assert!(sound.eq(wanted.cloned()), "records {from} to {to}");
        let flaw = part.records().find_map(Result::err);
        assert!(!whole || flaw.is_none(), "{flaw:?}");
    }
}

/// There is only one way to encode records, so those that were decoded make the same body again.
fn encode_again(batch: &StoredBatch, records: &[StoredRecord]) {
    let header = batch.header();
    let Some(first) = records.first() else {
        return;
    };
    let stamped = header.flags & flags::APPEND_TIME == 0;
    if stamped && first.timestamp != header.base_timestamp {
        // The decoder does not ask for it, the builder always makes it so.
        return;
    }
    let mut builder = BatchBuilder::new();
    for record in records {
        let record = Record {
            timestamp: stamped.then_some(record.timestamp),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.clone(),
        };
        match builder.push(&record) {
            Ok(()) => {}
            // From the first record to one older and one newer may be more than a delta holds.
            Err(EncodeError::TimestampSpan { .. }) if stamped => return,
            Err(e) => panic!("a record that was decoded cannot be encoded: {e}"),
        }
    }
    let again = builder.finish().expect("there are records");
    assert_eq!(again.body(), &batch.body()[..], "one encoding");
}

/// Records, producers and placements of any kind: refused with a type, or the same after a decoder.
pub fn encode_batch(data: &[u8]) {
    let mut input = Input(data);
    let placement = Placement {
        identity: input.number(),
        partition: input.number(),
        incarnation: input.u32(),
        generation: u32::from(input.byte()),
        sequence: input.u32(),
        prev_header_crc: input.u32(),
        base_offset: input.number(),
        durable_offset: input.number(),
        append_time_ms: input.number().cast_signed(),
        last_in_group: input.one_in(2),
    };
    let mut builder = BatchBuilder::new();
    let producer = input.one_in(2).then(|| {
        let producer = (input.number(), input.u16(), input.u32());
        builder.producer(producer.0, producer.1, producer.2);
        producer
    });
    let epoch = u32::from(input.byte());
    builder.leader_epoch(epoch);
    let base = input.number().cast_signed();
    let mut pushed: Vec<Record> = Vec::new();
    while !input.is_empty() {
        let record = record(&mut input, base);
        let before = (builder.record_count(), builder.len_bytes());
        match builder.push(&record) {
            Ok(()) => pushed.push(record),
            Err(e) => {
                let after = (builder.record_count(), builder.len_bytes());
                assert_eq!(after.0, before.0, "{e}");
                assert_eq!(after.1, before.1, "a refused record leaves nothing: {e}");
            }
        }
    }
    let mut batch = match builder.finish() {
        Ok(batch) => batch,
        Err(e) => {
            assert!(pushed.is_empty() && e == EncodeError::Empty, "{e}");
            return;
        }
    };
    let header = batch.header_at(&placement);
    let crc = batch.place(&placement);
    let len = batch.encoded_len();
    let bytes = batch.into_buf().freeze();
    assert_eq!((bytes.len(), BatchHeader::crc(&bytes)), (len, crc));
    let stored = match format::decode_batch(&bytes, 0) {
        Ok(stored) => stored,
        Err(e) => {
            assert!(header.end_offset().is_none(), "{e}: {header:?}");
            return;
        }
    };
    assert_eq!(*stored.header(), header);
    if let Some((id, epoch, sequence)) = producer {
        let found = (
            header.producer_id,
            header.producer_epoch,
            header.producer_sequence,
        );
        assert_eq!(found, (id, epoch, sequence));
    }
    assert_eq!(header.leader_epoch, epoch);
    assert_eq!(header.kind, BatchKind::Records);
    same_records(&stored, &pushed, &placement);
}

fn record(input: &mut Input<'_>, base: i64) -> Record {
    let shape = input.byte();
    let mut record = Record::new(input.bytes(usize::from(shape >> 4)).to_vec());
    if shape & 1 != 0 {
        let len = input.pick(200);
        record = record.key(input.bytes(len).to_vec());
    }
    if shape & 2 != 0 {
        let delta = input.number().cast_signed();
        record = record.timestamp(base.wrapping_add(delta));
    }
    if shape & 4 != 0 {
        for _ in 0..=input.pick(4) {
            let (name, value) = (input.pick(9), input.pick(140));
            let name = input.bytes(name).to_vec();
            record = record.header(name, input.bytes(value).to_vec());
        }
    }
    record
}

fn same_records(stored: &StoredBatch, pushed: &[Record], placement: &Placement) {
    let mut found = stored.records();
    let mut newest = i64::MIN;
    for (index, record) in pushed.iter().enumerate() {
        let stored = found.next().expect("as many records as were pushed");
        let timestamp = record.timestamp.unwrap_or(placement.append_time_ms);
        newest = newest.max(timestamp);
        let wanted = StoredRecord {
            offset: placement.base_offset + index as u64,
            timestamp,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.clone(),
        };
        assert_eq!(stored, Ok(wanted));
    }
    assert_eq!(found.next(), None);
    let first = pushed.first().and_then(|r| r.timestamp);
    let oldest = first.unwrap_or(placement.append_time_ms);
    assert_eq!(stored.header().max_timestamp(), newest.max(oldest));
}
