//! Names of the files in a partition's directory: fixed-width numbers, nothing else.

use std::ffi::OsStr;

/// Suffix of segment files, live or spare.
pub(crate) const SEGMENT_SUFFIX: &str = "seg";
/// Suffix of index files.
pub(crate) const INDEX_SUFFIX: &str = "idx";
/// Suffix of files that are being made; recovery removes them.
const TEMPORARY_SUFFIX: &str = "tmp";

const DIGITS: usize = 20;

/// What a name in a partition's directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileName {
    Segment(u64),
    Index(u64),
    Temporary(u64),
}

impl FileName {
    /// Parses a name; `None` for everything that this library did not write.
    pub(crate) fn parse(name: &OsStr) -> Option<Self> {
        let (digits, suffix) = name.to_str()?.split_once('.')?;
        if digits.len() != DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = digits.parse().ok()?;
        match suffix {
            SEGMENT_SUFFIX => Some(Self::Segment(number)),
            INDEX_SUFFIX => Some(Self::Index(number)),
            TEMPORARY_SUFFIX => Some(Self::Temporary(number)),
            _ => None,
        }
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (number, suffix) = match self {
            Self::Segment(n) => (n, SEGMENT_SUFFIX),
            Self::Index(n) => (n, INDEX_SUFFIX),
            Self::Temporary(n) => (n, TEMPORARY_SUFFIX),
        };
        write!(f, "{number:0DIGITS$}.{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_foreign_ones_are_refused() {
        for name in [
            FileName::Segment(0),
            FileName::Index(7),
            FileName::Temporary(u64::MAX),
        ] {
            assert_eq!(FileName::parse(OsStr::new(&name.to_string())), Some(name));
        }
        for foreign in [
            "",
            "1.seg",
            "+0000000000000000001.seg",
            "99999999999999999999.seg",
            "a.seg",
        ] {
            assert_eq!(FileName::parse(OsStr::new(foreign)), None, "{foreign}");
        }
    }
}
