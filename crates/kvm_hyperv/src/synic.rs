//! The SynIC pages of one VP: the message slot and the event flags of SINT 2.
//!
//! KVM keeps SCONTROL, SIMP and SIEFP only as numbers; this module writes the pages behind them.
//!
//! Two writers of one message slot would tear messages, and KVM itself puts timer messages into it,
//! on the vCPU's thread. So messages may be queued from any thread, but [`VpSynic::deliver`] must
//! run on the vCPU's own thread, outside `KVM_RUN`. Event flags are atomic and may be set from any
//! thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, VolatileMemory};

use crate::VMBUS_SINT;
use crate::hypercall::{MAX_PAYLOAD, load};

/// The most messages that may wait for one VP; offers, replies and an unload response are far
/// fewer. The queue must not grow without bound.
pub const MAX_QUEUED: usize = 64;

/// Event flags of one SINT.
pub const EVENT_FLAGS: u16 = 2048;

const PAGE: u64 = 4096;
const ZERO_PAGE: [u8; 4096] = [0; 4096];
const SLOT: u64 = 256;
/// Bytes of a slot after the message type.
const SLOT_REST: usize = 252;
const ENABLED: u64 = 1;
const VMBUS_MESSAGE_TYPE: u32 = 1;
/// Offset of the flags byte in a slot; its bit 0 asks the guest to write EOM.
const FLAGS_OFFSET: u64 = 5;
const MESSAGE_PENDING: u8 = 1;

/// A VP's SynIC registers as the guest last wrote them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct SynicRegisters {
    /// SCONTROL: bit 0 enables the SynIC.
    pub scontrol: u64,
    /// SIEFP: the page of the event flags; bit 0 enables it.
    pub siefp: u64,
    /// SIMP: the page of the message slots; bit 0 enables it.
    pub simp: u64,
}

impl SynicRegisters {
    fn message_page(self) -> Option<u64> {
        self.page(self.simp)
    }

    fn event_page(self) -> Option<u64> {
        self.page(self.siefp)
    }

    fn page(self, register: u64) -> Option<u64> {
        (self.scontrol & register & ENABLED != 0).then_some(register & !(PAGE - 1))
    }
}

/// Too many messages wait for a VP, because the guest does not take them.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{MAX_QUEUED} messages already wait for the virtual processor")]
pub struct QueueFull;

/// A VP's saved SynIC: its registers, and the messages that are not in a slot yet. The message in
/// the slot and the event flags are in guest memory.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct SavedSynic {
    /// The registers.
    pub registers: SynicRegisters,
    /// Payloads of the waiting messages, oldest first: at most [`MAX_QUEUED`] of at most
    /// [`MAX_PAYLOAD`] bytes each.
    pub queue: Vec<Vec<u8>>,
}

/// The [`SavedSynic`] cannot come from a [`VpSynic`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SavedSynicError {
    /// More than [`MAX_QUEUED`] messages.
    #[error("{0} messages are saved for a virtual processor, and at most {MAX_QUEUED} can wait")]
    Queue(usize),
    /// A message of more than [`MAX_PAYLOAD`] bytes.
    #[error("a saved message has {0} bytes, and at most {MAX_PAYLOAD} are possible")]
    Payload(usize),
}

/// The result of [`VpSynic::deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No message waits.
    Idle,
    /// A message is in the slot: raise the SINT. More messages may be waiting for the guest to take
    /// it.
    Delivered,
    /// The slot is busy, or the guest has no message page. Try again on the next acknowledgement
    /// and also after a while, since a crashing guest never acknowledges.
    Blocked,
}

/// The SynIC of one VP.
#[derive(Debug, Default)]
pub struct VpSynic {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    registers: SynicRegisters,
    queue: VecDeque<Vec<u8>>,
}

