//! Limits on how often a monitor says something.

use crate::machine::AttachError;

/// A monitor that wakes the watch without an event more often than this in a second is cut off: with blanks, or
/// with answers to nothing. Of an honest one, half an event may come first.
const MAX_EMPTY: u32 = 20;

/// The same for events. A monitor that shrinks its guest as fast as it can sends some fifty in a second, but
/// those of a while may come at one time.
const MAX_EVENTS: u32 = 1000;

/// Counts how often a monitor wakes the watch for nothing, and its events.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    second: u64,
    empty: u32,
    events: u32,
}

impl Rate {
    pub(crate) fn empty(&mut self, now_ms: u64) -> Result<(), AttachError> {
        self.count(now_ms, 1, 0)
    }

    pub(crate) fn event(&mut self, now_ms: u64) -> Result<(), AttachError> {
        self.count(now_ms, 0, 1)
    }

    fn count(&mut self, now_ms: u64, empty: u32, events: u32) -> Result<(), AttachError> {
        let second = now_ms / 1000;
        if self.second != second {
            *self = Self { second, empty: 0, events: 0 };
        }
        self.empty += empty;
        self.events += events;
        if self.empty <= MAX_EMPTY && self.events <= MAX_EVENTS {
            return Ok(());
        }
        let text = "its monitor sends without end and was cut off";
        Err(AttachError::Unfit(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_floods_is_cut_off_and_one_that_is_busy_is_not() {
        let mut rate = Rate::default();
        for second in 0..5 {
            for _ in 0..MAX_EMPTY {
                rate.empty(second * 1000).unwrap();
            }
            for _ in 0..MAX_EVENTS {
                rate.event(second * 1000 + 999).unwrap();
            }
        }
        let mut other = Rate { second: 4, empty: 0, events: MAX_EVENTS };
        for error in [rate.empty(4999), other.event(4999)] {
            assert!(error.unwrap_err().to_string().contains("cut off"));
        }
    }
}
