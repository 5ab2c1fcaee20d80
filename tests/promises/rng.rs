//! The test's own source of chance, apart from the simulation's.

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Self(seed ^ 0xC0FF_EE00_1234_5678);
        rng.0 = rng.next();
        rng
    }

    /// Chance of one round: what the others draw does not change it.
    pub(crate) fn of(seed: u64, round: u64) -> Self {
        Self::new(Self::new(seed).next() ^ round.wrapping_mul(0xD134_2543_DE82_EF95))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `[low, high]`.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high.saturating_sub(low) + 1)
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// One of the values.
    pub(crate) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        let n = self.next() % values.len() as u64;
        values[usize::try_from(n).unwrap_or(0)]
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.next())
    }
}
