//! The source of all randomness.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// The randomness of one step. It depends only on seed and step number, so that any step can be
/// repeated.
#[derive(Debug)]
pub(super) struct Dice(Pcg64Mcg);

impl Dice {
    pub(super) fn new(seed: u64, step: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed.rotate_left(32) ^ step))
    }

    /// A number from `least` to `most`, both inclusive.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        let wide = u128::from(self.0.next_u64()) * (u128::from(most - least) + 1);
        least + u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.between(1, n) == 1
    }

    /// One of these, with a probability in proportion to its weight.
    pub(super) fn weighted<T: Copy>(&mut self, of: &[(u64, T)]) -> T {
        let all: u64 = of.iter().map(|(weight, _)| weight).sum();
        let mut roll = self.between(0, all - 1);
        for (weight, value) in of {
            match roll.checked_sub(*weight) {
                Some(rest) => roll = rest,
                None => return *value,
            }
        }
        of[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_step_give_the_same_numbers_and_others_do_not() {
        let numbers = |seed, step| {
            let mut dice = Dice::new(seed, step);
            [0; 8].map(|_| dice.between(0, 1000))
        };
        assert_eq!(numbers(1, 2), numbers(1, 2));
        assert_ne!(numbers(1, 2), numbers(1, 3));
        assert_ne!(numbers(1, 2), numbers(2, 2));
    }

    #[test]
    fn both_ends_of_a_range_come_and_nothing_outside() {
        let mut dice = Dice::new(1, 1);
        let rolls: Vec<u64> = (0..1000).map(|_| dice.between(3, 7)).collect();
        assert_eq!((rolls.iter().min(), rolls.iter().max()), (Some(&3), Some(&7)));
    }

    #[test]
    fn weights_count() {
        let mut dice = Dice::new(1, 1);
        let often = (0..1000).filter(|_| dice.weighted(&[(1, false), (9, true), (0, false)]));
        assert!((850..950).contains(&often.count()));
    }
}
