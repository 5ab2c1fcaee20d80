//! The content of one file: now, and what a power cut leaves of it.

use std::collections::BTreeMap;

use crate::disk::Chance;

/// Unit of tearing, in bytes.
pub(crate) const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// A file's bytes as they are read, and as they are on stable media.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    now: Vec<u8>,
    stable: Vec<u8>,
    /// Lengths since the last sync, oldest first.
    lengths: Vec<usize>,
    /// Versions of sectors since the last sync, oldest first.
    versions: BTreeMap<usize, Vec<Sector>>,
}

impl Content {
    pub(crate) fn len(&self) -> usize {
        self.now.len()
    }

    pub(crate) fn read(&self, at: usize, len: usize) -> &[u8] {
        let end = at.saturating_add(len).min(self.now.len());
        self.now.get(at..end).unwrap_or(&[])
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        self.now.resize(len, 0);
        self.lengths.push(len);
        // What stood behind the new end is not to be seen when the file grows again.
        let whole = len.div_ceil(SECTOR);
        self.versions.split_off(&whole);
        if !len.is_multiple_of(SECTOR) {
            self.note(len / SECTOR);
        }
    }

    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if end > self.now.len() {
            self.set_len(end);
        }
        self.now[at..end].copy_from_slice(bytes);
        for sector in at / SECTOR..end.div_ceil(SECTOR) {
            self.note(sector);
        }
    }

    /// A write that is stable when it returns, together with the length.
    pub(crate) fn write_through(&mut self, at: usize, bytes: &[u8]) {
        self.write(at, bytes);
        self.settle_length();
        for sector in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            self.versions.remove(&sector);
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.now.len());
            self.stable[range.clone()].copy_from_slice(&self.now[range]);
        }
    }

    pub(crate) fn sync(&mut self) {
        self.versions.clear();
        self.lengths.clear();
        self.stable.clone_from(&self.now);
    }

    fn settle_length(&mut self) {
        self.lengths.clear();
        self.stable.resize(self.now.len(), 0);
    }

    fn note(&mut self, sector: usize) {
        let at = sector * SECTOR;
        let mut version = [0; SECTOR];
        let bytes = self.read(at, SECTOR);
        version[..bytes.len()].copy_from_slice(bytes);
        self.versions.entry(sector).or_default().push(version);
    }

    /// What is left when the power fails now, with writes in flight that have not been carried out.
    pub(crate) fn survivor(&self, in_flight: &[(usize, Vec<u8>)], chance: &mut Chance) -> Self {
        let mut left = self.clone();
        for (at, bytes) in in_flight {
            left.write(*at, bytes);
        }
        let mut stable = left.stable;
        let choice = chance.below(left.lengths.len() + 1);
        if let Some(len) = choice.checked_sub(1).map(|i| left.lengths[i]) {
            stable.resize(len, 0);
        }
        for (sector, versions) in &left.versions {
            let at = sector * SECTOR;
            if at >= stable.len() || !chance.survives() {
                continue;
            }
            let end = (at + SECTOR).min(stable.len());
            let version = &versions[chance.below(versions.len())];
            stable[at..end].copy_from_slice(&version[..end - at]);
        }
        Self {
            now: stable.clone(),
            stable,
            ..Self::default()
        }
    }
}
