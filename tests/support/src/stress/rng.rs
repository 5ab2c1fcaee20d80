//! A small random generator of the harness's own.

/// SplitMix64: the seed fixes everything that it draws.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of `[low, high]`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.any() % (high.saturating_sub(low) + 1)
    }

    /// The same for sizes and places in memory.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        usize::try_from(self.range(low as u64, high as u64)).unwrap_or(low)
    }

    /// True `percent` times out of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.any() % 100 < percent
    }

    /// An independent generator.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.any())
    }
}
