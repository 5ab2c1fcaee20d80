//! The bytes of one file: what readers see now, and how to get back to what is on stable media.
//!
//! The visible image is kept whole, in pages. Every write that is not yet durable leaves an undo
//! record with the bytes that it replaced. A sync drops records; a durable write patches its own
//! bytes into them, so that every version still reachable through them contains it. Loss of power
//! walks the records back, per sector to a version of its own. So the cost of durability is
//! proportional to what is un-synced, and a purely durable workload pays one copy per write.

use super::rng::Rng;

/// What a device writes atomically.
pub(super) const SECTOR: u64 = 512;
/// Unit of memory and of block allocation.
pub(super) const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;

type Page = Box<[u8; PAGE_LEN]>;

/// One file's content with its un-synced history.
#[derive(Debug, Default)]
pub(super) struct FileImage {
    /// `None` is a hole or a preallocated page: it reads as zero. Bytes past `len` are zero.
    pages: Vec<Option<Page>>,
    len: u64,
    /// Pages `[0, reserved)` have blocks, written or not.
    reserved: u64,
    reserved_durable: u64,
    /// Blocks in use: the reserved ones, and written pages beyond them.
    blocks: u64,
    /// Un-synced writes, oldest first.
    undo: Vec<Undo>,
    /// Un-synced changes of length, oldest first.
    lengths: Vec<LengthChange>,
}

#[derive(Debug)]
struct Undo {
    /// When the write completed.
    stamp: u64,
    offset: u64,
    before: Vec<u8>,
    /// A failed sync has dropped the page: no later sync makes this write durable.
    lost: bool,
}

#[derive(Debug)]
struct LengthChange {
    stamp: u64,
    before: u64,
    reserved_before: u64,
}

/// Which sectors of a write land.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tear {
    /// Every sector.
    Whole,
    /// None.
    Nothing,
    /// The first so many 256ths.
    Prefix(u64),
    /// Each with a chance of so many 16ths.
    Holes(u64),
}

impl Tear {
    pub(super) fn random(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self::Whole,
            1 => Self::Nothing,
            2 => Self::Prefix(rng.below(257)),
            _ => Self::Holes(rng.between(1, 15)),
        }
    }

    fn keeps(self, index: u64, count: u64, rng: &mut Rng) -> bool {
        match self {
            Self::Whole => true,
            Self::Nothing => false,
            Self::Prefix(part) => index * 256 < count * part,
            Self::Holes(part) => rng.chance(part, 16),
        }
    }

    /// Calls `land` with the byte range, relative to the write, of every run that lands.
    pub(super) fn runs(
        self,
        offset: u64,
        len: usize,
        rng: &mut Rng,
        mut land: impl FnMut(usize, usize),
    ) {
        if matches!(self, Self::Nothing) || len == 0 {
            return;
        }
        let end = offset + len as u64;
        let (first, last) = (offset / SECTOR, (end - 1) / SECTOR);
        let mut run: Option<usize> = None;
        for sector in first..=last {
            let at = to_usize((sector * SECTOR).max(offset) - offset);
            match (self.keeps(sector - first, last - first + 1, rng), run) {
                (true, None) => run = Some(at),
                (false, Some(start)) => {
                    land(start, at);
                    run = None;
                }
                _ => {}
            }
        }
        if let Some(start) = run {
            land(start, len);
        }
    }
}

/// How loss of power treats one file; mixed, so that whole writes survive as often as shreds.
#[derive(Debug, Clone, Copy)]
enum Loss {
    KeepAll,
    LoseAll,
    /// Each sector at any version.
    Sectors,
    /// Most sectors at their newest version.
    FewSectors,
    /// Each write wholly or not.
    Writes,
}

impl FileImage {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether a loss of power would lose nothing.
    pub(super) fn is_clean(&self) -> bool {
        self.undo.is_empty() && self.lengths.is_empty()
    }

