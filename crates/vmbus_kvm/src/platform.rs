//! The machine, as the VMM provides it.

use std::io;
use std::sync::Arc;

use kvm_hyperv::memory::GuestBusMemory;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vmbus::protocol::{ConnectionId, VpIndex};
use vmm_sys_util::eventfd::EventFd;

/// A guard that gives access to the memory of a platform's guest.
pub type MemoryGuard<P> = <<P as Platform>::Memory as GuestAddressSpace>::T;

/// A platform's guest memory as the rings of a channel see it.
pub type BusMemory<P> = GuestBusMemory<MemoryGuard<P>>;

/// Where the guest's signals on a connection arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The kernel writes to the eventfd itself.
    InKernel,
    /// `HvSignalEvent` exits to the VMM, and [`Machine::on_exit`](crate::Machine::on_exit) writes
    /// to the eventfd.
    ByExit,
}

/// One machine, from power-on to the next reset.
///
/// Called by the bus thread and the vCPU threads. No method may wait for a vCPU or for the host.
pub trait Platform: Send + Sync + 'static {
    /// The guest's memory: `Arc<GuestMemoryMmap>`, `GuestMemoryAtomic` or any other.
    type Memory: GuestAddressSpace<M: GuestMemoryBackend, T: Send + Sync + 'static>;

    /// The guest's current memory.
    fn memory(&self) -> MemoryGuard<Self>;

    /// Gets a vCPU out of `KVM_RUN`, so that its thread calls
    /// [`Machine::before_run`](crate::Machine::before_run). A kick may be lost: it is repeated
    /// after a few milliseconds.
    fn kick(&self, vp: VpIndex);

    /// Raises SINT 2 of a VP.
    ///
    /// # Errors
    /// The kernel's error.
    fn raise_sint(&self, vp: VpIndex) -> io::Result<()>;

    /// Directs the guest's signals on `connection` to `signal`.
    ///
    /// # Errors
    /// The kernel's error. The guest's driver is then told that the channel cannot be opened.
    fn bind_signal(&self, connection: ConnectionId, signal: &EventFd) -> io::Result<Bound>;

    /// Undoes [`Platform::bind_signal`]. Called once for each binding.
    fn unbind_signal(&self, connection: ConnectionId);

    /// The eventfd that is signalled when the guest has acknowledged an interrupt of SINT 2, if
    /// there is one, such as the resample eventfd of an irqfd. It must stay the same for a VP.
    ///
    /// Without one, a message that waits for its slot is retried every 10 milliseconds; a VMM can
    /// also call [`Machine::acknowledged`](crate::Machine::acknowledged) instead.
    fn acknowledgement(&self, vp: VpIndex) -> Option<&EventFd> {
        let _ = vp;
        None
    }

    /// Whether [`Platform::reference_time`] knows the time. The guest's clock is then set exactly, and not
    /// late by as long as a message is under way.
    const HAS_REFERENCE_TIME: bool = false;

    /// The guest's reference counter (`HV_X64_MSR_TIME_REF_COUNT`) now, in units of 100 ns.
    fn reference_time(&self) -> Option<u64> {
        None
    }
}

impl<P: Platform> Platform for Arc<P> {
    type Memory = P::Memory;

    fn memory(&self) -> MemoryGuard<Self> {
        (**self).memory()
    }

    fn kick(&self, vp: VpIndex) {
        (**self).kick(vp);
    }

    fn raise_sint(&self, vp: VpIndex) -> io::Result<()> {
        (**self).raise_sint(vp)
    }

    fn bind_signal(&self, connection: ConnectionId, signal: &EventFd) -> io::Result<Bound> {
        (**self).bind_signal(connection, signal)
    }

    fn unbind_signal(&self, connection: ConnectionId) {
        (**self).unbind_signal(connection);
    }

    fn acknowledgement(&self, vp: VpIndex) -> Option<&EventFd> {
        (**self).acknowledgement(vp)
    }

    const HAS_REFERENCE_TIME: bool = P::HAS_REFERENCE_TIME;

    fn reference_time(&self) -> Option<u64> {
        (**self).reference_time()
    }
}
