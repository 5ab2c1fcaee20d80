//! Names in the store's directory.
//!
//! ```text
//! LOCK                              held exclusively by the process that has the store open
//! STORE                             512 bytes: magic, version, id of the store
//! 00000000000000000042.0badcafe/    partition 42, incarnation 0x0badcafe
//! 00000000000000000042.0badcafe.new/   being created: removed by the next opening
//! 00000000000000000042.0badcafe.del/   deleted: removed by the next opening
//! ```

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub(super) const LOCK: &str = "LOCK";
pub(super) const STORE: &str = "STORE";
pub(super) const STORE_TEMPORARY: &str = "STORE.tmp";

const CREATING: &str = "new";
const DELETED: &str = "del";

/// A partition's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoundPartition {
    pub(crate) id: u64,
    pub(crate) incarnation: u32,
}

/// What a directory's name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DirName {
    Partition(FoundPartition),
    /// Half created or half deleted.
    Leftover,
}

impl FoundPartition {
    fn name(&self) -> String {
        format!("{:020}.{:08x}", self.id, self.incarnation)
    }

    pub(super) fn dir(&self, store: &Path) -> PathBuf {
        store.join(self.name())
    }

    pub(super) fn dir_creating(&self, store: &Path) -> PathBuf {
        store.join(format!("{}.{CREATING}", self.name()))
    }

    pub(super) fn dir_deleted(&self, store: &Path) -> PathBuf {
        store.join(format!("{}.{DELETED}", self.name()))
    }
}

impl DirName {
    /// Parses a name; `None` for what this library did not write.
    pub(super) fn parse(name: &OsStr) -> Option<Self> {
        let mut parts = name.to_str()?.split('.');
        let (id, incarnation, end) = (parts.next()?, parts.next()?, parts.next());
        let well_formed = id.len() == 20
            && id.bytes().all(|b| b.is_ascii_digit())
            && incarnation.len() == 8
            && incarnation
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && parts.next().is_none();
        if !well_formed {
            return None;
        }
        let found = FoundPartition {
            id: id.parse().ok()?,
            incarnation: u32::from_str_radix(incarnation, 16).ok()?,
        };
        match end {
            None => Some(Self::Partition(found)),
            Some(CREATING | DELETED) => Some(Self::Leftover),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_foreign_ones_are_refused() {
        let found = FoundPartition {
            id: u64::MAX,
            incarnation: 0xdead_beef,
        };
        let root = Path::new("");
        let parse = |path: PathBuf| DirName::parse(path.as_os_str());
        assert_eq!(
            parse(found.dir(root)),
            Some(DirName::Partition(found.clone()))
        );
        assert_eq!(parse(found.dir_creating(root)), Some(DirName::Leftover));
        assert_eq!(parse(found.dir_deleted(root)), Some(DirName::Leftover));
        for foreign in [
            "",
            "42",
            "lost+found",
            "00000000000000000042.DEADBEEF",
            "a.b.c",
        ] {
            assert_eq!(DirName::parse(OsStr::new(foreign)), None, "{foreign}");
        }
    }
}
