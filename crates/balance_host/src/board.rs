//! What the threads tell each other: a slot for each VM, and a bell for the loop.
//!
//! A slot holds the newest of each thing and nothing else, so no thread can fill another's memory or
//! wait for it.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::reading::{Link, Reading};

/// The stack of each thread that speaks with monitors.
pub(crate) const STACK_BYTES: usize = 256 << 10;

/// The daemon's clock: milliseconds since it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What somebody wants of the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Decide now: a guest asks for more, memory was freed, or the operator changed something.
    pub(crate) decide: bool,
    /// Read the configuration again.
    pub(crate) reload: bool,
    /// End.
    pub(crate) end: bool,
}

/// Wakes the loop.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    calls: Mutex<Calls>,
    rung: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self, call: impl FnOnce(&mut Calls)) {
        call(&mut lock(&self.calls));
        self.rung.notify_all();
    }

    /// Waits for a call, at most `patience`; takes all calls.
    pub(crate) fn wait(&self, patience: Duration) -> Calls {
        let none = |calls: &mut Calls| *calls == Calls::default();
        let (mut calls, _) = self
            .rung
            .wait_timeout_while(lock(&self.calls), patience, none)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *calls)
    }
}

/// A size for a VM to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kib: u64,
    /// Orders of a slot have ascending numbers.
    pub(crate) number: u64,
}

/// What a VM's thread, the watch and the loop share.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    called: Condvar,
}

/// A process that serves a monitor.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Readable once it has ended; `None` if the kernel has no such handles.
    handle: Option<OwnedFd>,
}

impl Process {
    pub(crate) fn new(pid: u32) -> Self {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let open = |pid| pidfd_open(pid, PidfdFlags::empty()).ok();
        Self { pid, handle: number.and_then(open) }
    }

