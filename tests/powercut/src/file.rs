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
    /// The shortest of them, when the file was shortened: what stood behind it is gone.
    cut_to: Option<usize>,
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
        if len < self.now.len() {
            self.cut_to = Some(self.cut_to.map_or(len, |shortest| shortest.min(len)));
        }
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
            self.settle_sector(sector);
        }
    }

    pub(crate) fn sync(&mut self) {
        self.settle_length();
        // All that differ: files may be large, and devices are synced often.
        for sector in std::mem::take(&mut self.versions).into_keys() {
            self.settle_sector(sector);
        }
    }

    fn settle_length(&mut self) {
        self.lengths.clear();
        if let Some(len) = self.cut_to.take() {
            self.stable.truncate(len);
        }
        self.stable.resize(self.now.len(), 0);
    }

    fn settle_sector(&mut self, sector: usize) {
        let end = ((sector + 1) * SECTOR).min(self.now.len());
        let range = (sector * SECTOR).min(end)..end;
        self.stable[range.clone()].copy_from_slice(&self.now[range]);
    }

    fn note(&mut self, sector: usize) {
        let at = sector * SECTOR;
        let mut version = [0; SECTOR];
        let bytes = self.read(at, SECTOR);
        version[..bytes.len()].copy_from_slice(bytes);
        self.versions.entry(sector).or_default().push(version);
    }

    /// What is left when the power fails now, with writes in flight that have not been carried out.
    pub(crate) fn survivor(mut self, in_flight: &[(usize, Vec<u8>)], chance: &mut Chance) -> Self {
        for (at, bytes) in in_flight {
            self.write(*at, bytes);
        }
        let mut stable = self.stable;
        let choice = chance.below(self.lengths.len() + 1);
        if let Some(len) = choice.checked_sub(1).map(|i| self.lengths[i]) {
            stable.resize(len, 0);
        }
        let sectors_per_unit = chance.tear_bytes / SECTOR;
        let (mut unit, mut survives) = (None, false);
        for (sector, versions) in &self.versions {
            if unit != Some(sector / sectors_per_unit) {
                unit = Some(sector / sectors_per_unit);
                survives = chance.survives();
            }
            let at = sector * SECTOR;
            if at >= stable.len() || !survives {
                continue;
            }
            let end = (at + SECTOR).min(stable.len());
            // Sectors that stand or fall together are all of the same age: the newest.
            let newest = versions.len() - 1;
            let alone = sectors_per_unit == 1;
            let version = &versions[if alone {
                chance.below(versions.len())
            } else {
                newest
            }];
            stable[at..end].copy_from_slice(&version[..end - at]);
        }
        Self {
            now: stable.clone(),
            stable,
            ..Self::default()
        }
    }
}
