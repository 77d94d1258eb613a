//! SINT lines on routes of the VMM's own, with both kinds of irqchip. These need KVM and no
//! Hyper-V: irqfds can be registered whatever their GSIs are routed to.

// UNSAFETY: a route is a C union.
#![expect(unsafe_code, reason = "a route is a C union")]

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_HV_SINT, kvm_enable_cap, kvm_irq_routing_hv_sint,
};
use kvm_hyperv::sint::{Acknowledgement, SintLines, sint_route};
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const GSIS: [u32; 2] = [40, 33];

fn with_full_irqchip() -> VmFd {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    vm
}

fn with_split_irqchip() -> VmFd {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = 24;
    vm.enable_cap(&split).unwrap();
    vm
}

#[test]
fn a_full_irqchip_can_tell_of_acknowledgements() {
    let vm = with_full_irqchip();
    let lines = SintLines::on_gsis(&vm, GSIS, Acknowledgement::Eventfd).unwrap();
    assert!(lines.acknowledged(0).is_some() && lines.acknowledged(1).is_some());
    assert!(lines.acknowledged(2).is_none());
    lines.raise(1).unwrap();
    lines.raise(2).unwrap();
}

#[test]
fn a_split_irqchip_takes_lines_without_acknowledgement_only() {
    let vm = with_split_irqchip();
    let error = SintLines::on_gsis(&vm, GSIS, Acknowledgement::Eventfd).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let lines = SintLines::on_gsis(&vm, GSIS, Acknowledgement::None).unwrap();
    assert!(lines.acknowledged(0).is_none());
    lines.raise(0).unwrap();
}

#[test]
fn lines_of_the_vmms_own_eventfds_raise_the_right_one() {
    let eventfds = [(), ()].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    let lines = SintLines::from_eventfds(eventfds.iter().map(|fd| fd.try_clone().unwrap()));
    lines.raise(1).unwrap();
    assert_eq!(eventfds[1].read().unwrap(), 1);
    assert!(eventfds[0].read().is_err());
}

#[test]
fn a_route_names_the_vp_and_the_sint_of_vmbus() {
    let route = sint_route(77, 3);
    assert_eq!((route.gsi, route.type_), (77, KVM_IRQ_ROUTING_HV_SINT));
    // SAFETY: this is the member that the type names; it is plain integers.
    let kvm_irq_routing_hv_sint { vcpu, sint } = unsafe { route.u.hv_sint };
    assert_eq!((vcpu, sint), (3, 2));
}