    /// Fills `out` with the bytes at `offset`; zero where there are none.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let (index, within, n) = locate(at, rest.len());
            let (part, more) = rest.split_at_mut(n);
            match self.pages.get(index) {
                Some(Some(page)) => part.copy_from_slice(&page[within..within + n]),
                _ => part.fill(0),
            }
            at += n as u64;
            rest = more;
        }
    }

    /// The whole content.
    pub(super) fn contents(&self) -> Vec<u8> {
        let mut out = vec![0; to_usize(self.len)];
        self.read(0, &mut out);
        out
    }

    /// How many new blocks a write would take.
    pub(super) fn blocks_for_write(&self, offset: u64, len: usize) -> u64 {
        if len == 0 || offset + len as u64 <= self.reserved * PAGE {
            return 0;
        }
        let last = (offset + len as u64 - 1) / PAGE;
        let missing = (offset / PAGE).max(self.reserved)..=last;
        missing
            .filter(|&p| !matches!(self.pages.get(to_usize(p)), Some(Some(_))))
            .count() as u64
    }

    /// How many new blocks an allocation of `[0, len)` would take.
    pub(super) fn blocks_for_allocation(&self, len: u64) -> u64 {
        let wanted = len.div_ceil(PAGE);
        (self.reserved..wanted)
            .filter(|&p| !matches!(self.pages.get(to_usize(p)), Some(Some(_))))
            .count() as u64
    }

    /// A write that loss of power may undo.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], stamp: u64) {
        if bytes.is_empty() {
            return;
        }
        let mut before = vec![0; bytes.len()];
        self.read(offset, &mut before);
        self.undo.push(Undo {
            stamp,
            offset,
            before,
            lost: false,
        });
        self.store(offset, bytes);
        let end = offset + bytes.len() as u64;
        if end > self.len {
            self.note_length(stamp);
            self.len = end;
        }
    }

    /// A write that is on stable media, with the length needed to read it.
    pub(super) fn write_durable(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.store(offset, bytes);
        self.patch(offset, bytes);
        let end = offset + bytes.len() as u64;
        self.len = self.len.max(end);
        for change in &mut self.lengths {
            change.before = change.before.max(end);
        }
    }

    /// Makes what completed up to `stamp` durable.
    pub(super) fn sync(&mut self, stamp: u64) {
        if self.undo.iter().any(|u| u.lost) {
            self.sync_around_lost(stamp);
        }
        self.undo.retain(|u| u.lost || u.stamp > stamp);
        self.lengths.retain(|l| l.stamp > stamp);
        self.reserved_durable = self.reserved;
    }

    /// Older lost writes stay undoable; but a younger write that is now durable covers them.
    fn sync_around_lost(&mut self, stamp: u64) {
        for index in 0..self.undo.len() {
            let Undo {
                stamp: done,
                offset,
                ref before,
                lost,
            } = self.undo[index];
            if lost || done > stamp {
                continue;
            }
            let mut after = vec![0; before.len()];
            self.read(offset, &mut after);
            let (older, younger) = self.undo.split_at_mut(index);
            for u in younger[1..].iter().rev() {
                overlay(&mut after, offset, &u.before, u.offset);
            }
            for u in older.iter_mut().filter(|u| u.lost) {
                overlay(&mut u.before, u.offset, &after, offset);
            }
        }
    }

    /// A sync that failed: the kernel forgets that the pages were dirty. Some of them had reached
    /// the media, the others are seen until the power goes, whatever later syncs say.
    pub(super) fn fail_sync(&mut self, stamp: u64, rng: &mut Rng) {
        for u in self.undo.iter_mut().filter(|u| u.stamp <= stamp) {
            u.lost |= rng.coin();
        }
        if rng.coin() {
            self.sync(stamp);
        }
    }

    /// Reserves blocks and extends.
    pub(super) fn allocate(&mut self, len: u64, stamp: u64) {
        if len > self.len {
            self.note_length(stamp);
            self.len = len;
        }
        let wanted = len.div_ceil(PAGE);
        if wanted > self.reserved {
            self.blocks += self.blocks_for_allocation(len);
            self.reserved = wanted;
        }
    }

    fn note_length(&mut self, stamp: u64) {
        let reserved_before = self.reserved;
        self.lengths.push(LengthChange {
            stamp,
            before: self.len,
            reserved_before,
        });
    }

    /// Changes the length; what is cut may come back when the power goes.
    pub(super) fn set_len(&mut self, len: u64, stamp: u64) {
        if len == self.len {
            return;
        }
        let kept = to_usize(len / PAGE);
        for index in kept..self.pages.len() {
            let Some(page) = &self.pages[index] else {
                continue;
            };
            let start = index as u64 * PAGE;
            let within = to_usize(len.max(start) - start);
            let before = page[within..].to_vec();
            self.undo.push(Undo {
                stamp,
                offset: start + within as u64,
                before,
                lost: false,
            });
        }
        self.note_length(stamp);
        self.cut(len);
        self.len = len;
    }

    /// Writes around durability and history: decay of the medium, misdirected writes, planting.
    pub(super) fn damage(&mut self, offset: u64, bytes: &[u8]) {
        self.store(offset, bytes);
        self.patch(offset, bytes);
    }

    /// What is left when the power goes.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        let loss = match rng.below(6) {
            0 => Loss::KeepAll,
            1 => Loss::LoseAll,
            2 | 3 => Loss::Sectors,
            4 => Loss::FewSectors,
            _ => Loss::Writes,
        };
        self.lose_sectors(loss, rng);
        if !self.lengths.is_empty() {
            let count = self.lengths.len();
            let chosen = match loss {
                Loss::KeepAll => count,
                Loss::LoseAll => 0,
                _ => rng.index(count + 1),
            };
            if let Some(change) = self.lengths.get(chosen) {
                self.len = change.before;
                self.reserved = change.reserved_before;
            }
            self.cut(self.len);
            self.lengths.clear();
            self.reserved_durable = self.reserved;
        } else if self.reserved != self.reserved_durable {
            if rng.coin() {
                self.reserved = self.reserved_durable;
            }
            self.reserved_durable = self.reserved;
            self.count_blocks();
        }
    }

    fn lose_sectors(&mut self, loss: Loss, rng: &mut Rng) {
        let undo = std::mem::take(&mut self.undo);
        if undo.is_empty() || matches!(loss, Loss::KeepAll) {
            return;
        }
        let written: Vec<bool> = undo.iter().map(|_| rng.coin()).collect();
        let mut touched: Vec<(u64, usize)> = Vec::new();
        for (index, u) in undo.iter().enumerate() {
            let last = (u.offset + u.before.len() as u64 - 1) / SECTOR;
            touched.extend((u.offset / SECTOR..=last).map(|sector| (sector, index)));
        }
        touched.sort_unstable();
        for versions in touched.chunk_by(|a, b| a.0 == b.0) {
            let newest = versions.len();
            let kept = match loss {
                Loss::LoseAll => 0,
                Loss::Sectors => rng.index(newest + 1),
                Loss::FewSectors if rng.chance(1, 8) => rng.index(newest + 1),
                Loss::KeepAll | Loss::FewSectors => newest,
                Loss::Writes => versions
                    .iter()
                    .rposition(|&(_, index)| written[index])
                    .map_or(0, |i| i + 1),
            };
            for &(sector, index) in versions[kept..].iter().rev() {
                let u = &undo[index];
                let from = (sector * SECTOR).max(u.offset);
                let to = ((sector + 1) * SECTOR).min(u.offset + u.before.len() as u64);
                let part = to_usize(from - u.offset)..to_usize(to - u.offset);
                self.store(from, &u.before[part]);
            }
        }
    }

    /// Bytes into pages, nothing else.
    fn store(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (index, within, n) = locate(at, rest.len());
            if self.pages.len() <= index {
                self.pages.resize_with(index + 1, || None);
            }
            let slot = &mut self.pages[index];
            if slot.is_none() && index as u64 >= self.reserved {
                self.blocks += 1;
            }
            let page = slot.get_or_insert_with(|| Box::new([0; PAGE_LEN]));
            page[within..within + n].copy_from_slice(&rest[..n]);
            at += n as u64;
            rest = &rest[n..];
        }
    }

    /// Makes `bytes` part of every version.
    fn patch(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.undo.retain_mut(|u| {
            overlay(&mut u.before, u.offset, bytes, offset);
            u.offset < offset || u.offset + u.before.len() as u64 > end
        });
    }

    /// Drops pages and zeroes bytes past `len`.
    fn cut(&mut self, len: u64) {
        let whole = len.div_ceil(PAGE);
        self.pages.truncate(to_usize(whole));
        let within = to_usize(len % PAGE);
        if within > 0
            && let Some(Some(page)) = self.pages.get_mut(to_usize(len / PAGE))
        {
            page[within..].fill(0);
        }
        if len < self.len || self.reserved > whole {
            self.reserved = self.reserved.min(whole);
        }
        self.count_blocks();
    }

    fn count_blocks(&mut self) {
        let beyond = self
            .pages
            .iter()
            .skip(to_usize(self.reserved))
            .flatten()
            .count();
        self.blocks = self.reserved + beyond as u64;
    }
}

