//! Time on the CPU.

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time of this thread since it started.
pub(crate) fn thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What [`thread`] itself costs: to take off where short pieces of work are timed.
pub(crate) fn overhead() -> Duration {
    static OVERHEAD: OnceLock<Duration> = OnceLock::new();
    *OVERHEAD.get_or_init(|| {
        let mut costs: Vec<_> = (0..1001)
            .map(|_| {
                let before = thread();
                thread().saturating_sub(before)
            })
            .collect();
        costs.sort_unstable();
        costs.get(costs.len() / 2).copied().unwrap_or_default()
    })
}
