//! Capture of the vCPUs' state, which only their own threads can read.
//!
//! The thread that wants it starts a round at the [`Desk`] and has all vCPUs kicked out of the
//! guest; each vCPU thread answers before it enters again. A thread that waits in the host does not
//! answer, which shows where it is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use serde::Serialize;

/// The number of rounds in which a vCPU has answered.
#[derive(Debug, Default)]
pub(crate) struct Answered(u32);

/// The place where the vCPUs of a machine are asked.
pub(crate) struct Desk {
    /// The number of the newest round.
    round: AtomicU32,
    answers: Mutex<Answers>,
    arrived: Condvar,
    /// Gets a vCPU's thread out of the guest.
    kick: Box<dyn Fn(usize) + Send + Sync>,
    /// One round at a time.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Answers {
    round: u32,
    states: Vec<Option<VcpuState>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("round", &self.round).finish_non_exhaustive()
    }
}

impl Desk {
    pub(crate) fn new(kick: impl Fn(usize) + Send + Sync + 'static) -> Self {
        Self {
            round: AtomicU32::new(0),
            answers: Mutex::default(),
            arrived: Condvar::new(),
            kick: Box::new(kick),
            turn: Mutex::default(),
        }
    }

    /// Answers for a vCPU, on its thread, if it was asked and has not answered yet.
    pub(crate) fn answer(&self, vcpu: u8, answered: &mut Answered, fd: &VcpuFd) {
        let round = self.round.load(Ordering::Acquire);
        if answered.0 == round {
            return;
        }
        answered.0 = round;
        let state = VcpuState::read(fd);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.round == round
            && let Some(slot) = answers.states.get_mut(usize::from(vcpu))
        {
            *slot = Some(state);
            drop(answers);
            self.arrived.notify_all();
        }
    }

    /// Asks all vCPUs and waits until they have answered or `patience` has passed.
    pub(super) fn ask(&self, vcpus: usize, patience: Duration) -> Vec<Option<VcpuState>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let round = self.round.load(Ordering::Relaxed).wrapping_add(1);
            *answers = Answers { round, states: (0..vcpus).map(|_| None).collect() };
            self.round.store(round, Ordering::Release);
        }
        (0..vcpus).for_each(&self.kick);
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |answers: &mut Answers| answers.states.iter().any(Option::is_none);
        let waited = self.arrived.wait_timeout_while(answers, patience, is_open);
        let (mut answers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut answers.states)
    }
}

/// What a vCPU does and waits for. `None` where the kernel does not tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct VcpuState {
    rip: Option<Hex>,
    rsp: Option<Hex>,
    rflags: Option<Hex>,
    cr3: Option<Hex>,
    /// Runnable (0), halted (3), or another value of `KVM_MP_STATE_`.
    mp_state: Option<u32>,
    /// The vector that is being injected.
    injected: Option<u8>,
    /// Whether the guest is in the shadow of an `sti` or `mov ss`.
    shadow: Option<u8>,
    lapic: Option<Lapic>,
    /// By name; registers that are zero are omitted.
    msrs: Vec<(&'static str, Hex)>,
}

/// A local APIC (Intel SDM 3A, chapter "APIC").
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Lapic {
    id: u32,
    task_priority: u32,
    spurious: Hex,
    /// Vectors in service.
    in_service: Vec<u32>,
    /// Pending vectors.
    requested: Vec<u32>,
    timer_vector: Hex,
    timer_initial: u32,
    timer_current: u32,
}

/// A number that is best read in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// Numbers from the TLFS, appendix "MSRs", and the Intel SDM, volume 4.
const MSRS: [(u32, &str); 12] = [
    (0x10, "tsc"),
    (0x6e0, "tsc-deadline"),
    (0x4000_0000, "guest-os-id"),
    (0x4000_0080, "scontrol"),
    (0x4000_0082, "siefp"),
    (0x4000_0083, "simp"),
    (0x4000_0090, "sint0"),
    (0x4000_0092, "sint2"),
    (0x4000_00b0, "stimer0-config"),
    (0x4000_00b1, "stimer0-count"),
    (0x4000_00b2, "stimer1-config"),
    (0x4000_00b3, "stimer1-count"),
];

impl VcpuState {
    fn read(fd: &VcpuFd) -> Self {
        let registers = fd.get_regs().ok();
        let events = fd.get_vcpu_events().ok();
        Self {
            rip: registers.map(|it| Hex(it.rip)),
            rsp: registers.map(|it| Hex(it.rsp)),
            rflags: registers.map(|it| Hex(it.rflags)),
            cr3: fd.get_sregs().ok().map(|it| Hex(it.cr3)),
            mp_state: fd.get_mp_state().ok().map(|it| it.mp_state),
            injected: events.filter(|it| it.interrupt.injected != 0).map(|it| it.interrupt.nr),
            shadow: events.map(|it| it.interrupt.shadow),
            lapic: fd.get_lapic().ok().map(|it| Lapic::from(&it)),
            msrs: msrs(fd),
        }
    }
}

/// Reads them one by one, because KVM stops at the first one that it lacks.
fn msrs(fd: &VcpuFd) -> Vec<(&'static str, Hex)> {
    let read = |(index, name): &(u32, &'static str)| {
        let entry = kvm_msr_entry { index: *index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).ok()?;
        let count = fd.get_msrs(&mut msrs).ok()?;
        let value = msrs.as_slice().first().filter(|_| count == 1)?.data;
        (value != 0).then_some((*name, Hex(value)))
    };
    MSRS.iter().filter_map(read).collect()
}

impl From<&kvm_lapic_state> for Lapic {
    fn from(state: &kvm_lapic_state) -> Self {
        let register = |at: usize| {
            let bytes = state.regs.get(at..).and_then(|regs| regs.first_chunk::<4>());
            u32::from_le_bytes(bytes.copied().unwrap_or_default().map(i8::cast_unsigned))
        };
        // 256 bits in eight registers, 16 bytes apart.
        let vectors = |first: usize| {
            let is_set = |vector: &u32| {
                let index = usize::try_from(vector / 32).unwrap_or(usize::MAX);
                register(first + 16 * index) & 1 << (vector % 32) != 0
            };
            (0..256).filter(is_set).collect()
        };
        Self {
            id: register(0x20) >> 24,
            task_priority: register(0x80),
            spurious: Hex(register(0xf0).into()),
            in_service: vectors(0x100),
            requested: vectors(0x200),
            timer_vector: Hex(register(0x320).into()),
            timer_initial: register(0x380),
            timer_current: register(0x390),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_apics_vectors_are_listed() {
        let mut state = kvm_lapic_state::default();
        state.regs[0x100] = 1;
        state.regs[0x100 + 16 * 7 + 3] = -128;
        state.regs[0x200 + 16 + 1] = 2;
        state.regs[0x23] = 5;
        let lapic = Lapic::from(&state);
        assert_eq!((lapic.in_service, lapic.requested), (vec![0, 255], vec![41]));
        assert_eq!(lapic.id, 5);
    }

    #[test]
    fn a_vcpu_that_does_not_answer_is_not_waited_for() {
        let kicked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&kicked);
        let desk = Desk::new(move |vcpu| {
            count.fetch_add(1 << (8 * vcpu), Ordering::Relaxed);
        });
        let states = desk.ask(2, Duration::from_millis(1));
        assert!(states.iter().all(Option::is_none) && states.len() == 2);
        assert_eq!(kicked.load(Ordering::Relaxed), 0x101);
    }
}
