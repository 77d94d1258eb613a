//! The brake: holds all vCPUs, for the monitor's `stop` and `cont`.
//!
//! A vCPU's thread parks here instead of entering the guest. Every kick also wakes it, so that it
//! still answers the flight recorder and sees the machine's end. The brake is the VM's: a machine
//! that starts after a reset starts with the brake as it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use qmp::RunState;

/// How long `stop` waits for the vCPUs. One that the host keeps waiting for longer, for memory for
/// example, has been kicked and runs no instruction of the guest before it parks.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// The brake of a VM.
#[derive(Default)]
pub(crate) struct Brake {
    /// For vCPUs, which look at it before each entry.
    is_on: AtomicBool,
    state: Mutex<State>,
    /// A vCPU parked, or the machine ended.
    changed: Condvar,
    /// Held by a thread that stops or continues: their events must be in the order of what they
    /// do.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    held: Held,
    machine: Option<Running>,
    /// vCPUs that are parked.
    parked: usize,
}

/// Whether the vCPUs are held, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    No,
    /// Since a time when the machine ran, or was about to.
    Yes,
    /// Since before its reset.
    SinceBeforeReset,
}

/// The vCPUs of the current machine.
struct Running {
    vcpus: usize,
    /// Kicks all of them.
    kick: Box<dyn Fn() + Send>,
}

impl Brake {
    /// The machine's state in QEMU's terms. As there, a machine that was reset while it was paused
    /// has not started yet.
    pub(crate) fn status(&self) -> RunState {
        match self.state().held {
            Held::No => RunState::running,
            Held::Yes => RunState::paused,
            Held::SinceBeforeReset => RunState::prelaunch,
        }
    }

    /// Holds the vCPUs and calls `then` once they have all parked, or after `patience`. Does
    /// nothing if the brake is on.
    pub(crate) fn stop(&self, patience: Duration, then: impl FnOnce()) {
        let _turn = lock(&self.turn);
        let mut state = self.state();
        if state.held != Held::No {
            return;
        }
        state.held = Held::Yes;
        self.is_on.store(true, Ordering::Release);
        state.kick();
        let is_moving =
            |state: &mut State| state.machine.as_ref().is_some_and(|it| state.parked < it.vcpus);
        let waited = self.changed.wait_timeout_while(state, patience, is_moving);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        then();
    }

    /// Calls `first` and lets the vCPUs run. Does nothing if the brake is off.
    pub(crate) fn cont(&self, first: impl FnOnce()) {
        let _turn = lock(&self.turn);
        // Held over the call, so that whoever hears of it finds the state changed.
        let mut state = self.state();
        if state.held == Held::No {
            return;
        }
        first();
        state.held = Held::No;
        self.is_on.store(false, Ordering::Release);
        state.kick();
    }

    /// Parks the calling vCPU's thread until it is kicked, if the brake is on. Returns whether it
    /// was: then the caller looks for work and asks again.
    pub(crate) fn hold(&self) -> bool {
        if !self.is_on.load(Ordering::Acquire) {
            return false;
        }
        self.state().parked += 1;
        self.changed.notify_all();
        // A kick since the caller looked for work has left its token.
        thread::park();
        self.state().parked -= 1;
        true
    }

    /// A machine has started. `kick` kicks all its vCPUs.
    pub(crate) fn machine_started(&self, vcpus: usize, kick: impl Fn() + Send + 'static) {
        let mut state = self.state();
        state.machine = Some(Running { vcpus, kick: Box::new(kick) });
        // Before this, a stop found nobody to kick.
        if state.held != Held::No {
            state.kick();
        }
    }

    /// The machine's vCPUs have ended.
    pub(crate) fn machine_stopped(&self) {
        self.state().machine = None;
        self.changed.notify_all();
    }

