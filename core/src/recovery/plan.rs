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
//! [`TailFacts`] are all facts that decide. By why the chain ends and by what lies behind it (whether
//! it is sealed tells `clean` from `unsealed`, and changes nothing else):
//!
//! | | nothing behind | a batch behind | a proof of loss behind |
//! | --- | --- | --- | --- |
//! | no room | `clean`, `unsealed` | impossible | impossible |
//! | nothing there | `clean`, `unsealed` | `torn` | `corrupt` |
//! | a torn batch | impossible | `torn` | `corrupt` |
//! | a broken chain | impossible | impossible | `corrupt` |
//!
//! A combination that a scan cannot give has a case all the same, the careful one:
//! [`TailFacts::impossible`] says why it cannot.
//!
//! # The chain of segments
//!
//! The header with the highest sequence is the truth. It names its predecessor by identity and says
//! how far the predecessor counts; so do the older ones in turn, down to the log start. Every
//! other file is dead, whatever it holds: that is what makes a cut final. Only a second file with the
//! header of a live segment is damage: which of the two is the log cannot be told.

use std::fmt;

use crate::format::{SegmentHeader, SegmentKind};
use crate::segment::{Scan, Stop};

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

/// Why the chain of a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainEnd {
    /// No room for another batch.
    Full,
    /// Nothing that belongs to this use of the file.
    Nothing,
    /// A batch of this use of the file whose body is damaged or not all there.
    TornBatch,
    /// A whole batch of this use of the file that does not continue the chain.
    BrokenChain,
}

/// What of this use of the file was found at the end of the chain and behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BehindEnd {
    /// Nothing.
    Nothing,
    /// A batch (its header, at least) that proves nothing.
    Batch,
    /// One that proves that what is missing before it had been acknowledged.
    ProofOfLoss,
}

/// The facts that decide a partition's [`TailCase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailFacts {
    /// The chain is empty or ends with a seal.
    pub sealed: bool,
    /// Why it ends.
    pub end: ChainEnd,
    /// What lies behind.
    pub behind: BehindEnd,
}

impl TailFacts {
    /// Every combination, those that cannot be included.
    pub fn all() -> impl Iterator<Item = Self> {
        use ChainEnd::{BrokenChain, Full, Nothing, TornBatch};
        let behind = [BehindEnd::Nothing, BehindEnd::Batch, BehindEnd::ProofOfLoss];
        [false, true].into_iter().flat_map(move |sealed| {
            let ends = [Full, Nothing, TornBatch, BrokenChain].into_iter();
            ends.flat_map(move |end| {
                behind.map(|behind| Self {
                    sealed,
                    end,
                    behind,
                })
            })
        })
    }

    /// The facts of a scan.
    pub(super) fn of(scan: &Scan) -> Self {
        let end = match scan.stop {
            Stop::Full => ChainEnd::Full,
            Stop::Nothing(_) => ChainEnd::Nothing,
            Stop::TornBatch(_) => ChainEnd::TornBatch,
            Stop::BrokenChain(_) => ChainEnd::BrokenChain,
        };
        let behind = match &scan.survivor {
            None => BehindEnd::Nothing,
            Some(survivor) if survivor.proves_loss => BehindEnd::ProofOfLoss,
            Some(_) => BehindEnd::Batch,
        };
        Self {
            sealed: scan.sealed,
            end,
            behind,
        }
    }

    /// The label of the tail.
    pub fn case(self) -> TailCase {
        match (self.end, self.behind) {
            (_, BehindEnd::ProofOfLoss) | (ChainEnd::BrokenChain, _) => TailCase::Corrupt,
            (_, BehindEnd::Batch) | (ChainEnd::TornBatch, BehindEnd::Nothing) => TailCase::Torn,
            (ChainEnd::Full | ChainEnd::Nothing, BehindEnd::Nothing) if self.sealed => {
                TailCase::Clean
            }
            (ChainEnd::Full | ChainEnd::Nothing, BehindEnd::Nothing) => TailCase::Unsealed,
        }
    }

    /// Why no scan can give these facts; `None` when one can.
    pub fn impossible(self) -> Option<&'static str> {
        match (self.end, self.behind) {
            (ChainEnd::Full, BehindEnd::Batch | BehindEnd::ProofOfLoss) => {
                Some("where no header has room, none is found behind")
            }
            (ChainEnd::TornBatch, BehindEnd::Nothing) => {
                Some("the torn batch itself is found: its header is sound")
            }
            (ChainEnd::BrokenChain, BehindEnd::Nothing | BehindEnd::Batch) => {
                Some("a whole batch that does not continue the chain is a proof itself")
            }
            _ => None,
        }
    }
}

