//! Needs over time: what a load makes a guest need, as lines from point to point.

use crate::dice::Dice;
use crate::scenario::Load;

/// A wave has a corner each so many seconds.
const WAVE_STEP_MS: u64 = 10_000;
/// Memory that work no longer needs is given up this fast: a process that ends frees at once.
const FALL_MS: u64 = 1000;

/// A load of one guest.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    load: Load,
    dice: Dice,
    shift_ms: u64,
    from: Point,
    to: Point,
    phase: Phase,
    /// Its own time, which stands still where work does not advance.
    clock_ms: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    ms: u64,
    kib: u64,
}

/// What a burst does on the line that it is on.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Pause,
    Rise,
    High,
}

impl Course {
    pub(crate) fn new(load: Load, mut dice: Dice) -> Self {
        let (shift, first) = match load {
            Load::Wave { spread, .. } => (dice.between(0, spread.saturating_mul(1000)), 0),
            Load::Bursts { first_after: [least, most], .. } => {
                (0, dice.between(least.saturating_mul(1000), most.saturating_mul(1000)))
            }
        };
        let mut course = Self {
            load,
            dice,
            shift_ms: shift,
            from: Point::default(),
            to: Point { ms: first, kib: 0 },
            phase: Phase::Pause,
            clock_ms: 0,
        };
        if let Load::Wave { .. } = load {
            course.to = course.wave(0);
            course.from = course.to;
        }
        course
    }

    /// A second passes, in which work advances by `progress_permille`. Returns the need.
    pub(crate) fn advance(&mut self, progress_permille: u64) -> u64 {
        let ms = match self.load {
            Load::Wave { .. } => 1000,
            Load::Bursts { .. } => progress_permille.min(1000),
        };
        self.clock_ms = self.clock_ms.saturating_add(ms);
        while self.clock_ms >= self.to.ms {
            self.turn();
        }
        self.need_kib()
    }

    /// The need now.
    pub(crate) fn need_kib(&self) -> u64 {
        let span = self.to.ms.saturating_sub(self.from.ms).max(1);
        let gone = self.clock_ms.saturating_sub(self.from.ms).min(span);
        let part = |kib: u64| u128::from(kib).saturating_mul(gone.into()) / u128::from(span);
        let part = |kib: u64| u64::try_from(part(kib)).unwrap_or(u64::MAX);
        if self.to.kib >= self.from.kib {
            self.from.kib.saturating_add(part(self.to.kib.saturating_sub(self.from.kib)))
        } else {
            self.from.kib.saturating_sub(part(self.from.kib.saturating_sub(self.to.kib)))
        }
    }

    /// Goes on to the next line.
    fn turn(&mut self) {
        self.from = self.to;
        let Point { ms, kib } = self.from;
        self.to = match self.load {
            Load::Wave { .. } => self.wave(ms.saturating_add(WAVE_STEP_MS)),
            Load::Bursts { needs_kib, lasts, pause, rises_kib, .. } => {
                let mut draw = |[least, most]: [u64; 2]| self.dice.between(least, most);
                let mut draw_ms = |[least, most]: [u64; 2]| {
                    draw([least.saturating_mul(1000), most.saturating_mul(1000)])
                };
                match self.phase {
                    Phase::Pause => {
                        self.phase = Phase::Rise;
                        let high_kib = draw(needs_kib);
                        let ms_needed = high_kib.saturating_mul(1000) / rises_kib.max(1);
                        Point { ms: ms.saturating_add(ms_needed.max(1)), kib: high_kib }
                    }
                    Phase::Rise => {
                        self.phase = Phase::High;
                        Point { ms: ms.saturating_add(draw_ms(lasts).max(1)), kib }
                    }
                    Phase::High if kib > 0 => Point { ms: ms.saturating_add(FALL_MS), kib: 0 },
                    Phase::High => {
                        self.phase = Phase::Pause;
                        Point { ms: ms.saturating_add(draw_ms(pause).max(1)), kib: 0 }
                    }
                }
            }
        };
    }

    /// The point of a wave at this time.
    fn wave(&mut self, ms: u64) -> Point {
        let Load::Wave { low_kib, high_kib, period, noise_percent, .. } = self.load else {
            return Point { ms, kib: 0 };
        };
        let half_ms = period.saturating_mul(500).max(1);
        let place = ms.saturating_add(self.shift_ms) % half_ms.saturating_mul(2);
        let height =
            if place < half_ms { place } else { half_ms.saturating_mul(2).saturating_sub(place) };
        // Smooth at both ends, 3x² - 2x³, in thousandths.
        let x = height.saturating_mul(1000) / half_ms;
        let smooth =
            x.saturating_mul(x).saturating_mul(3000u64.saturating_sub(x.saturating_mul(2)));
        let smooth = smooth / 1_000_000;
        let kib =
            low_kib.saturating_add(high_kib.saturating_sub(low_kib).saturating_mul(smooth) / 1000);
        let noise = self.dice.between(0, noise_percent.saturating_mul(20));
        let permille =
            1000u64.saturating_sub(noise_percent.saturating_mul(10)).saturating_add(noise);
        Point { ms, kib: kib.saturating_mul(permille) / 1000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn needs(load: Load, seconds: usize, progress: u64) -> Vec<u64> {
        let mut course = Course::new(load, Dice::new(1, [0; 3]));
        (0..seconds).map(|_| course.advance(progress)).collect()
    }

    fn bursts() -> Load {
        Load::Bursts {
            needs_kib: [1000; 2],
            lasts: [10; 2],
            pause: [20; 2],
            rises_kib: 100,
            first_after: [5; 2],
        }
    }

    #[test]
    fn a_wave_goes_from_low_to_high_and_back() {
        let load =
            Load::Wave { low_kib: 1000, high_kib: 9000, period: 1000, spread: 0, noise_percent: 0 };
        let needs = needs(load, 1000, 0);
        assert_eq!((needs[499], needs[999]), (9000, 1000));
        assert!(needs[..500].is_sorted());
        assert!(needs[500..].iter().rev().is_sorted());
    }

    #[test]
    fn a_burst_rises_stays_and_is_over() {
        let needs = needs(bursts(), 60, 1000);
        assert_eq!(needs[4], 0);
        assert_eq!((needs[5], needs[14]), (100, 1000));
        assert_eq!((needs[24], needs[25]), (1000, 0));
        assert_eq!((needs[45], needs[46]), (0, 100));
    }

    #[test]
    fn work_that_does_not_advance_is_not_over_sooner() {
        let slow = needs(bursts(), 120, 500);
        assert_eq!((slow[9], slow[29], slow[49], slow[51]), (0, 1000, 1000, 0));
    }
}
