//! The decisions of recovery: pure functions over facts.
//!
//! # The tail
//!
//! | label | facts | decision |
//! | --- | --- | --- |
//! | `clean` | the chain ends with a seal (or is empty), nothing of this use of the file behind it | go on in place |
//! | `unsealed` | the chain ends without a seal, nothing behind it | keep all of it; new segment |
//! | `torn` | batches of this use of the file lie behind the end, none proves that the missing ones were acknowledged | cut at the end; new segment |
//! | `corrupt` | what lies behind the end proves that acknowledged bytes are missing before it | refuse, or open read only |
//!
//! A batch behind the end proves a loss when the durable offset that it carries lies beyond the end,
//! when it is a seal, or when a whole batch stands at the end without continuing the chain. Seals
//! are written only when everything before them is durable.
//!
//! # The chain of segments
//!
//! The header with the highest sequence is the truth. It names its predecessor by identity and says
//! how far the predecessor counts; so do the older ones in turn, down to the log start. Every
//! other file is dead, whatever it holds: that is what makes a cut final.

use std::fmt;

use super::super::segment::{Scan, Stop, Survivor};
use crate::format::{SegmentHeader, SegmentKind};

/// What a partition's tail looked like, and so what recovery decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailCase {
    /// Sealed or empty; goes on in place.
    Clean,
    /// Not sealed; all of it is kept.
    Unsealed,
    /// Not sealed, with unacknowledged batches behind a hole; cut.
    Torn,
    /// Acknowledged bytes are missing.
    Corrupt,
}

impl fmt::Display for TailCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Unsealed => "unsealed",
            Self::Torn => "torn",
            Self::Corrupt => "corrupt",
        })
    }
}

/// Labels the tail of the newest segment.
pub(super) fn classify_tail(sealed: bool, stop: &Stop, survivor: Option<&Survivor>) -> TailCase {
    match (stop, survivor) {
        (
            _,
            Some(Survivor {
                proves_loss: true, ..
            }),
        )
        | (Stop::BrokenChain(_), _) => TailCase::Corrupt,
        (_, Some(_)) | (Stop::TornBatch(_), None) => TailCase::Torn,
        (Stop::Full | Stop::Nothing(_), None) if sealed => TailCase::Clean,
        (Stop::Full | Stop::Nothing(_), None) => TailCase::Unsealed,
    }
}

/// Labels a scanned tail.
pub(super) fn classify_scan(scan: &Scan) -> TailCase {
    classify_tail(scan.sealed, &scan.stop, scan.survivor.as_ref())
}

/// Index of the header that is the truth, among those of live segments.
pub(super) fn newest(headers: &[Option<SegmentHeader>]) -> Option<usize> {
    headers
        .iter()
        .enumerate()
        .filter_map(|(i, h)| {
            h.as_ref()
                .filter(|h| h.kind == SegmentKind::Log)
                .map(|h| (i, h))
        })
        .max_by_key(|(_, h)| (h.sequence, h.generation))
        .map(|(i, _)| i)
}

/// A segment of the log, by its index among the headers, and how far it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: usize,
    pub(super) end_offset: u64,
    pub(super) end_position: u64,
}

/// The predecessors of the newest segment that hold records at or above `log_start`, oldest first,
/// and the identity of one that is missing, if any.
pub(super) fn predecessors(
    headers: &[Option<SegmentHeader>],
    newest: usize,
    log_start: u64,
) -> (Vec<Link>, Option<u64>) {
    let mut links = Vec::new();
    let Some(Some(newest)) = headers.get(newest) else {
        return (links, None);
    };
    let mut later = newest;
    while later.prev_identity != 0 && later.prev_end_offset > log_start {
        let wanted = later.prev_identity;
        let found = headers.iter().position(|h| {
            h.as_ref().is_some_and(|h| {
                h.kind == SegmentKind::Log && h.identity == wanted && h.sequence < later.sequence
            })
        });
        let Some(index) = found else {
            links.reverse();
            return (links, Some(wanted));
        };
        links.push(Link {
            index,
            end_offset: later.prev_end_offset,
            end_position: later.prev_end_position,
        });
        let Some(Some(header)) = headers.get(index) else {
            break;
        };
        later = header;
    }
    links.reverse();
    (links, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CorruptionKind;

    fn header(sequence: u64, prev: u64, base: u64, prev_end: u64) -> SegmentHeader {
        SegmentHeader {
            kind: SegmentKind::Log,
            identity: sequence + 100,
            partition: 1,
            incarnation: 1,
            generation: 1,
            sequence,
            base_offset: base,
            prev_identity: prev,
            prev_end_offset: prev_end,
            prev_end_position: 5000,
            prev_header_crc: 0,
            log_start: 0,
            reserved_end: 0,
            capacity_bytes: 1 << 16,
            alignment: 512,
            writes_in_flight_max: 4,
            group_bytes_max: 4096,
            created_ms: 0,
        }
    }

    #[test]
    fn the_tail_table_is_total() {
        let stops = [
            Stop::Full,
            Stop::Nothing(CorruptionKind::Misplaced("x")),
            Stop::TornBatch(CorruptionKind::Misplaced("x")),
            Stop::BrokenChain("x"),
        ];
        let survivor = |proves_loss| Survivor {
            position: 1,
            offset: 1,
            proves_loss,
        };
        let survivors = [None, Some(survivor(false)), Some(survivor(true))];
        let mut seen = Vec::new();
        for sealed in [false, true] {
            for (s, stop) in stops.iter().enumerate() {
                for (v, found) in survivors.iter().enumerate() {
                    let case = classify_tail(sealed, stop, found.as_ref());
                    let expected = match (s, v) {
                        (_, 2) | (3, _) => TailCase::Corrupt,
                        (_, 1) | (2, 0) => TailCase::Torn,
                        _ if sealed => TailCase::Clean,
                        _ => TailCase::Unsealed,
                    };
                    assert_eq!(case, expected, "{sealed} {stop:?} {found:?}");
                    seen.push(case);
                }
            }
        }
        for case in [
            TailCase::Clean,
            TailCase::Unsealed,
            TailCase::Torn,
            TailCase::Corrupt,
        ] {
            assert!(seen.contains(&case), "{case} is never decided");
        }
    }

    #[test]
    fn the_newest_header_rules_and_a_cut_segment_is_dead() {
        // 3 replaced 2 after a cut at offset 15 of segment 1; 2 is still on the disk.
        let headers = [
            Some(header(2, 101, 20, 20)),
            Some(header(3, 101, 15, 15)),
            Some(header(1, 0, 0, 0)),
        ];
        assert_eq!(newest(&headers), Some(1));
        let (links, missing) = predecessors(&headers, 1, 0);
        assert_eq!(missing, None);
        assert_eq!(
            links,
            [Link {
                index: 2,
                end_offset: 15,
                end_position: 5000
            }]
        );
        assert_eq!(
            predecessors(&headers, 1, 15).0,
            [],
            "below the log start nothing is needed"
        );
    }

    #[test]
    fn a_missing_predecessor_is_named() {
        let headers = [Some(header(3, 102, 20, 20)), None, Some(header(1, 0, 0, 0))];
        assert_eq!(predecessors(&headers, 0, 0), (vec![], Some(102)));
        assert_eq!(predecessors(&headers, 0, 20), (vec![], None));
    }

    #[test]
    fn spares_are_never_the_truth() {
        let mut spare = header(9, 0, 0, 0);
        spare.kind = SegmentKind::Spare;
        assert_eq!(newest(&[Some(spare), None]), None);
    }
}
