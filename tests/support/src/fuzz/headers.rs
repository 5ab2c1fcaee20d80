//! The fixed structures: segment header block, STORE file, batch header, control message.
//!
//! Between them they carry everything that other formats put into a checkpoint: log start,
//! reservations, ends of predecessors, seals.

use alluvium_core::format::{
    BATCH_HEADER_LEN, BatchHeader, Control, ControlReason, DURABLE_LAG_UNKNOWN, SECTOR_LEN,
    SEGMENT_HEADER_LEN, STORE_HEADER_LEN, SegmentHeader, StoreHeader,
};

use super::input::Input;
use super::mend::{mend_header, mend_sector, u32_at, u64_at};

/// The first byte says which structure the rest is, and what is mended.
pub fn headers(data: &[u8]) {
    let mut input = Input(data);
    let shape = input.byte();
    match shape % 4 {
        0 => segment(&mut input),
        1 => store(&mut input, shape),
        2 => batch(input.0, shape),
        _ => control(input.0),
    }
    // And as whole files, of any length.
    drop(SegmentHeader::check_block(data));
    drop(StoreHeader::decode(data));
    drop(SegmentHeader::decode(data));
}

/// A sector that begins as the input says, the magic put right or not, with its checksum mended.
fn sector(input: &mut Input<'_>, magic: [u8; 8]) -> [u8; SECTOR_LEN] {
    let mut sector = [0; SECTOR_LEN];
    let shape = input.byte();
    if shape & 1 == 0 {
        sector[..8].copy_from_slice(&magic);
        // Version and checksum algorithm.
        sector[8..11].copy_from_slice(&[1, 0, 1]);
        if shape & 2 == 0 {
            // Kind, alignment: the checks that come next.
            sector[11..14].copy_from_slice(&[1 + (shape >> 7), 9 + (shape >> 4 & 3), 0]);
        }
    }
    let start = if shape & 1 != 0 {
        0
    } else if shape & 2 != 0 {
        11
    } else {
        14
    };
    let fields = input.bytes(120 - start);
    sector[start..start + fields.len()].copy_from_slice(fields);
    if shape & 4 != 0 {
        let at = input.below(SECTOR_LEN);
        sector[at] ^= input.byte();
    }
    if shape & 8 == 0 {
        mend_sector(&mut sector);
    }
    sector
}

fn segment(input: &mut Input<'_>) {
    let mut block = vec![0; SEGMENT_HEADER_LEN];
    let first = sector(input, *b"ALLUVSEG");
    let second = match input.byte() % 4 {
        0 | 1 => first,
        2 => {
            // Of an earlier or later use: the same but for a few bytes.
            let mut other = first;
            for _ in 0..=input.pick(3) {
                let at = input.below(120);
                other[at] ^= input.byte();
            }
            mend_sector(&mut other);
            other
        }
        _ => sector(input, *b"ALLUVSEG"),
    };
    let twice = |sector: &[u8; SECTOR_LEN]| {
        let mut block = vec![0; SEGMENT_HEADER_LEN];
        block[..SECTOR_LEN].copy_from_slice(sector);
        block[2048..2048 + SECTOR_LEN].copy_from_slice(sector);
        SegmentHeader::decode(&block)
    };
    block[..SECTOR_LEN].copy_from_slice(&first);
    block[2048..2048 + SECTOR_LEN].copy_from_slice(&second);
    let found = SegmentHeader::decode(&block);
    // Each copy alone, and the one that counts.
    let wanted = match (twice(&first), twice(&second)) {
        (Ok(a), Ok(b)) if b.sequence > a.sequence => Ok(b),
        (Ok(a), _) => Ok(a),
        (Err(_), Ok(b)) => Ok(b),
        (Err(e), Err(_)) => Err(e),
    };
    assert_eq!(found, wanted);
    if let Ok(header) = found {
        let sector = if twice(&first) == Ok(header) {
            first
        } else {
            second
        };
        fields(&header, &sector);
        let again = header.encode();
        assert_eq!(again[..SECTOR_LEN], sector, "one encoding");
        assert_eq!(SegmentHeader::check_block(&again), Ok(header));
        assert_eq!(SegmentHeader::check_block(&block).is_ok(), first == second);
    } else {
        assert!(SegmentHeader::check_block(&block).is_err());
    }
    // Zeros fill the block; who checks strictly sees anything else.
    let flawless = SegmentHeader::check_block(&block).is_ok();
    let at = input.below(SEGMENT_HEADER_LEN);
    block[at] ^= input.byte().max(1);
    assert!(!flawless || SegmentHeader::check_block(&block).is_err());
    let short = &block[..at];
    assert!(SegmentHeader::decode(short).is_err());
}