    fn is_running(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            let mut watched = [PollFd::new(handle, PollFlags::IN)];
            poll(&mut watched, Some(&Timespec::default())) == Ok(0)
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct SlotState {
    pub(crate) link: Link,
    pub(crate) kind: &'static str,
    pub(crate) process: Option<Process>,
    pub(crate) reading: Option<Reading>,
    /// Counts the VMs that had this socket, and each one's starts.
    pub(crate) life: u32,
    target: Option<Target>,
    /// The number of the last order that was carried out or refused.
    done: u64,
    /// The order that was the last one when the reading was made.
    read_after: u64,
    /// What the monitor said to the last order, if it refused.
    pub(crate) refusal: Option<String>,
    pub(crate) end: bool,
    /// Somebody wants the VM's thread.
    is_called: bool,
    /// Try to connect now.
    pub(crate) hurry: bool,
    /// What the loop knew when it last looked: used memory and size.
    seen_kib: Option<(u64, u64)>,
}

impl Slot {
    pub(crate) fn lock(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }

    /// Changes the state and calls the VM's thread.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut SlotState)) {
        let mut state = self.lock();
        change(&mut state);
        state.is_called = true;
        drop(state);
        self.called.notify_one();
    }

    /// Waits until the VM's thread is called, at most `patience`. A call before that counts.
    pub(crate) fn wait(&self, patience: Option<Duration>) {
        let mut state = self.lock();
        let is_quiet = |state: &mut SlotState| !state.is_called;
        state = match patience {
            None => self.called.wait_while(state, is_quiet).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                let waited = self.called.wait_timeout_while(state, patience, is_quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.is_called = false;
    }

    /// Takes a reading in, and has the loop look at it at once if it should.
    pub(crate) fn publish(&self, reading: Reading, bell: &Bell) {
        let is_urgent = self.lock().publish(reading);
        if is_urgent {
            bell.ring(|calls| calls.decide = true);
        }
    }
}

impl SlotState {
    /// Another VM, or the same from its start: nothing of the one before counts.
    pub(crate) fn begin_life(&mut self) {
        self.life = self.life.wrapping_add(1);
        (self.reading, self.target, self.refusal, self.seen_kib) = (None, None, None, None);
    }

    /// The process behind the socket, as long as it is known to be the same: the number of one that
    /// ended may be another's.
    pub(crate) fn live_pid(&self) -> Option<u32> {
        let process = self.process.as_ref()?;
        (self.link == Link::Up || process.is_running()).then_some(process.pid)
    }

    /// Takes a reading in; whether the loop should look at it at once.
    fn publish(&mut self, reading: Reading) -> bool {
        self.read_after = self.done;
        let (used_kib, actual_kib) = usage(&reading);
        let is_urgent = self.seen_kib.is_none_or(|(seen_used, seen_actual)| {
            let worth = worth_kib(actual_kib);
            let more_kib = used_kib.saturating_sub(seen_used);
            // What it needs beyond the last page does not show, so little more may be much more.
            let is_at_its_end = more_kib > 0 && used_kib >= actual_kib - actual_kib / 16;
            is_at_its_end || more_kib >= worth || actual_kib.abs_diff(seen_actual) >= worth
        });
        let last = self.reading.replace(reading).and_then(|reading| reading.report);
        let report = self.reading.as_ref().and_then(|reading| reading.report);
        let is_first = report.is_some() && last.is_none();
        is_urgent || is_first || pages(last.map(|r| r.value), report.map(|r| r.value))
    }

    /// The loop has looked.
    pub(crate) fn seen(&mut self) {
        self.seen_kib = self.reading.as_ref().map(usage);
    }

    /// An order for the VM of this life.
    pub(crate) fn order(&mut self, life: u32, kib: u64) {
        if self.life == life {
            let number = self.done.max(self.target.map_or(0, |target| target.number)) + 1;
            self.target = Some(Target { kib, number });
        }
    }

    /// The order that was not carried out yet.
    pub(crate) fn pending(&self) -> Option<Target> {
        self.target.filter(|target| target.number > self.done)
    }

    /// Whether the reading shows what became of all orders.
    pub(crate) fn is_settled(&self) -> bool {
        self.target.is_none_or(|target| target.number <= self.read_after)
    }

    pub(crate) fn carried_out(&mut self, target: Target, refusal: Option<String>) {
        self.done = target.number;
        self.refusal = refusal;
    }
}

/// Changes smaller than this can wait for the next second.
fn worth_kib(size_kib: u64) -> u64 {
    (size_kib / 64).max(16 << 10)
}

fn usage(reading: &Reading) -> (u64, u64) {
    let used_kib = reading
        .report
        .map_or(0, |report| report.value.actual_kib.saturating_sub(report.value.available_kib));
    (used_kib, reading.actual.value)
}

/// Whether a guest read from swap or killed processes since its last report.
fn pages(last: Option<balancer::GuestReport>, now: Option<balancer::GuestReport>) -> bool {
    last.zip(now).is_some_and(|(last, now)| {
        last.oom_kills < now.oom_kills || last.swapped_in_kib < now.swapped_in_kib
    })
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Facts, Stamped};
    use balancer::GuestReport;

    const GIB: u64 = 1 << 20;

    fn reading(actual_kib: u64, available_kib: u64, swapped: u64) -> Reading {
        let report = GuestReport {
            actual_kib,
            available_kib,
            committed: None,
            swapped_in_kib: Some(swapped),
            oom_kills: None,
        };
        Reading {
            facts: Facts::default(),
            actual: Stamped { value: actual_kib, at_ms: 0 },
            report: Some(Stamped { value: report, at_ms: 0 }),
            can_report: true,
            told_kib: None,
            obstacle: None,
        }
    }

    #[test]
    fn only_what_asks_for_more_or_frees_memory_is_urgent() {
        let mut state = SlotState::default();
        assert!(state.publish(reading(2 * GIB, GIB, 0)), "the first");
        state.seen();
        assert!(!state.publish(reading(2 * GIB, GIB - 1024, 0)));
        assert!(!state.publish(reading(2 * GIB, 2 * GIB, 0)), "less use can wait");
        assert!(state.publish(reading(2 * GIB, GIB / 2, 0)));
        assert!(state.publish(reading(2 * GIB, GIB / 2, 0)), "nobody has looked");
        state.seen();
        assert!(state.publish(reading(GIB, GIB / 2, 0)), "memory was freed");
        state.seen();
        let little = 32 << 10;
        assert!(state.publish(reading(little, little / 4, 0)), "its size changed");
        state.seen();
        assert!(!state.publish(reading(little, little / 5, 0)));
        assert!(state.publish(reading(little, little / 20, 0)), "little is left of little");
        state.seen();
        assert!(!state.publish(reading(little, little / 20, 0)), "as before");
        state.publish(reading(GIB, GIB / 2, 0));
        state.seen();
        assert!(state.publish(reading(GIB, GIB / 2, 1)), "the guest pages");
    }

    #[test]
    fn a_process_that_does_not_answer_is_known_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Some(Process::new(child.id()));
        let link = Link::Down(String::new());
        let mut state = SlotState { link, process, ..SlotState::default() };
        assert_eq!(state.live_pid(), Some(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(state.live_pid(), None);
        state.process = Some(Process::new(std::process::id()));
        assert_eq!(state.live_pid(), Some(std::process::id()));
    }

    #[test]
    fn an_order_is_for_one_life_and_is_carried_out_once() {
        let mut state = SlotState::default();
        state.begin_life();
        state.order(0, 5);
        assert_eq!(state.pending(), None, "it was for another");
        state.order(1, 5);
        state.order(1, 6);
        let target = state.pending().unwrap();
        assert_eq!(target.kib, 6);
        state.carried_out(target, Some("no".to_owned()));
        assert_eq!(state.pending(), None);
        assert!(!state.is_settled());
        state.publish(reading(GIB, GIB / 2, 0));
        assert!(state.is_settled());
        state.order(1, 6);
        state.publish(reading(GIB, GIB / 2, 0));
        assert!(!state.is_settled(), "it was read before the order was carried out");
        assert!(state.pending().unwrap().number > target.number);
        state.begin_life();
        assert_eq!((state.pending(), state.refusal), (None, None));
    }
}
