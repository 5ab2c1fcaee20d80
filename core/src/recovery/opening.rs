//! Whether a partition is opened, and for what: a pure function over what is damaged and the policy.
//!
//! | label | damage | policy |
//! | --- | --- | --- |
//! | `writable` | none | any |
//! | `refused` | any | `Refuse` |
//! | `read only` | any | `Salvage`, or `CutTail` for another partition |
//! | `read only` | a header that cannot be read, no segment, or a missing one | `CutTail` |
//! | `cut` | of nothing but the newest segment, and older ones that are too short | `CutTail` |
//!
//! A cut repairs the tail alone; with other damage it would only lose more.
//!
//! [`DamageFacts`] are all facts that decide. [`DamageFacts::impossible`] names the combinations that
//! no directory can give.

use std::fmt;

use crate::config::OnCorruption;

/// The file that holds the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum NewestSegment {
    /// As long as its header says.
    #[default]
    Whole,
    /// Shorter than its header says.
    Shortened,
    /// There is none: the directory has no segment whose header can be read, or the disk does not give
    /// what decides where the log ends.
    Missing,
}

/// What is damaged of a partition, as far as opening it looks.
///
/// ```
/// use alluvium_core::{DamageFacts, OnCorruption, Opening};
///
/// let sound = DamageFacts::default();
/// assert_eq!(sound.opening(OnCorruption::Refuse, 1), Opening::Writable);
///
/// let damaged = DamageFacts { tail_corrupt: true, ..sound };
/// assert_eq!(damaged.opening(OnCorruption::Refuse, 1), Opening::Refused);
/// assert_eq!(damaged.opening(OnCorruption::Salvage, 1), Opening::ReadOnly);
/// let cut = OnCorruption::CutTail { partition: 1 };
/// assert_eq!(damaged.opening(cut, 1), Opening::Cut);
/// assert_eq!(damaged.opening(cut, 2), Opening::ReadOnly);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts: every combination is enumerated"
)]
pub struct DamageFacts {
    /// A segment file has a header that cannot be read, or that of another file.
    pub header_unreadable: bool,
    /// The newest segment.
    pub newest: NewestSegment,
    /// Its tail is [`TailCase::Corrupt`](crate::TailCase::Corrupt).
    pub tail_corrupt: bool,
    /// A predecessor that holds records of the log is not there.
    pub segment_missing: bool,
    /// A predecessor is shorter than the log needs it.
    pub older_shortened: bool,
}

/// What becomes of a partition that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opening {
    /// Nothing is damaged.
    Writable,
    /// Writable, without what is damaged at its end.
    Cut,
    /// What is not damaged can be read.
    ReadOnly,
    /// [`Error::Corrupt`](crate::Error::Corrupt), and nothing is changed.
    Refused,
}

impl DamageFacts {
    /// Every combination, those that cannot be included.
    pub fn all() -> impl Iterator<Item = Self> {
        use NewestSegment::{Missing, Shortened, Whole};
        (0_u32..16).flat_map(|bits| {
            [Whole, Shortened, Missing].map(|newest| Self {
                header_unreadable: bits & 8 != 0,
                newest,
                tail_corrupt: bits & 4 != 0,
                segment_missing: bits & 2 != 0,
                older_shortened: bits & 1 != 0,
            })
        })
    }

    /// Whether anything is damaged.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Whether the newest segment is damaged.
    pub(super) fn of_newest(self) -> bool {
        self.tail_corrupt || self.newest == NewestSegment::Shortened
    }

    /// What becomes of the partition.
    pub fn opening(self, policy: OnCorruption, partition: u64) -> Opening {
        let beyond_a_cut =
            self.header_unreadable || self.segment_missing || self.newest == NewestSegment::Missing;
        match policy {
            _ if !self.any() => Opening::Writable,
            OnCorruption::Refuse => Opening::Refused,
            OnCorruption::CutTail { partition: cut } if cut == partition && !beyond_a_cut => {
                Opening::Cut
            }
            OnCorruption::Salvage | OnCorruption::CutTail { .. } => Opening::ReadOnly,
        }
    }

    /// Why no directory can give these facts; `None` when one can.
    pub fn impossible(self) -> Option<&'static str> {
        let of_a_log = self.tail_corrupt || self.segment_missing || self.older_shortened;
        (self.newest == NewestSegment::Missing && of_a_log)
            .then_some("without a newest segment nothing tells of a tail or of predecessors")
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writable => "writable",
            Self::Cut => "cut",
            Self::ReadOnly => "read only",
            Self::Refused => "refused",
        })
    }
}

impl fmt::Display for DamageFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newest = match self.newest {
            NewestSegment::Whole => "",
            NewestSegment::Shortened => "newest segment shortened",
            NewestSegment::Missing => "no segment",
        };
        let found = [
            (self.header_unreadable, "header unreadable"),
            (!newest.is_empty(), newest),
            (self.tail_corrupt, "tail corrupt"),
            (self.segment_missing, "segment missing"),
            (self.older_shortened, "older segment shortened"),
        ];
        let words: Vec<_> = found
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, w)| *w)
            .collect();
        f.write_str(if words.is_empty() { "sound" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: u64 = 3;

    /// The table of the module's documentation, said once more in another way: the first row that
    /// fits counts.
    fn of_the_table(facts: DamageFacts, policy: OnCorruption) -> Opening {
        let sound = DamageFacts::default();
        let within_a_cut = [false, true].into_iter().any(|older_shortened| {
            [false, true].into_iter().any(|tail_corrupt| {
                [NewestSegment::Whole, NewestSegment::Shortened]
                    .into_iter()
                    .any(|newest| {
                        facts
                            == DamageFacts {
                                newest,
                                tail_corrupt,
                                older_shortened,
                                ..sound
                            }
                    })
            })
        });
        let mine = OnCorruption::CutTail {
            partition: PARTITION,
        };
        let rows = [
            (facts == sound, Opening::Writable),
            (policy == OnCorruption::Refuse, Opening::Refused),
            (policy == mine && within_a_cut, Opening::Cut),
            (true, Opening::ReadOnly),
        ];
        rows.iter().find(|(fits, _)| *fits).unwrap().1
    }

    #[test]
    fn every_combination_of_damage_has_one_label_or_is_impossible() {
        let all: Vec<_> = DamageFacts::all().collect();
        assert_eq!(all.len(), 48);
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), 48);
        let impossible = all.iter().filter(|facts| facts.impossible().is_some());
        assert_eq!(impossible.count(), 14);
        let cut = |partition| OnCorruption::CutTail { partition };
        let policies = [
            OnCorruption::Refuse,
            OnCorruption::Salvage,
            cut(PARTITION),
            cut(PARTITION + 1),
        ];
        let mut met = std::collections::BTreeMap::new();
        for facts in all {
            for policy in policies {
                let label = facts.opening(policy, PARTITION);
                assert_eq!(label, of_the_table(facts, policy), "{facts}, {policy:?}");
                *met.entry(label).or_insert(0) += 1;
            }
        }
        let counts: Vec<_> = met.into_iter().collect();
        assert_eq!(
            counts,
            [
                (Opening::Writable, 4),
                (Opening::Cut, 7),
                (Opening::ReadOnly, 47 * 3 - 7),
                (Opening::Refused, 47),
            ]
        );
    }
}