    /// Another machine takes the place of the one that has stopped.
    pub(crate) fn machine_reset(&self) {
        let mut state = self.state();
        if state.held == Held::Yes {
            state.held = Held::SinceBeforeReset;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn kick(&self) {
        if let Some(machine) = &self.machine {
            (machine.kick)();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread::JoinHandle;

    use super::*;

    /// Longer than any of this takes.
    const LONG: Duration = Duration::from_secs(20);

    /// vCPUs that count instead of running a guest.
    #[derive(Default)]
    struct Guest {
        brake: Brake,
        ended: AtomicBool,
        counts: [AtomicU64; 2],
        /// How often a held vCPU looked for work.
        looks: AtomicU64,
    }

    type Vcpus = Arc<Mutex<Vec<JoinHandle<()>>>>;

    impl Guest {
        fn start(self: &Arc<Self>) -> Vcpus {
            let vcpu = |index: usize| {
                let guest = Arc::clone(self);
                thread::spawn(move || {
                    while !guest.ended.load(Ordering::Acquire) {
                        if guest.brake.hold() {
                            guest.looks.fetch_add(1, Ordering::Release);
                            continue;
                        }
                        guest.counts[index].fetch_add(1, Ordering::Release);
                        thread::yield_now();
                    }
                })
            };
            let vcpus = Arc::new(Mutex::new((0..self.counts.len()).map(vcpu).collect()));
            let kicked = Arc::clone(&vcpus);
            self.brake.machine_started(self.counts.len(), move || kick(&kicked));
            vcpus
        }

        fn end(&self, vcpus: &Vcpus) {
            self.ended.store(true, Ordering::Release);
            kick(vcpus);
            std::mem::take(&mut *lock(vcpus)).into_iter().for_each(|it| it.join().unwrap());
            self.brake.machine_stopped();
            self.ended.store(false, Ordering::Release);
        }

        fn stop(&self) -> u32 {
            let mut calls = 0;
            self.brake.stop(LONG, || calls += 1);
            calls
        }

        fn cont(&self) -> u32 {
            let mut calls = 0;
            self.brake.cont(|| calls += 1);
            calls
        }

        fn counts(&self) -> [u64; 2] {
            self.counts.each_ref().map(|count| count.load(Ordering::Acquire))
        }

        fn runs(&self) {
            let before = self.counts();
            while self.counts().iter().zip(before).any(|(now, before)| *now == before) {
                thread::yield_now();
            }
        }
    }

    fn kick(vcpus: &Vcpus) {
        lock(vcpus).iter().for_each(|vcpu| vcpu.thread().unpark());
    }

    #[test]
    fn no_vcpu_runs_between_stop_and_cont() {
        let guest = Arc::new(Guest::default());
        let vcpus = guest.start();
        for _ in 0..100 {
            guest.runs();
            assert_eq!(guest.brake.status(), RunState::running);
            assert_eq!((guest.stop(), guest.stop()), (1, 0), "a second stop does nothing");
            let held = guest.counts();
            assert_eq!(guest.brake.status(), RunState::paused);
            thread::yield_now();
            assert_eq!(guest.counts(), held);
            assert_eq!((guest.cont(), guest.cont()), (1, 0), "a second cont does nothing");
        }
        guest.end(&vcpus);
    }

    #[test]
    fn a_held_vcpu_looks_for_work_when_it_is_kicked_and_does_not_run() {
        let guest = Arc::new(Guest::default());
        let vcpus = guest.start();
        guest.stop();
        let (held, looks) = (guest.counts(), guest.looks.load(Ordering::Acquire));
        while guest.looks.load(Ordering::Acquire) < looks + 2 {
            kick(&vcpus);
        }
        assert_eq!(guest.counts(), held);
        guest.end(&vcpus);
        assert_eq!(guest.counts(), held, "its machine ended while it was held");
    }

    #[test]
    fn a_machine_reset_while_it_is_held_does_not_start() {
        let guest = Arc::new(Guest::default());
        let vcpus = guest.start();
        guest.stop();
        guest.end(&vcpus);
        guest.brake.machine_reset();
        assert_eq!(guest.brake.status(), RunState::prelaunch);
        let held = guest.counts();
        let vcpus = guest.start();
        assert_eq!(guest.stop(), 0, "it is held already");
        assert_eq!((guest.counts(), guest.brake.status()), (held, RunState::prelaunch));
        assert_eq!(guest.cont(), 1);
        guest.runs();
        guest.end(&vcpus);
        guest.brake.machine_reset();
        assert_eq!(guest.brake.status(), RunState::running);
    }

    #[test]
    fn a_machine_is_held_from_its_start_if_the_stop_came_first() {
        let guest = Arc::new(Guest::default());
        assert_eq!(guest.stop(), 1, "without vCPUs there is nobody to wait for");
        let vcpus = guest.start();
        assert_eq!((guest.counts(), guest.brake.status()), ([0, 0], RunState::paused));
        guest.cont();
        guest.runs();
        guest.end(&vcpus);
    }

    #[test]
    fn a_vcpu_that_does_not_come_is_not_waited_for() {
        let brake = Brake::default();
        brake.machine_started(1, || ());
        let mut calls = 0;
        brake.stop(Duration::from_millis(1), || calls += 1);
        assert_eq!((calls, brake.status()), (1, RunState::paused));
    }
}
