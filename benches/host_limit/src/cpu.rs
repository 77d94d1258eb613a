//! CPU time, and CPU affinity.

use std::sync::OnceLock;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// CPU time of this thread since it started.
pub(crate) fn thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The cost of [`thread`] itself, to subtract when timing short pieces of work.
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

/// The CPUs to choose from, once threads are pinned.
static CPUS: OnceLock<Vec<usize>> = OnceLock::new();

const THIS_THREAD: Pid = Pid::from_raw(0);

/// Turns pinning on, and pins this thread to the first CPU.
pub(crate) fn pin() {
    CPUS.get_or_init(|| {
        let allowed = sched_getaffinity(THIS_THREAD).unwrap_or_default();
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect()
    });
    stay_on(0);
}

/// Pins this thread to the CPU at this index, if threads are pinned and there is one.
pub(crate) fn stay_on(place: usize) {
    if let Some(cpu) = CPUS.get().and_then(|cpus| cpus.get(place)) {
        let mut only = CpuSet::new();
        // If this is refused, the scheduler decides.
        let _ = only.set(*cpu).and_then(|()| sched_setaffinity(THIS_THREAD, &only));
    }
}
