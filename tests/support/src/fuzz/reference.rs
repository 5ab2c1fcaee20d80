//! What recovery has to make of a segment, once more and plainly: over the whole file in memory, by
//! FORMAT.md and the table of the tail cases, without the decoders under test.

use alluvium_core::TailCase;
use alluvium_core::format::{
    BATCH_BODY_LEN_MAX, BATCH_HEADER_LEN, SEGMENT_HEADER_LEN, SegmentHeader,
};

use super::mend::{crc32, u32_at, u64_at};

const CONTROL: u8 = 3;
const SEAL: u8 = 1;

/// A batch header whose checksum is right and whose fields do not contradict each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) position: usize,
    identity: u64,
    partition: u64,
    incarnation: u32,
    generation: u32,
    sequence: u32,
    link: u32,
    pub(super) base: u64,
    pub(super) count: u32,
    body_len: usize,
    durable: Option<u64>,
    kind: u8,
    last_in_group: bool,
    crc: u32,
}

/// The facts of a segment.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) case: TailCase,
    /// The file itself cannot be believed: nothing of it is.
    pub(super) unreadable: bool,
    pub(super) end_position: u64,
    pub(super) end_offset: u64,
    pub(super) log_start: u64,
    pub(super) reserved_end: u64,
    /// The batches of the chain.
    pub(super) chain: Vec<Head>,
}

/// Judges a segment whose header block is sound.
pub(super) fn judge(file: &[u8], own: &SegmentHeader) -> Verdict {
    Judge { file, own }.judge()
}

struct Judge<'a> {
    file: &'a [u8],
    own: &'a SegmentHeader,
}

enum End {
    Full,
    Nothing,
    Torn,
    Broken,
}

