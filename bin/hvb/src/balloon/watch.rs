//! Deciding from samples whether a guest still moves towards its target.

use std::time::Duration;

/// Sizes closer than this count as equal, because guests give and take whole pages.
const PAGE: u64 = 4096;

/// A sample of the guest's state. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) actual: u64,
    /// The target as rounded by the device, if reported.
    pub(crate) target: Option<u64>,
    /// Time until the device starts to act, if reported.
    pub(crate) ready_in: Option<Duration>,
    /// The reason why nothing can happen now, if reported.
    pub(crate) waiting: Option<String>,
    /// The reason why the device refuses the target, if reported.
    pub(crate) refused: Option<String>,
    /// The reason why the guest will not reach the target, if reported.
    pub(crate) stopped: Option<String>,
    /// Whether the device reports that the guest has not yet acknowledged returned pages.
    pub(crate) unconfirmed: bool,
}

/// The conclusion from a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Reached,
    Moving,
    Failed(Failure),
}

/// The reason to stop waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The guest stays at its size, for this reason.
    Stuck(String),
    /// The guest has the size but cannot use it, for this reason.
    Unused(String),
    /// Nothing has moved for too long; the device still waits for this.
    Waiting(String),
    /// The device refuses the target, for this reason.
    Refused(String),
}

/// Watches one resize.
#[derive(Debug)]
pub(crate) struct Watch {
    target: u64,
    nearest: u64,
    /// When the guest last came closer to the target.
    since: Duration,
    patience: Duration,
}

impl Watch {
    /// Watches a guest of `start` bytes on its way to `target`, giving up after `patience` without
    /// progress.
    pub(crate) fn new(target: u64, start: u64, patience: Duration) -> Self {
        Self { target, nearest: start.abs_diff(target), since: Duration::ZERO, patience }
    }

    /// The target in bytes, as rounded by the device once that is known.
    pub(crate) fn target(&self) -> u64 {
        self.target
    }

    /// How long the guest may go without progress.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Evaluates a sample taken at `now`, the time since the resize began.
    pub(crate) fn observe(&mut self, now: Duration, sample: Sample) -> Verdict {
        self.target = sample.target.unwrap_or(self.target);
        if let Some(reason) = sample.refused {
            return Verdict::Failed(Failure::Refused(reason));
        }
        let distance = sample.actual.abs_diff(self.target);
        if distance < PAGE {
            return match sample.stopped {
                Some(reason) => Verdict::Failed(Failure::Unused(reason)),
                // The device waits for the guest's answer, and gives up eventually.
                None if sample.unconfirmed => Verdict::Moving,
                None => Verdict::Reached,
            };
        }
        if let Some(reason) = sample.stopped {
            return Verdict::Failed(Failure::Stuck(reason));
        }
        if distance < self.nearest || sample.ready_in.is_some() {
            self.nearest = self.nearest.min(distance);
            self.since = now;
        }
        if now.saturating_sub(self.since) < self.patience {
            return Verdict::Moving;
        }
        Verdict::Failed(match sample.waiting {
            Some(reason) => Failure::Waiting(reason),
            None => Failure::Stuck(format!("no progress for {} s", self.patience.as_secs())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn watch() -> Watch {
        Watch::new(512 * MIB, 1024 * MIB, Duration::from_secs(10))
    }

    fn at(watch: &mut Watch, seconds: u64, mib: u64) -> Verdict {
        let sample = Sample { actual: mib * MIB, ..Sample::default() };
        watch.observe(Duration::from_secs(seconds), sample)
    }

    fn stuck() -> Verdict {
        Verdict::Failed(Failure::Stuck("no progress for 10 s".to_owned()))
    }

    #[test]
    fn a_guest_that_moves_in_time_is_waited_for() {
        let mut watch = watch();
        assert_eq!(at(&mut watch, 9, 1000), Verdict::Moving);
        assert_eq!(at(&mut watch, 18, 900), Verdict::Moving);
        assert_eq!(at(&mut watch, 27, 600), Verdict::Moving);
        assert_eq!(at(&mut watch, 36, 512), Verdict::Reached);
    }

    #[test]
    fn a_guest_that_stays_or_turns_back_is_stuck() {
        let mut still = watch();
        assert_eq!(at(&mut still, 9, 1024), Verdict::Moving);
        assert_eq!(at(&mut still, 10, 1024), stuck());
        let mut swaying = watch();
        assert_eq!(at(&mut swaying, 5, 700), Verdict::Moving);
        assert_eq!(at(&mut swaying, 10, 800), Verdict::Moving);
        assert_eq!(at(&mut swaying, 14, 700), Verdict::Moving);
        assert_eq!(at(&mut swaying, 15, 750), stuck());
    }

    #[test]
    fn a_size_that_the_guest_makes_nothing_of_is_no_success() {
        let stopped = Some("offline".to_owned());
        let sample = Sample { actual: 512 * MIB, stopped, ..Sample::default() };
        let unused = Verdict::Failed(Failure::Unused("offline".to_owned()));
        assert_eq!(watch().observe(Duration::ZERO, sample), unused);
    }

    #[test]
    fn pages_count_once_the_guest_has_them() {
        let sample = |unconfirmed| Sample { actual: 512 * MIB, unconfirmed, ..Sample::default() };
        let mut watch = watch();
        assert_eq!(watch.observe(Duration::from_secs(30), sample(true)), Verdict::Moving);
        assert_eq!(watch.observe(Duration::from_secs(31), sample(false)), Verdict::Reached);
    }

    #[test]
    fn less_than_a_page_is_no_difference() {
        let sample = Sample { actual: 512 * MIB + PAGE - 1, ..Sample::default() };
        assert_eq!(watch().observe(Duration::ZERO, sample), Verdict::Reached);
    }

    #[test]
    fn what_the_device_says_counts() {
        let mut watch = watch();
        let settling = Sample {
            actual: 1024 * MIB,
            ready_in: Some(Duration::from_secs(20)),
            ..Sample::default()
        };
        assert_eq!(watch.observe(Duration::from_secs(30), settling), Verdict::Moving);
        assert_eq!(at(&mut watch, 39, 1024), Verdict::Moving);
        let rounded = Sample { actual: 514 * MIB, target: Some(514 * MIB), ..Sample::default() };
        assert_eq!(watch.observe(Duration::from_secs(39), rounded), Verdict::Reached);
        let refused = Sample {
            actual: 600 * MIB,
            stopped: Some("nothing left".to_owned()),
            ..Sample::default()
        };
        let verdict = watch.observe(Duration::from_secs(39), refused);
        assert_eq!(verdict, Verdict::Failed(Failure::Stuck("nothing left".to_owned())));
    }

    #[test]
    fn a_device_that_waits_says_why_when_patience_ends() {
        let mut watch = watch();
        let waiting = Sample {
            actual: 1024 * MIB,
            waiting: Some("no driver".to_owned()),
            ..Sample::default()
        };
        assert_eq!(watch.observe(Duration::from_secs(9), waiting.clone()), Verdict::Moving);
        let expected = Verdict::Failed(Failure::Waiting("no driver".to_owned()));
        assert_eq!(watch.observe(Duration::from_secs(10), waiting), expected);
    }

    #[test]
    fn a_refused_target_is_not_waited_for() {
        let refused = Sample { refused: Some("too much".to_owned()), ..Sample::default() };
        let verdict = watch().observe(Duration::ZERO, refused);
        assert_eq!(verdict, Verdict::Failed(Failure::Refused("too much".to_owned())));
    }
}