/// Page index, offset within it, and how many of `len` bytes lie in it.
fn locate(offset: u64, len: usize) -> (usize, usize, usize) {
    let within = to_usize(offset % PAGE);
    (to_usize(offset / PAGE), within, len.min(PAGE_LEN - within))
}

/// Copies what `source` (at `source_at`) and `target` (at `target_at`) have in common.
fn overlay(target: &mut [u8], target_at: u64, source: &[u8], source_at: u64) {
    let from = target_at.max(source_at);
    let to = (target_at + target.len() as u64).min(source_at + source.len() as u64);
    if from < to {
        let n = to_usize(to - from);
        let (t, s) = (to_usize(from - target_at), to_usize(from - source_at));
        target[t..t + n].copy_from_slice(&source[s..s + n]);
    }
}

/// Sizes that lie in memory fit the address space.
pub(super) fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("simulated files fit in memory")
}

#[cfg(test)]
mod tests {
    use super::{FileImage, Rng};

    /// Per byte the versions since the durable one, with the time of their completion.
    struct Model {
        bytes: Vec<Vec<(u64, u8)>>,
    }

    impl Model {
        fn write(&mut self, at: usize, bytes: &[u8], stamp: u64) {
            for (versions, byte) in self.bytes[at..].iter_mut().zip(bytes) {
                versions.push((stamp, *byte));
            }
        }