impl Judge<'_> {
    fn judge(&self) -> Verdict {
        let own = self.own;
        let mut verdict = Verdict {
            case: TailCase::Corrupt,
            unreadable: self.outruns(),
            end_position: SEGMENT_HEADER_LEN as u64,
            end_offset: own.base_offset,
            log_start: own.log_start,
            reserved_end: own.reserved_end,
            chain: Vec::new(),
        };
        if verdict.unreadable {
            return verdict;
        }
        let mut position = SEGMENT_HEADER_LEN;
        let (mut sealed, mut in_group) = (true, false);
        let (mut sequence, mut link, mut generation) = (0, own.prev_header_crc, own.generation);
        let end = loop {
            if position as u64 + BATCH_HEADER_LEN as u64 > own.capacity_bytes {
                break End::Full;
            }
            let Some((head, next)) = self.whole(position) else {
                let ours = self.header(position).is_some();
                break if ours { End::Torn } else { End::Nothing };
            };
            let follows = head.sequence == sequence
                && head.link == link
                && head.base == verdict.end_offset
                && head.generation >= generation;
            if !follows {
                break if in_group { End::Torn } else { End::Broken };
            }
            sealed = false;
            if head.kind == CONTROL {
                let body = &self.file[position + BATCH_HEADER_LEN..][..head.body_len];
                if !is_control(body) {
                    break End::Torn;
                }
                verdict.log_start = verdict.log_start.max(u64_at(body, 16));
                verdict.reserved_end = u64_at(body, 24);
                sealed = body[1] == SEAL && head.last_in_group;
            }
            in_group = !head.last_in_group;
            sequence = head.sequence.wrapping_add(1);
            link = head.crc;
            generation = head.generation;
            verdict.end_offset = head.base + u64::from(head.count);
            verdict.chain.push(head);
            position = next;
        };
        verdict.end_position = position as u64;
        let (behind, loss) = self.behind(position, verdict.end_offset);
        verdict.case = match end {
            _ if loss => TailCase::Corrupt,
            End::Broken => TailCase::Corrupt,
            _ if behind => TailCase::Torn,
            End::Torn => TailCase::Torn,
            End::Full | End::Nothing if sealed => TailCase::Clean,
            End::Full | End::Nothing => TailCase::Unsealed,
        };
        if verdict.case == TailCase::Corrupt {
            verdict.log_start = self.trimmed_behind(position, verdict.log_start);
        }
        verdict
    }

    /// The log start, with the trims in the whole batches behind the end of the chain: they have let go of
    /// files, which are not missing.
    fn trimmed_behind(&self, end: usize, log_start: u64) -> u64 {
        let unit = self.own.alignment as usize;
        let is_whole = |at: &usize| self.whole(*at).is_some();
        let (mut log_start, mut at) = (log_start, end);
        loop {
            let next = if let Some((head, next)) = self.whole(at) {
                let body = &self.file[at + BATCH_HEADER_LEN..][..head.body_len];
                if head.kind == CONTROL && is_control(body) {
                    log_start = log_start.max(u64_at(body, 16));
                }
                Some(next)
            } else {
                // What follows a header in its group, or else the next group.
                let in_group = self.header(at).map(|head| self.position_after(&head));
                let groups = ((at + 1).next_multiple_of(unit)..self.file.len()).step_by(unit);
                let follows = in_group.filter(is_whole);
                follows.or_else(|| groups.into_iter().find(is_whole))
            };
            match next {
                Some(next) if next < self.file.len() => at = next,
                _ => return log_start,
            }
        }
    }

    fn position_after(&self, head: &Head) -> usize {
        let end = head.position + BATCH_HEADER_LEN + head.body_len;
        if head.last_in_group {
            end.next_multiple_of(self.own.alignment as usize)
        } else {
            end
        }
    }

    /// Whether something of this use of the file lies behind the end, and whether it proves a loss.
    fn behind(&self, end: usize, end_offset: u64) -> (bool, bool) {
        let unit = self.own.alignment as usize;
        let first = std::iter::once(end);
        let places = first.chain(((end + 1).next_multiple_of(unit)..self.file.len()).step_by(unit));
        let mut behind = false;
        for at in places {
            if (at + BATCH_HEADER_LEN) as u64 > self.own.capacity_bytes {
                break;
            }
            let Some(head) = self.header(at) else {
                continue;
            };
            behind = true;
            let seal = at > end
                && head.kind == CONTROL
                && self.whole(at).is_some_and(|(head, _)| {
                    let body = &self.file[at + BATCH_HEADER_LEN..][..head.body_len];
                    is_control(body) && body[1] == SEAL
                });
            if seal || head.durable.is_some_and(|durable| durable > end_offset) {
                return (true, true);
            }
        }
        (behind, false)
    }

    /// Whether the first batch is of a later use than the header: that header was lost.
    fn outruns(&self) -> bool {
        let own = self.own;
        self.any_header(SEGMENT_HEADER_LEN).is_some_and(|head| {
            head.identity != own.identity
                && head.partition == own.partition
                && head.incarnation == own.incarnation
                && (head.generation, head.base) > (own.generation, own.base_offset)
        })
    }

    /// A header of this use of the file.
    fn header(&self, at: usize) -> Option<Head> {
        let head = self.any_header(at)?;
        (head.identity == self.own.identity).then_some(head)
    }

    /// A batch that is all there, with its padding, of this use of the file; and where the next is.
    pub(super) fn whole(&self, at: usize) -> Option<(Head, usize)> {
        let head = self.header(at)?;
        let own = self.own;
        let ours = head.partition == own.partition
            && head.incarnation == own.incarnation
            && head.generation >= own.generation;
        let body_at = at + BATCH_HEADER_LEN;
        let end = body_at + head.body_len;
        let body = self.file.get(body_at..end)?;
        let next = self.position_after(&head);
        let padding = self.file.get(end..next)?;
        let sound = crc32(body) == u32_at(self.file, at + 52)
            && padding.iter().all(|byte| *byte == 0)
            && next as u64 <= own.capacity_bytes;
        (ours && sound).then_some((head, next))
    }

    fn any_header(&self, at: usize) -> Option<Head> {
        let bytes = self.file.get(at..at + BATCH_HEADER_LEN)?;
        if bytes[..4] != *b"ALB1" || crc32(&bytes[..92]) != u32_at(bytes, 92) {
            return None;
        }
        let (base, count) = (u64_at(bytes, 36), u32_at(bytes, 44));
        let body_len = u32_at(bytes, 48) as usize;
        let (kind, flags) = (bytes[90], bytes[91]);
        let counts = match kind {
            1 => count >= 1 && u64::from(count) * 3 <= body_len as u64,
            2 => count >= 1,
            CONTROL => count == 0,
            _ => false,
        };
        let sound = counts
            && flags <= 3
            && body_len <= BATCH_BODY_LEN_MAX
            && base.checked_add(u64::from(count)).is_some();
        let lag = u32_at(bytes, 56);
        let durable = if lag == u32::MAX {
            None
        } else {
            base.checked_sub(u64::from(lag))
        };
        sound.then_some(Head {
            position: at,
            identity: u64_at(bytes, 4),
            partition: u64_at(bytes, 12),
            incarnation: u32_at(bytes, 20),
            generation: u32_at(bytes, 24),
            sequence: u32_at(bytes, 28),
            link: u32_at(bytes, 32),
            base,
            count,
            body_len,
            durable,
            kind,
            last_in_group: flags & 1 != 0,
            crc: u32_at(bytes, 92),
        })
    }
}

fn is_control(body: &[u8]) -> bool {
    body.len() == 32
        && body[0] == 1
        && (1..=3).contains(&body[1])
        && body[2] <= 1
        && body[3..8] == [0; 5]
}
