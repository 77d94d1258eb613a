//! Free page reports: the hypercalls by which the guest tells the host which pages it does not need.
//!
//! The pages are discarded on the vCPU's thread, before the call returns: after that the guest may
//! use them again, and a later discard would destroy what it has written. The device has no part in
//! this, since the pages stay the guest's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use dynmem_protocol::{CAN_DISCARD, HeatHint, MEMORY_HEAT_HINT, QUERY_CAPABILITIES};
use kvm_hyperv::hypercall::{ExtendedCall, Status};
use page_range::{PageCount, PageRange};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::BackendError;
use crate::shared::lock;

/// The most pages that one call discards: 1 GiB, the largest page that a range can be made of. Linux
/// reports 128 MiB in a call at most. The host takes some 30 ms for that much anonymous memory, and
/// 100 ms for that much of a memfd; for so long a reset or a stop may wait for the vCPU.
const MOST_IN_A_CALL: PageCount = PageCount::from_bytes(1 << 30);

/// Discards pages that the guest has reported as free; see
/// [`DynamicMemoryHandle::report_free_pages`](crate::DynamicMemoryHandle::report_free_pages).
pub trait FreePages: Send + Sync + 'static {
    /// Gives the memory behind these pages back to the host, and returns when that is done. The pages
    /// remain the guest's: at its next touch it must find a page of zeros, or what was there before.
    ///
    /// Called on vCPU threads, several at a time, also while a
    /// [`MemoryBackend`](crate::MemoryBackend) works. The ranges are in the guest's memory, of
    /// [`Platform::memory`](crate::Platform::memory); they may overlap, and are in any order. Together
    /// they are at most 1 GiB.
    ///
    /// # Errors
    /// If some of the pages are not discarded. The guest is not told.
    fn discard(&self, ranges: &[PageRange]) -> Result<(), BackendError>;
}

/// What a machine's guest has reported as free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reported {
    /// Calls of which pages were discarded.
    pub calls: u64,
    /// The pages that were discarded, each as often as the guest reported it.
    pub pages: PageCount,
}

/// The host's side of reports.
#[derive(Default)]
pub(crate) struct Reporting {
    gate: Mutex<Gate>,
    /// No discard is running.
    idle: Condvar,
    calls: AtomicU64,
    pages: AtomicU64,
}

/// Never locked over a system call, since vCPUs wait for it.
#[derive(Default)]
struct Gate {
    /// Absent if the guest is offered nothing.
    pages: Option<Arc<dyn FreePages>>,
    is_inhibited: bool,
    /// Discards that are running.
    running: usize,
}

/// A running discard.
struct Running<'a>(&'a Reporting);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut gate = lock(&self.0.gate);
        gate.running = gate.running.saturating_sub(1);
        if gate.running == 0 {
            self.0.idle.notify_all();
        }
    }
}

impl Reporting {
    /// Discards reported pages with `pages` from now on. Returns once no other discard is running.
    pub(crate) fn offer(&self, pages: Option<Arc<dyn FreePages>>) {
        // Dropped at the end, without the lock: perhaps memory is unmapped with it.
        let _old = std::mem::replace(&mut lock(&self.gate).pages, pages);
        self.wait_until_idle();
        self.calls.store(0, Ordering::Relaxed);
        self.pages.store(0, Ordering::Relaxed);
    }

    /// Forbids discards from now on, or allows them again.
    pub(crate) fn set_inhibited(&self, is_inhibited: bool) {
        lock(&self.gate).is_inhibited = is_inhibited;
    }

    /// Waits until no discard is running. Where they are not forbidden, others may begin meanwhile.
    pub(crate) fn wait_until_idle(&self) {
        let idle = self.idle.wait_while(lock(&self.gate), |gate| gate.running > 0);
        drop(idle.unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn reported(&self) -> Reported {
        let pages = PageCount::new(self.pages.load(Ordering::Relaxed));
        Reported { calls: self.calls.load(Ordering::Relaxed), pages }
    }

    /// Answers an extended hypercall: its status, and the reps that are done. `failed` is told why
    /// pages could not be discarded.
    pub(crate) fn answer<M: GuestMemoryBackend>(
        &self,
        call: &ExtendedCall,
        memory: &M,
        failed: impl FnOnce(BackendError),
    ) -> (Status, u16) {
        if lock(&self.gate).pages.is_none() {
            return (Status::INVALID_CODE, 0);
        }
        match call.code {
            QUERY_CAPABILITIES => {
                let written = call
                    .simple()
                    .and_then(|()| call.write_output(memory, &CAN_DISCARD.to_le_bytes()));
                (written.err().unwrap_or(Status::SUCCESS), 0)
            }
            MEMORY_HEAT_HINT => {
                self.heat_hint(call, memory, failed).unwrap_or_else(|status| (status, 0))
            }
            _ => (Status::INVALID_CODE, 0),
        }
    }

    fn heat_hint<M: GuestMemoryBackend>(
        &self,
        call: &ExtendedCall,
        memory: &M,
        failed: impl FnOnce(BackendError),
    ) -> Result<(Status, u16), Status> {
        let reps = call.reps()?;
        // More than fit into a page.
        let size = HeatHint::size(reps.end.into()).ok_or(Status::INVALID_ALIGNMENT)?;
        let input = call.read_input(memory, size)?;
        let hint = HeatHint::parse(&input).ok_or(Status::INVALID_PARAMETER)?;
        let free = hint.take(reps.start.into(), MOST_IN_A_CALL, |range| is_ram(memory, range));
        self.discard(&free.ranges, failed);
        let status = if free.is_refused { Status::INVALID_PARAMETER } else { Status::SUCCESS };
        Ok((status, u16::try_from(free.completed).unwrap_or(reps.end)))
    }

    /// Discards pages, unless that is inhibited: a hint may be ignored.
    fn discard(&self, ranges: &[PageRange], failed: impl FnOnce(BackendError)) {
        if ranges.is_empty() {
            return;
        }
        let Some((pages, running)) = self.begin() else { return };
        match pages.discard(ranges) {
            Ok(()) => {
                let count = ranges.iter().map(|range| range.count().get()).sum();
                self.calls.fetch_add(1, Ordering::Relaxed);
                self.pages.fetch_add(count, Ordering::Relaxed);
            }
            Err(error) => failed(error),
        }
        drop(running);
    }

    fn begin(&self) -> Option<(Arc<dyn FreePages>, Running<'_>)> {
        let mut gate = lock(&self.gate);
        let pages = gate.pages.clone().filter(|_| !gate.is_inhibited)?;
        gate.running += 1;
        Some((pages, Running(self)))
    }
}

/// Whether the guest has all of these pages: not those of a hole, nor any that were never added.
fn is_ram<M: GuestMemoryBackend>(memory: &M, range: PageRange) -> bool {
    let len = usize::try_from(range.count().bytes());
    len.is_ok_and(|len| memory.check_range(GuestAddress(range.start().gpa().get()), len))
}