impl VpSynic {
    /// The state for [`VpSynic::restore`]. Save it together with guest memory, while the vCPU is
    /// stopped and nothing is posted or signalled.
    #[must_use]
    pub fn save(&self) -> SavedSynic {
        let state = self.lock();
        SavedSynic { registers: state.registers, queue: state.queue.iter().cloned().collect() }
    }

    /// Restores the saved state without writing to guest memory, whose pages hold what the guest
    /// has not read yet. KVM does not exit when the VMM restores the MSRs themselves.
    ///
    /// Afterwards deliver and raise the SINT once for each VP: an interrupt may have been on its
    /// way when the VP was saved, and a spurious one does the guest no harm.
    ///
    /// # Errors
    /// [`SavedSynicError`]; nothing has changed.
    pub fn restore(&self, saved: &SavedSynic) -> Result<(), SavedSynicError> {
        if saved.queue.len() > MAX_QUEUED {
            return Err(SavedSynicError::Queue(saved.queue.len()));
        }
        if let Some(payload) = saved.queue.iter().find(|payload| payload.len() > MAX_PAYLOAD) {
            return Err(SavedSynicError::Payload(payload.len()));
        }
        *self.lock() =
            State { registers: saved.registers, queue: saved.queue.iter().cloned().collect() };
        Ok(())
    }