/// As the words of the label's table.
impl fmt::Display for TailFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = if self.sealed { "sealed" } else { "not sealed" };
        let end = match self.end {
            ChainEnd::Full => "no room",
            ChainEnd::Nothing => "nothing there",
            ChainEnd::TornBatch => "a torn batch",
            ChainEnd::BrokenChain => "a broken chain",
        };
        let behind = match self.behind {
            BehindEnd::Nothing => "nothing behind",
            BehindEnd::Batch => "a batch behind",
            BehindEnd::ProofOfLoss => "a proof of loss behind",
        };
        write!(f, "{sealed}, {end}, {behind}")
    }
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

/// Indexes of files that hold the header of a segment of the log a second time. Every use of a file
/// has an identity of its own, so one of the two is a copy, and may be older than the other.
pub(super) fn doubles(
    headers: &[Option<SegmentHeader>],
    newest: usize,
    links: &[Link],
) -> Vec<usize> {
    let of_the_log: Vec<usize> = links.iter().map(|l| l.index).chain([newest]).collect();
    let identity = |index: usize| {
        let header = headers.get(index).and_then(Option::as_ref);
        header
            .filter(|h| h.kind == SegmentKind::Log)
            .map(|h| h.identity)
    };
    let taken: Vec<u64> = of_the_log.iter().filter_map(|i| identity(*i)).collect();
    (0..headers.len())
        .filter(|i| !of_the_log.contains(i))
        .filter(|i| identity(*i).is_some_and(|id| taken.contains(&id)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// The table of the module's documentation, row by row.
    const TABLE: [(ChainEnd, [Option<&[TailCase]>; 3]); 4] = {
        use TailCase::{Clean, Corrupt, Torn, Unsealed};
        const WHOLE: Option<&[TailCase]> = Some(&[Clean, Unsealed]);
        const TORN: Option<&[TailCase]> = Some(&[Torn]);
        const CORRUPT: Option<&[TailCase]> = Some(&[Corrupt]);
        [
            (ChainEnd::Full, [WHOLE, None, None]),
            (ChainEnd::Nothing, [WHOLE, TORN, CORRUPT]),
            (ChainEnd::TornBatch, [None, TORN, CORRUPT]),
            (ChainEnd::BrokenChain, [None, None, CORRUPT]),
        ]
    };

    #[test]
    fn every_combination_of_facts_has_one_case_or_is_impossible() {
        let all: Vec<_> = TailFacts::all().collect();
        assert_eq!(all.len(), 2 * 4 * 3);
        assert!(all.is_sorted() && all.windows(2).all(|w| w[0] != w[1]));
        let mut met = Vec::new();
        for facts in all {
            let (_, row) = TABLE.iter().find(|(end, _)| *end == facts.end).unwrap();
            let cell = match facts.behind {
                BehindEnd::Nothing => row[0],
                BehindEnd::Batch => row[1],
                BehindEnd::ProofOfLoss => row[2],
            };
            let Some(labels) = cell else {
                assert!(facts.impossible().is_some(), "{facts}");
                // Should it come up all the same, nothing is kept that may be missing something.
                let careful = [TailCase::Torn, TailCase::Corrupt];
                assert!(careful.contains(&facts.case()), "{facts}");
                continue;
            };
            assert_eq!(facts.impossible(), None, "{facts}");
            let expected = match labels {
                [sealed, _] if facts.sealed => *sealed,
                [.., other] => *other,
                [] => unreachable!(),
            };
            assert_eq!(facts.case(), expected, "{facts}");
            met.push(expected);
        }
        for label in TABLE.iter().flat_map(|(_, row)| row.iter().flatten()) {
            assert!(label.iter().all(|label| met.contains(label)), "{label:?}");
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
    fn a_second_file_of_a_live_segment_is_named_and_one_of_a_dead_one_is_not() {
        let mut spare = header(3, 0, 0, 0);
        spare.kind = SegmentKind::Spare;
        let headers = [
            Some(header(1, 0, 0, 0)),
            Some(header(2, 101, 20, 20)),
            Some(header(3, 101, 15, 15)),
            Some(header(2, 101, 20, 20)),
            Some(spare),
            None,
            Some(header(1, 0, 0, 0)),
            Some(header(3, 101, 15, 15)),
        ];
        let newest = newest(&headers).unwrap();
        let (links, _) = predecessors(&headers, newest, 0);
        assert_eq!(newest, 7, "the last of them");
        assert_eq!(doubles(&headers, newest, &links), [2, 6]);
        assert_eq!(doubles(&headers, newest, &[]), [2]);
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
