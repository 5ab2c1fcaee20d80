//! A segment as a log would have written it, or as nobody would: groups of batches with right
//! checksums and a right chain, after a script of bytes.
//!
//! An *honest* script keeps to the rules of the engine: a batch claims only what was durable when
//! it was placed, a seal follows only what is durable. Of such a segment it is known what has to
//! become of every damage. A script that *lies* changes fields under right checksums.

use alluvium_core::format::{
    BATCH_HEADER_LEN, Batch, BatchBuilder, BatchHeader, Control, ControlReason, EncodeError,
    Placement, Record, SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind,
};

use super::input::Input;
use super::mend::{mend_batch, mend_header};

/// Length of the file, and capacity of the segment unless the header lies.
pub(super) const CAPACITY: usize = 16 << 10;
pub(super) const PARTITION: u64 = 1;
/// Most groups that are not durable yet.
pub(super) const IN_FLIGHT_MAX: usize = 3;

/// A batch of the script.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) position: usize,
    /// Padding included.
    pub(super) end: usize,
    pub(super) group: usize,
    pub(super) base: u64,
    /// What it says is durable.
    pub(super) durable: u64,
    pub(super) seal: bool,
}

/// One write.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) end_offset: u64,
}

/// The segment, and what is known about it.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) header: SegmentHeader,
    pub(super) bytes: Vec<u8>,
    pub(super) batches: Vec<Placed>,
    pub(super) groups: Vec<Group>,
    /// What lay in the file before.
    pub(super) before: Vec<u8>,
    pub(super) lies: bool,
    /// As many groups at the beginning are durable, so that a seal or a claim may say so.
    pub(super) durable_groups: usize,
    pub(super) end: End,
}

/// Where the next batch goes, and what it follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) position: usize,
    pub(super) offset: u64,
    pub(super) sequence: u32,
    /// Header checksum of the last batch.
    pub(super) chain: u32,
    /// The last batch is a seal.
    pub(super) sealed: bool,
    pub(super) log_start: u64,
    pub(super) reserved: u64,
    generation: u32,
    /// Nothing may follow.
    closed: bool,
}

impl Script {
    /// Follows the input to its end, or until the file is full.
    pub(super) fn read(input: &mut Input<'_>, incarnation: u32, lies: bool) -> Self {
        let header = header(input, incarnation, lies);
        let mut script = Self {
            header,
            bytes: header.encode(),
            batches: Vec::new(),
            groups: Vec::new(),
            before: Vec::new(),
            lies,
            durable_groups: 0,
            end: End {
                position: SEGMENT_HEADER_LEN,
                offset: header.base_offset,
                sequence: 0,
                chain: header.prev_header_crc,
                sealed: false,
                log_start: header.log_start,
                reserved: header.reserved_end,
                generation: header.generation,
                closed: false,
            },
        };
        script.bytes.resize(CAPACITY, 0);
        script.earlier_use(input);
        script.before.clone_from(&script.bytes);
        while !input.is_empty() && !script.end.closed {
            if !script.group(input) {
                break;
            }
        }
        script
    }

    /// Bytes that an earlier use of the file has left behind.
    fn earlier_use(&mut self, input: &mut Input<'_>) {
        let area = &mut self.bytes[SEGMENT_HEADER_LEN..];
        match input.byte() % 4 {
            0 | 1 => {}
            2 => area.fill(input.byte()),
            _ => {
                let Ok(mut batch) = Batch::opaque(input.bytes(64), 1, Some(0)) else {
                    return;
                };
                batch.place(&Placement {
                    identity: self.header.identity ^ 1,
                    partition: self.header.partition,
                    incarnation: self.header.incarnation,
                    base_offset: self.header.base_offset,
                    last_in_group: true,
                    ..Placement::default()
                });
                let unit = 512 << input.pick(3);
                for at in (0..area.len() - unit).step_by(unit) {
                    let old = batch.bytes();
                    area[at..at + old.len()].copy_from_slice(old);
                }
            }
        }
    }

