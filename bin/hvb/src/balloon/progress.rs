//! Progress display of a resize: a bar on a terminal, plain lines elsewhere.

use super::watch::Sample;
use crate::report;
use crate::size::human;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Minimum interval between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// The bar fills as the guest moves from its start size to its target.
const STYLE: &str = "{prefix} [{bar:32}] {percent:>3} %  {elapsed}  {msg}";

/// The display of one resize.
pub(crate) struct Progress {
    start: u64,
    target: u64,
    /// The newest plain line.
    shown: String,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    /// Starts the display of a resize from `start` to `target` bytes.
    pub(crate) fn new(start: u64, target: u64) -> Result<Self> {
        let route = format!("{} → {}", human(start), human(target));
        let display = if io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(STYLE)?.progress_chars("=> ");
            let bar = ProgressBar::new(start.abs_diff(target)).with_style(style);
            bar.set_prefix(route);
            Display::Bar(bar)
        } else {
            report::line(&route)?;
            Display::Lines { last: Instant::now() }
        };
        Ok(Self { start, target, shown: human(start), display })
    }

    /// Updates the display.
    pub(crate) fn show(&mut self, sample: &Sample) -> Result<()> {
        let text = text(sample);
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_message(text);
                bar.set_position(way(self.start, self.target, sample.actual));
            }
            Display::Lines { last } if text != self.shown && last.elapsed() >= LINE_INTERVAL => {
                report::line(&text)?;
                *last = Instant::now();
                self.shown = text;
            }
            Display::Lines { .. } => {}
        }
        Ok(())
    }

    /// Ends the display. The bar disappears; plain lines stay.
    pub(crate) fn finish(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

/// The guest's size, or the reason why nothing moves.
fn text(sample: &Sample) -> String {
    match (sample.ready_in, &sample.waiting) {
        (Some(wait), _) => {
            format!("guest not ready, {} s left", wait.as_millis().div_ceil(1000))
        }
        (None, Some(reason)) => format!("{}, waiting: {reason}", human(sample.actual)),
        (None, None) => human(sample.actual),
    }
}

/// The part of the way from `start` to `target` that a guest of `actual` bytes has covered.
fn way(start: u64, target: u64, actual: u64) -> u64 {
    let (low, high) = (start.min(target), start.max(target));
    actual.clamp(low, high).abs_diff(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_runs_from_start_to_target_in_both_directions() {
        assert_eq!(way(100, 40, 100), 0);
        assert_eq!(way(100, 40, 70), 30);
        assert_eq!(way(100, 40, 10), 60);
        assert_eq!(way(40, 100, 10), 0);
        assert_eq!(way(40, 100, 70), 30);
        assert_eq!(way(40, 100, 200), 60);
    }

    #[test]
    fn what_keeps_a_guest_from_moving_is_told() {
        let mut sample = Sample { actual: 1 << 30, ..Sample::default() };
        assert_eq!(text(&sample), "1 GiB");
        sample.waiting = Some("no driver".to_owned());
        assert_eq!(text(&sample), "1 GiB, waiting: no driver");
        sample.ready_in = Some(Duration::from_millis(1001));
        assert_eq!(text(&sample), "guest not ready, 2 s left");
    }
}
