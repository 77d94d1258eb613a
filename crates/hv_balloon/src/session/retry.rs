//! Failures that may pass, and are tried again before the target is given up.

use core::time::Duration;

use super::{Activity, Session};
use crate::StopReason;
use crate::machine::Machine;

/// After so many failures in a row the target is given up.
pub const MAX_FAILURES: u32 = 5;

/// The pause after the first failure. Each further one is twice as long.
pub const FIRST_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The pause before the last attempt.
pub(super) const LAST_RETRY_PAUSE: Duration =
    FIRST_RETRY_PAUSE.saturating_mul(1 << (MAX_FAILURES - 2));

impl Session {
    /// Guest or host was short of memory, or of something else that comes and goes. The guest is
    /// offered a single block the next time.
    pub(super) fn try_again(&mut self, machine: &mut Machine, reason: StopReason) -> Activity {
        self.is_proven = false;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= MAX_FAILURES {
            self.failures = 0;
            machine.stop(reason);
            return Activity::Idle;
        }
        let pause = FIRST_RETRY_PAUSE.saturating_mul(1 << self.failures.saturating_sub(1));
        Activity::Pausing { until: machine.after(pause), short_answers: 0 }
    }
}
