//! SINT 2 of every VP as an interrupt line: one eventfd to raise it, one that KVM signals when
//! the guest has acknowledged.

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

/// The first GSI above KVM's own interrupt controllers. GSIs are never handed to another use:
/// KVM keeps a removed SINT's number, and acknowledgements would reach the new owner.
const FIRST_SINT_GSI: u32 = 64;

/// The lines of all VPs of a VM.
#[derive(Debug)]
pub struct SintLines {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    raise: EventFd,
    acknowledged: EventFd,
}

impl SintLines {
    /// Routes SINT 2 of VPs `0..vp_count`, beside the usual routes of the in-kernel interrupt
    /// controllers, which KVM replaces with this table.
    ///
    /// The SynIC of every vCPU must be enabled before (`KVM_CAP_HYPERV_SYNIC2`): KVM notes whom to
    /// tell of acknowledgements while it takes the table.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(vm: &VmFd, vp_count: u32) -> io::Result<Self> {
        let routes = routes(vp_count);
        let table = KvmIrqRouting::from_entries(&routes)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        vm.set_gsi_routing(&table)?;
        let lines = (0..vp_count)
            .map(|vp| {
                let line = Line {
                    raise: EventFd::new(EFD_NONBLOCK)?,
                    acknowledged: EventFd::new(EFD_NONBLOCK)?,
                };
                let gsi = FIRST_SINT_GSI + vp;
                vm.register_irqfd_with_resample(&line.raise, &line.acknowledged, gsi)?;
                Ok(line)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { lines })
    }

    /// Raises SINT 2 of a VP. KVM does not look at SCONTROL; the caller has. A masked SINT loses
    /// the interrupt.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn raise(&self, vp: u32) -> io::Result<()> {
        self.line(vp).map_or(Ok(()), |line| line.raise.write(1))
    }

    /// The eventfd that KVM signals when VP `vp` wrote EOM or ended the interrupt. Most
    /// acknowledgements say nothing of the message slot: look at it again after each.
    #[must_use]
    pub fn acknowledged(&self, vp: u32) -> Option<&EventFd> {
        self.line(vp).map(|line| &line.acknowledged)
    }

    fn line(&self, vp: u32) -> Option<&Line> {
        self.lines.get(usize::try_from(vp).ok()?)
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
    pic.chain(ioapic).chain((0..vp_count).map(sint_route)).collect()
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

fn sint_route(vp: u32) -> kvm_irq_routing_entry {
    let hv_sint = kvm_irq_routing_hv_sint { vcpu: vp, sint: VMBUS_SINT.into() };
    kvm_irq_routing_entry {
        gsi: FIRST_SINT_GSI + vp,
        type_: KVM_IRQ_ROUTING_HV_SINT,
        u: kvm_irq_routing_entry__bindgen_ty_1 { hv_sint },
        ..Default::default()
    }
}
