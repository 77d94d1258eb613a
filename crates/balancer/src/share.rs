//! Weighted max-min fair shares, exactly.
//!
//! Think of one tank per VM, as wide as its weight, with a floor at its lower bound and a lid at
//! its upper bound. Water that all tanks share rises to the same level in each. The share of a VM
//! is `weight × level`, held between its bounds: nobody gets more until all those with less for
//! their weight have got theirs, or cannot take more.
//!
//! The level is found by sorting the bounds at which a tank starts or stops to fill: `n log n`,
//! with no iteration towards a limit. Memory is handed out in whole KiB. The KiB number *k* of a VM
//! has the rank *k* / weight, and those with the lowest ranks are handed out, ties in the order of
//! the claims. That order does not depend on how much there is, so an additional KiB goes to one
//! claim and is taken from none.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::{Ordering, Reverse};

/// What one VM may get, and how much it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// How much it counts. 0 counts as 1.
    pub weight: u32,
    /// It gets at least this much, even if that is more than there is.
    pub lower_kib: u64,
    /// It gets at most this much. A bound below `lower_kib` counts as `lower_kib`.
    pub upper_kib: u64,
}

impl Claim {
    fn weight(&self) -> u128 {
        u128::from(self.weight.max(1))
    }

    fn upper(&self) -> u64 {
        self.upper_kib.max(self.lower_kib)
    }
}

/// The quotient `amount / weight`: a level, or the rank of a KiB.
#[derive(Clone, Copy, Debug)]
struct Level {
    amount: u128,
    weight: u128,
}

impl Ord for Level {
    fn cmp(&self, other: &Self) -> Ordering {
        let here = self.amount.saturating_mul(other.weight);
        here.cmp(&other.amount.saturating_mul(self.weight))
    }
}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Level {}

#[derive(Clone, Copy, Debug)]
enum Bound {
    /// From this level on the claim takes part.
    Lower,
    /// From this level on it has all it may get.
    Upper,
}

/// Solves sharing problems; keeps its working memory for the next one.
#[derive(Clone, Debug, Default)]
pub struct Solver {
    bounds: Vec<(Level, Bound)>,
    next: BinaryHeap<Reverse<(Level, usize)>>,
    shares: Vec<u64>,
}

impl Solver {
    /// Shares `available_kib` among `claims`; the shares are in KiB and in the claims' order.
    ///
    /// Their sum is `available_kib`, or the sum of the upper bounds if that is less, or the sum of
    /// the lower bounds if that is more.
    pub fn solve(&mut self, available_kib: u64, claims: &[Claim]) -> &[u64] {
        let available = u128::from(available_kib);
        let sum = |bound: fn(&Claim) -> u64| {
            claims.iter().fold(0u128, |sum, claim| sum.saturating_add(bound(claim).into()))
        };
        let lower = sum(|claim| claim.lower_kib);
        self.shares.clear();
        if lower >= available {
            self.shares.extend(claims.iter().map(|claim| claim.lower_kib));
        } else if sum(Claim::upper) <= available {
            self.shares.extend(claims.iter().map(Claim::upper));
        } else {
            let level = self.level(available, lower, claims);
            self.fill(level, available, claims);
        }
        &self.shares
    }

    /// The level at which the claims take exactly what there is. Called only when the lower bounds
    /// take less and the upper bounds more.
    fn level(&mut self, available: u128, lower: u128, claims: &[Claim]) -> Level {
        self.bounds.clear();
        for claim in claims.iter().filter(|claim| claim.lower_kib < claim.upper()) {
            let at = |kib: u64| Level { amount: kib.into(), weight: claim.weight() };
            self.bounds.push((at(claim.lower_kib), Bound::Lower));
            self.bounds.push((at(claim.upper()), Bound::Upper));
        }
        self.bounds.sort_unstable_by_key(|(level, _)| *level);

        // What claims outside their bounds take, and the weight of those between them.
        let mut outside = lower;
        let mut weight = 0u128;
        for (level, bound) in &self.bounds {
            let taken = outside
                .saturating_mul(level.weight)
                .saturating_add(weight.saturating_mul(level.amount));
            if taken > available.saturating_mul(level.weight) {
                break;
            }
            match bound {
                Bound::Lower => {
                    outside = outside.saturating_sub(level.amount);
                    weight = weight.saturating_add(level.weight);
                }
                Bound::Upper => {
                    outside = outside.saturating_add(level.amount);
                    weight = weight.saturating_sub(level.weight);
                }
            }
        }
        Level { amount: available.saturating_sub(outside), weight: weight.max(1) }
    }

