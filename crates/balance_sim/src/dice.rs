//! The source of all randomness: a seeded generator.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

#[derive(Clone, Debug)]
pub(crate) struct Dice(Pcg64Mcg);

impl Dice {
    /// A generator for one thing of many: `path` says which. What one thing draws does not depend
    /// on how many others there are.
    pub(crate) fn new(seed: u64, path: [u64; 3]) -> Self {
        // A step of a linear generator for each part (constants of Knuth's MMIX).
        let mix = |sum: u64, part: u64| {
            (sum ^ part)
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407)
        };
        Self(Pcg64Mcg::seed_from_u64(path.into_iter().fold(seed, mix)))
    }

    /// A number from `low` to `high`, both inclusive; `low` if `high` is less.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        let count = u128::from(high.saturating_sub(low)).saturating_add(1);
        let drawn = u128::from(self.0.next_u64()).saturating_mul(count) >> 64;
        low.saturating_add(u64::try_from(drawn).unwrap_or(0))
    }
}