        fn write_durable(&mut self, at: usize, bytes: &[u8]) {
            for (versions, byte) in self.bytes[at..].iter_mut().zip(bytes) {
                *versions = vec![(0, *byte)];
            }
        }

        fn sync(&mut self, stamp: u64) {
            for versions in &mut self.bytes {
                let newest = versions.iter().rposition(|v| v.0 <= stamp).unwrap_or(0);
                versions.drain(..newest);
                versions[0].0 = 0;
            }
        }
    }

    #[test]
    fn what_is_left_is_what_the_model_allows() {
        for seed in 0..1000 {
            let mut rng = Rng::new(seed);
            let mut image = FileImage::default();
            let mut model = Model {
                bytes: vec![vec![(0, 0)]; 10_000],
            };
            image.set_len(10_000, 0);
            image.sync(0);
            let mut syncing = 0;
            for stamp in 1..=rng.between(1, 40) {
                let at = rng.index(9_999);
                let bytes = vec![rng.next_u64().to_le_bytes()[0]; 1 + rng.index(10_000 - at)];
                match rng.below(6) {
                    0..3 => {
                        image.write(at as u64, &bytes, stamp);
                        model.write(at, &bytes, stamp);
                    }
                    3 => {
                        image.write_durable(at as u64, &bytes);
                        model.write_durable(at, &bytes);
                    }
                    4 => syncing = stamp,
                    _ => {
                        image.sync(syncing);
                        model.sync(syncing);
                    }
                }
            }
            let newest: Vec<u8> = model
                .bytes
                .iter()
                .map(|v| v.last().map_or(0, |v| v.1))
                .collect();
            assert_eq!(image.contents(), newest, "seed {seed}");
            image.lose_power(&mut rng);
            assert!(image.is_clean());
            for (at, (byte, versions)) in image.contents().iter().zip(&model.bytes).enumerate() {
                let allowed = versions.iter().any(|v| v.1 == *byte);
                assert!(
                    allowed,
                    "seed {seed}: byte {at} is {byte}, allowed {versions:?}"
                );
            }
        }
    }
}
