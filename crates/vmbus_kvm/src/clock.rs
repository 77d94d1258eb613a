//! The clock of the bus and its devices, which can stand still.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::shared::lock;

/// The time since the VM started, less the time for which the clock stood still.
pub(crate) struct Clock(Mutex<State>);

#[derive(Clone, Copy)]
struct State {
    /// When the VM would have started, had the clock never stood still.
    start: Instant,
    /// Since when it stands still.
    stopped: Option<Instant>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State { start: Instant::now(), stopped: None }))
    }

    pub(crate) fn now(&self) -> Duration {
        // Read under the lock, so that no thread sees the time go back.
        let state = lock(&self.0);
        state.at(Instant::now())
    }

    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.0).stopped.is_some()
    }

    /// Without effect on a clock that stands still.
    pub(crate) fn stop(&self) {
        let mut state = lock(&self.0);
        state.stop(Instant::now());
    }

    /// Without effect on a clock that runs.
    pub(crate) fn go_on(&self) {
        let mut state = lock(&self.0);
        state.go_on(Instant::now());
    }
}

impl State {
    /// In whole microseconds, so that a recording tells the time as the device was told it.
    fn at(self, now: Instant) -> Duration {
        let time = self.stopped.unwrap_or(now).saturating_duration_since(self.start);
        Duration::new(time.as_secs(), time.subsec_micros() * 1000)
    }

    fn stop(&mut self, now: Instant) {
        self.stopped.get_or_insert(now);
    }

    fn go_on(&mut self, now: Instant) {
        if let Some(since) = self.stopped.take() {
            self.start += now.saturating_duration_since(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_for_which_the_clock_stood_still_does_not_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let read = |state: State, seconds| state.at(at(seconds)).as_secs();
        let mut clock = State { start, stopped: None };
        assert_eq!(read(clock, 3), 3);
        clock.stop(at(5));
        clock.stop(at(7));
        assert_eq!((read(clock, 5), read(clock, 60)), (5, 5));
        clock.go_on(at(65));
        clock.go_on(at(66));
        assert_eq!((read(clock, 65), read(clock, 67)), (5, 7));
        clock.stop(at(70));
        clock.go_on(at(80));
        assert_eq!(read(clock, 81), 11);
    }
}