    /// Adds one group; `false` when it does not fit.
    fn group(&mut self, input: &mut Input<'_>) -> bool {
        let shape = input.byte();
        // Completions come in: the oldest groups are durable, at least all but so many.
        let open = usize::from(shape >> 6).min(IN_FLIGHT_MAX);
        self.durable_groups = self
            .durable_groups
            .max(self.groups.len().saturating_sub(open));
        if self.lies && shape & 0x20 != 0 {
            // A write that was lost.
            let unit = self.header.alignment as usize;
            self.end.position = (self.end.position + unit * (1 + input.pick(4))).min(CAPACITY);
        }
        let (before, batches) = (self.end, self.batches.len());
        let start = before.position;
        let count = 1 + usize::from(shape & 3);
        let number = self.groups.len();
        for index in 0..count {
            let last = index + 1 == count;
            if !self.batch(input, number, index == 0, last) {
                if !self.lies {
                    // A group is written as a whole or not at all.
                    self.end = before;
                    self.batches.truncate(batches);
                    self.bytes[start..].copy_from_slice(&self.before[start..]);
                }
                return false;
            }
        }
        self.groups.push(Group {
            start,
            end: self.end.position,
            end_offset: self.end.offset,
        });
        true
    }

    fn batch(&mut self, input: &mut Input<'_>, group: usize, first: bool, last: bool) -> bool {
        let shape = input.byte();
        // A seal ends the writes: everything before it has to be durable.
        let all_durable = first && self.durable_groups == self.groups.len();
        let (mut batch, control) = match shape % 8 {
            0..=2 => match records(input) {
                Ok(batch) => (batch, None),
                Err(_) => return false,
            },
            3 | 4 => {
                let count = 1 + u32::from(input.byte() % 5);
                let len = usize::from(input.byte()) * [1, 9][usize::from(shape >> 3 & 1)];
                let body = vec![input.byte(); len];
                let stamp = (shape & 16 != 0).then(|| i64::from(input.u16()));
                match Batch::opaque(&body, count, stamp) {
                    Ok(batch) => (batch, None),
                    Err(_) => return false,
                }
            }
            other => {
                let control = self.control(input, other, all_durable && last);
                (Batch::control(&control), Some(control))
            }
        };
        let seal = control.is_some_and(|c| c.reason == ControlReason::Seal);
        let (at, base) = (self.end.position, self.end.offset);
        let durable = self.claim(input);
        if shape & 0x80 != 0 {
            self.end.generation = self.end.generation.saturating_add(1);
        }
        batch.place(&Placement {
            identity: self.header.identity,
            partition: self.header.partition,
            incarnation: self.header.incarnation,
            generation: self.end.generation,
            sequence: self.end.sequence,
            prev_header_crc: self.end.chain,
            base_offset: base,
            durable_offset: durable,
            append_time_ms: i64::from(shape),
            last_in_group: last,
        });
        let end = self.end_of(batch.encoded_len(), last);
        if end > CAPACITY {
            return false;
        }
        let mut bytes = batch.bytes().to_vec();
        let believed = !self.lies || lie(input, &mut bytes);
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        self.bytes[at + bytes.len()..end].fill(0);
        self.end.position = end;
        self.end.sealed = seal;
        if believed {
            // The next batch follows from this one, as it stands.
            self.end.chain = BatchHeader::crc(&bytes);
            self.end.sequence += 1;
            let taken = u64::from(batch.record_count());
            self.end.offset = base.saturating_add(taken);
            if let Some(control) = control {
                self.end.log_start = self.end.log_start.max(control.log_start);
                self.end.reserved = control.reserved_end;
                self.end.closed = control.segment_end && !self.lies;
            }
        }
        self.batches.push(Placed {
            position: at,
            end,
            group,
            base,
            durable,
            seal,
        });
        true
    }

    fn end_of(&self, len: usize, last: bool) -> usize {
        let end = self.end.position + len;
        if last {
            end.next_multiple_of(self.header.alignment as usize)
        } else {
            end
        }
    }

    /// What a batch may say is durable: the end of the groups that are, or less.
    fn claim(&self, input: &mut Input<'_>) -> u64 {
        let choice = input.byte();
        if self.lies && choice & 0x40 != 0 {
            return self.end.offset.saturating_sub(u64::from(choice & 7));
        }
        let known = self
            .durable_groups
            .saturating_sub(usize::from(choice & 3 == 3));
        match known.checked_sub(1) {
            Some(last) => self.groups[last].end_offset,
            None => self.header.base_offset,
        }
    }

