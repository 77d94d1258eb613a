//! What tests of a process's limits share.

use std::time::Duration;

use qmp::{Machine, MonitorError, RunState};

/// Longer than any answer takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A machine of one page.
pub(crate) struct FakeMachine;

impl Machine for FakeMachine {
    fn status(&self) -> RunState {
        RunState::running
    }
    fn balloon(&self, _: u64) -> Result<(), MonitorError> {
        Ok(())
    }
    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(4096)
    }
    fn system_reset(&self) {}
    fn quit(&self) {}
}
