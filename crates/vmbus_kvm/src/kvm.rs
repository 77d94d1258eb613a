//! A platform for VMMs on `kvm-ioctls`.

use std::io;
use std::sync::Arc;

use kvm_hyperv::signal;
use kvm_hyperv::sint::SintLines;
use kvm_hyperv::vm::GuestVm;
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmbus::protocol::{ConnectionId, VpIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::{Bound, MemoryGuard, Platform};

/// A type that holds a KVM VM.
pub trait HasVm: Send + Sync + 'static {
    /// KVM's handle of the VM.
    fn vm_fd(&self) -> &VmFd;
}

impl HasVm for VmFd {
    fn vm_fd(&self) -> &VmFd {
        self
    }
}

impl<R: GuestMemoryRegion + Send + Sync + 'static> HasVm for GuestVm<R> {
    fn vm_fd(&self) -> &VmFd {
        self.fd()
    }
}

impl<V: HasVm> HasVm for Arc<V> {
    fn vm_fd(&self) -> &VmFd {
        (**self).vm_fd()
    }
}

/// A machine on `kvm-ioctls` with KVM's own interrupt controllers.
pub struct KvmPlatform<A, V = Arc<VmFd>> {
    vm: V,
    memory: A,
    lines: SintLines,
    signals_in_kernel: bool,
    kick: Box<dyn Fn(VpIndex) + Send + Sync>,
}

impl<A, V> KvmPlatform<A, V> {
    /// A machine with these interrupt lines. `kick` gets a vCPU out of `KVM_RUN`; see
    /// [`kick`](kvm_hyperv::kick). `signals_in_kernel` says whether this KVM can signal eventfds
    /// ([`Capabilities::eventfd`](kvm_hyperv::probe::Capabilities::eventfd)).
    pub fn new(
        vm: V,
        memory: A,
        lines: SintLines,
        signals_in_kernel: bool,
        kick: impl Fn(VpIndex) + Send + Sync + 'static,
    ) -> Self {
        Self { vm, memory, lines, signals_in_kernel, kick: Box::new(kick) }
    }

    /// The VM.
    pub const fn vm(&self) -> &V {
        &self.vm
    }
}

impl<A, V> std::fmt::Debug for KvmPlatform<A, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmPlatform").finish_non_exhaustive()
    }
}

impl<A, V> Platform for KvmPlatform<A, V>
where
    A: GuestAddressSpace<M: GuestMemoryBackend, T: Send + Sync + 'static> + Send + Sync + 'static,
    V: HasVm,
{
    type Memory = A;

    fn memory(&self) -> MemoryGuard<Self> {
        self.memory.memory()
    }

    fn kick(&self, vp: VpIndex) {
        (self.kick)(vp);
    }

    fn raise_sint(&self, vp: VpIndex) -> io::Result<()> {
        self.lines.raise(vp.get())
    }

    fn bind_signal(&self, connection: ConnectionId, eventfd: &EventFd) -> io::Result<Bound> {
        if !self.signals_in_kernel {
            return Ok(Bound::ByExit);
        }
        signal::assign(self.vm.vm_fd(), connection.get(), eventfd)?;
        Ok(Bound::InKernel)
    }

    fn unbind_signal(&self, connection: ConnectionId) {
        if self.signals_in_kernel {
            // Fails only if it was never assigned.
            let _ = signal::deassign(self.vm.vm_fd(), connection.get());
        }
    }

    fn acknowledgement(&self, vp: VpIndex) -> Option<&EventFd> {
        self.lines.acknowledged(vp.get())
    }

    const HAS_REFERENCE_TIME: bool = true;

    /// KVM's clock, from which it makes the counter (Linux `get_time_ref_counter`).
    fn reference_time(&self) -> Option<u64> {
        self.vm.vm_fd().get_clock().ok().map(|clock| clock.clock / 100)
    }
}