    /// Takes over the registers after the guest wrote one. After a restore of the VM use
    /// [`VpSynic::restore`] instead. Zeroes a page that was just enabled or moved: with
    /// `KVM_CAP_HYPERV_SYNIC2` KVM does not, and an old message type would make the slot look busy
    /// for ever.
    pub fn update<M: GuestMemory>(&self, memory: &M, registers: SynicRegisters) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.registers, registers);
        if before.simp != registers.simp {
            // Waiting messages were for a kernel that is gone, or for none: guests enable the page
            // before they first contact the bus.
            state.queue.clear();
        }
        for (old, new) in [(before.simp, registers.simp), (before.siefp, registers.siefp)] {
            if new & ENABLED != 0 && old != new {
                // A page outside RAM is the guest's own mistake; it receives nothing.
                let _ = memory.write_slice(&ZERO_PAGE, GuestAddress(new & !(PAGE - 1)));
            }
        }
    }

    /// Queues a VMBus message of at most [`MAX_PAYLOAD`] bytes; a longer one is truncated. The
    /// vCPU's thread must then call [`VpSynic::deliver`].
    ///
    /// # Errors
    /// [`QueueFull`] if [`MAX_QUEUED`] messages are waiting for the guest.
    pub fn post(&self, payload: &[u8]) -> Result<(), QueueFull> {
        let mut state = self.lock();
        if state.queue.len() >= MAX_QUEUED {
            return Err(QueueFull);
        }
        state.queue.push_back(payload.iter().copied().take(MAX_PAYLOAD).collect());
        Ok(())
    }

    /// Drops the waiting messages.
    pub fn clear_queue(&self) {
        self.lock().queue.clear();
    }

    /// Whether messages wait.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.lock().queue.is_empty()
    }

    /// Whether [`VpSynic::post`] would accept a message.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.lock().queue.len() < MAX_QUEUED
    }

    /// Puts the oldest message into the slot if that is free. Call this only on the vCPU's thread,
    /// outside `KVM_RUN`.
    pub fn deliver<M: GuestMemory>(&self, memory: &M) -> Delivery {
        let mut state = self.lock();
        let Some(payload) = state.queue.front() else {
            return Delivery::Idle;
        };
        let Some(page) = state.registers.message_page() else {
            return Delivery::Blocked;
        };
        let slot = page + SLOT * u64::from(VMBUS_SINT);
        if !slot_is_free(memory, slot) || !write_message(memory, slot, payload) {
            return Delivery::Blocked;
        }
        state.queue.pop_front();
        Delivery::Delivered
    }

    /// Sets an event flag of SINT 2. Returns whether the SINT must be raised: not if the flag was
    /// already set, nor if the guest has no event page.
    pub fn set_event<M: GuestMemoryBackend>(&self, memory: &M, flag: u16) -> bool {
        // Held to the end: once the guest's write to SIEFP has completed, the old page is the
        // guest's again.
        let state = self.lock();
        let page = match state.registers.event_page() {
            Some(page) if flag < EVENT_FLAGS => page,
            _ => return false,
        };
        let area = page + SLOT * u64::from(VMBUS_SINT);
        let word = area + u64::from(flag / 64) * 8;
        let bit = 1_u64 << (flag % 64);
        memory
            .get_slice(GuestAddress(word), 8)
            .ok()
            .and_then(|slice| {
                let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
                let before = word.fetch_or(bit, Ordering::SeqCst);
                // Only `vm-memory`'s own accesses mark the page as dirty by themselves.
                slice.bitmap().mark_dirty(0, slice.len());
                Some(before & bit == 0)
            })
            .unwrap_or(false)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks whether the slot is free. If not, asks the guest to write EOM once it is, and checks
/// again: the guest may have emptied it just before it could see the request.
fn slot_is_free<M: GuestMemory>(memory: &M, slot: u64) -> bool {
    if load(memory, slot) == Some(0) {
        return true;
    }
    if memory.write_obj(MESSAGE_PENDING, GuestAddress(slot + FLAGS_OFFSET)).is_err() {
        return false;
    }
    fence(Ordering::SeqCst);
    load(memory, slot) == Some(0)
}

fn write_message<M: GuestMemory>(memory: &M, slot: u64, payload: &[u8]) -> bool {
    let mut rest = [0; SLOT_REST];
    let Ok(size) = u8::try_from(payload.len()) else {
        return false;
    };
    rest[0] = size;
    rest[12..12 + payload.len()].copy_from_slice(payload);
    memory.write_slice(&rest, GuestAddress(slot + 4)).is_ok()
        && memory.store(VMBUS_MESSAGE_TYPE, GuestAddress(slot), Ordering::Release).is_ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const SIMP: u64 = 0x1000;
    const SIEFP: u64 = 0x2000;
    const MESSAGE_SLOT: GuestAddress = GuestAddress(SIMP + 512);

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    fn enabled(memory: &GuestMemoryMmap<()>) -> VpSynic {
        let synic = VpSynic::default();
        let registers = SynicRegisters { scontrol: 1, siefp: SIEFP | 1, simp: SIMP | 1 };
        synic.update(memory, registers);
        synic
    }

    #[test]
    fn messages_go_into_the_slot_one_by_one() {
        let memory = memory();
        let synic = enabled(&memory);
        synic.post(&[1, 2, 3]).unwrap();
        synic.post(&[4]).unwrap();
        assert_eq!(synic.deliver(&memory), Delivery::Delivered);
        let mut slot = [0_u8; 20];
        memory.read_slice(&mut slot, MESSAGE_SLOT).unwrap();
        assert_eq!(slot, [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0]);

        assert_eq!(synic.deliver(&memory), Delivery::Blocked);
        memory.read_slice(&mut slot, MESSAGE_SLOT).unwrap();
        assert_eq!(slot[5], 1, "the guest must be asked for EOM");

        memory.write_obj(0_u32, MESSAGE_SLOT).unwrap();
        assert_eq!(synic.deliver(&memory), Delivery::Delivered);
        memory.read_slice(&mut slot, MESSAGE_SLOT).unwrap();
        assert_eq!(slot, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(synic.deliver(&memory), Delivery::Idle);
    }

    #[test]
    fn a_page_is_zeroed_when_the_guest_enables_it() {
        let memory = memory();
        memory.write_obj(7_u32, MESSAGE_SLOT).unwrap();
        let synic = enabled(&memory);
        synic.post(&[1]).unwrap();
        assert_eq!(synic.deliver(&memory), Delivery::Delivered);
    }

    #[test]
    fn nothing_is_written_without_pages_or_outside_memory() {
        let memory = memory();
        let synic = VpSynic::default();
        synic.post(&[1]).unwrap();
        assert_eq!(synic.deliver(&memory), Delivery::Blocked);
        assert!(!synic.set_event(&memory, 1));
        let far = !(PAGE - 1) | 1;
        synic.update(&memory, SynicRegisters { scontrol: 1, siefp: far, simp: far });
        synic.post(&[1]).unwrap();
        assert_eq!(synic.deliver(&memory), Delivery::Blocked);
        assert!(!synic.set_event(&memory, 1));
    }

    #[test]
    fn an_event_raises_the_interrupt_once() {
        let memory = memory();
        let synic = enabled(&memory);
        assert!(synic.set_event(&memory, 65));
        assert!(!synic.set_event(&memory, 65));
        assert!(!synic.set_event(&memory, EVENT_FLAGS));
        let word: u64 = memory.read_obj(GuestAddress(SIEFP + 512 + 8)).unwrap();
        assert_eq!(word, 2);
    }

    #[test]
    fn a_guest_that_takes_no_messages_costs_bounded_memory() {
        let synic = VpSynic::default();
        let accepted = (0..1000).filter(|_| synic.post(&[0; 240]).is_ok()).count();
        assert_eq!(accepted, MAX_QUEUED);
    }

    #[test]
    fn messages_for_a_kernel_that_is_gone_do_not_reach_the_next() {
        let memory = memory();
        let synic = enabled(&memory);
        synic.post(&[1]).unwrap();
        let registers = SynicRegisters { scontrol: 1, siefp: SIEFP | 1, simp: 0x3000 | 1 };
        synic.update(&memory, registers);
        assert_eq!(synic.deliver(&memory), Delivery::Idle);
    }

    #[test]
    fn a_message_that_the_guest_has_not_read_survives_save_and_restore() {
        let memory = memory();
        let synic = enabled(&memory);
        synic.post(&[1, 2, 3]).unwrap();
        synic.post(&[4]).unwrap();
        assert_eq!(synic.deliver(&memory), Delivery::Delivered);
        assert!(synic.set_event(&memory, 65));
        let saved = postcard::to_allocvec(&synic.save()).unwrap();

        let restored = VpSynic::default();
        restored.restore(&postcard::from_bytes(&saved).unwrap()).unwrap();
        let mut slot = [0_u8; 20];
        memory.read_slice(&mut slot, MESSAGE_SLOT).unwrap();
        assert_eq!(slot, [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0]);
        assert!(!restored.set_event(&memory, 65), "the flag is still set");
        assert_eq!(restored.deliver(&memory), Delivery::Blocked);

        // The guest takes it, and then gets the queued one.
        memory.write_obj(0_u32, MESSAGE_SLOT).unwrap();
        assert_eq!(restored.deliver(&memory), Delivery::Delivered);
        memory.read_slice(&mut slot, MESSAGE_SLOT).unwrap();
        assert_eq!(slot, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(restored.save(), SavedSynic { queue: Vec::new(), ..synic.save() });
    }

    #[test]
    fn what_cannot_have_been_saved_is_refused_and_changes_nothing() {
        let memory = memory();
        let synic = enabled(&memory);
        synic.post(&[1]).unwrap();
        let before = synic.save();
        let refused = |queue: Vec<Vec<u8>>| {
            let saved = SavedSynic { queue, ..Default::default() };
            let error = synic.restore(&saved).unwrap_err();
            assert_eq!(synic.save(), before);
            error
        };
        assert_eq!(refused(vec![vec![]; 65]), SavedSynicError::Queue(65));
        assert_eq!(refused(vec![vec![], vec![0; 241]]), SavedSynicError::Payload(241));
        let full = SavedSynic { queue: vec![vec![0; 240]; 64], ..Default::default() };
        synic.restore(&full).unwrap();
        assert_eq!(synic.save(), full);
    }
}