    /// Hands out the KiB whose rank is at most `level`, then what is left by rank.
    fn fill(&mut self, level: Level, available: u128, claims: &[Claim]) {
        self.next.clear();
        let mut left = available;
        for (n, claim) in claims.iter().enumerate() {
            let fair = claim.weight().saturating_mul(level.amount).checked_div(level.weight);
            let fair = fair.and_then(|fair| u64::try_from(fair).ok()).unwrap_or(u64::MAX);
            let share = fair.clamp(claim.lower_kib, claim.upper());
            left = left.saturating_sub(share.into());
            self.shares.push(share);
            if share < claim.upper() {
                self.next.push(Reverse((rank_after(share, claim), n)));
            }
        }
        // Fewer than one KiB for each claim that is between its bounds.
        while left > 0 {
            let Some(Reverse((_, n))) = self.next.pop() else { break };
            let (Some(share), Some(claim)) = (self.shares.get_mut(n), claims.get(n)) else { break };
            *share = share.saturating_add(1);
            left = left.saturating_sub(1);
            if *share < claim.upper() {
                self.next.push(Reverse((rank_after(*share, claim), n)));
            }
        }
    }
}

fn rank_after(share: u64, claim: &Claim) -> Level {
    Level { amount: u128::from(share).saturating_add(1), weight: claim.weight() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn claim(weight: u32, lower_kib: u64, upper_kib: u64) -> Claim {
        Claim { weight, lower_kib, upper_kib }
    }

    fn solve(available_kib: u64, claims: &[Claim]) -> Vec<u64> {
        Solver::default().solve(available_kib, claims).to_vec()
    }

    /// Hands out one KiB after the other to whoever has least for its weight.
    fn brute_force(available_kib: u64, claims: &[Claim]) -> Vec<u64> {
        let mut shares: Vec<u64> = claims.iter().map(|c| c.lower_kib).collect();
        while shares.iter().sum::<u64>() < available_kib {
            let open = (0..claims.len()).filter(|n| shares[*n] < claims[*n].upper_kib);
            // Weights divide 60, so these ranks are whole numbers.
            let poorest = open.min_by_key(|n| (shares[*n] + 1) * 60 / u64::from(claims[*n].weight));
            let Some(n) = poorest else { break };
            shares[n] += 1;
        }
        shares
    }

    #[test]
    fn shares_follow_weights() {
        let claims = [claim(1, 0, 1000), claim(2, 0, 1000), claim(3, 0, 1000)];
        assert_eq!(solve(600, &claims), [100, 200, 300]);
    }

    #[test]
    fn what_one_does_not_take_goes_to_the_others() {
        let claims = [claim(1, 0, 1000), claim(1, 0, 10), claim(1, 400, 1000)];
        assert_eq!(solve(600, &claims), [190, 10, 400]);
    }

    #[test]
    fn an_odd_kib_goes_to_the_first_of_equals() {
        assert_eq!(solve(2, &[claim(1, 0, 9), claim(1, 0, 9), claim(1, 0, 9)]), [1, 1, 0]);
    }

    #[test]
    fn bounds_hold_if_there_is_too_little_or_too_much() {
        let claims = [claim(1, 10, 20), claim(5, 10, 20)];
        assert_eq!(solve(5, &claims), [10, 10]);
        assert_eq!(solve(50, &claims), [20, 20]);
        assert_eq!(solve(50, &[]), Vec::<u64>::new());
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let claims = vec![claim(u32::MAX, 0, u64::MAX); 3];
        let shares = solve(u64::MAX, &claims);
        assert_eq!(shares.iter().map(|s| u128::from(*s)).sum::<u128>(), u64::MAX.into());
    }

    fn small_claims() -> impl Strategy<Value = Vec<Claim>> {
        let weights = prop::sample::select(vec![1u32, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60]);
        let one = (weights, 0u64..20, 0u64..30);
        prop::collection::vec(one.prop_map(|(w, lower, more)| claim(w, lower, lower + more)), 0..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn shares_are_those_of_brute_force(available in 0u64..250, claims in small_claims()) {
            prop_assert_eq!(solve(available, &claims), brute_force(available, &claims));
        }

        #[test]
        fn more_memory_makes_nobody_poorer(
            available in 0u64..250, more in 0u64..20, claims in small_claims(),
        ) {
            let (less, more) = (solve(available, &claims), solve(available + more, &claims));
            prop_assert!(less.iter().zip(&more).all(|(less, more)| less <= more));
        }

        #[test]
        fn the_sum_is_conserved(
            available in 0u64..1 << 45,
            claims in prop::collection::vec((1u32..10_001, 0u64..1 << 40, 0u64..1 << 40), 0..50),
        ) {
            let claims: Vec<_> = claims.iter().map(|(w, l, m)| claim(*w, *l, l + m)).collect();
            let sum: u64 = solve(available, &claims).iter().sum();
            let lower: u64 = claims.iter().map(|c| c.lower_kib).sum();
            let upper: u64 = claims.iter().map(|c| c.upper_kib).sum();
            prop_assert_eq!(sum, available.clamp(lower, upper));
        }
    }
}