/// The fields stand where the format says.
fn fields(header: &SegmentHeader, sector: &[u8]) {
    let numbers = [
        header.identity,
        header.partition,
        header.sequence,
        header.base_offset,
        header.prev_identity,
        header.prev_end_offset,
        header.prev_end_position,
        header.log_start,
        header.reserved_end,
        header.capacity_bytes,
        header.created_ms.cast_unsigned(),
    ];
    for (at, number) in (32..).step_by(8).zip(numbers) {
        assert_eq!(u64_at(sector, at), number, "the field at {at}");
    }
    let small = [
        header.group_bytes_max,
        header.incarnation,
        header.generation,
        header.prev_header_crc,
    ];
    for (at, number) in (16..).step_by(4).zip(small) {
        assert_eq!(u32_at(sector, at), number, "the field at {at}");
    }
    assert_eq!(header.alignment, 1 << sector[12]);
}

fn store(input: &mut Input<'_>, shape: u8) {
    let mut sector = sector(input, *b"ALLUVIUM");
    if shape & 16 == 0 {
        // Room that has to be zero, or nothing comes through.
        sector[11..16].fill(0);
        sector[32..120].fill(0);
        mend_sector(&mut sector);
    }
    if let Ok(header) = StoreHeader::decode(&sector) {
        assert_eq!(header.encode(), sector, "one encoding");
        assert_eq!(u64_at(&sector, 16), header.store_id);
        assert_eq!(u64_at(&sector, 24), header.created_ms.cast_unsigned());
        let at = input.below(STORE_HEADER_LEN);
        sector[at] ^= input.byte().max(1);
        assert!(StoreHeader::decode(&sector).is_err(), "damage at {at}");
        assert!(StoreHeader::decode(&sector[..at]).is_err());
    }
}

fn batch(data: &[u8], shape: u8) {
    let mut bytes = data.to_vec();
    if let Some(magic) = bytes.get_mut(..4)
        && shape & 16 == 0
    {
        magic.copy_from_slice(b"ALB1");
    }
    if shape & 32 == 0 {
        mend_header(&mut bytes);
    }
    let Ok(header) = BatchHeader::decode(&bytes) else {
        return;
    };
    let mut again = [0; BATCH_HEADER_LEN];
    let crc = header.encode_into(&mut again);
    assert_eq!(again[..], bytes[..BATCH_HEADER_LEN], "one encoding");
    assert_eq!((BatchHeader::crc(&bytes), u32_at(&bytes, 92)), (crc, crc));
    let end = header.end_offset().expect("checked by the decoder");
    assert_eq!(end - header.base_offset, u64::from(header.record_count));
    assert_eq!(u64_at(&bytes, 4), header.identity);
    assert_eq!(u64_at(&bytes, 36), header.base_offset);
    assert_eq!(u32_at(&bytes, 48), header.body_len);
    if header.durable_lag == DURABLE_LAG_UNKNOWN {
        assert_eq!(header.durable_offset(), None);
    } else if let Some(durable) = header.durable_offset() {
        assert!(durable <= header.base_offset);
    }
}

/// The state of a log, as control batches carry it.
fn control(data: &[u8]) {
    let mut body = data.to_vec();
    let check = |body: &[u8]| match Control::decode(body) {
        Ok(control) => {
            assert_eq!(control.encode()[..], *body, "one encoding");
            let reason = match body[1] {
                1 => ControlReason::Seal,
                2 => ControlReason::Reserve,
                _ => ControlReason::Trim,
            };
            assert_eq!(control.reason, reason);
            let numbers = [control.end_offset, control.log_start, control.reserved_end];
            assert_eq!(numbers, [8, 16, 24].map(|at| u64_at(body, at)));
        }
        Err(e) => {
            let sound = body.len() == Control::LEN
                && body[0] == 1
                && (1..=3).contains(&body[1])
                && body[2] <= 1
                && body[3..8] == [0; 5];
            assert!(!sound, "{e}: {body:?}");
        }
    };
    check(&body);
    body.resize(Control::LEN, 0);
    check(&body);
    body[0] = 1;
    body[1] = 1 + body[1] % 3;
    body[2] &= 1;
    body[3..8].fill(0);
    check(&body);
}
