//! A rate limit for log lines that a guest can cause.

use std::time::{Duration, Instant};

/// The most lines in one [`INTERVAL`].
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(10);

/// A guest can cause lines as fast as it can send; the log must not grow at that rate.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// What the lines are about.
    about: &'static str,
    start: Instant,
    lines: u32,
}

/// Whether to log a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    is_logged: bool,
    /// Lines suppressed before it, unless already reported.
    left_out: u32,
}

impl LogLimit {
    pub(crate) fn new(about: &'static str) -> Self {
        Self { about, start: Instant::now(), lines: 0 }
    }

    /// Logs a line unless there were too many. The first line after suppressed ones says how many
    /// there were.
    pub(crate) fn log(&mut self, log: impl FnOnce()) {
        let Verdict { is_logged, left_out } = self.judge(Instant::now());
        if left_out > 0 {
            tracing::warn!("{left_out} more lines about {} were suppressed", self.about);
        }
        if is_logged {
            log();
        }
    }

    fn judge(&mut self, now: Instant) -> Verdict {
        let mut left_out = 0;
        if now.saturating_duration_since(self.start) >= INTERVAL {
            left_out = self.lines.saturating_sub(BURST);
            (self.start, self.lines) = (now, 0);
        }
        self.lines = self.lines.saturating_add(1);
        Verdict { is_logged: self.lines <= BURST, left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_told_later() {
        let mut limit = LogLimit::new("a test");
        let start = limit.start;
        let logged = (0..1000).filter(|_| limit.judge(start).is_logged).count();
        assert_eq!(logged, 10);
        let later = start + INTERVAL;
        assert_eq!(limit.judge(later), Verdict { is_logged: true, left_out: 990 });
        assert_eq!(limit.judge(later), Verdict { is_logged: true, left_out: 0 });
    }

    #[test]
    fn a_line_now_and_then_is_never_left_out() {
        let mut limit = LogLimit::new("a test");
        let mut now = limit.start;
        for _ in 0..100 {
            now += INTERVAL / BURST;
            assert_eq!(limit.judge(now), Verdict { is_logged: true, left_out: 0 });
        }
    }
}
