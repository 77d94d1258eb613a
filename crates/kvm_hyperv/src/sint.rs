//! SINT 2 of every VP as an interrupt line: an eventfd raises it, and with KVM's full irqchip
//! another one signals the guest's acknowledgement.
//!
//! KVM routes a SINT like any interrupt, by a GSI. How to make [`SintLines`] depends on who owns
//! the routing table:
//!
//! | The routing table is | Lines | Acknowledgements |
//! |---|---|---|
//! | nobody's: the VMM has the full irqchip and no MSIs | [`SintLines::new`] writes all of it | yes |
//! | the VMM's, with the full irqchip | [`SintLines::on_gsis`], after it has added [`sint_route`] for each VP | if wanted |
//! | the VMM's, with a split irqchip | the same | none |
//! | the VMM's, and so are the irqfds | [`SintLines::from_eventfds`] | what the VMM arranges |
//!
//! An acknowledgement needs a resample irqfd, which KVM refuses with a split irqchip: `KVM_IRQFD`
//! fails with `EINVAL` (Linux `kvm_arch_irqfd_allowed`). Such a VMM polls a busy message slot every
//! few milliseconds while a message waits. That costs little, since messages are rare, and is
//! needed anyway: a guest that crashes acknowledges nothing.
//!
//! Three rules hold in every case:
//!
//! - Enable the SynIC of every vCPU (`KVM_CAP_HYPERV_SYNIC2`) before setting the table: KVM notes
//!   whom to notify of acknowledgements when it takes the table.
//! - Use one GSI for each VP, and never reuse it: KVM keeps the number of a removed SINT, and
//!   acknowledgements would reach the new owner.
//! - A route names the VP index, which is the order in which the vCPUs were created unless the VMM
//!   has set another (`HV_X64_MSR_VP_INDEX`).

use std::io;

use kvm_bindings::{
    KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_hv_sint, kvm_irq_routing_irqchip,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::VMBUS_SINT;

/// Pins of KVM's I/O APIC, whose routes come first in the table.
const IOAPIC_PINS: u32 = 24;

/// Inputs of each of the two legacy interrupt controllers.
const PIC_PINS: u32 = 8;

/// The first GSI of [`SintLines::new`], above those of KVM's own interrupt controllers.
const FIRST_SINT_GSI: u32 = 64;

/// Whether KVM signals that the guest has acknowledged a SINT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// Yes. This needs KVM's full irqchip and `KVM_CAP_IRQFD_RESAMPLE`
    /// ([`Capabilities::resample`](crate::probe::Capabilities::resample)).
    Eventfd,
    /// No: the VMM polls busy slots.
    None,
}

/// The lines of a VM's VPs 0 to n − 1.
#[derive(Debug)]
pub struct SintLines {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    raise: EventFd,
    acknowledged: Option<EventFd>,
}

impl SintLines {
    /// Routes SINT 2 of VPs `0..vp_count`, beside the usual routes of the in-kernel interrupt
    /// controllers. This replaces the VM's whole routing table, so it is for a VMM with KVM's full
    /// irqchip that routes nothing else.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new(vm: &VmFd, vp_count: u32) -> io::Result<Self> {
        let routes = routes(vp_count);
        let table = KvmIrqRouting::from_entries(&routes)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        vm.set_gsi_routing(&table)?;
        let gsis = (0..vp_count).map(|vp| FIRST_SINT_GSI + vp);
        Self::on_gsis(vm, gsis, Acknowledgement::Eventfd)
    }

    /// Registers irqfds on GSIs of a table that the caller maintains: one GSI for each VP, in VP
    /// order. Each needs its [`sint_route`] in the table, added before or after this call, and in
    /// every later version of the table.
    ///
    /// # Errors
    /// `EINVAL` for [`Acknowledgement::Eventfd`] with a split irqchip; otherwise the kernel's
    /// error.
    pub fn on_gsis(
        vm: &VmFd,
        gsis: impl IntoIterator<Item = u32>,
        acknowledgement: Acknowledgement,
    ) -> io::Result<Self> {
        let line = |gsi| {
            let raise = EventFd::new(EFD_NONBLOCK)?;
            let acknowledged = match acknowledgement {
                Acknowledgement::Eventfd => {
                    let acknowledged = EventFd::new(EFD_NONBLOCK)?;
                    vm.register_irqfd_with_resample(&raise, &acknowledged, gsi)?;
                    Some(acknowledged)
                }
                Acknowledgement::None => {
                    vm.register_irqfd(&raise, gsi)?;
                    None
                }
            };
            Ok(Line { raise, acknowledged })
        };
        Ok(Self { lines: gsis.into_iter().map(line).collect::<io::Result<_>>()? })
    }

    /// Takes eventfds that raise SINT 2 of each VP, in VP order, from a VMM that registers irqfds
    /// itself.
    pub fn from_eventfds(raise: impl IntoIterator<Item = EventFd>) -> Self {
        let line = |raise| Line { raise, acknowledged: None };
        Self { lines: raise.into_iter().map(line).collect() }
    }

    /// Raises SINT 2 of a VP. KVM does not check SCONTROL, so the caller must. A masked SINT loses
    /// the interrupt. Does nothing for a VP that does not exist.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn raise(&self, vp: u32) -> io::Result<()> {
        self.line(vp).map_or(Ok(()), |line| line.raise.write(1))
    }

    /// The eventfd that KVM signals when VP `vp` writes EOM or ends the interrupt; `None` without
    /// [`Acknowledgement::Eventfd`]. Most acknowledgements say nothing about the message slot, so
    /// check the slot after each.
    #[must_use]
    pub fn acknowledged(&self, vp: u32) -> Option<&EventFd> {
        self.line(vp)?.acknowledged.as_ref()
    }

    fn line(&self, vp: u32) -> Option<&Line> {
        self.lines.get(usize::try_from(vp).ok()?)
    }
}

/// The entry of KVM's routing table that makes `gsi` raise SINT 2 of the VP with index `vp`. The
/// last possible GSI is 4095 (`KVM_MAX_IRQ_ROUTES`).
#[must_use]
pub fn sint_route(gsi: u32, vp: u32) -> kvm_irq_routing_entry {
    let hv_sint = kvm_irq_routing_hv_sint { vcpu: vp, sint: VMBUS_SINT.into() };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_HV_SINT,
        u: kvm_irq_routing_entry__bindgen_ty_1 { hv_sint },
        ..Default::default()
    }
}

fn routes(vp_count: u32) -> Vec<kvm_irq_routing_entry> {
    let pic = (0..PIC_PINS).flat_map(|pin| {
        [
            irqchip_route(pin, KVM_IRQCHIP_PIC_MASTER, pin),
            irqchip_route(PIC_PINS + pin, KVM_IRQCHIP_PIC_SLAVE, pin),
        ]
    });
    let ioapic = (0..IOAPIC_PINS).map(|pin| irqchip_route(pin, KVM_IRQCHIP_IOAPIC, pin));
    let sints = (0..vp_count).map(|vp| sint_route(FIRST_SINT_GSI + vp, vp));
    pic.chain(ioapic).chain(sints).collect()
}

fn irqchip_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip },
        ..Default::default()
    }
}