    fn control(&self, input: &mut Input<'_>, kind: u8, seal_allowed: bool) -> Control {
        let reason = match kind {
            5 if seal_allowed || self.lies => ControlReason::Seal,
            6 => ControlReason::Trim,
            _ => ControlReason::Reserve,
        };
        let shape = input.byte();
        let ahead = u64::from(shape >> 1 & 0x1F);
        let held = self.end.offset.saturating_sub(self.end.log_start);
        let by = if reason == ControlReason::Trim {
            u64::from(input.byte()).min(held)
        } else {
            0
        };
        let reserved = if reason == ControlReason::Reserve {
            self.end.offset.saturating_add(ahead)
        } else {
            0
        };
        Control {
            reason,
            segment_end: reason == ControlReason::Seal && shape & 1 != 0,
            end_offset: self.end.offset,
            log_start: self.end.log_start + by,
            reserved_end: self.end.reserved.max(reserved),
        }
    }
}

fn header(input: &mut Input<'_>, incarnation: u32, lies: bool) -> SegmentHeader {
    let shape = input.byte();
    let base_offset = match shape & 3 {
        0 => 0,
        1 => 1000,
        2 => u64::from(u32::MAX) - 2,
        _ => u64::from(input.u16()),
    };
    let mut header = SegmentHeader {
        kind: SegmentKind::Log,
        identity: 0x1D00 + u64::from(shape),
        partition: PARTITION,
        incarnation,
        generation: 1 + u32::from(shape >> 4),
        sequence: u64::from(shape >> 2 & 3),
        base_offset,
        prev_identity: 0,
        prev_end_offset: base_offset,
        prev_end_position: 0,
        prev_header_crc: u32::from(shape) * 0x0101,
        log_start: base_offset,
        reserved_end: base_offset,
        capacity_bytes: CAPACITY as u64,
        alignment: [512, 512, 1024, 4096][usize::from(input.byte() & 3)],
        writes_in_flight_max: 4,
        group_bytes_max: 16 << 10,
        created_ms: 0,
    };
    if lies {
        let value = input.number();
        match input.byte() % 12 {
            0 => header.base_offset = value,
            1 => header.log_start = value,
            2 => header.reserved_end = value,
            3 => header.capacity_bytes = value.saturating_mul(4096),
            4 => header.sequence = value,
            5 => header.created_ms = value.cast_signed(),
            6 => header.generation = u32::MAX - u32::from(input.byte()),
            7 => header.group_bytes_max = input.u32(),
            _ => {}
        }
    }
    header
}

fn records(input: &mut Input<'_>) -> Result<Batch, EncodeError> {
    let shape = input.byte();
    let mut builder = BatchBuilder::new();
    for index in 0..=(shape & 3) {
        let len = usize::from(input.byte()) * [1, 5][usize::from(shape >> 2 & 1)];
        let mut record = Record::new(vec![shape ^ index; len]);
        if shape & 8 != 0 {
            record = record.key(vec![index; 3]);
        }
        if shape & 16 != 0 {
            record = record.timestamp(i64::from(input.u16()));
        }
        if shape & 32 != 0 {
            record = record.header("name", vec![index]);
        }
        builder.push(&record)?;
    }
    builder.finish()
}

/// Places and lengths of the fields of a batch header that a lie changes.
const FIELDS: [(usize, usize); 16] = [
    (4, 8),
    (12, 8),
    (20, 4),
    (24, 4),
    (28, 4),
    (32, 4),
    (36, 8),
    (44, 4),
    (48, 4),
    (52, 4),
    (56, 4),
    (60, 8),
    (68, 4),
    (76, 8),
    (90, 1),
    (91, 1),
];

/// Changes something of a batch and mends its checksums. Returns whether the script goes on as if
/// the batch stood there.
fn lie(input: &mut Input<'_>, bytes: &mut [u8]) -> bool {
    let what = input.byte();
    if what & 7 != 7 {
        return true;
    }
    if what & 8 != 0 {
        // Anything in the body: records that do not decode, control messages that nobody sends.
        let at = BATCH_HEADER_LEN + input.below(bytes.len() - BATCH_HEADER_LEN + 1);
        let patch = input.bytes(8);
        let end = (at + patch.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&patch[..end - at]);
        mend_batch(bytes);
        return what & 0x80 == 0;
    }
    let (at, len) = FIELDS[input.pick(FIELDS.len())];
    let field = &mut bytes[at..at + len];
    if what & 0x10 != 0 {
        // Near the right value.
        let mut value = [0; 8];
        value[..len].copy_from_slice(field);
        let near = i64::from(input.byte().cast_signed());
        let value = u64::from_le_bytes(value).wrapping_add_signed(near);
        field.copy_from_slice(&value.to_le_bytes()[..len]);
    } else {
        field.copy_from_slice(&input.number().to_le_bytes()[..len]);
    }
    mend_header(bytes);
    what & 0x80 == 0
}
